"""Where transformers' CLIP, SigLIP (1 and 2), ViT, DINOv2, Swin and BERT-like encoders have their sites."""

from collections.abc import Iterator

from torch import nn

from tether.models.site import Site, Tower, block_sites, is_linear

CLASS_TOKEN = {  # classes that own the blocks; whether token 0 is a class token (CLIP: of its image tower)
    "CLIPEncoder": True,
    "SiglipEncoder": False,
    "Siglip2Encoder": False,
    "ViTModel": True,
    "Dinov2Encoder": True,
    "Dinov2WithRegistersEncoder": True,
    "SwinEncoder": False,
    "BertEncoder": True,
    "RobertaEncoder": True,
    "XLMRobertaEncoder": True,
}
ATTENTION = ("self_attn.out_proj", "attention.o_proj", "attention.output.dense", "attention.out_proj")
MLP = ("mlp.fc2", "mlp.down_proj", "mlp.weights_out", "output.dense")


def find(owner: nn.Module, prefix: str) -> Iterator[Site]:
    """The sites of `owner` if it is one of these encoders."""
    name = type(owner).__name__
    if name not in CLASS_TOKEN or not (hasattr(owner, "layers") or hasattr(owner, "layer")):
        return
    tower = _tower(owner)
    swin = name == "SwinEncoder"
    for depth, (path, block) in enumerate(_blocks(owner)):
        attention = next((linear for linear in ATTENTION if is_linear(block, linear)), None)
        mlp = next((linear for linear in MLP if is_linear(block, linear)), None)
        yield from block_sites(
            block,
            f"{prefix}{path}",
            tower=tower,
            depth=depth,
            width=block.get_submodule(mlp).weight.shape[0] if mlp else owner.config.hidden_size,
            tokens="BNC",
            class_token=CLASS_TOKEN[name] and not (name == "CLIPEncoder" and tower == "text"),
            attention=(attention, attention) if attention else None,
            mlp=mlp,
            windows=swin,
        )


def _tower(owner: nn.Module) -> Tower:
    config = type(owner.config).__name__
    return "text" if "Text" in config or "Bert" in config or "Roberta" in config else "image"


def _blocks(owner: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    name = "layers" if hasattr(owner, "layers") else "layer"
    for index, block in enumerate(getattr(owner, name)):
        if hasattr(block, "blocks"):  # a stage of Swin
            for inner, part in enumerate(block.blocks):
                yield f"{name}.{index}.blocks.{inner}", part
        else:
            yield f"{name}.{index}", block
