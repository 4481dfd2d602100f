"""StarFT: keep fine-tuning from leaning on backgrounds that the pre-trained model does not lean on.

After the published StarFT code's description; which entries its mask covers (here: every prompt of the
picture's class) is not confirmed. It adds to FLYP or to cross-entropy a divergence from a frozen copy of
the model, over pictures × "spurious" prompts (a class name together with a background). Use it where
backgrounds and classes go together in the training data but not in use; it costs one forward of the frozen
model on pictures and prompts.
"""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from tether.config import method
from tether.data.prompts import fill
from tether.errors import TetherError
from tether.families import RegularizerConfig
from tether.objectives._checks import check_strengths
from tether.objectives._precision import cosine_logits, full_precision
from tether.objectives.divergence import divergence


@method("star_ft")
@dataclass(frozen=True, kw_only=True)
class StarFTConfig(RegularizerConfig):
    """Weight ρ with its published schedule, and the backgrounds.

    Args:
        fade: shrink the weight from epoch to epoch, to 0 in the last, as published.
        backgrounds: templates with one `{}` for the class name. The published ones, written by a language
            model, are not at hand: these are this library's.

    Raises:
        TetherError: a negative weight, no background, or one without exactly one `{}`.
    """

    weight: float = 0.5
    """ρ, of the term beside the objective."""
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

    def term(self, shared: Any) -> "StarFTTerm":
        return StarFTTerm(self, shared)

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


class StarFTTerm:
    """For each picture a prompt of its class with a background drawn per step; each distinct one read once.

    The pre-trained features of all classes × backgrounds are computed once before training. With several
    processes each compares its own pictures with its own prompts.
    """

    separable = False

    def __init__(self, config: StarFTConfig, shared: Any) -> None:
        shared.require_images("star_ft")
        shared.require_classes("star_ft")
        context = shared.context
        self._config, self._epochs = config, -(-context.steps // context.steps_per_epoch)
        if config.fade and self._epochs == 1:
            raise TetherError(
                "star_ft fades to weight 0 in the last epoch, and this training has only one. Train for more, "
                "or set its option fade to false."
            )
        prompts = [text for row in fill(config.backgrounds, context.class_names) for text in row]
        self._tokens = context.model.tokenize(prompts)
        self._before = shared.reference.encode_text(self._tokens, batch_size=256)
        self._text_moves = context.head is None and shared.moves("text")
        self._first_key = len(context.class_names) * len(context.templates)  # after the batch's own prompts

    def __call__(self, step: Any) -> Tensor:
        given, count = step.given, len(self._config.backgrounds)
        share = self._config.fading(step.epoch, self._epochs)
        if share <= 0:
            return given.image.new_zeros(())
        labels = given.labels.cpu()
        chosen = (labels * count + step.draw("star_ft", count)).unique()
        before = self._before[chosen.to(self._before.device)]
        now = step.encode_text(self._tokens[chosen], self._first_key + chosen) if self._text_moves else before
        same_class = labels[:, None] == chosen // count
        term = star_ft(
            cosine_logits(given.image, now, given.scale),
            cosine_logits(step.reference_image, before, step.shared.scale),
            same_class.to(given.image.device),
        )
        return share * term
