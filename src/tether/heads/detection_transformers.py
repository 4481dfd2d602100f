"""RT-DETRv2 and Mask2Former of transformers, on the trunk of a backbone or as they were saved in a folder.

- RT-DETRv2: Lv et al., arXiv 2407.17140.
- Mask2Former: Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation", CVPR 2022.

Losses, matching and post-processing are transformers'. What one must know of them and is seen to here:

- Boxes of targets are centre, width and height in shares of the input.
- The loss is chosen by the *name* of the model's class, so a model of a class that was derived and renamed would
  silently learn something else: it is refused.
- Up to transformers 5.17 RT-DETR took its main loss over the denoising queries: 5.18 is required.
- Losses are divided by the number of objects of one process (Mask2Former: of all, but under accelerate alone). The mean
  over processes is to be that of one process with all pictures: they are divided by the mean number instead.
- Objects and queries are matched by scipy, which transformers does not bring along.
- Mask2Former and RT-DETR draw points and noise from the global stream: give `loss` a seed.
- A model's own `freeze_backbone()` would freeze an adapter inside: it is never called; `tether.attach` freezes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    RTDetrImageProcessor,
    RTDetrV2Config,
    RTDetrV2ForObjectDetection,
)
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from tether import _distributed
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
    seeded,
)
from tether.models.transformers_folder import read_config
from tether.models.weights import complain

RIGHT_SINCE = (5, 18)
"""The version of transformers from which on RT-DETR's main loss is right."""


@method("rt_detr_v2")
@dataclass(frozen=True, kw_only=True)
class RTDetrV2HeadConfig(DetectorConfig):
    """RT-DETRv2; defaults are those of its ResNet-50 model.

    Raises:
        TetherError: a number that is not above 0, or a single decoder layer.
    """

    width: int = 256
    """Of encoder and decoder."""
    hidden: int = 1024
    """Hidden width of their MLPs."""
    heads: int = 8
    """Attention heads."""
    decoder_layers: int = 6
    """Two or more."""
    queries: int = 300
    """Objects that are looked for in a picture."""
    denoising: int = 100
    """Noisy copies of the answers that the decoder learns to clean, beside the queries; about this many."""
    strides: tuple[int, ...] = (8, 16, 32)
    """Maps of the trunk that are taken, each half as large as the last."""
    detections: int = 100
    """Most boxes per picture."""

    def __post_init__(self) -> None:
        require_positive(
            self, *"width hidden heads decoder_layers queries denoising strides detections".split()
        )
        if self.decoder_layers < 2:
            raise TetherError("decoder_layers is 1; RT-DETR's decoder needs two layers or more.")

    @property
    def finds_masks(self) -> bool:
        return False

    def on(self, levels: Levels, classes: int) -> "RTDetrV2":
        require_right_loss()
        config = RTDetrV2Config(
            backbone_config=TrunkConfig(channels=levels.channels),
            num_labels=classes,
            d_model=self.width,
            encoder_hidden_dim=self.width,
            encoder_in_channels=levels.channels,
            encoder_ffn_dim=self.hidden,
            encoder_attention_heads=self.heads,
            encode_proj_layers=[len(self.strides) - 1],
            feat_strides=list(self.strides),
            decoder_in_channels=[self.width] * len(self.strides),
            decoder_ffn_dim=self.hidden,
            decoder_layers=self.decoder_layers,
            decoder_attention_heads=self.heads,
            decoder_n_levels=len(self.strides),
            num_feature_levels=len(self.strides),
            num_queries=self.queries,
            num_denoising=self.denoising,
            freeze_backbone_batch_norms=False,  # they belong to the trunk, which attaching freezes
        )
        host = RTDetrV2ForObjectDetection(config)
        host.model.backbone.model.levels = levels
        return RTDetrV2(host, most=self.detections)


