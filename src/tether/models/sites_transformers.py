"""Where transformers' CLIP, SigLIP, ViT, DeiT, DINO, Swin, ConvNeXt and BERT-like encoders have their sites."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from tether.models.block_sites import block_sites, is_linear
from tether.models.branches import Branch, convolutional, post_norm, pre_norm
from tether.models.site import Site, Tower

PREFIX_TOKENS = {  # classes that own the blocks, and how many tokens precede the patches (CLIP: of its image tower)
    "CLIPEncoder": 1,
    "SiglipEncoder": 0,
    "Siglip2Encoder": 0,
    "ViTModel": 1,
    "DeiTModel": 2,  # class and distillation token
    "Dinov2Encoder": 1,
    "Dinov2WithRegistersEncoder": 1,  # and the registers
    "DINOv3ViTEncoder": 1,  # and the registers
    "SwinEncoder": 0,
    "Swinv2Encoder": 0,
    "ConvNextEncoder": 0,
    "ConvNextV2Encoder": 0,
    "BertEncoder": 1,
    "RobertaEncoder": 1,
    "XLMRobertaEncoder": 1,
}
ANY_LENGTH = (
    "CLIPEncoder",
    "SiglipEncoder",
    "ViTModel",
    "DeiTModel",
    "Dinov2Encoder",
    "Dinov2WithRegistersEncoder",
)
"""Encoders whose image tower takes a sequence of any length: no mask, no rotary position embedding."""
ONE_SIZE = ("CLIPEncoder", "SiglipEncoder", "ViTModel", "DeiTModel")
"""Encoders whose image tower takes pictures of the configuration's size only."""
ATTENTION = ("self_attn.out_proj", "attention.o_proj", "attention.output.dense", "attention.out_proj")
MLP = ("mlp.fc2", "mlp.down_proj", "mlp.weights_out", "output.dense", "pwconv2")
NORMS = (("layer_norm1", "layer_norm2"), ("layernorm_before", "layernorm_after"), ("norm1", "norm2"))


def find(owner: nn.Module, prefix: str) -> Iterator[Site]:
    """The sites of `owner` if it is one of these encoders."""
    name = type(owner).__name__
    if name not in PREFIX_TOKENS:
        return
    tower = _tower(owner)
    maps = name.startswith("ConvNext")
    text_of_clip = name == "CLIPEncoder" and tower == "text"
    for depth, (path, block) in enumerate(_blocks(owner)):
        attention = next((linear for linear in ATTENTION if is_linear(block, linear)), None)
        mlp = next((linear for linear in MLP if is_linear(block, linear)), None)
        yield from block_sites(
            block,
            f"{prefix}{path}",
            tower=tower,
            depth=depth,
            width=block.get_submodule(mlp).weight.shape[0] if mlp else owner.config.hidden_size,
            tokens="BHWC" if maps else "BNC",
            prefix_tokens=0 if text_of_clip else _prefix_tokens(name, owner.config),
            attention=(attention, attention) if attention else None,
            mlp=mlp,
            windows=name.startswith("Swin"),
            layouts={"": "BCHW"} if maps else {},
            grid=_grid(owner.config) if name in ONE_SIZE and tower == "image" else None,
            branches=_branches(block),
            prompts=name in ANY_LENGTH and tower == "image",
        )


def _prefix_tokens(name: str, config: Any) -> int:
    registers = getattr(config, "num_register_tokens", 0) if name.startswith(("Dinov2With", "DINOv3")) else 0
    return PREFIX_TOKENS[name] + registers


def _tower(owner: nn.Module) -> Tower:
    config = type(owner.config).__name__
    return "text" if "Text" in config or "Bert" in config or "Roberta" in config else "image"


def _grid(config: Any) -> tuple[int, int]:
    (height, width), (rows, columns) = pair(config.image_size), pair(config.patch_size)
    return height // rows, width // columns


def pair(size: Any) -> tuple[int, int]:
    """Height and width of a size in a configuration, which may be one number."""
    return (size, size) if isinstance(size, int) else tuple(size)


def _branches(block: nn.Module) -> tuple[Branch, ...]:
    """The branches of a block, by what it is made of; none of BERT's, whose stream is normalised after every sum."""
    parts = dict(block.named_children())
    if "pwconv2" in parts:
        return convolutional("layernorm", "pwconv2")
    norms = next((pair for pair in NORMS if parts.keys() >= set(pair)), None)
    if norms is None:
        return ()
    if type(block).__name__ == "Swinv2Layer":
        return post_norm(norms[0], "intermediate", norms[1])
    if "mlp" not in parts:
        return ()
    if hasattr(
        block, "window_size"
    ):  # its attention sees windows, what goes into drop path is the whole again
        return pre_norm(norms[0], ("drop_path", "input"), norms[1], ("mlp", "output"))
    attention = "self_attn" if "self_attn" in parts else "attention"
    return pre_norm(norms[0], (attention, "output"), norms[1], ("mlp", "output"))


def _blocks(owner: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The blocks of an encoder, also where they lie in stages."""
    outer = next(name for name in ("layers", "layer", "stages") if hasattr(owner, name))
    for index, part in enumerate(getattr(owner, outer)):
        inner = next((name for name in ("blocks", "layers") if hasattr(part, name)), None)
        if inner is None:
            yield f"{outer}.{index}", part
        else:
            for number, block in enumerate(getattr(part, inner)):
                yield f"{outer}.{index}.{inner}.{number}", block
