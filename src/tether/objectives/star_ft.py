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

from tether.config import method
from tether.errors import TetherError
from tether.objectives._checks import check_strengths
from tether.objectives._precision import full_precision
from tether.objectives.divergence import divergence


@method("star_ft")
@dataclass(frozen=True, kw_only=True)
class StarFTConfig:
    """Weight ρ with its published schedule, and the backgrounds.

    Args:
        fade: shrink the weight from epoch to epoch, to 0 in the last, as published.
        backgrounds: templates with one `{}` for the class name. The published ones, written by a language
            model, are not at hand: these are this library's.

    Raises:
        TetherError: a negative weight, no background, or one without exactly one `{}`.
    """

    weight: float = 0.5
    fade: bool = True
    backgrounds: tuple[str, ...] = (
        "{} on a white background",
        "{} on a black background",
        "{} on grass",
        "{} on sand",
        "{} in water",
        "{} in snow",
        "{} in a room",
        "{} in a street",
    )

    def __post_init__(self) -> None:
        check_strengths("star_ft", weight=self.weight)
        if not self.backgrounds:
            raise TetherError("star_ft needs at least one background.")
        for background in self.backgrounds:
            if background.count("{}") != 1:
                raise TetherError(
                    f"The background {background!r} must hold {{}} exactly once, where the class goes."
                )

    def fading(self, epoch: int, epochs: int) -> float:
        """Share of the weight in an epoch counted from 0: 1 − (epoch+1)/epochs, or 1 without `fade`."""
        return 1 - (epoch + 1) / epochs if self.fade else 1.0


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
