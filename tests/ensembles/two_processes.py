"""Ensembles and a probe in two processes and in one, for `test_ensembling_distributed.py`.

Usage: two_processes.py FOLDER. Each writes what it found to FOLDER/{0,1,alone}.safetensors.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "evaluation"))
from forked import alone_and_together
from tiny import NAMES, TEMPLATES, tiny_delta, tiny_model, tiny_split, way

from tether.data.dataset import ImageDataset
from tether.data.records import Split
from tether.data.transforms import test_transform
from tether.ensembles import FisherConfig, OutputConfig, VRFConfig
from tether.ensembles.pair import Pair
from tether.evaluation import class_embeddings, zero_shot_classifier
from tether.heads.probe import ProbeConfig, train_probe


def found(splits: dict[str, Split]) -> dict[str, torch.Tensor]:
    """Answers to an odd number of pictures and to a single one; and what was fitted."""
    model = tiny_model()
    delta = {name: 2 * change for name, change in tiny_delta(model).items()}
    pair = Pair.of(
        model,
        way(model, delta),
        lambda _: zero_shot_classifier(model, NAMES, TEMPLATES),
        batch_size=4,
    )
    parts = {"train": splits["training"], "validation": splits["validation"]}
    tests = {name: splits[name] for name in ("odd", "one")}
    result = {}
    for config in (OutputConfig(), VRFConfig(), FisherConfig(examples=5, alpha=0.5, curve=False)):
        method = type(config).__name__
        ensemble = config.fit(pair, **parts)
        result[f"{method} alpha"] = torch.tensor(ensemble.alpha)
        for name, own in ensemble.sweep(tests).at(ensemble.alpha).items():
            result |= {f"{method} {name} {what}": getattr(own, what) for what in ("ranks", "confidences")}
        if method == "VRFConfig":
            result["failures"] = ensemble.mix.failures.clone()
    data = ImageDataset(splits["training"], test_transform(model.image))
    start = class_embeddings(model, NAMES, TEMPLATES)
    result["head"] = train_probe(ProbeConfig(epochs=2, batch_size=6), model, data, start, show_progress=False)
    return result


def main(folder: Path) -> None:
    sizes = {"training": 30, "validation": 15, "odd": 11, "one": 1}
    splits = {name: tiny_split(folder, name, n) for name, n in sizes.items()}
    alone_and_together(folder, lambda: found(splits))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
