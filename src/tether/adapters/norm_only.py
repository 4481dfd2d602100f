"""Only normalisation layers move."""

from dataclasses import dataclass
from typing import Any

from tether.adapters.base_weights import BaseWeightsAttached, BaseWeightsConfig
from tether.config import method
from tether.models.site import NORMS


@method("norm_only")
@dataclass(frozen=True, kw_only=True)
class NormOnlyConfig(BaseWeightsConfig):
    """Only the weights and biases of normalisation layers are trained."""

    def attach(self, model: Any, *, seed: int = 0) -> "NormOnlyAttached":
        return NormOnlyAttached(model, self, seed=seed)


class NormOnlyAttached(BaseWeightsAttached):
    """Normalisation layers are trained."""

    def _chosen(self) -> list[str]:
        return [
            f"{path}.{name}"
            for path, part in self.module.named_modules()
            if NORMS.search(type(part).__name__)
            for name, _ in part.named_parameters(recurse=False)
        ]
