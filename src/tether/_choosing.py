"""What the configs of ensembles share: how the weight of the tuned model is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from tether._alpha import TOWERS
from tether.errors import TetherError, near_misses

Rule = Literal["bounded loss", "in distribution", "mean"]
RULES: tuple[Rule, ...] = get_args(Rule)
"""The rules of `tether.evaluation.alpha`, where they are explained."""

SIMULATED_PICTURES = 500
"""So many validation pictures are altered to choose alpha by, unless a recipe says another number."""

GRID = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def check_rule(rule: str) -> None:
    """Refuse a rule that does not exist.

    Raises:
        TetherError: it does not.
    """
    if rule not in RULES:
        raise TetherError(f"There is no rule {rule!r} to choose by{near_misses(rule, RULES)}")


def check_pictures(simulated_pictures: int | None) -> None:
    """Refuse to alter no pictures at all.

    Raises:
        TetherError: the number is not 1 or more.
    """
    if simulated_pictures is not None and simulated_pictures < 1:
        raise TetherError(
            f"simulated_pictures is 1 or more, or null for all of them; found {simulated_pictures}. To choose by "
            "validation accuracy alone, say rule: in distribution."
        )


def check_weight(name: str, value: float | str, grid: Sequence[float], rule: str) -> None:
    """Refuse a weight of the tuned model that is neither "auto" nor in 0…1, and a grid that is none.

    Raises:
        TetherError: as said.
    """
    check_rule(rule)
    if value != "auto" and (isinstance(value, str) or not 0 <= value <= 1):
        raise TetherError(f"{name} is a number from 0 to 1, or 'auto', not {value!r}.")
    if not grid or len(set(grid)) != len(grid) or not all(0 <= weight <= 1 for weight in grid):
        raise TetherError(
            f"grid needs numbers from 0 to 1, at least one, none of them twice; found {list(grid)}."
        )


@dataclass(frozen=True, kw_only=True)
class AlphaConfig:
    """How the ensemble weight is set: a value, one per tower, or "auto" from validation and simulated shifts of it."""

    value: float | dict[str, float] | str = 0.5
    """Weight of the tuned model, from 0 (zero-shot) to 1; {image: a, text: b}; or "auto"."""
    grid: tuple[float, ...] = GRID
    """What "auto" chooses from, and where the curve of the report is measured."""
    rule: Rule = "bounded loss"
    """How "auto" chooses, see `tether.evaluation.alpha`."""
    simulated_pictures: int | None = field(default=SIMULATED_PICTURES, metadata={"added": True})
    """Validation pictures of which "auto" evaluates simulated shifts, at most; null for all."""
    per_tower: bool = False
    """Choose alpha for each tower of its own, from all pairs of the grid."""
    curve: bool = True
    """Whether the test pictures are answered at every alpha of the grid, for the report; if not, at 0, 1 and the
    chosen one."""

    def __post_init__(self) -> None:
        if isinstance(self.value, dict) and set(self.value) != set(TOWERS):
            raise TetherError(
                f"alpha.value per tower names both, image and text; found {sorted(self.value)}."
            )
        check_pictures(self.simulated_pictures)
        for value in self.value.values() if isinstance(self.value, dict) else (self.value,):
            check_weight("alpha.value", value, self.grid, self.rule)
