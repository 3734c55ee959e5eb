"""What `from vqgan import VQGAN` costs beyond `import torch`: seconds, and packages.

    python benchmarks/import_time.py [--rounds 7]

Each import runs in a process of its own; the two take turns, and the first round, which fills the disk cache, is left
out. Packages are counted as new if `import torch` alone does not load them.
"""

import argparse
import statistics
import subprocess
import sys

STATEMENTS = ("import torch", "from vqgan import VQGAN")
TIMED = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
LISTED = "import sys; {}; print(*sorted({{name.split('.')[0] for name in sys.modules}}))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    seconds: dict[str, list[float]] = {statement: [] for statement in STATEMENTS}
    for number in range(rounds + 1):
        for statement in STATEMENTS:
            taken = float(output(TIMED.format(statement)))
            if number:
                seconds[statement].append(taken)
    torch, ours = (statistics.median(seconds[statement]) for statement in STATEMENTS)
    for statement in STATEMENTS:
        low, high = min(seconds[statement]), max(seconds[statement])
        print(f"{statement:24} {statistics.median(seconds[statement]):6.3f} s  ({low:.3f} to {high:.3f})")
    print(f"{'extra':24} {ours - torch:6.3f} s  ({(ours - torch) / torch:+.1%}; goal: below +10 %)")
    before, after = (set(output(LISTED.format(statement)).split()) for statement in STATEMENTS)
    new = sorted(after - before)
    print(f"packages beyond torch's: {', '.join(set_apart(new)) or 'none'}")


def set_apart(names: list[str]) -> list[str]:
    """Names, with those of the standard library marked."""
    return [f"{name} (standard library)" if name in sys.stdlib_module_names else name for name in names]


def output(script: str) -> str:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
