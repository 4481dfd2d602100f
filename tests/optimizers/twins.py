"""The update of one tensor by each method, as the formulas read: what the library's updates are compared with.

A twin takes the place of `_update`, so that groups, anchors, states and the base step are the library's own.
"""

import torch
from torch import Tensor

from tether.optimizers import FTP, L2SP, MARSSP, SPD, DiGraP
from tether.optimizers._bucket import Bucket, column, scalar_dtype
from tether.optimizers._learned import adam_move, counted

FLOOR, TINY = 1e-8, 1e-12


def anchor_of(bucket: Bucket) -> Tensor:
    return torch.zeros_like(bucket.params[0]) if bucket.anchors is None else bucket.anchors[0]


def row_sums(c: Tensor) -> Tensor:
    """‖c_r‖₁ of every row; a vector or scalar is one row."""
    return (c.reshape(1, -1) if c.ndim < 2 else c.flatten(1)).abs().sum(1, dtype=scalar_dtype(c))


def ftp(bucket: Bucket) -> None:
    (param,), (grad,), (state,), group = bucket.params, bucket.grads, bucket.states, bucket.group
    anchor = anchor_of(bucket)
    (step,) = bucket.clock() + 1
    radius = state["radius"]
    if step == 1 and group["first_radius"] == "start":
        radius = row_sums(param - anchor).max() + FLOOR
    if step > 1:
        h = bucket.sign * (grad * state["direction"]).sum(dtype=scalar_dtype(param))
        if h > 0:
            h = group["k"] * h
        moments = state["radius_exp_avg"], state["radius_exp_avg_sq"]
        radius = radius - group["radius_lr"] * adam_move(h, *moments, counted(step, group["bias_correction"]))
    bucket.base_step(weight_decay=group["weight_decay"])
    c = param - anchor
    n = row_sums(c) + FLOOR
    radius = radius.clamp(min=FLOOR).minimum(n.max())
    param.copy_(anchor + column((radius / n).clamp(max=1), c) * c)
    state["radius"].copy_(radius)
    state["direction"].copy_(c * column(1 / n, c))


def spd(bucket: Bucket) -> None:
    (param,), (grad,), group = bucket.params, bucket.grads, bucket.group
    anchor = anchor_of(bucket)
    q = -bucket.sign * (grad * (param - anchor)).sum()
    radius = (param - anchor).norm()
    bucket.base_step(weight_decay=0.0)
    new_radius = (param - anchor).norm()
    if q < 0 and new_radius > 0:
        ratio = ((new_radius - radius) / new_radius).clamp(0, 1)
        strength = group["strength"] * (group["lr"] if group["times_lr"] else 1)
        param.sub_(strength * ratio * (param - anchor))


def digrap(bucket: Bucket) -> None:
    (param,), (grad,), (state,), group = bucket.params, bucket.grads, bucket.states, bucket.group
    (step,) = bucket.clock() + 1
    by_row, wide = group["normalization"] == "rows" and param.ndim >= 2, scalar_dtype(param)

    def unit(x: Tensor) -> Tensor:
        rows = x.to(wide).flatten(1) if by_row else x.to(wide).reshape(1, -1)
        return (rows / rows.norm(dim=1, keepdim=True).clamp(min=TINY)).reshape(x.shape)

    g, c = bucket.sign * grad, param - anchor_of(bucket)
    if step > 1:
        h = (unit(g) * state["direction"]).sum(dtype=wide)
        moments = state["omega_exp_avg"], state["omega_exp_avg_sq"]
        move = adam_move(h, *moments, counted(step, group["bias_correction"]))
        state["omega"].sub_(group["mu"] * move).clamp_(0, group["kappa"])
    dot, square = (g.to(wide) * c.to(wide)).sum(), c.to(wide).square().sum()
    state["direction"].copy_(unit(dot / (square + 1e-8) * c.to(wide)))
    if (dot < 0) if group["condition"] == "conflict" else (dot > 0):
        g = (g - state["omega"] * dot / square * c).to(param.dtype)
    bucket.base_step([bucket.sign * g], weight_decay=0.0)


def l2sp(bucket: Bucket) -> None:
    (param,), (grad,), group = bucket.params, bucket.grads, bucket.group
    pull = group["alpha"] * (param - anchor_of(bucket))
    if group["decoupled"]:
        param.sub_(group["lr"] * pull)
        bucket.base_step(weight_decay=0.0)
    else:
        bucket.base_step([grad + bucket.sign * pull], weight_decay=0.0)


def marssp(bucket: Bucket) -> None:
    (param,), (grad,), group = bucket.params, bucket.grads, bucket.group
    anchor = anchor_of(bucket)
    if group["radius"] is None:
        c = param - anchor
        rows = row_sums(c)
        farthest = torch.zeros_like(rows)
        farthest[rows.argmax()] = group["strength"]
        bucket.base_step([grad + bucket.sign * column(farthest, c) * c.sign()], weight_decay=0.0)
    else:
        bucket.base_step(weight_decay=0.0)
        c = param - anchor
        param.copy_(anchor + column((group["radius"] / row_sums(c).clamp(min=1e-30)).clamp(max=1), c) * c)


TWINS = {FTP: ftp, SPD: spd, DiGraP: digrap, L2SP: l2sp, MARSSP: marssp}
