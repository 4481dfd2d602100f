"""What is wrong with any kind of data set, listed before somebody waits for a training that stops at it."""

from tether.data.checking import check
from tether.data.dense import DenseBenchmark
from tether.data.dense_checking import Problem, problems
from tether.data.records import PictureBenchmark
from tether.evaluation.scoring import Progress


def check_data(benchmark: PictureBenchmark, *, progress: Progress | None = None) -> tuple[Problem, ...]:
    """Read every picture once, with its answer where that is more than a label, and list what is wrong.

    Tests that are altered in memory, such as corruptions, are the same pictures once more and passed over.
    """
    if isinstance(benchmark, DenseBenchmark):
        told = (lambda done, total: progress("checking answers", done, total)) if progress else None
        return problems(benchmark, progress=told)
    splits = {"train": benchmark.train, "validation": benchmark.validation}
    splits |= {f"test {name}": split for name, split in benchmark.tests.items() if not split.alteration}
    found = []
    for name, split in splits.items():
        told = (
            (lambda done, total, name=name: progress(f"checking {name}", done, total)) if progress else None
        )
        found += [
            Problem(name, "", one.reason) for one in check(split, progress=told)
        ]  # a reason names its picture
    return tuple(found)
