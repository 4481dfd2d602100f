"""Does the working tree still do what a revision did? Short runs of every recipe, compared bit for bit.

    python scripts/golden.py REVISION         # or: make golden BASE=REVISION

Both trees are run here, on the same small cut of the built-in data, by the same script and through the command
line alone: rounding differs between processors, so nothing that was recorded on one machine is held against
another. Of every run the trained tensors (by hash), losses, chosen alphas, answers and metrics are compared. What
a tree has beyond the revision is listed and is no difference; what it lacks is one.
"""

import argparse
import csv
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "golden"
CLASSES, TRAINED, VALIDATED, TESTED = 8, 4, 3, 2
"""Classes of the cut, and pictures of each in the three splits."""
SHORT = (
    "training.epochs=2",
    "training.batch_size=16",
    "training.log_every=1",
    "training.checkpoint_every=2",
    "schedule.warmup=1",
)
PASSING = re.compile(
    r"seconds|bytes|memory|examples_per_second|versions?$|versions\.|\.run$|command|extra\.head$"
)
"""Entries of files that tell of time, size, place and format, not of what was computed."""
FORMAT = 1
"""Of records: to be raised where this script records something else, so that none that is kept is taken for it."""
RENAMED: tuple[tuple[str, str], ...] = (
    # Results of format 2 had a column for each measure of classification.
    (r"(\.measures\.[^.]+)\.(top1|top5|mean_per_class|macro_f1|calibration_error)\[", r"\1.values.\2["),
    (r"^head\.safetensors:", "adapter/head.safetensors:"),  # a head is in the folder of its adapter
)
"""Entries that the working tree may have under another name: a pattern of `re`, and what takes its place."""


def compare(revision: str, only: str) -> int:
    """Record both trees side by side and print where they differ; the exit code."""
    commit = _git("rev-parse", "--verify", f"{revision}^{{commit}}")
    base = BUILD / commit[:12]
    if not (base / "tree").is_dir():
        base.mkdir(parents=True, exist_ok=True)
        _git("worktree", "prune")
        _git("worktree", "add", "--force", "--detach", str(base / "tree"), commit)
    now = BUILD / "now"
    shutil.rmtree(now, ignore_errors=True)
    now.mkdir(parents=True)
    table = make_cut(BUILD / "cut")
    started = time.monotonic()
    recorders = {"now": _recorder(ROOT, now, table, only)}
    if not (base / _name(only)).is_file():  # the same script and data give the same record
        recorders[commit[:12]] = _recorder(base / "tree", base, table, only)
    for name, recorder in recorders.items():
        if recorder.wait():
            print(f"The record of {name} failed; see {BUILD / name / 'log'}.", file=sys.stderr)
            return 2
    expected, found = (json.loads((folder / _name(only)).read_text()) for folder in (base, now))
    differing = _report(expected, found)
    seconds = time.monotonic() - started
    print(f"{len(expected)} commands of {commit[:12]}, {differing} differ now; {seconds:.0f} s.")
    return 1 if differing else 0


def make_cut(folder: Path) -> Path:
    """A manifest of a few pictures of the built-in data, unpacked, the same for both trees."""
    import zipfile

    built_in = ROOT / "src" / "tether" / "data" / "emoji_shift"
    index = json.loads((built_in / "index.json").read_text())
    vendors = (index["in_distribution"], "noto", "fluent-emoji")
    archives = {vendor: zipfile.ZipFile(built_in / f"{vendor}.zip") for vendor in vendors}
    everywhere = set.intersection(*(set(archive.namelist()) for archive in archives.values()))
    by_class: dict[str, dict[str, str]] = {}
    for emoji in index["emojis"]:
        file = f"{emoji['code'].lower()}.webp"
        if file in everywhere:
            by_class.setdefault(emoji["class"], {}).setdefault(emoji["identity"], file)
    enough = [name for name, files in by_class.items() if len(files) >= TRAINED + VALIDATED + TESTED]
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in enough[:: max(1, len(enough) // CLASSES)][:CLASSES]:
        for i, (identity, file) in enumerate(list(by_class[name].items())[: TRAINED + VALIDATED + TESTED]):
            split = "train" if i < TRAINED else "validation" if i < TRAINED + VALIDATED else "test"
            for vendor in vendors if split == "test" else vendors[:1]:
                picture = folder / vendor / file
                picture.parent.mkdir(exist_ok=True)
                if not picture.is_file():
                    picture.write_bytes(archives[vendor].read(file))
                rows.append((f"{vendor}/{file}", index["classes"][name], vendor, split, identity))
    table = folder / "cut.csv"
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("path", "label", "domain", "split", "identity"), *rows])
    return table


