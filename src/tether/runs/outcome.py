"""What a run of classification leaves behind: the outcome, the files it stands in, and reading them again."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from tether._alpha import TOWERS, Alpha, alpha_of
from tether._files import read_json, read_tensors, sha256_file, write_tensors
from tether.config import plain
from tether.data.records import PictureBenchmark
from tether.errors import TetherError
from tether.evaluation import Sweep
from tether.recipe import Recipe

ADAPTER, SCORES, RESULT = "adapter", "scores.safetensors", "result.json"
TIME, BASE = "time.json", "base.json"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run gave: test scores along alpha, which alpha was chosen and why, costs, where everything lies.

    Attributes:
        validation: accuracies on validation pictures, one entry per alpha that was to choose from; of a given
            alpha its own, if there are such pictures.
        file_bytes: what is to be kept besides the base: adapter and head.
        seconds: of training, over all parts of the run that were not killed.
        trained_in: the name of the run whose training this was, and whose seconds these are; "" for this one.
    """

    recipe: Recipe
    benchmark: PictureBenchmark
    test: Sweep
    alpha: Alpha
    alpha_reason: str
    validation: Sequence[Mapping[str, Any]]
    trained_parameters: int
    file_bytes: int
    seconds: float
    peak_memory_bytes: int
    run: Path
    trained_in: str = ""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What stands in time.json."""

    training_seconds: float = 0.0
    peak_memory_bytes: int = 0
    trained_in: str = ""
    """The directory of the run that was trained, beside this one, where the trained weights are another run's; the
    seconds are that run's then."""


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
    scores_sha256: str | None = None
    """Of the file of answers; none stands in runs made before."""


def read_outcome(path: Path, recipe: Recipe, benchmark: PictureBenchmark) -> Outcome:
    """What a finished run left in its directory.

    Raises:
        TetherError: it is not finished, a file is not whole, the answers are not those of the result, or the test
            splits are others.
    """
    result, cost = vars(read_json(path / RESULT, _Result)), read_json(path / TIME, Cost)
    expected, scores = result["scores_sha256"], path / SCORES
    if expected and scores.is_file() and sha256_file(scores) != expected:
        raise TetherError(
            f"{scores} was changed after the run: its hash is not the one in {RESULT}. Put it back from a copy; or "
            f"delete {RESULT}, and `tether train --resume {path}` evaluates again without training."
        )
    return Outcome(
        recipe=recipe,
        benchmark=benchmark,
        test=load_sweep(scores, recipe, benchmark),
        seconds=cost.training_seconds,
        trained_in=cost.trained_in,
        run=path,
        **{name: value for name, value in result.items() if name not in ("test", "scores_sha256")},
    )


def is_finished(path: Path, test: bool) -> bool:
    """Whether a run has its result, with the test splits if `test`.

    Raises:
        TetherError: the result is not whole, or no run's.
    """
    return (path / RESULT).is_file() and (not test or bool(read_json(path / RESULT, _Result).test))


def save_sweep(path: Path, sweep: Sweep) -> None:
    """Keep the answers to every test picture at every alpha, so that tables can be made again."""
    tensors = {
        json.dumps([plain(alpha), name, part]): tensor
        for alpha, by_split in zip(sweep.alphas, sweep.scores, strict=True)
        for name, scores in by_split.items()
        for part, tensor in scores.tensors().items()
    }
    write_tensors(path, tensors)


def load_sweep(path: Path, recipe: Recipe, benchmark: PictureBenchmark) -> Sweep:
    """What `save_sweep` kept, by rising alpha.

    Raises:
        TetherError: the file is missing or not whole, or of other test splits.
    """
    by_alpha: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in read_tensors(path).items():
        alpha, name, part = json.loads(key)
        by_alpha.setdefault(json.dumps(alpha), {}).setdefault(name, {})[part] = tensor
    scores = {}
    for text, parts in by_alpha.items():
        if parts.keys() != benchmark.tests.keys():
            raise TetherError(f"{path} is of the test splits {sorted(parts)}, not {sorted(benchmark.tests)}.")
        scores[text] = {
            name: recipe.task.scores(benchmark, split, parts[name]) for name, split in benchmark.tests.items()
        }
    order = sorted(scores, key=lambda text: [alpha_of(json.loads(text), tower) for tower in TOWERS])
    return Sweep(tuple(json.loads(text) for text in order), tuple(scores[text] for text in order))
