"""What training leaves in a run directory besides the weights, and taking it over into another run."""

import resource
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tether._distributed import is_main
from tether._files import new_folder, read_json, read_tensors, write_json
from tether.config import plain
from tether.errors import TetherError
from tether.recipe import Recipe, to_plain
from tether.runs.outcome import RESULT, TIME, Cost
from tether.training import RunDirectory
from tether.training.checkpoint import is_complete, latest_checkpoint
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


def whole_training(run: Path) -> tuple[Path, Cost] | None:
    """The checkpoint at the end of a finished run's training, and what that took; None where it is not all there and
    whole.

    The checkpoint holds what was trained, its running average and its head, bit for bit as training left them.
    """
    last = max((run / "checkpoints").glob("step-*"), default=None)
    if last is None or not is_complete(last) or not (run / RESULT).is_file():
        return None
    try:
        if (run / PROBE).is_file():
            read_tensors(run / PROBE)
        return last, read_json(run / TIME, Cost)
    except TetherError:
        return None


def take_over(trained: Path, kept: RunDirectory, recipe: Recipe) -> None:
    """Put what another run trained into this run, so that there is nothing left to train, and note whose it is.

    Raises:
        TetherError: the other run is not finished, not whole, or was trained otherwise.
    """
    if latest_checkpoint(kept.checkpoints):
        return
    found = whole_training(trained)
    if found is None:
        raise TetherError(f"{trained} is no finished run with its checkpoint; it cannot be built upon.")
    if training_part(read_json(trained / "config.json", dict)) != training_part(to_plain(recipe)):
        raise TetherError(f"{trained} was trained otherwise than {recipe.name} asks for; train anew.")
    checkpoint, cost = found
    shutil.rmtree(kept.checkpoints, ignore_errors=True)  # none of its own is whole
    with new_folder(kept.checkpoints / checkpoint.name) as temporary:
        shutil.copytree(checkpoint, temporary, dirs_exist_ok=True)
    if (trained / PROBE).is_file():
        shutil.copy2(trained / PROBE, kept.path)
    write_json(kept.path / TIME, plain(replace(cost, trained_in=cost.trained_in or trained.name)))


@contextmanager
def measured(kept: RunDirectory, device: torch.device) -> Iterator[None]:
    """Add the time that is spent inside to the run's, also when it is stopped, and keep the peak of its memory.

    Where another run was trained for this one, the time stays that run's: here its checkpoint is only read.
    """
    path, started = kept.path / TIME, time.perf_counter()
    try:
        yield
    finally:
        if is_main():
            before = read_json(path, Cost) if path.exists() else Cost()
            passed = 0.0 if before.trained_in else time.perf_counter() - started
            peak = max(before.peak_memory_bytes, peak_memory(device))
            cost = replace(before, training_seconds=before.training_seconds + passed, peak_memory_bytes=peak)
            write_json(path, plain(cost))


def peak_memory(device: torch.device) -> int:
    """Most memory that was in use, in bytes: of the device, or of this process where that is the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
