"""Only the last blocks of each tower move."""

from dataclasses import dataclass
from typing import Any

from tether.adapters.base_weights import BaseWeightsAttached, BaseWeightsConfig
from tether.config import method
from tether.errors import TetherError
from tether.models.site import Select
from tether.models.sites import sites as find_sites


@method("last_blocks")
@dataclass(frozen=True, kw_only=True)
class LastBlocksConfig(BaseWeightsConfig):
    """Only the last blocks of each tower are trained.

    Args:
        blocks: how many, from 1.

    Raises:
        TetherError: fewer than 1.
    """

    blocks: int = 1

    def __post_init__(self) -> None:
        if self.blocks < 1:
            raise TetherError(f"blocks is at least 1, not {self.blocks}.")

    def attach(self, model: Any, *, seed: int = 0) -> "LastBlocksAttached":
        return LastBlocksAttached(model, self, seed=seed)


class LastBlocksAttached(BaseWeightsAttached):
    """The last blocks of each tower are trained."""

    def _chosen(self) -> list[str]:
        select = Select(kinds=("block",), depths=(-self.config.blocks, -1))
        self.sites = find_sites(self.module, select)
        return [
            name
            for name, _ in self.module.named_parameters()
            if any(name.startswith(f"{site.path}.") for site in self.sites)
        ]
