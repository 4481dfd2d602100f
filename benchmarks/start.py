"""How long it takes until something happens: `python -m benchmarks.start [--rounds 5] [--csv FILE]`.

Each row is a new process, again and again; the figures are medians over these, of wall-clock and of processor time. The
bounds are on processor time, which other load on the machine changes least; a row beyond its bound ends in exit code 1.
The first training step is that of `tether train r-adapter`, on the built-in model and data: the process ends after it.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median

FIRST_STEP = """
import os
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: os._exit(0))
from tether.cli import main
main(["train", "r-adapter"])
"""

ROWS = {  # what is started, and the seconds of processor time that it may take
    "python": (("-c", ""), 0.1),
    "import tether": (("-c", "import tether"), 0.15),
    "import tether.cli": (("-c", "import tether.cli"), 0.4),
    "tether recipes": (("-m", "tether.cli", "recipes"), 1.0),
    "tether recipes r-adapter": (("-m", "tether.cli", "recipes", "r-adapter"), 2.0),
    "tether train r-adaptor (misspelt)": (("-m", "tether.cli", "train", "r-adaptor"), 1.0),
    "first step of tether train r-adapter": (("-c", FIRST_STEP), 30.0),
}


def seconds(words: Sequence[str]) -> tuple[float, float]:
    """Wall-clock and processor time of a new process of this Python, in an empty folder."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        child = subprocess.Popen(
            [sys.executable, *words], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _, _, used = os.wait4(child.pid, 0)
        child.returncode = 0  # it is waited for
        return time.perf_counter() - started, used.ru_utime + used.ru_stime


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--csv", type=Path, help="write the table there too")
    options = parser.parse_args(arguments)
    rows, held = [], True
    print(f"{'':38}{'wall s':>9}{'processor s':>13}{'bound':>8}")
    for what, (words, bound) in ROWS.items():
        wall, processor = map(median, zip(*(seconds(words) for _ in range(options.rounds)), strict=True))
        held &= processor <= bound
        print(
            f"{what:38}{wall:9.2f}{processor:13.2f}{bound:8.2f}{'' if processor <= bound else '  MISSED'}",
            flush=True,
        )
        rows.append((what, f"{wall:.2f}", f"{processor:.2f}", f"{bound:.2f}"))
    if options.csv:
        with options.csv.open("w", newline="") as file:
            csv.writer(file).writerows([("what", "wall s", "processor s", "bound on processor s"), *rows])
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
