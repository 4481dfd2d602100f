"""MPM-NCE: the contrastive loss with many positives and a margin that R-Adapter is trained with.

Kim et al., "Efficient and Versatile Robust Fine-Tuning of Zero-shot Models", ECCV 2024, arXiv 2408.05749.

    f_i, g_j      L2-normalised features of picture i and text j;  c_i its label, B the number of pairs
    τ             temperature;  scale = 1/τ
    y_ij          1 if c_i = c_j (the own partner included), else 0;  P(i) = {j : y_ij = 1}
    ỹ_ij          (1−ε)·y_ij/|P(i)| + ε·(1−y_ij)/(B−|P(i)|);  ε the smoothing; rows sum to 1
    δ_ij          0 where y_ij = 1, else δ, the margin, in units of the cosine (added before dividing by τ)

    L = ½ · mean_i Σ_j −ỹ_ij · log softmax_j((f_i·g_j + δ_ij)/τ)  +  the same with f and g exchanged

The paper prints a plain sum over i and both directions; the mean is what the published code computes and
what makes the loss equal CLIP's when all labels differ and δ = ε = 0. A batch of one single label has no
negatives: there its positives keep all the mass (the printed formula divides by zero).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tether._distributed import gather, gather_with_grad
from tether.config import method
from tether.errors import TetherError
from tether.families import ObjectiveConfig
from tether.objectives._pairs import paired
from tether.objectives._precision import full_precision


@method("mpm_nce")
@dataclass(frozen=True, kw_only=True)
class MPMNCEConfig(ObjectiveConfig):
    """Options of MPM-NCE; the defaults are the paper's for classification.

    | setting | margin δ | smoothing ε |
    |---|---|---|
    | ImageNet, all data or 16 per class | 0.05 | 0.02 |
    | retrieval | 0.05 | 0 |
    | base-to-novel | 0.1 | 0 |
    """

    many_positives: ClassVar[bool] = True

    margin: float = 0.05
    """δ, added to the cosines of pairs of different classes."""
    smoothing: float = 0.02
    """ε, the share of the target that pairs of other classes get."""
    temperature: float | None = None
    """τ; None takes the model's own logit scale (0.01 for OpenAI's models, the paper's value)."""

    def loss(self) -> "MPMNCE":
        return MPMNCE(self)

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise TetherError(f"smoothing must be at least 0 and less than 1, found {self.smoothing}.")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise TetherError(f"margin must be a number of at least 0, found {self.margin}.")
        if self.temperature is not None and not (math.isfinite(self.temperature) and self.temperature > 0):
            raise TetherError(f"temperature must be greater than 0 or None, found {self.temperature}.")


def soft_labels(
    labels: Int[Tensor, " batch"], smoothing: float, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "batch batch"]:
    """The target distribution ỹ of every anchor (row); where nothing is negative, ε counts as 0."""
    positive = labels[:, None] == labels[None, :]
    positives = positive.sum(1, keepdim=True).to(dtype)
    negatives = len(labels) - positives
    spread = smoothing * (negatives > 0).to(dtype)
    return torch.where(positive, (1 - spread) / positives, spread / negatives.clamp(min=1))


@full_precision
def mpm_nce(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "texts dim"],
    labels: Int[Tensor, " batch"],
    scale: float | Float[Tensor, ""],
    *,
    margin: float = 0.05,
    smoothing: float = 0.02,
    index: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over anchors and both directions of the cross-entropy between ỹ and the softmax with margin.

    Args:
        image, text: L2-normalised features of pairs, row by row.
        labels: pairs with equal labels are positives of each other (class, or the captioned picture).
        scale: inverse temperature 1/τ.
        margin: δ, added to the cosine of negatives.
        smoothing: ε, the share of the target that negatives get.
        index: number of each picture's text, where `text` holds the distinct texts of the batch only.

    Raises:
        TetherError: `text` has not one row per picture and `index` is missing.
    """
    similarity = image @ paired(text, index, len(image)).T
    negative = labels[:, None] != labels[None, :]
    logits = scale * (similarity + margin * negative.to(similarity.dtype))
    target = soft_labels(labels, smoothing, logits.dtype)
    by_image = -(target * logits.log_softmax(1)).sum(1).mean()
    by_text = -(target * logits.T.log_softmax(1)).sum(1).mean()
    return (by_image + by_text) / 2


class MPMNCE(nn.Module):
    """`mpm_nce` over the pairs of all processes: every process returns the loss of the global batch.

    >>> loss = MPMNCE(MPMNCEConfig(margin=0.1))(image_features, text_features, labels, scale=100.0)
    """

    def __init__(self, config: MPMNCEConfig | None = None) -> None:
        super().__init__()
        self.config = config or MPMNCEConfig()

    def forward(
        self,
        image: Float[Tensor, "batch dim"],
        text: Float[Tensor, "texts dim"],
        labels: Int[Tensor, " batch"],
        scale: float | Float[Tensor, ""],
        *,
        index: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""]:
        text = paired(text, index, len(image))
        temperature = self.config.temperature
        return mpm_nce(
            gather_with_grad(image),
            gather_with_grad(text),
            gather(labels),
            scale if temperature is None else 1 / temperature,
            margin=self.config.margin,
            smoothing=self.config.smoothing,
        )
