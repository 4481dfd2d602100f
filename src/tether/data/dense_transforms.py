"""From a picture with its answer to a model's pixels with the answer moved along, with torchvision's joint transforms.

torchvision is imported when a transform is made, not with this file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float
from PIL import Image
from torch import Tensor

from tether.data.targets import IGNORE, DenseTarget, Objects, bounds
from tether.errors import TetherError, near_misses
from tether.models.model import ImageSpec

Fit = Literal["pad", "squash"]
"""A picture inside the model's size: as large as its ratio allows, at the left and top; or stretched to fill it."""
Item = dict[str, Any]
DenseTransform = Callable[[Image.Image, DenseTarget], Item]


@dataclass(frozen=True, kw_only=True)
class DenseAugmentationConfig:
    """What training pictures go through.

    Raises:
        TetherError: a share or probability outside its range.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest size of a picture, relative to the one at which it just fits the model's input; what is too
    large is cropped at random, what is too small is padded. (0.1, 2) is "large-scale jitter" (Ghiasi et al. 2021)."""
    flip: bool = True
    """Mirror every other picture, at random."""
    color_jitter: float = 0.25
    """How far brightness, contrast and saturation vary, at random, and the hue by a quarter of it; 0 is without."""
    kept: float = 0.1
    """An object of which less than this share of its area is left by a crop is dropped."""

    def __post_init__(self):
        low, high = self.scale
        if not 0 < low <= high <= 10:
            raise TetherError(f"scale is {list(self.scale)}; expected 0 < low <= high <= 10.")
        if not (0 <= self.color_jitter <= 1 and 0 <= self.kept <= 1):
            raise TetherError("color_jitter and kept lie between 0 and 1.")


def dense_train_transform(
    spec: ImageSpec, augmentation: DenseAugmentationConfig | None = None
) -> DenseTransform:
    """Jitter of scale, crop, mirror and colours, at the model's size; all chance is torch's global one.

    The item is that of `dense_test_transform`; `content` then is all of the input, padding included, for after a crop
    no answer is to be mapped back.
    """
    from torchvision.transforms import v2

    augmentation = augmentation or DenseAugmentationConfig()
    size = (spec.height, spec.width)
    fill = {Image.Image: _mean_colour(spec), "others": 0}
    steps: list = [v2.ScaleJitter(size, augmentation.scale, antialias=True)]
    steps.append(v2.RandomCrop(size, pad_if_needed=True, fill=fill))
    if augmentation.flip:
        steps.append(v2.RandomHorizontalFlip())
    if strength := augmentation.color_jitter:
        steps.append(v2.ColorJitter(strength, strength, strength, strength / 4))
    moved = v2.Compose(steps)

    def transform(picture: Image.Image, target: DenseTarget) -> Item:
        image, wrapped = moved(picture, _wrap(target, picture))
        return _item(image, wrapped, target.objects, spec, size, augmentation.kept)

    return transform


def dense_test_transform(spec: ImageSpec, *, fit: Fit = "pad") -> DenseTransform:
    """The whole picture at the model's size, without any chance.

    An item is a dict:

        pixels     normalised by the model's mean and std, [3, h, w]; where padded, 0
        content    (height, width) of what the picture fills of the input, from the left and top
        semantic   int64 [h, w], `IGNORE` where padded; where there is a semantic mask
        boxes      float32 [n, 4], left, top, right, bottom in pixels of the input; where there are objects
        labels, crowd, difficult, areas    [n], see `tether.data.targets.Objects`
        masks      bool [n, h, w], where objects have some

    A box in the input becomes one of the picture by its size divided by `content`, for both ways to fit.

    Raises:
        TetherError: there is no such way to fit.
    """
    from torchvision.transforms import v2

    if fit not in get_args(Fit):
        raise TetherError(f"fit is {fit!r}{near_misses(str(fit), get_args(Fit))}")
    height, width = spec.height, spec.width
    fill = {Image.Image: _mean_colour(spec), "others": 0}

    def transform(picture: Image.Image, target: DenseTarget) -> Item:
        size = (height, width)
        if fit == "pad":
            factor = min(height / picture.height, width / picture.width)
            size = (
                min(height, max(1, round(picture.height * factor))),
                min(width, max(1, round(picture.width * factor))),
            )
        moved = v2.Compose(
            [
                v2.Resize(size, antialias=True),
                v2.Pad((0, 0, width - size[1], height - size[0]), fill=fill),
            ]
        )
        image, wrapped = moved(picture, _wrap(target, picture))
        return _item(image, wrapped, target.objects, spec, size, None)

    return transform


dense_test_transform.__test__ = False  # pytest takes the name for a test's


