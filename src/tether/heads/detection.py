"""Detectors behind one small interface: the frozen trunk of a backbone, and a head of torchvision or transformers.

    pixels ─▶ trunk (frozen, an adapter inside) ─▶ feature maps ─▶ head of the host library ─▶ loss, or detections

A config says what the head is; `config.build(backbone, classes)` puts it on a backbone, whose module stays the same
object, so that whatever is attached to it, before or after, is in the detector. Losses, matching and post-processing
are the host's. What is learned from a picture: its objects but crowds, difficult ones, and those without area.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from tether.config import Family
from tether.errors import TetherError
from tether.evaluation.detections import Detections
from tether.models.backbone import Backbone

Targets = Sequence[Mapping[str, Shaped[Tensor, "..."]]]
"""Of each picture the objects as `tether.data.collate_dense` gives them: boxes in pixels of the input, labels, and as
they are known masks, crowd and difficult."""
Size = tuple[int, int]
"""Height and width."""


class DetectorConfig(Family, folder="tether.heads"):
    """What the head of a detector is; a frozen dataclass beside the detector that it builds, named by its `method`.

    Attributes:
        strides: pixels per cell of the maps of the trunk that it takes.
        finds_masks: whether its detections have masks, so that it learns from masks.
    """

    strides: tuple[int, ...]

    @property
    @abstractmethod
    def finds_masks(self) -> bool: ...

    @abstractmethod
    def on(self, levels: "Levels", classes: int) -> "Detector":
        """A detector on maps of the config's strides, its weights drawn from the global stream."""

    def build(self, backbone: Backbone, classes: int, *, seed: int = 0) -> "Detector":
        """A detector on the backbone's own module, its head with random weights.

        Args:
            backbone: as `tether.load` gives it, with feature maps.
            classes: number of classes; a background is the host's own affair.
            seed: of the head's weights.

        Raises:
            TetherError: the backbone has no maps of the strides that the head takes, or there is no class.
        """
        if classes < 1:
            raise TetherError(f"A detector needs a class or more to find, not {classes}.")
        with seeded(seed, torch.device("cpu")):
            return self.on(Levels(backbone, self.strides), classes).to(backbone.device)


