"""BitFit: only biases move (Ben Zaken, Ravfogel and Goldberg, ACL 2022)."""

import re
from dataclasses import dataclass
from typing import ClassVar

from tether.adapters.base_weights import LOGIT, BaseWeightsAttached


@dataclass(frozen=True, kw_only=True)
class BiasOnlyConfig:
    """Only biases are trained (BitFit; Ben Zaken, Ravfogel and Goldberg, ACL 2022)."""


class BiasOnlyAttached(BaseWeightsAttached):
    """Biases are trained."""

    method: ClassVar[str] = "bias_only"

    def _chosen(self) -> list[str]:
        return [
            name
            for name, _ in self.module.named_parameters()
            if re.search(r"(^|[._])bias$", name) and name not in LOGIT
        ]
