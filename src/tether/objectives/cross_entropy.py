"""Cross-entropy over classes, with the texts' features (or a linear layer's rows) as the classifier.

The loss of ordinary fine-tuning. Label smoothing as in Szegedy et al., "Rethinking the Inception
Architecture for Computer Vision", CVPR 2016, section 7: the target is (1−ε) on the label plus ε/C on each
of the C classes.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tether.config import method
from tether.errors import TetherError
from tether.families import ObjectiveConfig
from tether.objectives._precision import full_precision


@method("cross_entropy")
@dataclass(frozen=True, kw_only=True)
class CrossEntropyConfig(ObjectiveConfig):
    """A linear head, initialised with the zero-shot classifier, on the image tower."""

    pairs: ClassVar[bool] = False

    smoothing: float = 0.0
    """Share of the target that is spread evenly over all classes, from 0 to below 1."""

    def __post_init__(self) -> None:
        if not 0 <= self.smoothing < 1:
            raise TetherError(
                f"objective.smoothing is a share of at least 0 and less than 1, found {self.smoothing}."
            )

    def loss(self) -> Any:
        return partial(cross_entropy, smoothing=self.smoothing)


@full_precision
def cross_entropy(
    image: Float[Tensor, "batch dim"],
    classes: Float[Tensor, "classes dim"],
    labels: Int[Tensor, " batch"],
    scale: float | Float[Tensor, ""],
    *,
    smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Mean over the batch of the cross-entropy of `scale · image · classesᵀ` with the labels.

    With several processes each computes the loss of its own pictures; averaged gradients make that exact.

    Args:
        image: L2-normalised features.
        classes: L2-normalised features of the class texts, one row per class.
        labels: rows of `classes`.
        scale: inverse temperature 1/τ.
        smoothing: ε, 0 ≤ ε < 1.
    """
    logits = scale * (image @ classes.T)
    return F.cross_entropy(logits, labels.long(), label_smoothing=smoothing)
