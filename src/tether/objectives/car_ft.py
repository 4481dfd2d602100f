"""CAR-FT: keep the pre-trained model's reading of *how* a picture is shown.

"Context-Aware Robust Fine-Tuning" (arXiv 2211.16175): cross-entropy plus a divergence between the
distributions over contexts (a photo, a sketch, at night) that pre-trained and fine-tuned picture embeddings
have. Use it with full fine-tuning when the shifts are changes of style; it costs one forward of the frozen
picture encoder. The KL divergence of context distributions is the abstract's; its direction and the weight
1 are not confirmed against the paper.
"""

from jaxtyping import Float
from torch import Tensor, nn

from tether.objectives._precision import full_precision
from tether.objectives.divergence import divergence


def car_ft(
    logits: Float[Tensor, "batch contexts"], reference: Float[Tensor, "batch contexts"]
) -> Float[Tensor, ""]:
    """KL(reference ‖ model) between softmax distributions over contexts, mean over the batch.

    Both arguments are scale · picture · context. No gradient reaches `reference`.
    """
    return divergence(reference, logits, "kl")


class CarFT(nn.Module):
    """The term with its frozen contexts: one unit-length text embedding per prompt template without a class
    name.

    >>> import torch
    >>> contexts = torch.nn.functional.normalize(torch.eye(3, 8) + 0.1, dim=-1)
    >>> image = torch.nn.functional.normalize(torch.ones(2, 8), dim=-1)
    >>> float(CarFT(contexts, scale=100.0)(image, image))
    0.0
    """

    contexts: Tensor

    def __init__(self, contexts: Float[Tensor, "contexts dim"], scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.register_buffer("contexts", contexts.detach().clone())

    @full_precision
    def forward(
        self, image: Float[Tensor, "batch dim"], reference: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, ""]:
        """The term for the same pictures embedded by the model in training and by the pre-trained one."""
        return car_ft(self.scale * image @ self.contexts.T, self.scale * reference @ self.contexts.T)