@method("mask2former")
@dataclass(frozen=True, kw_only=True)
class Mask2FormerHeadConfig(DetectorConfig):
    """Mask2Former for instances; defaults are those of its models on COCO.

    Raises:
        TetherError: a number that is not above 0, or a width that is no multiple of 32.
    """

    width: int = 256
    """Of pixel decoder, decoder and masks; a multiple of 32."""
    hidden: int = 2048
    """Hidden width of the decoder's MLPs; that of the pixel decoder's is half of it."""
    heads: int = 8
    """Attention heads."""
    encoder_layers: int = 6
    """Of the pixel decoder."""
    decoder_layers: int = 10
    """As transformers counts them: with the prediction from the queries themselves."""
    queries: int = 100
    """Objects that are looked for in a picture."""
    points: int = 12544
    """Points at which masks are compared in training, of 112 × 112."""
    strides: tuple[int, ...] = (4, 8, 16, 32)
    """Maps of the trunk that are taken."""

    def __post_init__(self) -> None:
        require_positive(
            self, *"width hidden heads encoder_layers decoder_layers queries points strides".split()
        )
        if self.width % 32 or len(self.strides) != 4:
            raise TetherError(
                f"Mask2Former takes four strides and a width that is a multiple of 32; found {list(self.strides)} and "
                f"{self.width}."
            )

    @property
    def finds_masks(self) -> bool:
        return True

    def on(self, levels: Levels, classes: int) -> "Mask2Former":
        with quiet("transformers.models.mask2former"):
            config = Mask2FormerConfig(
                backbone_config=TrunkConfig(channels=levels.channels),
                num_labels=classes,
                feature_size=self.width,
                mask_feature_size=self.width,
                hidden_dim=self.width,
                dim_feedforward=self.hidden,
                encoder_feedforward_dim=self.hidden // 2,
                num_attention_heads=self.heads,
                encoder_layers=self.encoder_layers,
                decoder_layers=self.decoder_layers,
                num_queries=self.queries,
                train_num_points=self.points,
                feature_strides=list(self.strides),
                common_stride=self.strides[0],
            )
            host = Mask2FormerForUniversalSegmentation(config)
        host.model.pixel_level_module.encoder.levels = levels
        return Mask2Former(host)


class TrunkConfig(BackboneConfigMixin, PreTrainedConfig):
    """What transformers has to know of a trunk that is put in afterwards.

    Args:
        channels: of each map.
    """

    model_type = "tether_trunk"
    channels: list[int] | None = None

    def __post_init__(self, **rest: Any) -> None:
        self.stage_names = [f"stage{i}" for i in range(len(self.channels or [0]))]
        self.set_output_features_output_indices(list(self.stage_names), None)
        super().__post_init__(**rest)


class TrunkBackbone(BackboneMixin, PreTrainedModel):
    """A trunk as transformers' detectors take backbones; `levels` is put in when they are made, so that they do not
    draw its weights anew."""

    config_class = TrunkConfig
    main_input_name = "pixel_values"

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__(config)
        self.num_features = list(config.channels)
        self.levels: nn.Module = nn.Identity()

    def forward(self, pixel_values: Float[Tensor, "b 3 h w"], **rest: Any) -> BackboneOutput:
        return BackboneOutput(feature_maps=tuple(self.levels(pixel_values)))


AutoConfig.register(TrunkConfig.model_type, TrunkConfig, exist_ok=True)
AutoBackbone.register(TrunkConfig, TrunkBackbone, exist_ok=True)


