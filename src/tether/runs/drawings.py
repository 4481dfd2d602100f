"""Some test pictures with truth and answer drawn over them, for the report: kept in `drawings.json` of a run."""

from collections.abc import Sequence
from pathlib import Path

from tether._alpha import Alpha
from tether._files import read_json, write_json
from tether.config import plain
from tether.evaluation.drawing import Drawn
from tether.models.weight_path import Path as WeightsPath
from tether.models.weight_path import restoring
from tether.tasks.task import Task

DRAWINGS = "drawings.json"
MOST = 4
"""Pictures of a domain."""


def draw_some(task: Task, path: WeightsPath, alpha: Alpha) -> list[Drawn]:
    """A few pictures of the in-distribution test and of the first shifted one, as they are answered at alpha.

    At equal distances, the same places in both; none where the task's answers are not seen in pictures.
    """
    if not task.draws:
        return []
    benchmark = task.benchmark
    shifted = [
        name
        for name, split in benchmark.tests.items()
        if name != benchmark.in_distribution and not split.is_corruption and not split.has_other_classes
    ]
    drawn: list[Drawn] = []
    with restoring(path):
        path.set(alpha)
        for name in (benchmark.in_distribution, *shifted[:1]):
            split = benchmark.tests[name]
            count = min(MOST, len(split))
            drawn += task.drawn(split, [number * len(split) // count for number in range(count)])
    return drawn


def save_drawings(run: Path, drawings: Sequence[Drawn]) -> None:
    """Keep them in a run's directory; nothing is written where there are none."""
    if drawings:
        write_json(run / DRAWINGS, [plain(one) for one in drawings])


def read_drawings(run: Path) -> tuple[Drawn, ...]:
    """Those of a run; none where it has none.

    Raises:
        TetherError: the file is not whole.
    """
    return read_json(run / DRAWINGS, tuple[Drawn, ...]) if (run / DRAWINGS).is_file() else ()
