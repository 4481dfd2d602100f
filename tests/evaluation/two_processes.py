"""Evaluation in two processes and in one, for `test_distributed.py`.

Usage: two_processes.py FOLDER. Each writes what it found to FOLDER/{0,1,alone}.safetensors.
"""

import sys
from pathlib import Path

import torch
from forked import alone_and_together
from tiny import NAMES, TEMPLATES, tiny_delta, tiny_model, tiny_split, way

from tether.data.records import Split
from tether.ensembles import alpha_sweep
from tether.evaluation import evaluate, zero_shot_classifier


def found(splits: dict[str, Split]) -> dict[str, torch.Tensor]:
    """Answers to an odd number of pictures and to a single one, as they are and at the end of a path."""
    model = tiny_model()
    scores = evaluate(model, splits, zero_shot_classifier(model, NAMES, TEMPLATES), batch_size=3)
    sweep = alpha_sweep(
        model,
        way(model, tiny_delta(model)),
        splits,
        (0.0, 1.0),
        lambda _: zero_shot_classifier(model, NAMES, TEMPLATES),
    )
    return {
        f"{name} {what}": getattr(own, what)
        for name, own in [*scores.items(), *((f"{name} tuned", own) for name, own in sweep.at(1.0).items())]
        for what in ("predictions", "ranks", "confidences")
    }


def main(folder: Path) -> None:
    splits = {name: tiny_split(folder, name, n) for name, n in (("odd", 11), ("one", 1))}
    alone_and_together(folder, lambda: found(splits))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
