"""One of two gloo processes that run a command together: `python encode_worker.py RANK PORT COMMAND ...`."""

import os
import sys

from vqgan.cli.main import main as command
from vqgan.inference import reading


def main(rank: str, port: str, arguments: list[str]) -> int:
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    reading.GROUP_PIXELS = 4 * 16**2
    return command(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
