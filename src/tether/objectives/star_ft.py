"""StarFT: keep fine-tuning from leaning on backgrounds that the pre-trained model does not lean on.

After the published StarFT code's description; which entries its mask covers (here: every prompt of the
picture's class) is not confirmed. It adds to FLYP or to cross-entropy a divergence from a frozen copy of
the model, over pictures × "spurious" prompts (a class name together with a background). Use it where
backgrounds and classes go together in the training data but not in use; it costs one forward of the frozen
model on pictures and prompts.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from tether.errors import TetherError
from tether.objectives._precision import full_precision
from tether.objectives.divergence import divergence


@dataclass(frozen=True, kw_only=True)
class StarFTConfig:
    """The published schedule of the term's weight: ρ(1 − (epoch+1)/epochs), hence 0 in the last epoch."""

    rho: float = 0.5
    epochs: int

    def __post_init__(self) -> None:
        if not (self.rho >= 0 and self.epochs >= 1):
            raise TetherError(f"StarFT needs rho >= 0 and epochs >= 1; it has {self}.")

    def weight(self, epoch: int) -> float:
        """Weight of the term in an epoch counted from 0."""
        return self.rho * (1 - (epoch + 1) / self.epochs)


@full_precision
def star_ft(
    logits: Float[Tensor, "batch prompts"],
    reference: Float[Tensor, "batch prompts"],
    same_class: Bool[Tensor, "batch prompts"],
) -> Float[Tensor, ""]:
    """KL(reference ‖ model) over the prompts of *other* classes, mean over the batch.

    Logits are scale · picture · prompt. Where picture and prompt share the class both count as −10⁸; a
    picture without a prompt of another class contributes 0. No gradient reaches `reference`.

    >>> import torch
    >>> labels, prompt_labels = torch.tensor([0, 1]), torch.tensor([0, 1, 2])
    >>> logits = torch.eye(2, 3)
    >>> float(star_ft(logits, logits, labels[:, None] == prompt_labels))
    0.0
    """
    return divergence(reference.masked_fill(same_class, -1e8), logits.masked_fill(same_class, -1e8))
