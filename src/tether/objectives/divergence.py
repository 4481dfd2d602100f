"""Distances between the predictions of a frozen reference and of the model in training, from logits."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tether.errors import TetherError, near_misses
from tether.objectives._precision import full_precision

DIVERGENCES = ("kl", "reverse_kl", "js", "squared_logits")


@full_precision
def divergence(
    reference: Float[Tensor, "batch classes"],
    logits: Float[Tensor, "batch classes"],
    kind: str = "kl",
) -> Float[Tensor, ""]:
    """Mean over the batch of D(p ‖ q), p = softmax(reference), q = softmax(logits); never below 0, 0 when
    equal.

    "kl" is Σ p log(p/q), "reverse_kl" Σ q log(q/p), "js" the Jensen-Shannon divergence (at most log 2), and
    "squared_logits" the mean over classes of (reference − logits)², the only one that feels a shift of all
    logits. No gradient reaches `reference`.

    Raises:
        TetherError: an unknown kind.
    """
    reference = reference.detach()
    if kind == "squared_logits":
        return F.mse_loss(logits, reference)
    log_p, log_q = F.log_softmax(reference, -1), F.log_softmax(logits, -1)
    if kind == "kl":
        return _kl(log_p, log_q)
    if kind == "reverse_kl":
        return _kl(log_q, log_p)
    if kind == "js":
        middle = torch.logaddexp(log_p, log_q) - math.log(2)
        return (_kl(log_p, middle) + _kl(log_q, middle)) / 2
    raise TetherError(f"Unknown divergence {kind!r}{near_misses(kind, DIVERGENCES)}")


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
