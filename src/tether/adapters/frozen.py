"""Nothing moves: what a linear probe trains its head on."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tether.config import method
from tether.errors import TetherError
from tether.families import AdapterConfig


@method("frozen")
@dataclass(frozen=True, kw_only=True)
class FrozenConfig(AdapterConfig):
    """Nothing of the model moves; with cross-entropy this is the linear probe."""

    moves: ClassVar[bool] = False

    def attach(self, model: Any, *, seed: int = 0) -> Any:
        raise TetherError("Nothing is attached to a frozen model: train a head on its features.")
