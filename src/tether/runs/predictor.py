"""An ensemble that needs both models, as files and as something that classifies pictures.

A folder of it holds `ensemble.json` (written last), `classifiers.safetensors`, for VRF also `vrf.json` with its
failure set, and of the tuned model what is not the base's: an adapter folder or `tuned.safetensors`. A run's
directory is such a folder, and `export_predictor` copies one without the rest of the run.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from tether._alpha import tower_of
from tether._files import new_folder, read_json, refuse_existing, sha256_file, write_json
from tether._sealed import check_part, part_of, read_part, write_part
from tether.adapters import FullConfig, attach
from tether.adapters._tensors import base_tensors
from tether.adapters.base_weights import LOGIT
from tether.adapters.files import Adapter, apply, save_adapter
from tether.adapters.head import Head
from tether.data.reading import as_rgb
from tether.data.transforms import test_transform
from tether.ensembles.ensemble import Ensemble, Mix
from tether.ensembles.output import OutputEnsemble
from tether.ensembles.pair import Pair, tuned_copy
from tether.ensembles.vrf.files import load_vrf, save_vrf
from tether.ensembles.vrf.method import VRF
from tether.errors import TetherError
from tether.evaluation.classifier import Classifier
from tether.models import load
from tether.models.load import absolute, is_here
from tether.models.model import Model
from tether.models.shared_copy import shared_copy

FORMAT = "tether-ensemble-1"
MERGED = "fisher"
DESCRIPTION, CLASSIFIERS, TUNED = "ensemble.json", "classifiers.safetensors", "tuned.safetensors"


class Predictor:
    """Classifies pictures by an ensemble of two models.

        predictor = load_predictor("runs/vrf-001")
        predictor.classify([Image.open("cat.png")])          # [("cat", 0.93)]

    Args:
        mix: a fitted `VRF` or `OutputEnsemble`.
        class_names: of the pair's classifiers.

    Raises:
        TetherError: there are more or fewer names than classes.
    """

    def __init__(self, pair: Pair, mix: Mix, class_names: Sequence[str]) -> None:
        if len(class_names) != pair.classes:
            raise TetherError(f"There are {pair.classes} classes, but {len(class_names)} names of classes.")
        self.pair, self.mix, self.class_names = pair, mix, tuple(class_names)

    def __call__(
        self, pixels: Float[Tensor, "batch 3 h w"], classes: Sequence[int] | None = None
    ) -> Float[Tensor, "batch kept"]:
        """Probabilities over `classes`, or over all, of pixels normalised as the models want them."""
        with self.pair.ready():
            return self.mix(self.pair(pixels), classes)

    def classify(self, pictures: Sequence[Image.Image]) -> list[tuple[str, float]]:
        """The most probable class of each picture and its probability.

        Args:
            pictures: opened ones of any size; prepared as a data set's are (`tether.data.as_rgb`).

        Raises:
            TetherError: it is no list of opened pictures, or an empty one; or a picture has no RGB form.
        """
        if not (
            isinstance(pictures, Sequence)
            and pictures
            and all(isinstance(picture, Image.Image) for picture in pictures)
        ):
            raise TetherError(
                f"classify takes a list of opened pictures, at least one, such as [Image.open('cat.png')]; "
                f"found {pictures!r:.80}."
            )
        transform = test_transform(self.pair.zero_shot.image)
        pixels = torch.stack([transform(as_rgb(picture)) for picture in pictures])
        best = self(pixels).max(-1)
        names = [self.class_names[index] for index in best.indices.tolist()]
        return list(zip(names, best.values.tolist(), strict=True))


def save_ensemble(
    folder: Path, ensemble: Ensemble, class_names: Sequence[str], *, adapter: str | None = None
) -> list[Path]:
    """Write what answers like a fitted ensemble elsewhere, in place of what an earlier call wrote.

    One of two models becomes a predictor (`save_predictor`). One merged into a single model becomes an adapter of
    full fine-tuning, `fisher/`, for use at alpha 1, with its classifier as the head.

    Args:
        folder: of the run, or a new one.
        adapter: name of the tuned model's adapter folder inside it, if there is one; without it the tuned
            weights are stored.

    Returns:
        The files and folders needed besides the base.

    Raises:
        TetherError: adapters are active in the model (`with attached.ordinary(): ...`), or the folder
            cannot be written.
    """
    merged = ensemble.merged()
    if merged is None:
        return save_predictor(folder, Predictor(ensemble.pair, ensemble.mix, class_names), adapter=adapter)
    weights, classifier = merged
    shutil.rmtree(folder / MERGED, ignore_errors=True)
    extra = {"ensemble": MERGED, "alpha": ensemble.alpha}
    merged = _as_full(ensemble.pair.zero_shot, ensemble.pair.delta, weights)
    head = Head(classifier.weight, classifier.weight)  # the same at every alpha
    save_adapter(folder / MERGED, merged, extra=extra, head=head)
    return [folder / MERGED]


def save_predictor(folder: Path, predictor: Predictor, *, adapter: str | None = None) -> list[Path]:
    """Write a predictor beside, or with, the tuned model's weights.

    The base is referred to by its source and fingerprint, and so is a tuned model of its own.

    Args:
        folder: made if need be; the ensemble that is in it already is replaced.
        adapter: name of the adapter folder in it that makes the tuned model; None stores its image tower's
            weights where they differ from the base's.

    Returns:
        The files and folders of which it consists.

    Raises:
        TetherError: the adapter is not there, adapters are active in the zero-shot model, or the folder cannot
            be written.
    """
    pair = predictor.pair
    pair.check_ordinary()
    base = {"source": absolute(pair.zero_shot.source), "fingerprint": pair.zero_shot.fingerprint()}
    if adapter:
        file = folder / adapter / "adapter.safetensors"
        if not file.is_file():
            raise TetherError(f"{file} is missing; save the adapter first.")
        tuned = {"adapter": adapter, "sha256": sha256_file(file)}
    elif pair.delta is None:
        tuned = {"source": absolute(pair.tuned.source), "fingerprint": pair.tuned.fingerprint()}
    else:
        names = [name for name in pair.delta if tower_of(name) == "image"]
        values = base_tensors(pair.tuned.module, names)
        tuned = {"file": TUNED, "sha256": write_part(folder / TUNED, values)}
    tensors = {}
    for name, classifier in zip(("zero_shot", "tuned"), pair.classifiers, strict=True):
        tensors[f"{name}.weight"] = classifier.weight
        if classifier.bias is not None:
            tensors[f"{name}.bias"] = classifier.bias
    description: dict[str, Any] = {
        "format": FORMAT,
        "base": base,
        "tuned": tuned,
        "class_names": list(predictor.class_names),
        "classifiers": {
            "sha256": write_part(folder / CLASSIFIERS, tensors),
            "scales": [classifier.scale for classifier in pair.classifiers],
        },
    }
    if isinstance(predictor.mix, VRF):
        save_vrf(folder, predictor.mix, fingerprint=_identity(base, tuned))
        description["mix"] = {"method": "vrf"}
    else:
        mix: OutputEnsemble = predictor.mix
        description["mix"] = {
            "method": "output",
            "weight": mix.weight,
            "temperatures": list(mix.temperatures),
            "space": mix.space,
        }
    write_json(folder / DESCRIPTION, description)
    return [folder / part for part in _parts(folder, description)]


def load_predictor(
    folder: str | Path, *, source: str | None = None, device: torch.device | str = "cpu"
) -> Predictor:
    """Read what `save_predictor` wrote; on the same machine it answers bit for bit as before.

    Args:
        source: where the base is now, if not where it was.

    Raises:
        TetherError: a file is missing, damaged or not one of this format; or the base, the adapter or the tuned
            model is another one or not where it was.
    """
    folder = Path(folder)
    description = _description(folder)
    try:
        base, tuned = description["base"], description["tuned"]
        source = source or _at_hand(
            str(base["source"]), "Say where it is now: load_predictor(folder, source=…)."
        )
        model = _same(load(source, device=device), base["fingerprint"])
        delta = None
        if "source" in tuned:
            other_source = _at_hand(str(tuned["source"]), "Put it back, or save the ensemble anew.")
            other = _same(load(other_source, device=device), tuned["fingerprint"])
        elif "adapter" in tuned:
            check_part(part_of(folder, tuned["adapter"]) / "adapter.safetensors", tuned["sha256"])
            attached = apply(model, folder / tuned["adapter"])
            with attached.path() as path:
                other, image = tuned_copy(model, path), path.changes("image")
                if attached.mergeable:  # so that what both have in common is computed once
                    delta = {name: change for name, change in path.delta.items() if name in image}
            attached.detach()
        else:
            values = read_part(part_of(folder, tuned["file"]), tuned["sha256"])
            delta = {name: torch.zeros_like(value) for name, value in values.items()}
            other = replace(model, module=shared_copy(model.module, delta)) if delta else model
            with torch.no_grad():
                for name, tensor in base_tensors(other.module, values).items():
                    tensor.copy_(values[name])
        stored = description["classifiers"]
        tensors = read_part(folder / CLASSIFIERS, stored["sha256"])
        classifiers = [
            Classifier(
                weight=tensors[f"{name}.weight"].to(device),
                bias=tensors[f"{name}.bias"].to(device) if f"{name}.bias" in tensors else None,
                scale=scale,
            )
            for name, scale in zip(("zero_shot", "tuned"), stored["scales"], strict=True)
        ]
        pair = Pair(zero_shot=model, tuned=other, classifiers=(classifiers[0], classifiers[1]), delta=delta)
        mix: Mix
        if description["mix"]["method"] == "vrf":
            mix = load_vrf(folder, fingerprint=_identity(base, tuned)).to(device)
        else:
            options = {name: value for name, value in description["mix"].items() if name != "method"}
            mix = OutputEnsemble(**{**options, "temperatures": tuple(options["temperatures"])})
        return Predictor(pair, mix, description["class_names"])
    except (KeyError, TypeError) as error:
        raise TetherError(f"{folder / DESCRIPTION} lacks or misspells something ({error}).") from error


def export_predictor(run: Path, out: Path) -> None:
    """Copy a run's ensemble to a new folder of its own: all that `load_predictor` needs besides the base.

    Raises:
        TetherError: `out` exists, or the run has no such ensemble.
    """
    refuse_existing(out)
    parts = _parts(run, _description(run))
    with new_folder(out) as folder:
        for part in parts:
            path = part_of(run, part)
            (shutil.copytree if path.is_dir() else shutil.copy2)(path, folder / part)


def _as_full(model: Model, delta: Mapping[str, Tensor], merged: Mapping[str, Tensor]) -> Adapter:
    """Merged weights as what full fine-tuning of just these tensors would have left."""
    unchanged = tuple(name for name, _ in model.module.named_parameters() if name not in delta)
    config = FullConfig(exclude=unchanged, train_logit_scale=any(name in delta for name in LOGIT))
    stand_in = attach(shared_copy(model.module, delta), config)
    try:
        state = {name: merged.get(name, tensor).clone() for name, tensor in stand_in.state_dict().items()}
    finally:
        stand_in.detach()
    return Adapter(config, state, model.fingerprint(), alpha=1.0, source=absolute(model.source))


def _parts(folder: Path, description: dict[str, Any]) -> list[str]:
    """Names of all that belongs to an ensemble."""
    tuned = description.get("tuned", {})
    parts = [DESCRIPTION, CLASSIFIERS, *(tuned[key] for key in ("adapter", "file") if key in tuned)]
    if description.get("mix", {}).get("method") == "vrf":
        parts += ["vrf.json", *(path.name for path in folder.glob("vrf-*.safetensors"))]
    return parts


def _at_hand(source: str, advice: str) -> str:
    if not is_here(source):
        raise TetherError(f"There is no folder {source!r}, a model of this ensemble. {advice}")
    return source


def _description(folder: Path) -> dict[str, Any]:
    if not (folder / DESCRIPTION).is_file():
        raise TetherError(
            f"{folder} holds no ensemble of outputs: it has no {DESCRIPTION}, which a run writes whose recipe has "
            f"ensemble.method=output or vrf. Weights are merged instead: tether merge RUN/adapter OUT (or RUN/fisher)."
        )
    description = read_json(folder / DESCRIPTION)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise TetherError(f"{folder / DESCRIPTION} is not of this library's ensembles (format {FORMAT!r}).")
    return description


def _same(model: Model, fingerprint: str) -> Model:
    current = model.fingerprint()
    if current != fingerprint:
        raise TetherError(
            f"The ensemble belongs to a model with fingerprint {fingerprint[:12]}…, but {model.source} has "
            f"{current[:12]}…. Load the model it was made with."
        )
    return model


def _identity(base: dict[str, Any], tuned: dict[str, Any]) -> str:
    """What the features of the failure set depend on; by files, as computed weights may differ in the last bit."""
    return f"{base['fingerprint']}+{tuned.get('sha256', tuned.get('fingerprint'))}"
