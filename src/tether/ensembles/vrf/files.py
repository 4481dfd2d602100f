"""A fitted VRF on disk: `vrf.json` and the failure set as safetensors, in the folder of the model they
belong to."""

import dataclasses
import hashlib
from pathlib import Path

import safetensors.torch

from tether._files import read_json, write_atomically, write_json
from tether._sealed import part_of, read_part
from tether.ensembles.vrf.method import VRF, VRFConfig
from tether.errors import TetherError

_FORMAT = "tether-vrf-2"


def save_vrf(folder: Path, vrf: VRF, *, fingerprint: str) -> None:
    """Write both files; a crash at any moment leaves either the old pair or the new one in force.

    `fingerprint` names the weights of the tuned model that made the features: with other weights they mean
    nothing. The failure set's file is named by its content and `vrf.json`, written last, says which one
    counts.

    Raises:
        TetherError: the folder cannot be written.
    """
    data = safetensors.torch.save({"failures": vrf.failures.cpu().contiguous()}, {"format": _FORMAT})
    digest = hashlib.sha256(data).hexdigest()
    name = f"vrf-{digest[:16]}.safetensors"
    write_atomically(folder / name, lambda temporary: temporary.write_bytes(data))
    settings = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "config": dataclasses.asdict(vrf.config),
        "training_size": vrf.training_size,
        "a": vrf.a,
        "b": vrf.b,
        "temperatures": list(vrf.temperatures),
        "failures": {"file": name, "sha256": digest, "shape": list(vrf.failures.shape)},
    }
    write_json(folder / "vrf.json", settings)
    for old in folder.glob("vrf-*.safetensors"):
        if old.name != name:
            old.unlink()


def load_vrf(folder: Path, *, fingerprint: str) -> VRF:
    """Read what `save_vrf` wrote, on the CPU.

    Raises:
        TetherError: a file is missing, damaged or of another kind, or belongs to other weights than
            `fingerprint`.
    """
    path = folder / "vrf.json"
    settings = read_json(path)
    if not isinstance(settings, dict) or settings.get("format") != _FORMAT:
        raise TetherError(f"{path} is not a VRF saved by this library (format {_FORMAT!r}).")
    if settings.get("fingerprint") != fingerprint:
        raise TetherError(
            f"{path} belongs to a model with fingerprint {settings.get('fingerprint')}; this one has "
            f"{fingerprint}. Fit VRF again for these weights, or load the weights it was fitted with."
        )
    try:
        stored = settings["failures"]
        tensors = read_part(part_of(folder, str(stored["file"])), stored["sha256"])
        zero_shot, tuned = settings["temperatures"]
        return VRF(
            VRFConfig(**settings["config"]),
            tensors["failures"],
            training_size=settings["training_size"],
            a=settings["a"],
            b=settings["b"],
            temperatures=(zero_shot, tuned),
        )
    except (KeyError, TypeError) as error:
        raise TetherError(f"{path} lacks or misspells something ({error}); fit VRF again.") from error
