"""Use a trained VQGAN: `python sample.py reconstruct MODEL INPUT OUTPUT`, the same as `vqgan reconstruct`."""

import sys

from vqgan.cli.main import SAMPLE_COMMANDS, main

if __name__ == "__main__":
    sys.exit(main(prog="sample.py", commands=SAMPLE_COMMANDS))