def record(tree: Path, out: Path, table: Path, only: str) -> None:
    """Run every command on a tree (which `tether` is imported from) and write what each left."""
    import tether
    from tether.cli import main

    if not Path(tether.__file__).is_relative_to(tree):
        raise SystemExit(f"tether comes from {tether.__file__}, not from {tree}.")
    os.chdir(tree)
    data = f"data={{method: manifest, path: {table}, root: {table.parent}}}"
    left: dict[str, dict[str, Any]] = {}
    folders = [tree / "src" / "tether" / "recipes", tree / "experiments" / "methods"]
    recipes = sorted(path for folder in folders for path in folder.glob("*.yaml"))
    recipes = [path for path in recipes if path.stem != "retrieval"]  # the cut has classes, no captions
    runs = out / "runs"
    shutil.rmtree(runs, ignore_errors=True)

    def run(name: str, folder: Path, *arguments: str) -> None:
        if re.search(only, name):
            print(f"== {name}", flush=True)
            code = main(list(arguments))
            left[name] = {"exit code": code, **dict(_entries(folder))}

    for path in recipes:
        name = path.stem
        words = [data, *SHORT]
        if name == "r-adapter":
            words.append("data.corruptions=mixture")
        run(
            f"train {name}",
            runs / name / "run-001",
            "train",
            str(path),
            "name=run",
            *words,
            "--runs",
            str(runs / name),
        )
    adapter = str(runs / "r-adapter" / "run-001" / "adapter")
    other = str(runs / "r-adapter-no-drop" / "run-001" / "adapter")
    if any(re.search(only, name) for name in ("merge", "rank", "average", "compare")):
        run("merge", runs / "merged", "merge", adapter, str(runs / "merged"))
        run("rank", runs / "ranked", "rank", adapter, "--out", str(runs / "ranked"), "--ranks", "2", "8")
        run(
            "average", runs / "mean", "average", adapter, other, "--out", str(runs / "mean"), "--alpha", "0.5"
        )
        words = [word for text in (data, *SHORT) for word in ("--set", text)]
        run(
            "compare",
            runs / "compared",
            *("compare", "full", "flyp", "wise-ft", "r-adapter", "--seeds", "0", "1", "--tune", "2"),
            *(*words, "--runs", str(runs / "compare"), "--out", str(runs / "compared")),
        )
    (out / _name(only)).write_text(json.dumps(left, indent=1))


def _entries(folder: Path) -> Iterator[tuple[str, Any]]:
    """Everything that was computed, by file and place in it."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".safetensors":
            yield from _tensors(path, "checkpoints" if name.startswith("checkpoints") else name)
        elif path.name == "metrics.jsonl":
            for i, line in enumerate(path.read_text().splitlines()):
                yield from _flat(f"{name}:{i}", json.loads(line))
        elif path.name in ("result.json", "results.json", "adapter.json", "ensemble.json"):
            yield from _flat(name, json.loads(path.read_text()))


def _tensors(path: Path, name: str) -> Iterator[tuple[str, Any]]:
    """Hashes of a file's tensors; those of checkpoints by their hash, as how a state is laid out is no result."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 — it is no mapping
            tensor = file.get_tensor(key).contiguous()
            content = tensor.reshape(-1).view(_bytes()).numpy().tobytes()
            words = f"{tensor.dtype} {list(tensor.shape)} {hashlib.sha256(content).hexdigest()[:16]}"
            yield (f"{name}:{words}", "") if name == "checkpoints" else (f"{name}:{key}", words)


def _bytes() -> Any:
    import torch

    return torch.uint8


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(f"{name}.{key}", item)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from _flat(f"{name}[{i}]", item)
    elif not PASSING.search(name):
        yield name, value


def _report(expected: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]) -> int:
    """Print what is missing or differs; the number of commands in which something does."""
    differing = 0
    for command, entries in expected.items():
        now = found.get(command, {})
        wrong = []
        for name, value in entries.items():
            for pattern, replacement in RENAMED:
                name = name if name in now else re.sub(pattern, replacement, name)
            if PASSING.search(name):
                continue
            if name not in now:
                wrong.append(f"{name} is missing (was {value})")
            elif now[name] != value:
                wrong.append(f"{name} is {now[name]}, was {value}")
        differing += bool(wrong)
        more = len(now.keys() - entries.keys())
        print(f"{'differs' if wrong else 'equal  '}  {command}: {len(entries)} entries, {more} new")
        for line in wrong[:12]:
            print(f"           {line}")
        if len(wrong) > 12:
            print(f"           and {len(wrong) - 12} more")
    for command in found.keys() - expected.keys():
        print(f"new      {command}")
    return differing


def _name(only: str) -> str:
    return f"record-{FORMAT}{only and '-'}{only.replace(' ', '-')}.json"


def _recorder(tree: Path, out: Path, table: Path, only: str) -> subprocess.Popen:
    """A process that records a tree with one thread."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--record", str(tree), str(out), str(table), "--only", only]
    with (out / "log").open("w") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tree)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("revision", nargs="?", help="what the working tree is compared with")
    parser.add_argument("--only", default="", metavar="PATTERN", help="commands in whose name this is found")
    parser.add_argument(
        "--record", nargs=3, type=Path, metavar=("TREE", "OUT", "TABLE"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.record:
        record(*options.record, options.only)
    elif options.revision:
        raise SystemExit(compare(options.revision, options.only))
    else:
        parser.error("name the revision to compare with, such as HEAD~1")
