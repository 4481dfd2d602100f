"""From a PIL picture to the pixels a model wants; everything before the last step stays in 8 bits."""

from functools import partial

import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from tether.data.reading import check_aspect
from tether.errors import TetherError, near_misses
from tether.models.model import ImageSpec

_INTERPOLATIONS = {
    "bicubic": v2.InterpolationMode.BICUBIC,
    "bilinear": v2.InterpolationMode.BILINEAR,
    "nearest": v2.InterpolationMode.NEAREST,
}
_BACKGROUND = (255, 255, 255)


def train_transform(
    spec: ImageSpec,
    *,
    scale: tuple[float, float] = (0.9, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flip: bool = False,
    color_jitter: float = 0.0,
    random_augment: int = 0,
    random_erase: float = 0.0,
    normalized: bool = True,
) -> v2.Compose:
    """A random crop at the model's size, and stronger augmentation on request.

    The default is what CLIP-like models are robustly fine-tuned with: a crop of 90 to 100 % of the area and
    nothing else (FLYP, Goyal et al. 2023; WiSE-FT, Wortsman et al. 2022).

    Args:
        scale: the crop's share of the picture's area, between 0 and 1.
        ratio: the crop's width divided by its height.
        flip: mirror every second picture.
        color_jitter: brightness, contrast and saturation vary by this share; the hue by a quarter of it.
        random_augment: number of RandAugment operations (Cubuk et al. 2020) at magnitude 9.
        random_erase: probability of blanking a rectangle (Zhong et al. 2020).
        normalized: give float pixels by the model's mean and std; otherwise uint8, for `normalize` on a
            device.

    Raises:
        TetherError: a share or probability outside its range, or an interpolation that is not known.
    """
    low, high = scale
    if not 0 < low <= high <= 1:
        raise TetherError(
            f"The crop's scale is {scale}; expected two shares of the area, 0 < low <= high <= 1."
        )
    if not 0 < ratio[0] <= ratio[1]:
        raise TetherError(f"The crop's ratio is {ratio}; expected 0 < low <= high.")
    if not (0 <= random_erase <= 1 and 0 <= color_jitter <= 1 and random_augment >= 0):
        raise TetherError(
            "color_jitter and random_erase lie between 0 and 1, random_augment counts operations."
        )
    steps: list = [v2.RandomResizedCrop(spec.size, scale, ratio, _interpolation(spec), antialias=True)]
    if flip:
        steps.append(v2.RandomHorizontalFlip())
    if color_jitter:
        steps.append(v2.ColorJitter(color_jitter, color_jitter, color_jitter, color_jitter / 4))
    if random_augment:
        steps.append(
            v2.RandAugment(random_augment, interpolation=v2.InterpolationMode.BILINEAR, fill=_BACKGROUND)
        )
    steps.append(v2.PILToTensor())
    if random_erase:
        steps.append(v2.RandomErasing(random_erase, value=0))
    return v2.Compose(steps + _last_steps(spec, normalized))


def test_transform(spec: ImageSpec, *, normalized: bool = True) -> v2.Compose:
    """The resizing and cropping the model was made for, without any chance.

    Pictures are resized by Pillow, as in the published pre-processing of CLIP-like models.

    Raises:
        TetherError: a resize mode or an interpolation that is not known; and, when a picture is transformed by its
            shorter side, one so thin that the result would be enormous.
    """
    interpolation = _interpolation(spec)
    height, width = spec.scaled
    if spec.resize == "squash":
        steps: list = [v2.Resize((height, width), interpolation, antialias=True)]
    elif spec.resize == "shortest" and height == width:
        steps = [_RefuseThin(), v2.Resize(height, interpolation, antialias=True)]
    elif spec.resize == "shortest":
        cover = partial(_cover, height=height, width=width, interpolation=interpolation)
        steps = [_RefuseThin(), cover]
    else:
        raise TetherError(
            f"The resize mode is {spec.resize!r}{near_misses(spec.resize, ('shortest', 'squash'))}"
        )
    if spec.resize == "shortest" or spec.before_crop is not None:
        steps.append(v2.CenterCrop(spec.size))
    return v2.Compose([*steps, v2.PILToTensor(), *_last_steps(spec, normalized)])


test_transform.__test__ = False  # pytest takes the name for a test's


def normalize(pixels: UInt8[Tensor, "*batch 3 h w"], spec: ImageSpec) -> Float[Tensor, "*batch 3 h w"]:
    """8-bit pixels as the model's floats, on the device where they lie."""
    mean = torch.tensor(spec.mean, device=pixels.device).view(3, 1, 1)
    std = torch.tensor(spec.std, device=pixels.device).view(3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def fit_shortest(picture: Image.Image, size: int) -> Image.Image:
    """The picture with its shorter side at `size` pixels (bicubic), unchanged where it is already.

    Raises:
        TetherError: it is so thin that the result would be enormous.
    """
    width, height = picture.size
    if min(width, height) == size:
        return picture
    check_aspect(width, height)
    factor = size / min(width, height)
    return picture.resize(
        (max(size, round(width * factor)), max(size, round(height * factor))), Image.Resampling.BICUBIC
    )


def _cover(
    picture: Image.Image, *, height: int, width: int, interpolation: v2.InterpolationMode
) -> Image.Image:
    """The picture, its ratio kept, at the smallest scale at which it covers height × width."""
    factor = max(height / picture.height, width / picture.width)
    size = max(height, round(picture.height * factor)), max(width, round(picture.width * factor))
    return v2.functional.resize(picture, size, interpolation, antialias=True)


class _RefuseThin(nn.Module):
    def forward(self, picture: Image.Image) -> Image.Image:
        try:
            check_aspect(*picture.size)
        except TetherError as error:
            raise TetherError(f"A picture cannot be transformed: {error}") from error
        return picture


def _interpolation(spec: ImageSpec) -> v2.InterpolationMode:
    if spec.interpolation not in _INTERPOLATIONS:
        known = tuple(_INTERPOLATIONS)
        raise TetherError(
            f"The interpolation is {spec.interpolation!r}{near_misses(spec.interpolation, known)}"
        )
    return _INTERPOLATIONS[spec.interpolation]


def _last_steps(spec: ImageSpec, normalized: bool) -> list:
    if not normalized:
        return []
    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(spec.mean), list(spec.std))]
