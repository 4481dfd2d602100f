"""A made-up comparison for tests of tables and reports. Its numbers are drawn by chance and mean nothing.

python tests/evaluation/demo.py report.html
"""

import math
import sys
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from tether.data.records import Example, ImageRef, Split
from tether.evaluation.alpha import choose_alpha
from tether.evaluation.effective_robustness import logit, sigmoid
from tether.evaluation.report import write_report
from tether.evaluation.results import BaselinePoint, PathPoint, Results, Trial, Tuning
from tether.evaluation.scores import SplitScores, Sweep, alpha_text
from tether.evaluation.summary import changed_answers, describe_domains, differences, summarise

CLASSES = (
    "face smiling",
    "animal mammal",
    "food & drink",
    "sky & weather",
    "vehicle",
    "tool",
    "plant",
    "sport",
)
SHIFTED = ("noto", "fluent", "high-contrast", "monotone", "fxemoji")
ALPHAS = tuple(i / 10 for i in range(11))

# Right answers per method: in-distribution and the five shifts at alpha 1 (or at the method's own setting).
LEVELS = {
    "zero-shot": (0.50, (0.58, 0.62, 0.45, 0.48, 0.53)),
    "linear probe": (0.56, (0.53, 0.57, 0.41, 0.43, 0.49)),
    "full fine-tuning": (0.585, (0.46, 0.50, 0.35, 0.36, 0.42)),
    "FLYP + WiSE-FT": (0.593, (0.55, 0.59, 0.44, 0.45, 0.50)),
    "R-Adapter": (0.60, (0.60, 0.63, 0.48, 0.50, 0.55)),
}
COSTS = {
    "zero-shot": (0, 0, 0.0, 400_000_000),
    "linear probe": (16_000, 64_000, 12.0, 500_000_000),
    "full fine-tuning": (9_800_000, 19_600_000, 240.0, 1_900_000_000),
    "FLYP + WiSE-FT": (9_800_000, 19_600_000, 250.0, 1_900_000_000),
    "R-Adapter": (820_000, 1_640_000, 130.0, 900_000_000),
}


TUNING = Tuning(
    budget=4,
    points=6,
    steps=1200,
    chosen={"optimizer.lr": "0.0003", "adapter.drop": "0.2"},
    trials=(
        Trial(values={"optimizer.lr": "0.0001", "adapter.drop": "0"}, validation=0.571),
        Trial(values={"optimizer.lr": "0.0003", "adapter.drop": "0.2"}, validation=0.604),
        Trial(values={"optimizer.lr": "0.1", "adapter.drop": "0.2"}, validation=None),
    ),
)


def split(name: str, n: int, **rest) -> Split:
    examples = tuple(
        Example(ImageRef("demo", f"{rest.get('domain', name)}/{i}.png"), i % 8, identity=f"thing {i}")
        for i in range(n)
    )
    return Split(name=name, examples=examples, **{"domain": name, **rest})


def scores(of: Split, level: float, seed: int) -> SplitScores:
    """About `level` right answers; hard pictures are hard for every method, as in life."""
    n = len(of)
    shared = torch.rand(n, generator=torch.Generator().manual_seed(len(of.domain)))
    own = torch.Generator().manual_seed(seed)
    difficulty = (shared * 3 + torch.rand(n, generator=own)) / 4
    ranks = (difficulty > torch.quantile(difficulty, level)).long() * torch.randint(1, 8, (n,), generator=own)
    labels = torch.tensor([example.label for example in of.examples])
    confidences = (0.3 + 0.7 * torch.rand(n, generator=own)).double()
    return SplitScores(
        split=of, predictions=(labels + ranks) % 8, ranks=ranks, confidences=confidences, classes=len(CLASSES)
    )


def demo_runs(seeds: int = 3, n: int = 459) -> dict[str, dict[int, dict[str, SplitScores]]]:
    tests = {name: split(name, n) for name in ("twemoji", *SHIFTED)}
    runs = {}
    for m, (method, (inner, outer)) in enumerate(LEVELS.items()):
        levels = dict(zip(tests, (inner, *outer), strict=True))
        runs[method] = {
            seed: {
                name: scores(tests[name], levels[name] + 0.01 * math.sin(7 * seed + m), 100 * m + seed)
                for name in tests
            }
            for seed in range(1 if method == "zero-shot" else seeds)
        }
    return runs


