"""Small random image models of every family whose sites are known, and folders of some."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models._hub import save_for_hf
from torch import nn
from torchvision.models import Weights, WeightsEnum
from torchvision.transforms._presets import ImageClassification


def hybrid() -> nn.Module:
    """A ViT on the features of a convolutional stem."""
    from timm.layers import HybridEmbed
    from timm.models.vision_transformer import VisionTransformer

    stem = nn.Sequential(nn.Conv2d(3, 12, 8, stride=8), nn.ReLU())
    return VisionTransformer(
        img_size=32,
        embed_dim=32,
        depth=2,
        num_heads=4,
        embed_layer=lambda **options: HybridEmbed(stem, img_size=32, embed_dim=options["embed_dim"]),
    )


def convnext_of_torchvision() -> nn.Module:
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    return ConvNeXt([CNBlockConfig(16, 24, 1), CNBlockConfig(24, None, 2)])


def of_transformers(name: str, **options: Any) -> nn.Module:
    """transformers' model of this name (ViT, Dinov2 ...), tiny."""
    import transformers

    config = getattr(transformers, f"{name}Config")(image_size=32, **options)
    return getattr(transformers, f"{name}Model")(config)


VIT_OF_TRANSFORMERS = {
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
TIMM_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
TIMM_SWIN = {
    "img_size": 32,
    "patch_size": 2,
    "embed_dim": 24,
    "depths": (1, 2),
    "num_heads": (2, 4),
    "window_size": 4,
}
SWIN_OF_TRANSFORMERS = {
    "patch_size": 2,
    "embed_dim": 24,
    "depths": [1, 2],
    "num_heads": [2, 4],
    "window_size": 4,
}
CONVNEXT_OF_TRANSFORMERS = {"patch_size": 4, "hidden_sizes": [16, 24, 32, 40], "depths": [1, 1, 2, 1]}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (16, 24, 32, 40)}
IMAGE_MODELS: dict[
    str, tuple[Callable[[], nn.Module], int, int]
] = {  # model, blocks, sites in each by default
    "timm ViT": (lambda: timm.create_model("vit_tiny_patch16_224", **TIMM_VIT), 2, 2),
    "timm ViT with average pooling": (
        lambda: timm.create_model("vit_tiny_patch16_224", class_token=False, global_pool="avg", **TIMM_VIT),
        2,
        2,
    ),
    "timm EVA": (lambda: timm.create_model("eva02_tiny_patch14_224", **TIMM_VIT), 2, 2),
    "timm hybrid": (hybrid, 2, 2),
    "timm Swin": (lambda: timm.create_model("swin_tiny_patch4_window7_224", **TIMM_SWIN), 3, 2),
    "timm Swin 2": (lambda: timm.create_model("swinv2_tiny_window8_256", **TIMM_SWIN), 3, 2),
    "timm ConvNeXt": (lambda: timm.create_model("convnext_tiny", **CONVNEXT), 5, 1),
    "timm ConvNeXt of convolutions": (lambda: timm.create_model("convnext_atto", **CONVNEXT), 5, 1),
    "transformers ViT": (lambda: of_transformers("ViT", **VIT_OF_TRANSFORMERS), 2, 2),
    "transformers DINOv2": (lambda: of_transformers("Dinov2", **VIT_OF_TRANSFORMERS), 2, 2),
    "transformers DINOv2 with SwiGLU": (
        lambda: of_transformers("Dinov2", use_swiglu_ffn=True, **VIT_OF_TRANSFORMERS),
        2,
        2,
    ),
    "transformers Swin": (lambda: of_transformers("Swin", **SWIN_OF_TRANSFORMERS), 3, 2),
    "torchvision ViT": (lambda: torchvision.models.VisionTransformer(32, 8, 2, 4, 32, 64), 2, 2),
    "torchvision Swin": (
        lambda: torchvision.models.SwinTransformer([2, 2], 24, [1, 2], [2, 4], [4, 4], 2.0),
        3,
        2,
    ),
    "torchvision Swin 2": (
        lambda: torchvision.models.SwinTransformer(
            [2, 2],
            24,
            [1, 2],
            [2, 4],
            [4, 4],
            2.0,
            block=torchvision.models.swin_transformer.SwinTransformerBlockV2,
            downsample_layer=torchvision.models.swin_transformer.PatchMergingV2,
        ),
        3,
        2,
    ),
    "timm DeiT distilled": (lambda: timm.create_model("deit_tiny_distilled_patch16_224", **TIMM_VIT), 2, 2),
    "timm DINOv2 with registers": (
        lambda: timm.create_model("vit_small_patch14_reg4_dinov2", **TIMM_VIT),
        2,
        2,
    ),
    "timm Swin for maps": (
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", features_only=True, out_indices=(0, 1), **TIMM_SWIN
        ),
        3,
        2,
    ),
    "timm ViT post-norm": (lambda: timm.create_model("vit_base_patch16_rpn_224", **TIMM_VIT), 2, 2),
    "transformers DeiT": (lambda: of_transformers("DeiT", **VIT_OF_TRANSFORMERS), 2, 2),
    "transformers DINOv2 with registers": (
        lambda: of_transformers("Dinov2WithRegisters", **VIT_OF_TRANSFORMERS),
        2,
        2,
    ),
    "transformers DINOv3": (
        lambda: of_transformers("DINOv3ViT", num_register_tokens=4, **VIT_OF_TRANSFORMERS),
        2,
        2,
    ),
    "transformers Swin 2": (
        lambda: of_transformers("Swinv2", **SWIN_OF_TRANSFORMERS),
        3,
        2,
    ),
    "transformers ConvNeXt": (lambda: of_transformers("ConvNext", **CONVNEXT_OF_TRANSFORMERS), 5, 1),
    "transformers ConvNeXt 2": (lambda: of_transformers("ConvNextV2", **CONVNEXT_OF_TRANSFORMERS), 5, 1),
    "torchvision ConvNeXt": (convnext_of_torchvision, 3, 1),
}


def save_timm(folder: Path) -> Path:
    """A random Swin in the folder layout of timm's hub, written by timm itself."""
    torch.manual_seed(0)
    module = timm.create_model("swin_tiny_patch4_window7_224", num_classes=5, **TIMM_SWIN)
    module.pretrained_cfg = module.pretrained_cfg | {"input_size": (3, 32, 32), "crop_pct": 0.9}
    save_for_hf(module, folder, model_args=TIMM_SWIN, safe_serialization=True)
    return folder


def save_torchvision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A random ViT as a folder of ours; torchvision knows its architecture, `vit_tiny`, until the patch is undone."""
    from tether.models import load

    class Tiny(WeightsEnum):
        DEFAULT = Weights(
            "", partial(ImageClassification, crop_size=32, resize_size=36), {"categories": ["a", "b"]}
        )

    def vit_tiny(*, weights: Tiny | None = None, num_classes: int = 5, image_size: int = 224) -> nn.Module:
        return torchvision.models.VisionTransformer(image_size, 8, 2, 4, 32, 64, num_classes=num_classes)

    vit_tiny.__module__ = "torchvision.models.tiny"
    vit_tiny.__annotations__["weights"] = Tiny | None
    known = dict(torchvision.models._api.BUILTIN_MODELS)
    monkeypatch.setattr(torchvision.models._api, "BUILTIN_MODELS", known | {"vit_tiny": vit_tiny})
    torch.manual_seed(0)
    model = load("torchvision:vit_tiny", pretrained=False)
    for parameter in model.module.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.save(folder)
    return folder
