"""Terms on pictures and their prompts, beside a contrastive objective."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from tether._distributed import gather
from tether.errors import TetherError
from tether.models.last_block import fast_last_block
from tether.objectives._precision import cosine_logits
from tether.objectives.carot import CaRot, CaRotConfig
from tether.objectives.mixup import M3MixConfig, MixConfig, mixup
from tether.tasks.terms.step import Shared, Step

_IMAGE_PROJECTIONS = ("visual.proj", "visual.head.proj", "visual_projection")
_TEXT_PROJECTIONS = ("text_projection", "text.text_projection")


class MixupTerm:
    """One geodesic mix, or the four of m³-Mix, of the global batch."""

    separable = False

    def __init__(self, config: MixConfig | M3MixConfig, shared: Shared, name: str) -> None:
        shared.require_texts(name)
        self._config, self._name = config, name

    def __call__(self, step: Step) -> Tensor:
        generator = step.generator(self._name)
        return mixup(self._config, *step.pairs, generator, scale=step.given.scale, epoch=step.epoch)


class CaRotTerm:
    """Distillation from a slowly moving teacher, over the global batch, and orthogonal projections.

    Frozen projections are left out: an adapter's run has the distillation alone.
    """

    separable = False

    def __init__(self, config: CaRotConfig, shared: Shared) -> None:
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

    def __call__(self, step: Step) -> Tensor:
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
