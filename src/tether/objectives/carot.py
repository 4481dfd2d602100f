"""CaRot: contrastive fine-tuning with near-orthogonal projections and a slowly moving teacher.

"Towards Calibrated Robust Fine-Tuning of Vision-Language Models" (NeurIPS 2024): FLYP, a pull of the visual
projection towards orthogonality, and distillation from an exponential moving average of the model. Use it
with full fine-tuning where calibration matters; it costs one more copy of the model and one more forward.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from tether._distributed import gather
from tether.config import method
from tether.errors import TetherError
from tether.families import RegularizerConfig
from tether.models.last_block import fast_last_block
from tether.objectives._checks import check_strengths
from tether.objectives._precision import cosine_logits, full_precision


@method("carot")
@dataclass(frozen=True, kw_only=True)
class CaRotConfig(RegularizerConfig):
    """The published ImageNet settings.

    Args:
        weight: of the three terms together.
        every: steps between updates of the teacher.
        momentum: of the teacher at the first step, and from the end of the warm-up on.
        warm_up: share of all steps.

    Raises:
        TetherError: a number is out of range.
    """

    weight: float = 1.0
    orthogonality: float = 0.2
    """Weight of the projection's distance from orthogonality."""
    cross_orthogonality: float = 0.05
    """Weight of the same between the projections of both towers."""
    distillation: float = 1.5
    """Weight of the distillation from the teacher."""
    every: int = 500
    momentum: tuple[float, float] = (0.05, 0.9)
    warm_up: float = 0.2

    def term(self, shared: Any) -> "CaRotTerm":
        return CaRotTerm(self, shared)

    def __post_init__(self) -> None:
        check_strengths(
            "carot",
            weight=self.weight,
            orthogonality=self.orthogonality,
            cross_orthogonality=self.cross_orthogonality,
            distillation=self.distillation,
        )
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