class RTDetrV2(Detector):
    """RT-DETRv2 of transformers.

    Args:
        host: its model, also one with another backbone.
        most: boxes per picture.

    Raises:
        TetherError: it is of a derived class, or transformers is too old.
    """

    def __init__(self, host: RTDetrV2ForObjectDetection, *, most: int = 100) -> None:
        require_class(host, RTDetrV2ForObjectDetection)
        require_right_loss()
        require_matching()
        super().__init__(host.config.num_labels, masks=False)
        self.host, self.most = host, most

    @property
    def trunk(self) -> nn.Module:
        return _trunk_in(self.host.model.backbone.model)

    def _losses(self, pixels: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        size = (pixels.shape[-2], pixels.shape[-1])
        labels = [
            {"class_labels": target["labels"], "boxes": shares_of(target["boxes"], size)}
            for target in targets
        ]
        terms = self.host(pixel_values=pixels, labels=labels).loss_dict
        here = max(1, sum(len(target["labels"]) for target in targets))
        factor = here / mean_over_processes(sum(len(target["labels"]) for target in targets), pixels.device)
        return {name: term * factor for name, term in terms.items()}

    def _detect(self, pixels: Tensor, sizes: Sequence[Size], contents: Sequence[Size]) -> list[Detections]:
        output = self.host(pixel_values=pixels)
        whole = [(pixels.shape[-2], pixels.shape[-1])] * len(pixels)
        found = RTDetrImageProcessor().post_process_object_detection(output, threshold=0, target_sizes=whole)
        result = []
        for one, size, content in zip(found, sizes, contents, strict=True):
            boxes, there = at_picture(one["boxes"], size, content)
            detections = Detections(boxes[there], one["labels"][there], one["scores"][there])
            result.append(detections.best(self.most))
        return result


class Mask2Former(Detector):
    """Mask2Former of transformers, for instances.

    Args:
        host: its model, also one with another backbone.

    Raises:
        TetherError: it is of a derived class.
    """

    def __init__(self, host: Mask2FormerForUniversalSegmentation) -> None:
        require_class(host, Mask2FormerForUniversalSegmentation)
        require_matching()
        super().__init__(host.config.num_labels, masks=True)
        self.host = host

    @property
    def trunk(self) -> nn.Module:
        return _trunk_in(self.host.model.pixel_level_module.encoder)

    def _losses(self, pixels: Tensor, targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        classes = [target["labels"] for target in targets]
        output = self.host(pixel_values=pixels, output_auxiliary_logits=True)
        terms = self.host.get_loss_dict(
            masks_queries_logits=output.masks_queries_logits,
            class_queries_logits=output.class_queries_logits,
            mask_labels=[target["masks"].float() for target in targets],
            class_labels=classes,
            auxiliary_predictions=output.auxiliary_logits if self.host.config.use_auxiliary_loss else None,
        )
        here = self.host.criterion.get_num_masks(classes, device=pixels.device)
        factor = here / mean_over_processes(sum(map(len, classes)), pixels.device)
        per_object = ("loss_mask", "loss_dice")
        return {name: term * factor if name.startswith(per_object) else term for name, term in terms.items()}

    def _detect(self, pixels: Tensor, sizes: Sequence[Size], contents: Sequence[Size]) -> list[Detections]:
        output = self.host(pixel_values=pixels)
        masks = nn.functional.interpolate(
            output.masks_queries_logits, tuple(pixels.shape[-2:]), mode="bilinear", align_corners=False
        )
        return [
            _instances(logits[:, : content[0], : content[1]], classes, size)
            for logits, classes, size, content in zip(
                masks, output.class_queries_logits, sizes, contents, strict=True
            )
        ]


def _instances(
    masks: Float[Tensor, "queries h w"], classes: Float[Tensor, "queries classes"], size: Size
) -> Detections:
    """The instances of one picture, by transformers' post-processing, with the boxes of their masks."""
    output = SimpleNamespace(masks_queries_logits=masks[None], class_queries_logits=classes[None])
    (found,) = Mask2FormerImageProcessor().post_process_instance_segmentation(
        output, threshold=0, target_sizes=[tuple(size)], return_binary_maps=True
    )
    infos = found["segments_info"]
    scores = masks.new_tensor([info["score"] for info in infos])
    labels = torch.tensor([info["label_id"] for info in infos], dtype=torch.int64, device=masks.device)
    pixels = found["segmentation"].bool() if infos else masks.new_zeros((0, *size), dtype=torch.bool)
    rows, columns = pixels.any(2).float(), pixels.any(1).float()
    ends = [
        columns.argmax(1),
        rows.argmax(1),
        size[1] - columns.flip(1).argmax(1),
        size[0] - rows.flip(1).argmax(1),
    ]
    return Detections(torch.stack(ends, 1).float(), labels, scores, pixels).best(len(labels))


def load_detector(folder: str | Path, *, classes: int | None = None, seed: int = 0) -> RTDetrV2 | Mask2Former:
    """A detector of a folder that transformers saved: config.json and model.safetensors of RT-DETRv2 or Mask2Former.

    Args:
        folder: a local one; nothing is fetched, and no code of it is run.
        classes: other classes than it was saved with, to be learned anew: what is of another shape then starts at
            random. None keeps its own.
        seed: of what is random.

    Raises:
        TetherError: it is no such folder, or weights are missing, too many, of another shape or not finite.
    """
    folder = Path(folder)
    config = read_config(folder, str(folder))
    kinds = {"rt_detr_v2": RTDetrV2ForObjectDetection, "mask2former": Mask2FormerForUniversalSegmentation}
    if config.model_type not in kinds:
        raise TetherError(
            f"{folder} holds a model of type {config.model_type!r}; known are {' and '.join(kinds)}. Others go on a "
            f"backbone by a config of their own."
        )
    if config.model_type == "rt_detr_v2":
        require_right_loss()
    if not list(folder.glob("model*.safetensors")):
        raise TetherError(f"{folder} has no model.safetensors. Pickled weights are never loaded.")
    changed = classes is not None and classes != config.num_labels
    if changed:
        config.num_labels = classes
    with seeded(seed, torch.device("cpu")):
        try:
            host, report = kinds[config.model_type].from_pretrained(
                folder,
                config=config,
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
            )
        except Exception as error:  # of several libraries
            raise TetherError(f"transformers cannot load {folder}: {error}") from error
    complain(
        str(folder),
        missing=sorted(report["missing_keys"]),
        unexpected=sorted(report["unexpected_keys"]),
        shapes=[
            f"{name} is {tuple(found)}, the configuration says {tuple(expected)}"
            for name, found, expected in sorted(report["mismatched_keys"])
            if not (changed and expected[0] in (classes, classes + 1))
        ],
        infinite=[name for name, tensor in host.state_dict().items() if not bool(tensor.isfinite().all())],
    )
    return (RTDetrV2 if config.model_type == "rt_detr_v2" else Mask2Former)(host)


def shares_of(boxes: Float[Tensor, "n 4"], size: Size) -> Float[Tensor, "n 4"]:
    """Left, top, right, bottom in pixels as centre, width and height in shares of an input of height × width."""
    height, width = size
    left, top, right, bottom = boxes.unbind(1)
    boxes = torch.stack([(left + right) / 2, (top + bottom) / 2, right - left, bottom - top], 1)
    return boxes / boxes.new_tensor([width, height, width, height])


def mean_over_processes(count: int, device: torch.device) -> float:
    """The mean of a number of objects over the processes, at least 1."""
    counts = torch.tensor([float(count)], device=device)
    return max(1.0, _distributed.average(counts).item())


def require_right_loss() -> None:
    """Refuse a transformers in which RT-DETR learns the wrong thing.

    Raises:
        TetherError: it is older than `RIGHT_SINCE`.
    """
    installed = version("transformers")
    if tuple(int(part) for part in installed.split(".")[:2]) < RIGHT_SINCE:
        needed = ".".join(map(str, RIGHT_SINCE))
        raise TetherError(
            f"transformers {installed} computes RT-DETR's main loss over its denoising queries, which is wrong. "
            f"Install transformers {needed} or later."
        )


def require_matching() -> None:
    """Refuse to go on without what matches queries with objects.

    Raises:
        TetherError: scipy is not installed.
    """
    if find_spec("scipy") is None:
        raise TetherError(
            "transformers matches queries with objects by scipy, which is not installed. Install tether[detection]."
        )


def require_class(host: nn.Module, kind: type[nn.Module]) -> None:
    """Refuse a model whose class is not exactly this one, by whose name transformers chooses the loss.

    Raises:
        TetherError: it is another.
    """
    if type(host) is not kind or (kind is RTDetrV2ForObjectDetection and host.loss_type != kind.__name__):
        raise TetherError(
            f"The model is a {type(host).__name__}, and {kind.__name__} is expected itself: transformers chooses the "
            f"loss by the name of the class, and another would silently learn something else."
        )


def _trunk_in(backbone: nn.Module) -> nn.Module:
    """A trunk of ours, or the backbone as transformers made it, with the norms of its maps."""
    return backbone.levels.trunk if isinstance(backbone, TrunkBackbone) else backbone


class quiet:
    """Inside, a logger and those below it say nothing: Mask2Former warns of every backbone but Swin."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self._before = self._logger.level
        self._logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self._logger.setLevel(self._before)
