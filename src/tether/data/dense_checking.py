"""What is wrong with the answers of a benchmark, listed before somebody waits for a training that stops at one."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from tether.data.dense import DenseBenchmark, DenseExample
from tether.data.reading import read_image
from tether.data.records import MadeImage
from tether.data.targets import IGNORE, Objects, bounds
from tether.errors import TetherError

_TOLERANCE = 2.0
"""Pixels by which a published box may stand out of its picture, or out of its mask: rounding of those who drew it."""


@dataclass(frozen=True)
class Problem:
    """What is wrong with one picture's answer, or with a split.

    Attributes:
        picture: where it is; "" where the whole split is meant.
        severe: whether training would stop at it or learn something wrong; else it may be meant so.
    """

    split: str
    picture: str
    what: str
    severe: bool = True

    def __str__(self) -> str:
        return f"{self.split}: {self.picture + ': ' if self.picture else ''}{self.what}"


def problems(
    benchmark: DenseBenchmark, *, threads: int = 4, progress: Callable[[int, int], None] | None = None
) -> tuple[Problem, ...]:
    """Read every picture with its answer once and list what is wrong: missing and damaged files, masks of another size
    than their picture, unknown values and colours, labels outside the classes, boxes without area or outside their
    picture, and classes without a single object or pixel. Pictures that are made, not read, are taken to be right.

    `progress` is called with (pictures done, pictures in all).
    """
    found: list[Problem] = []
    splits = {"train": benchmark.train, "validation": benchmark.validation}
    splits |= {f"test {name}": split for name, split in benchmark.tests.items() if not split.alteration}
    work = {
        name: [example for example in split.examples if not isinstance(example.image, MadeImage)]
        for name, split in splits.items()
    }
    total, done = sum(map(len, work.values())), 0
    with ThreadPoolExecutor(threads) as pool:
        for name, examples in work.items():
            seen: Counter[int] = Counter()
            for example, result in zip(
                examples, pool.map(lambda one: _look(one, benchmark), examples), strict=True
            ):
                seen.update(result.labels)
                found += [Problem(name, str(example.image), what) for what in result.wrong]
                done += 1
                if progress:
                    progress(done, total)
            if examples:
                found += _unseen(name, benchmark, seen)
    return tuple(found)


def require_sound(
    benchmark: DenseBenchmark, *, threads: int = 4, progress: Callable[[int, int], None] | None = None
) -> None:
    """Refuse a benchmark with severe problems.

    Raises:
        TetherError: with their number, and the first ten.
    """
    severe = [
        problem for problem in problems(benchmark, threads=threads, progress=progress) if problem.severe
    ]
    if severe:
        more = f"\n  and {len(severe) - 10} more" if len(severe) > 10 else ""
        listing = "".join(f"\n  {problem}" for problem in severe[:10])
        raise TetherError(
            f"{benchmark.name} has {len(severe)} problems; mend these or take the pictures out:{listing}{more}"
        )


@dataclass
class _Look:
    labels: set[int] = field(default_factory=set)
    wrong: list[str] = field(default_factory=list)


def _look(example: DenseExample, benchmark: DenseBenchmark) -> _Look:
    """The classes that occur in an example, and what is wrong with it."""
    result = _Look()
    try:
        picture = read_image(example.image)
        target = example.target.read(picture.height, picture.width)
    except TetherError as error:
        result.wrong.append(str(error))
        return result
    for answer in benchmark.answers:
        value = target.semantic if answer == "semantic" else target.objects
        if value is None or (answer == "masks" and target.objects.masks is None):
            result.wrong.append(f"it has no answer of the kind {answer!r}.")
    if (semantic := target.semantic) is not None:
        if semantic.shape != (picture.height, picture.width):
            height, width = semantic.shape
            result.wrong.append(
                f"its mask has {width} × {height} pixels, and the picture {picture.width} × {picture.height}."
            )
        labels = set(np.unique(semantic).tolist()) - {IGNORE}
        result.labels |= labels
        if outside := sorted(label for label in labels if not 0 <= label < len(benchmark.semantic_names)):
            result.wrong.append(
                f"its mask has the classes {outside[:5]}, but there are {len(benchmark.semantic_names)}."
            )
        if not labels:
            result.wrong.append(
                "every pixel of its mask is ignored; there is nothing to learn or to judge by."
            )
    if target.objects is not None:
        labels = set(target.objects.labels.tolist())
        result.labels |= labels
        if outside := sorted(label for label in labels if not 0 <= label < len(benchmark.class_names)):
            result.wrong.append(
                f"it has the classes {outside[:5]}, but there are {len(benchmark.class_names)}."
            )
        result.wrong += _wrong_boxes(target.objects, picture.height, picture.width)
    return result


def _wrong_boxes(objects: Objects, height: int, width: int) -> Iterator[str]:
    for number, (left, top, right, bottom) in enumerate(objects.boxes.tolist()):
        box = f"box {number} ({left:g}, {top:g}, {right:g}, {bottom:g})"
        if not (right > left and bottom > top):
            yield f"{box} has no area."
        elif min(left, top) < -_TOLERANCE or right > width + _TOLERANCE or bottom > height + _TOLERANCE:
            yield f"{box} stands out of the picture of {width} × {height} pixels."
        elif objects.masks is not None and not objects.crowd[number]:
            mask = objects.masks[number]
            if not mask.any():
                yield f"{box} has a mask without a pixel."
            elif np.abs(np.array(bounds(mask)) - objects.boxes[number]).max() > _TOLERANCE + 1:
                yield f"{box} is not around its mask, which reaches over {bounds(mask)}."


def _unseen(name: str, benchmark: DenseBenchmark, seen: Counter[int]) -> list[Problem]:
    """Classes that do not occur; in training that is severe."""
    names = benchmark.semantic_names if "semantic" in benchmark.answers else benchmark.class_names
    missing = [word for label, word in enumerate(names) if label not in seen and word != benchmark.background]
    if not missing:
        return []
    shown = ", ".join(map(repr, missing[:10])) + (f" and {len(missing) - 10} more" if missing[10:] else "")
    what = f"{len(missing)} of {len(names)} classes occur in no picture: {shown}."
    return [Problem(name, "", what, severe=name == "train")]
