"""RetinaNet and Mask R-CNN of torchvision on the trunk of a backbone.

- RetinaNet: Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017; as in the Mona paper's experiment on VOC on
  maps of strides 8, 16, 32 and two coarser ones made from them.
- Mask R-CNN: He et al., ICCV 2017, with a feature pyramid (Lin et al., CVPR 2017).

Both see the input as it comes: torchvision's own resizing and normalising are switched off. Their normalisers are
means over pictures or samples of one process, so the mean of the losses of several processes is that of all pictures.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from tether.config import method
from tether.errors import TetherError
from tether.evaluation.detections import Detections
from tether.heads.detection import (
    Detector,
    DetectorConfig,
    Levels,
    Size,
    at_picture,
    require_positive,
    require_shares,
)

RATIOS = (0.5, 1.0, 2.0)
"""Height to width of anchors."""


@method("retinanet")
@dataclass(frozen=True, kw_only=True)
class RetinaNetConfig(DetectorConfig):
    """RetinaNet; defaults are the paper's, in torchvision's form.

    Raises:
        TetherError: a number out of its range.
    """

    channels: int = 256
    """Of the pyramid and the head."""
    strides: tuple[int, ...] = (8, 16, 32)
    """Maps of the trunk that the pyramid is built on; two coarser ones are added."""
    anchor_scale: float = 4.0
    """Side of the smallest anchor in cells of its map: 32 pixels at stride 8. The other two are a third and two thirds
    of an octave larger."""
    score_threshold: float = 0.05
    """Boxes that score less are not given."""
    overlap: float = 0.5
    """Of two boxes of a class that overlap more, the one that scores less is not given."""
    detections: int = 100
    """Most boxes per picture."""

    def __post_init__(self) -> None:
        require_positive(self, "channels", "strides", "anchor_scale", "detections")
        require_shares(self, "score_threshold", "overlap")

    @property
    def finds_masks(self) -> bool:
        return False

    def on(self, levels: Levels, classes: int) -> "TorchvisionDetector":
        coarser = LastLevelP6P7(levels.channels[-1], self.channels)
        pyramid = Pyramid(levels, FeaturePyramidNetwork(levels.channels, self.channels, coarser))
        strides = [*self.strides, 2 * self.strides[-1], 4 * self.strides[-1]]
        sizes = tuple(
            tuple(self.anchor_scale * stride * 2 ** (third / 3) for third in range(3)) for stride in strides
        )
        host = RetinaNet(
            pyramid,
            classes,
            anchor_generator=AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
            score_thresh=self.score_threshold,
            nms_thresh=self.overlap,
            detections_per_img=self.detections,
        )
        return TorchvisionDetector(host, classes)


@method("mask_rcnn")
@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig(DetectorConfig):
    """Mask R-CNN with a feature pyramid; without masks it is Faster R-CNN. Defaults are the paper's.

    Raises:
        TetherError: a number out of its range.
    """

    masks: bool = True
    """Find masks too."""
    channels: int = 256
    """Of the pyramid."""
    strides: tuple[int, ...] = (4, 8, 16, 32)
    """Maps of the trunk that the pyramid is built on; one coarser one is added for proposals."""
    anchor_scale: float = 8.0
    """Side of an anchor in cells of its map: 32 pixels at stride 4."""
    box_width: int = 1024
    """Hidden width of the box head."""
    mask_width: int = 256
    """Channels of the mask head."""
    proposals: int = 1000
    """Most proposals per picture, and per map before overlapping ones are left out."""
    score_threshold: float = 0.05
    """Boxes that score less are not given."""
    overlap: float = 0.5
    """Of two boxes of a class that overlap more, the one that scores less is not given."""
    detections: int = 100
    """Most objects per picture."""

    def __post_init__(self) -> None:
        positive = "channels strides anchor_scale box_width mask_width proposals detections".split()
        require_positive(self, *positive)
        require_shares(self, "score_threshold", "overlap")

    @property
    def finds_masks(self) -> bool:
        return self.masks

    def on(self, levels: Levels, classes: int) -> "TorchvisionDetector":
        return TorchvisionDetector(self.host(levels, classes), classes, masks=self.masks, background=True)

    def host(self, levels: Levels, classes: int) -> FasterRCNN:
        """torchvision's module."""
        pyramid = Pyramid(levels, FeaturePyramidNetwork(levels.channels, self.channels, LastLevelMaxPool()))
        strides = [*self.strides, 2 * self.strides[-1]]
        sizes = tuple((self.anchor_scale * stride,) for stride in strides)
        names = [str(i) for i in range(len(self.strides))]
        pool = MultiScaleRoIAlign(names, output_size=7, sampling_ratio=2)
        options = {
            "rpn_anchor_generator": AnchorGenerator(sizes, (RATIOS,) * len(sizes)),
            "rpn_pre_nms_top_n_train": self.proposals,
            "rpn_post_nms_top_n_train": self.proposals,
            "rpn_pre_nms_top_n_test": self.proposals,
            "rpn_post_nms_top_n_test": self.proposals,
            "box_roi_pool": pool,
            "box_head": TwoMLPHead(self.channels * 7 * 7, self.box_width),
            "box_predictor": FastRCNNPredictor(self.box_width, classes + 1),
            "box_score_thresh": self.score_threshold,
            "box_nms_thresh": self.overlap,
            "box_detections_per_img": self.detections,
        }
        if not self.masks:
            return FasterRCNN(pyramid, **options)
        return MaskRCNN(
            pyramid,
            mask_roi_pool=MultiScaleRoIAlign(names, output_size=14, sampling_ratio=2),
            mask_head=MaskRCNNHeads(self.channels, (self.mask_width,) * 4, 1),
            mask_predictor=MaskRCNNPredictor(self.mask_width, self.mask_width, classes + 1),
            **options,
        )


