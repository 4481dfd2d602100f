"""The steps that the robust methods change: AdamW and SGD, as torch computes them."""

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

States = list[dict[str, Tensor]]


def adamw_step(
    params: list[Tensor],
    grads: list[Tensor],
    states: States,
    group: dict[str, Any],
    *,
    weight_decay: float,
) -> None:
    """One step of `torch.optim.AdamW` in place; on a CPU its fused kernel, one pass over the memory."""
    first, second = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq"))
    largest = [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else []
    # The CPU kernel walks through the memory of all tensors side by side, so their layouts must be the same.
    plain_layout = all(
        tensor.is_contiguous() for tensors in (params, grads, first, second) for tensor in tensors
    )
    fused = plain_layout and params[0].device.type == "cpu"
    adamw(
        params,
        grads,
        first,
        second,
        largest,
        [state["step"] for state in states],
        foreach=not fused,
        fused=fused,
        amsgrad=group["amsgrad"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=weight_decay,
        eps=group["eps"],
        maximize=group["maximize"],
    )


def sgd_step(
    params: list[Tensor],
    grads: list[Tensor],
    states: States,
    group: dict[str, Any],
    *,
    weight_decay: float,
) -> None:
    """One step of `torch.optim.SGD` in place; a tensor's first buffer is its gradient, without dampening."""
    buffers: list[Tensor | None] = [
        state["momentum_buffer"] if group["momentum"] and state["step"].item() > 0 else None
        for state in states
    ]
    if group["nesterov"] and not weight_decay and not group["maximize"]:
        grads = list(
            torch._foreach_clone(grads)
        )  # torch's foreach Nesterov overwrites the gradients it is given
    sgd(
        params,
        grads,
        buffers,
        foreach=True,
        weight_decay=weight_decay,
        momentum=group["momentum"],
        lr=group["lr"],
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        maximize=group["maximize"],
    )
    for state, buffer in zip(states, buffers, strict=True):
        if group["momentum"] and state["step"].item() == 0:
            state["momentum_buffer"].copy_(buffer)
    torch._foreach_add_([state["step"] for state in states], 1)