def at_size(target: DenseTarget, before: tuple[int, int], after: tuple[int, int]) -> DenseTarget:
    """The answer of a picture that was resized from (height, width) `before` to `after`."""
    if before == after:
        return target
    semantic, objects = target.semantic, target.objects
    rows = ((np.arange(after[0]) + 0.5) * before[0] / after[0]).astype(np.int64)
    columns = ((np.arange(after[1]) + 0.5) * before[1] / after[1]).astype(np.int64)
    if semantic is not None:
        semantic = semantic[rows][:, columns]
    if objects is not None:
        down, across = after[0] / before[0], after[1] / before[1]
        objects = Objects(
            boxes=objects.boxes * np.array([across, down, across, down], np.float32),
            labels=objects.labels,
            masks=None if objects.masks is None else objects.masks[:, rows][:, :, columns],
            crowd=objects.crowd,
            difficult=objects.difficult,
            areas=objects.areas * np.float32(down * across),
        )
    return DenseTarget(semantic, objects)


def _wrap(target: DenseTarget, picture: Image.Image) -> dict[str, Any]:
    """The answer as tensors that know how to be moved; classes count from 1, so what is padded with 0 is ignored."""
    from torchvision import tv_tensors

    wrapped: dict[str, Any] = {}
    if target.semantic is not None:
        wrapped["semantic"] = tv_tensors.Mask(torch.from_numpy(target.semantic.astype(np.int32) - IGNORE))
    if target.objects is not None:
        size = (picture.height, picture.width)
        boxes = torch.from_numpy(np.ascontiguousarray(target.objects.boxes, np.float32))
        wrapped["boxes"] = tv_tensors.BoundingBoxes(
            boxes, format="XYXY", canvas_size=size, clamping_mode=None
        )
        if target.objects.masks is not None:
            wrapped["masks"] = tv_tensors.Mask(torch.from_numpy(target.objects.masks.astype(np.uint8)))
    return wrapped


def _item(
    image: Image.Image,
    wrapped: dict[str, Any],
    objects: Objects | None,
    spec: ImageSpec,
    content: tuple[int, int],
    kept: float | None,
) -> Item:
    """The tensors of an item.

    Args:
        objects: as they were before.
        kept: see `DenseAugmentationConfig`; None drops nothing.
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
    item: Item = {"pixels": (pixels.float() / 255 - mean) / std, "content": content}
    if "semantic" in wrapped:
        item["semantic"] = wrapped["semantic"].as_subclass(Tensor).long() + IGNORE
    if objects is None:
        return item
    whole = wrapped["boxes"].as_subclass(Tensor)
    edges = torch.tensor([spec.width, spec.height] * 2)
    boxes = torch.minimum(whole.clamp(min=0), edges)
    masks = wrapped["masks"].as_subclass(Tensor).bool() if "masks" in wrapped else None
    share = _areas(boxes) / _areas(whole).clamp(min=1e-6)
    before = _areas(torch.from_numpy(objects.boxes)).clamp(min=1e-6)
    areas = torch.from_numpy(objects.areas) * _areas(boxes) / before
    left = torch.ones(len(boxes), dtype=torch.bool) if kept is None else (share > 0) & (share >= kept)
    if masks is not None:
        if kept is not None:
            left &= masks.flatten(1).any(1)
        boxes, areas = _tightened(boxes, areas, masks, share < 0.999)
        item["masks"] = masks[left]
    return item | {
        "boxes": boxes[left],
        "labels": torch.from_numpy(objects.labels)[left],
        "crowd": torch.from_numpy(objects.crowd)[left],
        "difficult": torch.from_numpy(objects.difficult)[left],
        "areas": areas[left],
    }


def _tightened(
    boxes: Float[Tensor, "n 4"],
    areas: Float[Tensor, " n"],
    masks: Bool[Tensor, "n h w"],
    cropped: Bool[Tensor, " n"],
) -> tuple[Float[Tensor, "n 4"], Float[Tensor, " n"]]:
    """Boxes and areas, of objects that a crop cut through those of what is left of their masks."""
    boxes, areas = boxes.clone(), areas.clone()
    for place in cropped.nonzero().flatten().tolist():
        mask = masks[place].numpy()
        if mask.any():
            boxes[place] = torch.tensor(bounds(mask), dtype=boxes.dtype)
            areas[place] = int(mask.sum())
    return boxes, areas


def _areas(boxes: Float[Tensor, "n 4"]) -> Float[Tensor, " n"]:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _mean_colour(spec: ImageSpec) -> tuple[int, ...]:
    """The colour that is about 0 after normalisation."""
    return tuple(round(255 * channel) for channel in spec.mean)