class Detector(nn.Module, ABC):
    """A trunk that stays as it is, and a head that is trained.

    Args:
        classes: number of classes.
        masks: whether it finds masks, and so learns from them.

    Example:

        detector = RetinaNetConfig().build(backbone, len(benchmark.class_names))
        attached = tether.attach(detector.trunk, MonaConfig())
        trained = [*attached.named_parameters().values(), *detector.head_parameters().values()]
        detector.train()
        loss, scalars = detector.loss(batch["pixels"], batch["objects"])
    """

    def __init__(self, classes: int, masks: bool) -> None:
        super().__init__()
        self.classes, self.finds_masks = classes, masks

    @property
    @abstractmethod
    def trunk(self) -> nn.Module:
        """What an adapter is attached to; the rest is the head."""

    @abstractmethod
    def _losses(self, pixels: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The terms of the loss, weighted, by name; of targets with what is learned from."""

    @abstractmethod
    def _detect(self, pixels: Tensor, sizes: Sequence[Size], contents: Sequence[Size]) -> list[Detections]:
        """What is found, in pixels of the pictures."""

    def loss(
        self, pixels: Float[Tensor, "b 3 h w"], targets: Targets, *, seed: int | None = None
    ) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
        """The host's loss, in training and in evaluation mode, and its terms, detached.

        Args:
            pixels: normalised, of the backbone's size.
            targets: one per picture.
            seed: of whatever is drawn inside (proposals, points, denoising, dropout), so that the same seed gives the
                same loss; the global stream is left as it was. None draws from the global stream.

        Raises:
            TetherError: as many targets as pictures were not given, a label is no class, or masks are missing.
        """
        if len(targets) != len(pixels):
            raise TetherError(f"There are {len(pixels)} pictures, but targets for {len(targets)}.")
        learned = [self._learned(target, pixels.device) for target in targets]
        with seeded(seed, pixels.device):
            terms = self._losses(pixels, learned)
        return torch.stack(list(terms.values())).sum(), {name: term.detach() for name, term in terms.items()}

    @torch.no_grad()
    def predict(
        self,
        pixels: Float[Tensor, "b 3 h w"],
        sizes: Sequence[Size],
        contents: Sequence[Size] | None = None,
    ) -> list[Detections]:
        """What is found, in pixels of the pictures, best first.

        Args:
            pixels: normalised, of the backbone's size.
            sizes: of each picture, for which boxes and masks are given back.
            contents: what each picture fills of the input, from the left and top; None is all of it.

        Raises:
            TetherError: the detector is in training mode, or sizes are missing.
        """
        if self.training:
            raise TetherError(
                "The detector is in training mode, in which nothing is predicted. Call eval() first."
            )
        if contents is None:
            contents = [tuple(pixels.shape[-2:])] * len(pixels)
        if not len(pixels) == len(sizes) == len(contents):
            raise TetherError(
                f"There are {len(pixels)} pictures, but {len(sizes)} sizes and {len(contents)} contents."
            )
        return self._detect(pixels, sizes, contents)

    def forward(
        self,
        pixels: Float[Tensor, "b 3 h w"],
        sizes: Sequence[Size],
        contents: Sequence[Size] | None = None,
    ) -> list[Detections]:
        """`predict`."""
        return self.predict(pixels, sizes, contents)

    def train_head(self, mode: bool = True) -> None:
        """Set the head's mode, and leave the trunk in its own."""
        inside = {id(part) for part in self.trunk.modules()}
        for part in self.modules():
            if id(part) not in inside:
                part.training = mode

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained besides an adapter, by name."""
        inside = {id(parameter) for parameter in self.trunk.parameters()}
        return {name: one for name, one in self.named_parameters() if id(one) not in inside}

    def head_state_dict(self) -> dict[str, Tensor]:
        """The head's parameters and buffers by name, sharing memory with it: what is saved beside an adapter."""
        return {name: tensor for name, tensor in self.state_dict().items() if not self._in_trunk(name)}

    @torch.no_grad()
    def load_head_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a head's state in, strictly.

        Raises:
            TetherError: a tensor is missing, unexpected or of another shape; nothing is changed then.
        """
        current = self.head_state_dict()
        if differing := sorted(current.keys() ^ state.keys()):
            raise TetherError(
                f"This is no state of this head: {differing[0]} and {len(differing) - 1} more are in only one of both."
            )
        for name, tensor in current.items():
            if state[name].shape != tensor.shape:
                raise TetherError(
                    f"{name} is {tuple(state[name].shape)} in the state and {tuple(tensor.shape)} in this head."
                )
        for name, tensor in current.items():
            tensor.copy_(state[name])

    def _in_trunk(self, name: str) -> bool:
        return name.startswith(tuple(f"{path}." for path in self._trunk_paths))

    @property
    def _trunk_paths(self) -> list[str]:
        trunk = self.trunk
        return [path for path, part in self.named_modules(remove_duplicate=False) if part is trunk]

    def _learned(self, target: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
        """What is learned of a picture's objects: boxes, labels and, where masks are found, masks."""
        boxes, labels = target["boxes"].to(device), target["labels"].to(device)
        self._check_labels(labels)
        kept = (boxes[:, 2:] > boxes[:, :2]).all(1)
        for name in ("crowd", "difficult"):
            if name in target:
                kept &= ~target[name].to(device)
        learned = {"boxes": boxes, "labels": labels}
        if self.finds_masks:
            if "masks" not in target:
                raise TetherError(
                    f"{type(self).__name__} learns masks, and these objects have boxes alone. Take data with masks, or "
                    f"a head for boxes."
                )
            learned["masks"] = target["masks"].to(device)
            kept &= learned["masks"].flatten(1).any(1)
        return {name: tensor[kept] for name, tensor in learned.items()}

    def _check_labels(self, labels: Int[Tensor, " n"]) -> None:
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise TetherError(
                f"An object has the label {int(labels.max())}, but the detector knows classes 0 to {self.classes - 1}."
            )


class Levels(nn.Module):
    """Feature maps of a trunk, one per stride; of a plain ViT, which has one map, in several sizes.

    Those are made as in ViTDet (Li et al., "Exploring Plain Vision Transformer Backbones for Object Detection", ECCV
    2022, section 3): from the one map by transposed convolutions and by pooling.

    Args:
        backbone: with feature maps.
        strides: pixels per cell of each map that is wanted, from fine to coarse.

    Attributes:
        channels: of each map.

    Raises:
        TetherError: the backbone has no map of a stride, and more than one map.
    """

    def __init__(self, backbone: Backbone, strides: Sequence[int]) -> None:
        super().__init__()
        self.trunk, self.strides = backbone.module, tuple(strides)
        self._backbone = backbone
        found = self._probe()
        self.resized = nn.ModuleDict()
        if len(found) == 1:
            ((own, width),) = found.items()
            self.resized = nn.ModuleDict({str(one): _resized(width, own, one) for one in self.strides})
            self.channels = [width] * len(self.strides)
            return
        if missing := [stride for stride in self.strides if stride not in found]:
            raise TetherError(
                f"{backbone.source} gives maps of strides {', '.join(map(str, found)) or 'none'}, and this head takes "
                f"{', '.join(map(str, self.strides))}: there is none of {missing[0]}. Choose other strides."
            )
        self.channels = [found[stride] for stride in self.strides]

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        maps = self._backbone.feature_maps(pixels)
        if self.resized:
            return [resize(maps[0]) for resize in self.resized.values()]
        by_stride = dict(zip(self._backbone.strides, maps, strict=True))
        return [by_stride[stride] for stride in self.strides]

    @torch.no_grad()
    def _probe(self) -> dict[int, int]:
        """Channels of each map by its stride."""
        image, training = self._backbone.image, self.trunk.training
        self.trunk.eval()
        maps = self._backbone.feature_maps(torch.zeros(1, 3, image.height, image.width))
        self.trunk.train(training)
        return {stride: one.shape[1] for stride, one in zip(self._backbone.strides, maps, strict=True)}


def _resized(width: int, own: int, wanted: int) -> nn.Module:
    """From a map of stride `own` to one of stride `wanted`, a power of two apart."""
    factor = max(own, wanted) // min(own, wanted)
    if factor * min(own, wanted) != max(own, wanted) or factor & (factor - 1):
        raise TetherError(
            f"Maps of stride {wanted} cannot be made of the one map of stride {own}: choose strides that are {own} "
            f"times or divided by a power of two."
        )
    if wanted > own:
        return nn.MaxPool2d(factor)
    steps: list[nn.Module] = []
    while factor > 1:
        steps += [nn.ConvTranspose2d(width, width, 2, stride=2), nn.GroupNorm(1, width), nn.GELU()]
        factor //= 2
    return nn.Sequential(*steps[:1] if len(steps) == 3 else steps[:-2])


def at_picture(
    boxes: Float[Tensor, "n 4"], size: Size, content: Size
) -> tuple[Float[Tensor, "n 4"], Bool[Tensor, " n"]]:
    """Boxes in pixels of a model's input as boxes of the picture, cut at its edges, and which have an area there.

    Args:
        size: of the picture.
        content: what the picture fills of the input, from the left and top.
    """
    (height, width), (down, across) = size, content
    moved = (boxes * boxes.new_tensor([width / across, height / down] * 2)).clamp(min=0)
    moved = torch.minimum(moved, boxes.new_tensor([width, height] * 2))
    return moved, (moved[:, 2:] > moved[:, :2]).all(1)


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Inside, everything random starts from a seed, and afterwards as if nothing had been drawn; None is no change."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def require_positive(options: Any, *names: str) -> None:
    """Refuse options of a config that are not above 0.

    Raises:
        TetherError: naming the first that is not.
    """
    for name in names:
        value = getattr(options, name)
        if not (min(value) if isinstance(value, tuple) else value) > 0:
            raise TetherError(f"{name} is {value}; expected more than 0.")


def require_shares(options: Any, *names: str) -> None:
    """Refuse options of a config that do not lie between 0 and 1.

    Raises:
        TetherError: naming the first that does not.
    """
    for name in names:
        if not 0 <= getattr(options, name) <= 1:
            raise TetherError(f"{name} is {getattr(options, name)}; expected a number from 0 to 1.")
