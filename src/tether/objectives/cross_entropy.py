"""Cross-entropy over classes, with the texts' features (or a linear layer's rows) as the classifier.

The loss of ordinary fine-tuning. Label smoothing as in Szegedy et al., "Rethinking the Inception
Architecture for Computer Vision", CVPR 2016, section 7: the target is (1−ε) on the label plus ε/C on each
of the C classes.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from tether.objectives._precision import full_precision


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