class Pyramid(nn.Module):
    """A trunk's maps through a feature pyramid, as torchvision's detectors take them.

    Args:
        levels: the maps.
        pyramid: what makes maps of equally many channels of them.
    """

    def __init__(self, levels: Levels, pyramid: FeaturePyramidNetwork) -> None:
        super().__init__()
        self.levels, self.pyramid = levels, pyramid
        self.out_channels = pyramid.layer_blocks[0][0].out_channels

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> dict[str, Float[Tensor, "b c _ _"]]:
        maps = self.levels(pixels)
        return self.pyramid(OrderedDict((str(i), one) for i, one in enumerate(maps)))


class TorchvisionDetector(Detector):
    """A detector of torchvision on a `Pyramid`.

    Args:
        host: its module.
        classes: number of classes.
        masks: whether it finds masks.
        background: whether its class 0 is the background, so that all others are one higher.
    """

    def __init__(
        self, host: nn.Module, classes: int, *, masks: bool = False, background: bool = False
    ) -> None:
        super().__init__(classes, masks)
        self.host = host
        self.host.transform = AsTheyAre()
        self._first = int(background)

    @property
    def trunk(self) -> nn.Module:
        return self.host.backbone.levels.trunk

    def _losses(self, pixels: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        for target in targets:
            target["labels"] = target["labels"] + self._first
            if "masks" in target:
                target["masks"] = target["masks"].to(torch.uint8)
        with self._as_in(training=True):
            return self.host(pixels, targets)

    def _detect(self, pixels: Tensor, sizes: Sequence[Size], contents: Sequence[Size]) -> list[Detections]:
        with self._as_in(training=False):
            found = self.host(pixels)
        return [
            self._at_picture(one, size, content)
            for one, size, content in zip(found, sizes, contents, strict=True)
        ]

    def _at_picture(self, found: dict[str, Tensor], size: Size, content: Size) -> Detections:
        boxes, there = at_picture(found["boxes"], size, content)
        labels, scores, masks = found["labels"][there] - self._first, found["scores"][there], None
        if self.finds_masks:  # on the whole box, of which the picture shows a part
            scale = boxes.new_tensor([size[1] / content[1], size[0] / content[0]] * 2)
            whole = found["boxes"][there] * scale
            masks = paste_masks_in_image(found["masks"][there], whole, size)[:, 0] > 0.5
        return Detections(boxes[there], labels, scores, masks)

    @contextmanager
    def _as_in(self, *, training: bool) -> Iterator[None]:
        """Inside, the host gives losses, or detections, whatever the mode; what is random in layers stays as it is."""
        parts = [part for part in self.host.modules() if hasattr(part, "fg_bg_sampler")] + [self.host]
        before = [part.training for part in parts]
        for part in parts:
            part.training = training
        try:
            yield
        finally:
            for part, mode in zip(parts, before, strict=True):
                part.training = mode


class AsTheyAre(nn.Module):
    """In place of torchvision's transform: pictures of one size, normalised already, and answers in their pixels."""

    def forward(
        self, pixels: Float[Tensor, "b 3 h w"], targets: list[dict[str, Tensor]] | None = None
    ) -> tuple[ImageList, list[dict[str, Tensor]] | None]:
        return ImageList(pixels, [tuple(pixels.shape[-2:])] * len(pixels)), targets

    def postprocess(
        self, found: list[dict[str, Tensor]], shapes: list[Size], sizes: list[Size]
    ) -> list[dict[str, Tensor]]:
        return found


def require_stages(ious: Sequence[float]) -> None:
    """Refuse thresholds of a cascade that are none.

    Raises:
        TetherError: they do not rise within 0 and 1.
    """
    if not ious or not all(0 < low < high < 1 for low, high in zip((1e-9, *ious), ious, strict=False)):
        raise TetherError(f"ious is {list(ious)}; expected thresholds between 0 and 1 that rise.")
