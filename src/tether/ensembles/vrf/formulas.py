"""VRF's formulas: which samples are failures, how far a sample is from them, and what weight that gives."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tether.ensembles.views import Views

_CHUNK = 2**26  # cosines at a time, 256 MiB in fp32: 50,000 pictures × 250,000 failures are 50 GB


def is_failure(views: Views, labels: Int[Tensor, "batch"]) -> Bool[Tensor, "batch"]:
    """Which samples the tuned model gets right and the zero-shot model wrong."""
    return (views.tuned.argmax(-1) == labels) & (views.zero_shot.argmax(-1) != labels)


def neighbour_count(failures: int, training_size: int, config: Any) -> int:
    """k for |V| failures among |D| training samples, clamped to 1…|V| (0 where there are none)."""
    if config.k_rule == "per_thousand_training":
        k = round(1000 * failures / training_size)
    else:
        k = math.floor(config.share * failures + 1e-9)  # 0.001 · 1000 may come out below 1
    return min(max(k, 1), failures)


def neighbour_distance(
    features: Float[Tensor, "batch dim"], failures: Float[Tensor, "size dim"], k: int, squared: bool = True
) -> Float[Tensor, "batch"]:
    """(Squared) Euclidean distance to the k-th nearest row of `failures`, rows scaled to unit length, in
    fp32 or better.

    Infinite where there is no failure. Many features are compared in chunks, to bound the memory.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    if not len(failures):
        return torch.full((len(features),), torch.inf, dtype=dtype, device=features.device)
    with torch.autocast(features.device.type, enabled=False):
        rows, known = F.normalize(features.to(dtype), dim=-1), F.normalize(failures.to(dtype), dim=-1)
        chunks = [rows] if torch.compiler.is_compiling() else rows.split(max(1, _CHUNK // len(known)))
        cosine = torch.cat([(chunk @ known.T).topk(k).values[:, -1] for chunk in chunks])
    distance = (2 - 2 * cosine).clamp(min=0)
    return distance if squared else distance.sqrt()


def tuned_weight(distance: Float[Tensor, "batch"], a: float, b: float) -> Float[Tensor, "batch"]:
    """ω = sigmoid(−(d − a)/b): ½ at d = a, falling with distance; b is how softly."""
    return torch.sigmoid((a - distance) / b)


def candidate_shapes(distance: Float[Tensor, "samples"]) -> list[tuple[float, float]]:
    """(a, b) at multiples of the median distance: a in ¼…2, b in 0.1…1 medians.

    The grid is this library's choice; it holds what the paper found for its data sets.
    """
    median = float(distance.median())
    unit = median if 0 < median < math.inf else 1.0
    return [(unit * step / 4, unit * b) for step in range(1, 9) for b in (0.1, 0.2, 0.4, 0.6, 1.0)]


def choose_shape(
    distance: Float[Tensor, "samples"],
    zero_shot: Float[Tensor, "samples classes"],
    tuned: Float[Tensor, "samples classes"],
    labels: Int[Tensor, "samples"],
) -> tuple[float, float]:
    """(a, b) of the best accuracy on *validation* among `candidate_shapes`, ties by likelihood.

    `zero_shot` and `tuned` are probabilities.
    """
    rows = torch.arange(len(labels), device=labels.device)
    best, shapes = (-1.0, -math.inf), candidate_shapes(distance)
    chosen = shapes[0]
    for a, b in shapes:
        weight = tuned_weight(distance, a, b)[:, None]
        mixed = weight * tuned + (1 - weight) * zero_shot
        accuracy = float((mixed.argmax(-1) == labels).double().mean())
        likelihood = float(mixed[rows, labels].double().clamp(min=1e-30).log().mean())
        if (accuracy, likelihood) > best:
            best, chosen = (accuracy, likelihood), (a, b)
    return chosen
