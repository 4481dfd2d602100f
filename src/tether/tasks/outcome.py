"""What a run of classification leaves behind: the outcome, the files it stands in, and reading them again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tether._alpha import TOWERS, Alpha, alpha_of
from tether._files import read_json, read_tensors, write_tensors
from tether.config import plain
from tether.data.reading import files_digest
from tether.data.records import Benchmark
from tether.errors import TetherError
from tether.evaluation import SplitScores, Sweep
from tether.recipe import Recipe

ADAPTER, HEAD_FILE, SCORES, RESULT = "adapter", "head.safetensors", "scores.safetensors", "result.json"
TIME, BASE = "time.json", "base.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run gave: test scores along alpha, which alpha was chosen and why, costs, where everything lies.

    Attributes:
        validation: accuracies on validation pictures, one entry per alpha that was to choose from; of a given
            alpha its own, if there are such pictures.
        file_bytes: what is to be kept besides the base: adapter and head.
        seconds: of training, over all parts of the run that were not killed.
    """

    recipe: Recipe
    benchmark: Benchmark
    test: Sweep
    alpha: Alpha
    alpha_reason: str
    validation: Sequence[Mapping[str, Any]]
    trained_parameters: int
    file_bytes: int
    seconds: float
    peak_memory_bytes: int
    run: Path


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What stands in time.json."""

    training_seconds: float = 0.0
    peak_memory_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Base:
    """What stands in base.json."""

    model: str
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What stands in result.json: of an `Outcome` what stands nowhere else, and the accuracies at every alpha."""

    alpha: float | dict[str, float]
    alpha_reason: str
    test: dict[str, dict[str, Any]]
    validation: tuple[dict[str, Any], ...]
    trained_parameters: int
    file_bytes: int
    peak_memory_bytes: int


def read_outcome(path: Path, recipe: Recipe, benchmark: Benchmark) -> Outcome:
    """What a finished run left in its directory.

    Raises:
        TetherError: it is not finished, a file is not whole, or the test splits are others.
    """
    result = vars(read_json(path / RESULT, _Result))
    return Outcome(
        recipe=recipe,
        benchmark=benchmark,
        test=load_sweep(path / SCORES, benchmark),
        seconds=read_json(path / TIME, Cost).training_seconds,
        run=path,
        **{name: value for name, value in result.items() if name != "test"},
    )


def is_finished(path: Path, test: bool) -> bool:
    """Whether a run has its result, with the test splits if `test`.

    Raises:
        TetherError: the result is not whole, or no run's.
    """
    return (path / RESULT).is_file() and (not test or bool(read_json(path / RESULT, _Result).test))


def head_at(head: Tensor, zero_shot: Tensor, alpha: float) -> Tensor:
    """The linear head on the way from the zero-shot classifier to the trained one."""
    return zero_shot + alpha * (head - zero_shot)


def save_head(path: Path, head: Tensor, zero_shot: Tensor) -> None:
    """Keep a trained head and the zero-shot classifier that it began as, both [classes, dim]."""
    write_tensors(path, {"weight": head, "zero_shot": zero_shot})


def read_head(path: Path) -> tuple[Tensor, Tensor]:
    """A trained head and the zero-shot classifier that it began as, as `save_head` keeps them.

    Raises:
        TetherError: the file is missing, not whole or another one.
    """
    tensors = read_tensors(path)
    head, zero_shot = tensors.get("weight"), tensors.get("zero_shot")
    if head is None or zero_shot is None or head.ndim != 2 or head.shape != zero_shot.shape:
        found = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in list(tensors.items())[:4])
        raise TetherError(
            f"{path} is no {HEAD_FILE} of a run: expected weight and zero_shot, both [classes, dim]; found "
            f"{found or 'nothing'}."
        )
    return head, zero_shot


def head_of(adapter: Path) -> Path:
    """The file of the head that was trained with an adapter: beside its folder, as in a run, or in it.

    Raises:
        TetherError: there is none.
    """
    for path in (adapter / HEAD_FILE, adapter.absolute().parent / HEAD_FILE):
        if path.is_file():
            return path
    raise TetherError(
        f"{adapter} was trained with a linear head, but there is no {HEAD_FILE} in it or beside it. Copy the whole "
        f"run, or put that file into {adapter}."
    )


def save_sweep(path: Path, sweep: Sweep) -> None:
    """Keep the answers to every test picture at every alpha, so that tables can be made again."""
    tensors = {
        json.dumps([plain(alpha), name, part]): getattr(scores, part)
        for alpha, by_split in zip(sweep.alphas, sweep.scores, strict=True)
        for name, scores in by_split.items()
        for part in ("predictions", "confidences", "ranks")
    }
    write_tensors(path, tensors)


def load_sweep(path: Path, benchmark: Benchmark) -> Sweep:
    """What `save_sweep` kept, by rising alpha.

    Raises:
        TetherError: the file is missing or not whole, or of other test splits.
    """
    by_alpha: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in read_tensors(path).items():
        alpha, name, part = json.loads(key)
        by_alpha.setdefault(json.dumps(alpha), {}).setdefault(name, {})[part] = tensor
    classes, scores = len(benchmark.class_names), {}
    for text, parts in by_alpha.items():
        if parts.keys() != benchmark.tests.keys():
            raise TetherError(f"{path} is of the test splits {sorted(parts)}, not {sorted(benchmark.tests)}.")
        scores[text] = {
            name: SplitScores(split=split, classes=classes, **parts[name])
            for name, split in benchmark.tests.items()
        }
    order = sorted(scores, key=lambda text: [alpha_of(json.loads(text), tower) for tower in TOWERS])
    return Sweep(tuple(json.loads(text) for text in order), tuple(scores[text] for text in order))


def digests(benchmark: Benchmark) -> dict[str, Any]:
    """Size and hashes of every split, as they stand in a run's `splits.json`.

    Raises:
        TetherError: a picture is missing.
    """
    splits = {"train": benchmark.train, "validation": benchmark.validation, **benchmark.tests}
    return {
        name: {"pictures": len(split), "sha256": split.digest, "files": files_digest(split)}
        for name, split in splits.items()
    }
