"""CaRot: contrastive fine-tuning with near-orthogonal projections and a slowly moving teacher.

"Towards Calibrated Robust Fine-Tuning of Vision-Language Models" (NeurIPS 2024): FLYP, a pull of the visual
projection towards orthogonality, and distillation from an exponential moving average of the model. Use it
with full fine-tuning where calibration matters; it costs one more copy of the model and one more forward.
"""

import copy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tether.errors import TetherError
from tether.objectives._precision import full_precision


@dataclass(frozen=True, kw_only=True)
class CaRotConfig:
    """The published ImageNet settings."""

    orthogonality: float = 0.2
    cross_orthogonality: float = 0.05
    distillation: float = 1.5
    every: int = 500  # steps between updates of the teacher
    momentum: tuple[float, float] = (0.05, 0.9)  # at the first step, and from the end of the warm-up on
    warm_up: float = 0.2  # of all steps

    def __post_init__(self) -> None:
        first, last = self.momentum
        if not (0 <= first <= 1 and 0 <= last <= 1 and 0 <= self.warm_up <= 1 and self.every >= 1):
            raise TetherError(f"CaRot needs momenta and warm_up in 0…1 and every >= 1; it has {self}.")

    def momentum_at(self, step: int, steps: int) -> float:
        """Share of the old teacher kept by an update at `step` of `steps`."""
        first, last = self.momentum
        ramp = self.warm_up * steps
        return last if step >= ramp else first + (last - first) * step / ramp


@full_precision
def projection_orthogonality(projection: Float[Tensor, "width dim"]) -> Float[Tensor, ""]:
    """‖VᵀV − I‖, Frobenius and not squared; `projection` V takes the tower's width to the shared dimension
    (open_clip's `visual.proj`; the transpose of a `nn.Linear`'s weight).

    With less width than dimension VᵀV cannot reach I; the value then has a floor above 0.
    """
    identity = torch.eye(projection.shape[1], dtype=projection.dtype, device=projection.device)
    return torch.linalg.vector_norm(projection.T @ projection - identity)


@full_precision
def cross_orthogonality(
    image_projection: Float[Tensor, "image_width dim"], text_projection: Float[Tensor, "text_width dim"]
) -> Float[Tensor, ""]:
    """‖V · Tᵀ‖, Frobenius and not squared."""
    return torch.linalg.vector_norm(image_projection @ text_projection.T)


@full_precision
def self_distillation(
    logits: Float[Tensor, "batch batch"], teacher: Float[Tensor, "batch batch"]
) -> Float[Tensor, ""]:
    """Soft cross-entropy from the teacher's to the student's picture-by-text logits: rows plus columns, row
    means.

    Its least value is the teacher's entropy, not 0. No gradient reaches `teacher`.
    """
    target = teacher.detach()
    rows = F.cross_entropy(logits, target.softmax(-1))
    return rows + F.cross_entropy(logits.T, target.T.softmax(-1))


class CaRot(nn.Module):
    """The terms that CaRot adds to a contrastive loss, and its teacher (`self.teacher`, saved with
    `state_dict`).

    >>> model = nn.Linear(4, 4)
    >>> carot = CaRot(model, CaRotConfig(every=1), steps=10)
    >>> logits = model(torch.eye(4))
    >>> with torch.no_grad():
    ...     teacher_logits = carot.teacher(torch.eye(4))
    >>> terms = carot(logits, teacher_logits, model.weight.T, model.weight.T, step=1)
    >>> carot.update(model, step=1)
    """

    def __init__(self, model: nn.Module, config: CaRotConfig, *, steps: int) -> None:
        super().__init__()
        self.config, self.steps = config, steps
        self.teacher = copy.deepcopy(model).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "CaRot":
        """Set the mode of everything but the teacher, which stays in evaluation mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(
        self,
        logits: Float[Tensor, "batch batch"],
        teacher_logits: Float[Tensor, "batch batch"],
        image_projection: Float[Tensor, "image_width dim"],
        text_projection: Float[Tensor, "text_width dim"],
        step: int,
    ) -> Float[Tensor, ""]:
        """The weighted sum of the terms at `step`, counted from 0; distillation begins at step 1."""
        config = self.config
        loss = config.orthogonality * projection_orthogonality(image_projection)
        loss = loss + config.cross_orthogonality * cross_orthogonality(image_projection, text_projection)
        if step >= 1:
            loss = loss + config.distillation * self_distillation(logits, teacher_logits)
        return loss

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """After `step`: every `every` steps move the teacher's weights; take buffers over as they are."""
        if step == 0 or step % self.config.every:
            return
        keep = self.config.momentum_at(step, self.steps)
        for old, new in zip(self.teacher.parameters(), model.parameters(), strict=True):
            old.lerp_(new.to(old.dtype), 1 - keep)
        for old, new in zip(self.teacher.buffers(), model.buffers(), strict=True):
            old.copy_(new)
