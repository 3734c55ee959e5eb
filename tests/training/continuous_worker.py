"""One of two gloo processes that train a continuous model together; its weights and its last values, as JSON.

python continuous_worker.py OUT.json RANK PORT [key=value ...]
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from vqgan.config_files import load_config
from vqgan.training import train as training


def main(out: str, rank: str, port: str, overrides: list[str]) -> None:
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    result: dict[str, Any] = {}

    def report(run: Any, plan: Any, values: Any) -> str:
        result.update(model=run.model.weights_hash(), ema=run.ema.model.weights_hash(), values=dict(values))
        return ""

    training.final_report = report
    result["status"] = training.train(load_config(None, overrides), command=["train"])
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
