"""The loss that the head of a task brings along, as detectors of a host library do: there is nothing to choose."""

from dataclasses import dataclass
from typing import Any, ClassVar

from tether.config import method
from tether.errors import TetherError
from tether.families import ObjectiveConfig


@method("head")
@dataclass(frozen=True, kw_only=True)
class HeadLossConfig(ObjectiveConfig):
    """Whatever the head of the task minimises: for tasks whose heads come with their loss."""

    pairs: ClassVar[bool] = False

    def loss(self) -> Any:
        """Raises:
        TetherError: always, for whoever asks has features and no such head.
        """
        raise TetherError(
            "objective.method=head is the loss that a detector's head brings along, and here is no such head. Use "
            "objective.method=cross_entropy for a linear head on image features."
        )
