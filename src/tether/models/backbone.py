"""An image model without its head: the ordinary module, what pictures it takes, its features and feature maps."""

import json
import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tether._files import new_folder, refuse_existing, save_tensors
from tether.errors import TetherError
from tether.models.fingerprint import fingerprint
from tether.models.saving import check_finite

Own = TypeVar("Own", bound="Backbone")
Family = Literal["open_clip", "transformers", "timm", "torchvision"]
WEIGHTS = {"open_clip": "open_clip_model.safetensors"}
"""The weights file in a folder of each family, where it is not model.safetensors."""


@dataclass(frozen=True, kw_only=True)
class ImageSpec:
    """What pictures the image tower was trained on.

    Args:
        size: in pixels; a number for squares, (height, width) otherwise.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        interpolation: "bicubic", "bilinear" or "nearest".
        resize: "shortest" keeps the ratio of the sides, so that both reach `before_crop`; "squash" scales each.
        before_crop: what pictures are scaled to before their centre is cropped to `size`; None is `size` itself.

    Raises:
        TetherError: a size is not one or two numbers of pixels greater than 0.
    """

    size: int | tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear", "nearest"] = "bicubic"
    resize: Literal["shortest", "squash"] = "shortest"
    before_crop: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _simplest(self.size))
        scaled = None if self.before_crop is None else _simplest(self.before_crop)
        object.__setattr__(self, "before_crop", None if scaled == self.size else scaled)

    @property
    def height(self) -> int:
        return _both(self.size)[0]

    @property
    def width(self) -> int:
        return _both(self.size)[1]

    @property
    def scaled(self) -> tuple[int, int]:
        """Height and width of `before_crop`, or of `size` where nothing is cropped away."""
        return _both(self.size if self.before_crop is None else self.before_crop)

    def described(self) -> dict[str, object]:
        """The fields, without `before_crop` where it is not set: what fingerprints are made of."""
        fields = asdict(self)
        return (
            fields
            if self.before_crop is not None
            else {k: v for k, v in fields.items() if k != "before_crop"}
        )


def _both(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _simplest(size: Any) -> int | tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else size
    numbers = isinstance(sides, tuple) and len(sides) == 2 and all(isinstance(side, int) for side in sides)
    if not numbers or min(sides) <= 0:
        raise TetherError(
            f"The size of pictures is a number of pixels, or (height, width), greater than 0; found {size!r:.80}."
        )
    height, width = sides
    return height if height == width else (height, width)


def channels(value: Any, what: str, *, positive: bool = False) -> tuple[float, float, float]:
    """Three numbers, one per channel, of pixels in [0, 1]; a single one stands for all three.

    Raises:
        TetherError: it is something else, NaN or infinite, or where `positive` is asked for not above 0. The message
            begins with `what`.
    """
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    numbers = all(isinstance(one, int | float) and math.isfinite(one) for one in values)
    if len(values) != 3 or not numbers or (positive and min(values) <= 0):
        kind = "three numbers greater than 0" if positive else "three numbers"
        raise TetherError(f"{what} should be {kind}, one per channel; found {value!r:.80}.")
    return tuple(map(float, values))


@dataclass(kw_only=True)
class Backbone:
    """An image model around an ordinary module of its library.

    Everything that is done to `module` from outside (adapters, merging, compiling its blocks) shows in what the
    backbone computes.

        features = backbone.features(pixels)           # [b, backbone.dim]: what a linear head is put on
        maps = backbone.feature_maps(pixels)           # [b, c, h, w] each, of strides backbone.strides
    """

    module: nn.Module
    source: str
    family: Family
    image: ImageSpec
    dim: int
    """Width of the features."""
    activation: str
    """Non-linearities: "quick_gelu", or "image: gelu, text: quick_gelu" where the towers differ."""
    image_features: Callable[[nn.Module, Tensor], Tensor] = field(repr=False)
    image_maps: Callable[[nn.Module, Tensor], list[Tensor]] | None = field(default=None, repr=False)
    strides: tuple[int, ...] = ()
    """Pixels per cell of each feature map; empty where the model gives none."""
    describe: Callable[[Path], None] | None = field(default=None, repr=False)
    """Writes into a folder what its library reads beside the weights; None where the model was made in memory."""

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.module.parameters()).dtype

    def features(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b dim"]:
        """Pooled features in fp32, as the library pools them in front of its head; not of length 1.

        Args:
            pixels: normalised with the mean and standard deviation of `image`, of exactly its size.

        Raises:
            TetherError: the pictures are of another size.
        """
        return self.image_features(self.module, self._ready(pixels)).float()

    def feature_maps(self, pixels: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """What the stages give, one map [b, c, h, w] each in fp32, from fine to coarse; of a plain ViT one map, the
        patch tokens of its last block behind the final norm. `strides` says how many pixels a cell covers.

        Raises:
            TetherError: the pictures are of another size, or the model gives no maps.
        """
        if self.image_maps is None:
            raise TetherError(
                f"{self.source} gives no feature maps, only one feature per picture; load a ViT, Swin or ConvNeXt of "
                f"timm, transformers or torchvision for dense tasks."
            )
        return [one.float() for one in self.image_maps(self.module, self._ready(pixels))]

    def _ready(self, pixels: Tensor) -> Tensor:
        height, width = self.image.height, self.image.width
        if pixels.shape[-2:] != (height, width):
            raise TetherError(
                f"{self.source} takes pictures of {height} × {width} pixels, but these have {pixels.shape[-2]} "
                f"× {pixels.shape[-1]} (height × width). Resize them; model.image says how."
            )
        return pixels.to(self.device, self.dtype)

    def save(self, folder: str | Path) -> None:
        """Write the model, with its weights as they are now, as a folder of its library.

        Args:
            folder: new; nothing is overwritten.

        Raises:
            TetherError: there is something already, the disk is full, the model was made in memory, or a weight is
                NaN or infinite.
        """
        refuse_existing(Path(folder))
        with new_folder(Path(folder)) as new:
            self.save_into(new)

    def save_into(self, folder: Path) -> None:
        """`save` into an empty folder that is there already, such as one that more is written into.

        Raises:
            TetherError: the model was made in memory, so nothing says how to describe it; or a weight is NaN or
                infinite.
            OSError: a file cannot be written.
        """
        if self.describe is None:
            raise TetherError(
                f"{self.source} was made in memory and not loaded, so it cannot be written as a folder."
            )
        check_finite(self.module)
        self.describe(folder)
        if self.family == "transformers":
            self.module.save_pretrained(folder)
        else:
            save_tensors(folder / WEIGHTS.get(self.family, "model.safetensors"), self.module.state_dict())

    def fingerprint(self, *, without: Collection[str] = ()) -> str:
        """SHA-256 of the weights as they are now, of activation, image specification and context length.

        Args:
            without: names of the module's state dict that are left out.
        """
        return fingerprint(self.module, json.dumps(self._description()), without=without)

    def _description(self) -> list[object]:
        """What changes the function but not the weights."""
        return [self.family, self.activation, None, self.image.described()]

    def to(self: Own, device: torch.device | str) -> Own:
        """Move the module."""
        self.module.to(device)
        return self

    def train(self: Own, mode: bool = True) -> Own:
        """Set the module's training mode."""
        self.module.train(mode)
        return self

    def eval(self: Own) -> Own:
        """Set the module's evaluation mode."""
        return self.train(False)
