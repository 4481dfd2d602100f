"""BitFit: only biases move (Ben Zaken, Ravfogel and Goldberg, ACL 2022)."""

import re
from dataclasses import dataclass
from typing import Any

from tether.adapters.base_weights import LOGIT, BaseWeightsAttached, BaseWeightsConfig
from tether.config import method


@method("bias_only")
@dataclass(frozen=True, kw_only=True)
class BiasOnlyConfig(BaseWeightsConfig):
    """Only biases are trained (BitFit; Ben Zaken, Ravfogel and Goldberg, ACL 2022)."""

    def attach(self, model: Any, *, seed: int = 0) -> "BiasOnlyAttached":
        return BiasOnlyAttached(model, self, seed=seed)


class BiasOnlyAttached(BaseWeightsAttached):
    """Biases are trained."""

    def _chosen(self) -> list[str]:
        return [
            name
            for name, _ in self.module.named_parameters()
            if re.search(r"(^|[._])bias$", name) and name not in LOGIT
        ]