class CaRot:
    """The terms that CaRot adds to a contrastive loss (without the config's `weight`), and its teacher.

    `teacher` is a copy of the model as it is; what requires no gradient is shared with it. The teacher stays in
    evaluation mode, and `state_dict` holds what is its own.

    >>> model = nn.Linear(4, 4)
    >>> carot = CaRot(model, CaRotConfig(every=1), steps=10)
    >>> logits = model(torch.eye(4))
    >>> with torch.no_grad():
    ...     teacher_logits = carot.teacher(torch.eye(4))
    >>> terms = carot(logits, teacher_logits, model.weight.T, model.weight.T, step=1)
    >>> carot.update(step=1)
    """

    def __init__(self, model: nn.Module, config: CaRotConfig, *, steps: int) -> None:
        self.config, self.steps, self._model, self._updated = config, steps, model, -1
        shared = {id(tensor): tensor for tensor in model.parameters() if not tensor.requires_grad}
        self.teacher = copy.deepcopy(model, dict(shared)).requires_grad_(False).eval()
        self._parameters = [name for name, tensor in model.named_parameters() if id(tensor) not in shared]

    def __call__(
        self,
        logits: Float[Tensor, "batch batch"] | None,
        teacher_logits: Float[Tensor, "batch batch"] | None,
        image_projection: Float[Tensor, "image_width dim"] | None,
        text_projection: Float[Tensor, "text_width dim"] | None,
        step: int,
    ) -> Float[Tensor, ""]:
        """The weighted sum of the terms at `step`, counted from 0; distillation begins at step 1.

        Terms whose tensors are None are left out: there is nothing to hold orthogonal where the projections
        are frozen.
        """
        config, terms = self.config, []
        if image_projection is not None:
            terms.append(config.orthogonality * projection_orthogonality(image_projection))
            if text_projection is not None:
                terms.append(
                    config.cross_orthogonality * cross_orthogonality(image_projection, text_projection)
                )
        if step >= 1 and logits is not None and teacher_logits is not None:
            terms.append(config.distillation * self_distillation(logits, teacher_logits))
        return sum(terms, start=torch.zeros((), device=next(self.teacher.parameters()).device))

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After `step`: every `every` steps move the teacher's weights; take buffers over as they are.

        Called again for the same step it does nothing.
        """
        if step == 0 or step % self.config.every or step <= self._updated:
            return
        self._updated = step
        keep = self.config.momentum_at(step, self.steps)
        new = dict(self._model.named_parameters())
        for name, old in self._own_parameters().items():
            old.lerp_(new[name].to(old.dtype), 1 - keep)
        new = dict(self._model.named_buffers())
        for name, old in self.teacher.named_buffers():
            old.copy_(new[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The teacher's own tensors, sharing memory with it."""
        persistent = self.teacher.state_dict().keys()
        buffers = {name: tensor for name, tensor in self.teacher.named_buffers() if name in persistent}
        return self._own_parameters() | buffers

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a saved teacher in.

        Raises:
            TetherError: the names are not those of `state_dict`.
        """
        own = self.state_dict()
        if own.keys() != state.keys():
            missing, unexpected = sorted(own.keys() - state.keys()), sorted(state.keys() - own.keys())
            raise TetherError(f"This is no such teacher: missing {missing[:6]}, unexpected {unexpected[:6]}.")
        for name, tensor in own.items():
            tensor.copy_(state[name])

    def _own_parameters(self) -> dict[str, Tensor]:
        parameters = dict(self.teacher.named_parameters())
        return {name: parameters[name].detach() for name in self._parameters}


_IMAGE_PROJECTIONS = ("visual.proj", "visual.head.proj", "visual_projection")
_TEXT_PROJECTIONS = ("text_projection", "text.text_projection")


class CaRotTerm:
    """Distillation from a slowly moving teacher, over the global batch, and orthogonal projections.

    Frozen projections are left out: an adapter's run has the distillation alone.
    """

    separable = False

    def __init__(self, config: CaRotConfig, shared: Any) -> None:
        shared.require_texts("carot")
        model = shared.context.model
        self._carot = CaRot(model.module, config, steps=shared.context.steps)
        self._teacher = replace(model, module=self._carot.teacher)
        fast_last_block(self._teacher)
        self._projections: list[nn.Parameter | nn.Linear] = []
        if config.orthogonality or config.cross_orthogonality:
            found = [_projection(model.module, paths) for paths in (_IMAGE_PROJECTIONS, _TEXT_PROJECTIONS)]
            if any(_matrix(projection).requires_grad for projection in found):
                self._projections = found

    def __call__(self, step: Any) -> Tensor:
        given, logits, teacher_logits = step.given, None, None
        if step.number >= 1:
            self._carot.update(step.number - 1)  # with the weights that step left behind
            logits = cosine_logits(*step.pairs, given.scale)
            with torch.no_grad():
                image = gather(self._teacher.encode_image(given.pixels))
                text = gather(self._teacher.encode_text(given.tokens)[given.text_index])
            teacher_logits = cosine_logits(image, text, given.scale)
        projections = [_matrix(projection) for projection in self._projections] or [None, None]
        return self._carot(logits, teacher_logits, *projections, step.number)

    def state_dict(self) -> dict[str, Tensor]:
        return self._carot.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self._carot.load_state_dict(state)


def _projection(module: nn.Module, paths: Sequence[str]) -> nn.Parameter | nn.Linear:
    """What takes a tower's width to the shared dimension.

    Raises:
        TetherError: the module has none at these paths.
    """
    for path in paths:
        owner, _, name = path.rpartition(".")
        try:
            found = getattr(module.get_submodule(owner), name)
        except AttributeError:
            continue
        if isinstance(found, nn.Parameter | nn.Linear):
            return found
    raise TetherError(
        f"carot holds projections orthogonal, and {type(module).__name__} has none at {', '.join(paths)}. Set "
        f"its options orthogonality and cross_orthogonality to 0."
    )


def _matrix(projection: nn.Parameter | nn.Linear) -> Tensor:
    """[width, dim]."""
    return projection.weight.T if isinstance(projection, nn.Linear) else projection
