"""Losses are computed in single precision, whatever the features come in."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def full_precision(loss: Callable) -> Callable:
    """Let a loss see half-precision tensors as float32 and run outside autocast; float64 stays float64.

    A logit of 100 has a spacing of 0.06 in float16 and of 0.5 in bfloat16: too coarse for a softmax.
    """

    @functools.wraps(loss)
    def in_full_precision(*args: Any, **kwargs: Any) -> Any:
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        device = tensors[0].device.type if tensors else "cpu"
        with torch.autocast(device, enabled=False):
            return loss(*map(widen, args), **{name: widen(value) for name, value in kwargs.items()})

    return in_full_precision


@full_precision
def cosine_logits(
    image: Float[Tensor, "batch dim"], rows: Float[Tensor, "rows dim"], scale: float | Float[Tensor, ""]
) -> Float[Tensor, "batch rows"]:
    """scale · image · rowsᵀ, of L2-normalised features."""
    return scale * (image @ rows.T)


def widen(value: Any) -> Any:
    """Half-precision tensors in float32; everything else as it is."""
    if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16):
        return value.float()
    return value
