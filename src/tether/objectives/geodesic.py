"""Geodesic mixing of embeddings and the four losses built on it: m²-Mix, V-Mix, L-Mix, VL-Mix.

"Geodesic Multi-Modal Mixup for Robust Fine-Tuning" (NeurIPS 2023, arXiv 2203.03897). CLIP keeps pictures
and texts in two separate cones; points on the great circle between a picture and its own text lie in the
empty space between the cones and are hard negatives for *other* pairs. Use it when a contrastively
fine-tuned model should keep a well-spread space (retrieval, calibration, transfer).

Everything here works on a whole batch: row i of both arguments is one pair. Over several processes, gather
the features first and use the same share everywhere, so that the reversed partner is taken over the global
batch.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from tether.objectives._precision import full_precision

_NEAR = 1e-5  # 1 − |cosine| below which the closed formula gives way; 0.26 degrees


@full_precision
def geodesic_mix(
    a: Float[Tensor, "batch dim"], b: Float[Tensor, "batch dim"], share: float | Float[Tensor, "batch"]
) -> Float[Tensor, "batch dim"]:
    """Point on the great circle from `b` (share 0) to `a` (share 1), of unit length as its unit-length ends
    are.

        m_s(a, b) = sin(sφ)/sin φ · a + sin((1−s)φ)/sin φ · b,   φ = arccos(a·b)

    `share` s in [0, 1] is the weight on the *first* argument, one for the batch or one per row. Half
    precision is computed and returned in float32. For nearly equal ends the weights follow their expansion
    around φ = 0. Between opposite ends there is no one great circle: the path taken starts at `a` and
    leaves it at right angles, towards the coordinate axis that `a` is furthest from.
    """
    if isinstance(share, Tensor):
        share = share.to(a.dtype)[:, None]
    # Divided by the lengths: rows rounded to half precision are off unit length, by more than _NEAR.
    cosine = F.cosine_similarity(a, b)[:, None].clamp(-1, 1)
    near, opposite = cosine > 1 - _NEAR, cosine < _NEAR - 1
    angle = torch.arccos(
        cosine.masked_fill(near | opposite, 0.0)
    )  # rows decided below: kept off the singularities

    def weight(s: float | Tensor) -> Tensor:
        expansion = s * (1 + (1 - s * s) * (1 - cosine) / 3)
        return torch.where(near, expansion, torch.sin(s * angle) / torch.sin(angle))

    mixed = weight(share) * a + weight(1 - share) * b
    return torch.where(opposite, _half_circle(a, share), mixed)


def _half_circle(a: Tensor, share: float | Tensor) -> Tensor:
    axis = F.one_hot(a.detach().abs().argmin(-1), a.shape[-1]).to(a.dtype)
    side = F.normalize(axis - (axis * a).sum(-1, keepdim=True) * a, dim=-1)
    turned = torch.as_tensor(1 - share, dtype=a.dtype, device=a.device) * torch.pi
    return torch.cos(turned) * a + torch.sin(turned) * side


@full_precision
def m2_mix(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    share: float | Float[Tensor, "batch"],
    temperature: float = 0.07,
    negative_temperature: float | None = None,
    halve: bool = False,
) -> Float[Tensor, ""]:
    """m²-Mix: contrast every true pair with the mixtures m_λ(image, text) of the *other* pairs.

        logits_ij = I_i·T_i/τ on the diagonal, I_i·N_j/τ off it, N_j = m_λ(I_j, T_j); the same from the
        text's side

    The two cross-entropies are added as in the published training code; `halve` gives their mean, as in its
    published CLIP-style variant. `negative_temperature` is a temperature of its own for the mixed negatives.
    `share` λ may differ from row to row.

    >>> image, text = torch.eye(4), torch.eye(4).roll(1, 1)
    >>> bool(m2_mix(image, text, 0.5) > 0)
    True
    """
    mixed = geodesic_mix(image, text, share)
    positives = torch.diag_embed((image * text).sum(-1)) / temperature
    own = torch.eye(len(image), dtype=torch.bool, device=image.device)
    targets = torch.arange(len(image), device=image.device)

    def one_side(anchors: Tensor) -> Tensor:
        negatives = anchors @ mixed.T / (negative_temperature or temperature)
        return F.cross_entropy(torch.where(own, positives, negatives), targets)

    loss = one_side(image) + one_side(text)
    return loss / 2 if halve else loss


@full_precision
def v_mix(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    share: float,
    temperature: float = 0.01,
    original_negatives: bool = False,
) -> Float[Tensor, ""]:
    """V-Mix: a mixture of two pictures belongs to both their texts, in the shares of the mixture.

    Row i is m_λ(I_i, I_n−1−i) against all texts, with the soft target λE + (1−λ)R (E identity, R the
    identity reversed), in both directions, halved. `original_negatives` mixes only the similarities on the
    diagonal and the anti-diagonal and keeps the unmixed ones elsewhere.
    """
    mixed = geodesic_mix(image, image.flip(0), share)
    unmixed = image @ text.T if original_negatives else None
    return _two_partners(mixed @ text.T, unmixed, temperature, share, 1 - share)


@full_precision
def l_mix(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    share: float,
    temperature: float = 0.01,
    original_negatives: bool = False,
) -> Float[Tensor, ""]:
    """L-Mix: V-Mix for the texts: pictures against m_λ(T_i, T_n−1−i), with the same soft target."""
    mixed = geodesic_mix(text, text.flip(0), share)
    unmixed = image @ text.T if original_negatives else None
    return _two_partners(image @ mixed.T, unmixed, temperature, share, 1 - share)


@full_precision
def vl_mix(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "batch dim"],
    share: float,
    temperature: float = 0.01,
    original_negatives: bool = False,
    normalise_target: bool = False,
) -> Float[Tensor, ""]:
    """VL-Mix: both sides mixed with the same share; row i belongs to columns i and n−1−i.

    The published target is E + R, whose rows add up to 2; `normalise_target` halves it, so that they add up
    to 1.
    """
    mixed_image, mixed_text = (geodesic_mix(side, side.flip(0), share) for side in (image, text))
    unmixed = image @ text.T if original_negatives else None
    target = 0.5 if normalise_target else 1.0
    return _two_partners(mixed_image @ mixed_text.T, unmixed, temperature, target, target)


def _two_partners(
    similarity: Tensor, unmixed: Tensor | None, temperature: float, own: float, other: float
) -> Tensor:
    """Soft cross-entropy, the mean of both directions, with the target own · E + other · R; where `unmixed`
    is given, it takes the place of `similarity` off the diagonal and the anti-diagonal."""
    identity = torch.eye(len(similarity), dtype=similarity.dtype, device=similarity.device)
    reverse = identity.flip(0)
    if unmixed is not None:
        similarity = torch.where(identity + reverse > 0, similarity, unmixed)
    logits, target = similarity / temperature, own * identity + other * reverse
    return (
        F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)
    ) / 2  # the target is symmetric
