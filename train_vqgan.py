"""Train a VQGAN: `python train_vqgan.py [CONFIG] [key=value ...]`, the same as `vqgan train`."""

import sys

from vqgan.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
