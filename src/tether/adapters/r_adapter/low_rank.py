"""An R-Adapter of low rank is a LoRA on the linear before it.

    h = y + k U D y,   y = W x + b     is     h = W x + b + B A x + c,   B = k U,  A = D W,  c = k U D b

with W [d, i], U [d, r], D [r, d]: LoRA with s = 1 and a bias. A is no longer random but made of W, so that what was
trained stays one small file, and what reads LoRA reads it.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tether.adapters.lora import LoRAConfig
from tether.adapters.r_adapter.states import factors_of
from tether.errors import TetherError


def lora_of(
    module: nn.Module, adapters: Mapping[str, Mapping[str, Tensor]]
) -> tuple[LoRAConfig, dict[str, Tensor]]:
    """Config and state of the LoRA that computes what R-Adapters do; smaller ranks are filled up with zeros.

    Args:
        module: the ordinary model.
        adapters: the tensors of each, by the path of the linear in front of it.

    Raises:
        TetherError: an adapter has full rank, or is behind something that LoRA cannot be on.
    """
    for path, tensors in adapters.items():
        owner, _, _ = path.rpartition(".")
        if isinstance(module.get_submodule(owner), nn.MultiheadAttention):
            raise TetherError(
                f"{path} is the output projection of a fused attention, on which LoRA of peft does nothing. Merge this "
                f"adapter (tether merge), or train one of the MLPs alone: select.kinds=[mlp]."
            )
        if "weight" in tensors:
            raise TetherError(
                f"The adapter behind {path} has full rank, and LoRA has low rank. Cut it first, and export what that "
                f"gives: tether rank ADAPTER --out SMALL, or tether.adapters.at_rank."
            )
    rank = max(tensors["down"].shape[0] for tensors in adapters.values())
    bias = any(module.get_submodule(path).bias is not None for path in adapters)
    config = LoRAConfig(rank=rank, lora_alpha=float(rank), bias=bias, modules=tuple(adapters))
    result = {}
    for path, tensors in adapters.items():
        (up, down), k = factors_of(tensors)
        linear = module.get_submodule(path)
        weight = linear.weight.detach().to(torch.promote_types(linear.weight.dtype, torch.float32))
        up, down = (k * up).to(weight), down.to(weight)
        missing = rank - len(down)
        result[f"{path}.lora_A.weight"] = F.pad(down @ weight, (0, 0, 0, missing))
        result[f"{path}.lora_B.weight"] = F.pad(up, (0, missing))
        if linear.bias is not None:
            result[f"{path}.lora_B.bias"] = up @ (down @ linear.bias.detach().to(weight))
    return config, result
