"""One process of a launch that reconstructs; its exit statuses go beside the file of commands.

python -m torch.distributed.run --standalone --nproc_per_node 2 reconstruct_worker.py COMMANDS.json
python reconstruct_worker.py COMMANDS.json RANK PORT  # where nothing has launched it
"""

import json
import os
import sys
from pathlib import Path

from vqgan.cli.main import main as command
from vqgan.inference import reading


def main(commands: str, rank: str = "", port: str = "") -> int:
    if rank:
        os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    reading.GROUP_PIXELS = 4 * 16**2
    statuses = [command(argv) for argv in json.loads(Path(commands).read_text("utf-8"))]
    Path(commands).with_name(f"statuses{os.environ['RANK']}.json").write_text(json.dumps(statuses))
    return 2 if 2 in statuses else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
