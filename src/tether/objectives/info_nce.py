"""InfoNCE, the symmetric contrastive loss of CLIP; fine-tuning every weight with it is FLYP.

Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021, figure 3.
Goyal et al., "Finetune like you pretrain", CVPR 2023.

    L = ½ · mean_i [ −log softmax_j(s · f_i·g_j)[i] ]  +  ½ · mean_i [ −log softmax_j(s · g_i·f_j)[i] ]
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from tether._distributed import gather_with_grad
from tether.config import method
from tether.families import ObjectiveConfig
from tether.objectives._pairs import paired
from tether.objectives._precision import full_precision


@method("info_nce")
@dataclass(frozen=True, kw_only=True)
class InfoNCEConfig(ObjectiveConfig):
    """CLIP's own loss on picture–prompt pairs; with everything moving this is FLYP."""

    def loss(self) -> Any:
        own = InfoNCE()  # labels play no part
        return lambda image, text, labels, scale, *, index: own(image, text, scale, index=index)


@full_precision
def info_nce(
    image: Float[Tensor, "batch dim"],
    text: Float[Tensor, "texts dim"],
    scale: float | Float[Tensor, ""],
    *,
    index: Int[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over the batch and both directions of the cross-entropy of picking the own partner.

    Args:
        image, text: L2-normalised features of pairs, row by row.
        scale: inverse temperature 1/τ; 100 for OpenAI's models.
        index: number of each picture's text, where `text` holds the distinct texts of the batch only.

    Raises:
        TetherError: `text` has not one row per picture and `index` is missing.
    """
    logits = scale * (image @ paired(text, index, len(image)).T)
    target = torch.arange(len(image), device=image.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class InfoNCE(nn.Module):
    """`info_nce` over the pairs of all processes: every process returns the loss of the global batch.

    >>> loss = InfoNCE()(image_features, text_features, scale=100.0)
    """

    def forward(
        self,
        image: Float[Tensor, "batch dim"],
        text: Float[Tensor, "texts dim"],
        scale: float | Float[Tensor, ""],
        *,
        index: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, ""]:
        text = paired(text, index, len(image))
        return info_nce(gather_with_grad(image), gather_with_grad(text), scale)
