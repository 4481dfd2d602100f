"""What training leaves in a run directory besides the weights, and taking it over into another run."""

import resource
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tether._distributed import is_main
from tether._files import read_json, write_json
from tether.errors import TetherError
from tether.recipe import Recipe, to_plain
from tether.runs.outcome import RESULT, TIME, Cost
from tether.training import RunDirectory
from tether.training.checkpoint import latest_checkpoint
from tether.training.config import FitConfig

AFTER_TRAINING = ("name", "alpha", "ensemble", "search")
PROBE = "probe.safetensors"


def training_part(options: Mapping[str, Any]) -> dict[str, Any]:
    """What of a recipe, as plain data, decides the trained weights."""
    return {name: value for name, value in without_logs(options).items() if name not in AFTER_TRAINING}


def without_logs(options: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe as plain data without what says nothing about the result, such as how often training is logged."""
    training = options.get("training", {})
    kept = {name: value for name, value in training.items() if name not in FitConfig.MAY_CHANGE}
    return {**options, "training": kept}


def take_over(trained: Path, kept: RunDirectory, recipe: Recipe) -> None:
    """Put another run's last checkpoint into this run, so that there is nothing left to train."""
    if latest_checkpoint(kept.checkpoints):
        return
    checkpoint = latest_checkpoint(trained / "checkpoints")
    if checkpoint is None or not (trained / RESULT).is_file():
        raise TetherError(f"{trained} is no finished run with its checkpoint; it cannot be built upon.")
    if training_part(read_json(trained / "config.json", dict)) != training_part(to_plain(recipe)):
        raise TetherError(f"{trained} was trained otherwise than {recipe.name} asks for; train anew.")
    kept.checkpoints.mkdir(exist_ok=True)
    temporary = kept.checkpoints / f".{checkpoint.name}.tmp"
    shutil.copytree(checkpoint, temporary)
    temporary.rename(kept.checkpoints / checkpoint.name)
    shutil.copy2(trained / TIME, kept.path)
    if (trained / PROBE).is_file():
        shutil.copy2(trained / PROBE, kept.path)


@contextmanager
def measured(kept: RunDirectory, device: torch.device) -> Iterator[None]:
    """Add the time that is spent inside to the run's, also when it is stopped, and keep the peak of its memory."""
    path, started = kept.path / TIME, time.perf_counter()
    try:
        yield
    finally:
        if is_main():
            before = read_json(path, Cost) if path.exists() else Cost()
            seconds = before.training_seconds + time.perf_counter() - started
            peak = max(before.peak_memory_bytes, peak_memory(device))
            write_json(path, {"training_seconds": seconds, "peak_memory_bytes": peak})


def peak_memory(device: torch.device) -> int:
    """Most memory that was in use, in bytes: of the device, or of this process where that is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