def demo_sweep(n: int = 230, grid: bool = False) -> Sweep:
    """Validation falls off beyond alpha 0.7, simulated shifts beyond 0.4."""
    validation = split("validation", n)
    shifts = {
        name: replace(validation, alteration=f"simulated:{name}:0")
        for name in ("greyscale", "hue", "posterise")
    }
    alphas = (
        ALPHAS if not grid else tuple({"image": i / 4, "text": t / 4} for i in range(5) for t in range(5))
    )
    found = []
    for alpha in alphas:
        middle = alpha if not grid else (alpha["image"] + alpha["text"]) / 2
        at = {"validation": scores(validation, 0.60 - 0.2 * (middle - 0.7) ** 2, 0)}
        at |= {
            name: scores(own, 0.5 - 0.02 * i - 0.25 * (middle - 0.4) ** 2, i)
            for i, (name, own) in enumerate(shifts.items())
        }
        found.append(at)
    return Sweep(alphas, tuple(found))


def _moved(first, n: int, alpha: float):
    """Answers of R-Adapter at an alpha, on two of the domains."""
    for name in ("twemoji", SHIFTED[0]):
        yield name, {name: scores(first["zero-shot"][name].split, 0.5 + 0.1 * alpha, round(10 * alpha))}


def demo_results(seeds: int = 3, n: int = 459, grid: bool = False) -> Results:
    runs = demo_runs(seeds, n)
    first = {name: next(iter(run.values())) for name, run in runs.items()}
    choice = choose_alpha(demo_sweep(grid=grid), "validation", ("greyscale", "hue", "posterise"))
    path = tuple(
        PathPoint(
            alpha=alpha,
            in_distribution=0.50 + 0.19 * alpha - 0.09 * alpha**2,
            shifted_mean=0.532 + 0.14 * alpha - 0.17 * alpha**2,
            measures={
                name: 0.5 + (0.15 - 0.02 * i) * alpha - (0.06 + 0.03 * i) * alpha**2
                for i, name in enumerate(("twemoji", *SHIFTED))
            },
            changes=tuple(
                changed_answers(name, first["zero-shot"][name], moved[name], CLASSES, limit=2)
                for name, moved in _moved(first, n, alpha)
            ),
        )
        for alpha in ALPHAS
    )
    methods = [
        summarise(
            name,
            run,
            SHIFTED,
            alpha={"R-Adapter": alpha_text(choice.alpha), "FLYP + WiSE-FT": "0.4"}.get(name, ""),
            description="Invented, to see how a row looks.",
            path=path if name == "R-Adapter" else (),
            steps=300 if name != "zero-shot" else None,
            tuning=TUNING if name == "R-Adapter" else None,
            **dict(
                zip(
                    ("trained_parameters", "file_bytes", "seconds", "peak_memory_bytes"),
                    COSTS[name],
                    strict=True,
                )
            ),
        )
        for name, run in runs.items()
    ]
    levels = [0.45, 0.5, 0.53, 0.57, 0.6, 0.62]
    return Results(
        title="Demonstration of the report (made-up numbers)",
        data_set="Not a data set: answers drawn by chance, to see how a report looks.",
        domains=describe_domains(first["zero-shot"], "twemoji"),
        methods=tuple(methods),
        zero_shot="zero-shot",
        highlighted="R-Adapter",
        alpha=choice,
        changes=tuple(
            changed_answers(name, first["zero-shot"][name], first["R-Adapter"][name], CLASSES, limit=6)
            for name in ("twemoji", *SHIFTED)
        ),
        differences=differences(runs, "full fine-tuning", ["twemoji"], list(SHIFTED), draws=2000),
        baseline=tuple(
            BaselinePoint(
                name=f"ordinary {i}",
                in_distribution=level,
                shifted_mean=sigmoid(logit(level) - 0.45 + 0.05 * math.sin(9 * i)),
            )
            for i, level in enumerate(levels)
        ),
        templates=("a drawing of {}.", "an emoji of {}."),
        settings={"model": "none", "seeds": str(seeds), "training data": "none", "transform": "none"},
        versions={"tether": "0.1.0", "torch": torch.__version__},
        notes=("Every number on this page is invented. It shows how a report looks and nothing else.",),
    )


def picture(domain: str, index: int) -> Image.Image:
    image = Image.new("RGB", (112, 112), "white")
    draw = ImageDraw.Draw(image)
    colour = tuple((index * k + len(domain) * 37) % 200 for k in (53, 101, 17))
    (draw.ellipse if index % 2 else draw.rectangle)((16, 16, 96, 96), fill=colour)
    return image


if __name__ == "__main__":
    write_report(demo_results(), Path(sys.argv[1]), picture)
