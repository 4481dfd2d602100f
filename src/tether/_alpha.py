"""The ensemble weight alpha: one number, or one per tower."""

import math
from collections.abc import Mapping
from typing import Any

from tether.errors import TetherError, near_misses

Alpha = float | int | Mapping[str, float]
"""Weight-space interpolation W(alpha) = W0 + alpha · delta: a number, or {"image": a, "text": b}.

From 0, the base, to 1, the tuned model; recipes and commands take nothing else. What is outside is an extrapolation,
which the Python interface allows.
"""

TOWERS = ("image", "text")
_IMAGE_PARTS = ("visual", "vision_model", "visual_projection", "vision_tower", "visual_encoder")
_TEXT_PARTS = (
    "text",
    "text_model",
    "text_projection",
    "transformer",
    "token_embedding",
    "positional_embedding",
    "ln_final",
)


def alpha_of(alpha: Alpha, tower: str) -> float:
    """The alpha of one tower.

    Raises:
        TetherError: alpha is a mapping and misses the tower, or names one that does not exist; or it is no finite
            number.
    """
    if not isinstance(alpha, Mapping):
        return _finite(alpha)
    for name in alpha:
        if name not in TOWERS:
            raise TetherError(f"alpha names the tower {name!r}{near_misses(name, TOWERS)}")
    if tower not in alpha:
        raise TetherError(
            f"alpha says nothing about the {tower} tower; give both, as in {{'image': 0.5, 'text': 0.5}}."
        )
    return _finite(alpha[tower])


def plain_alpha(alpha: Alpha) -> float | dict[str, float]:
    """The same alpha as JSON can hold it.

    Raises:
        TetherError: as `alpha_of`, for any tower that it names.
    """
    if isinstance(alpha, Mapping) and alpha:
        return {tower: alpha_of(alpha, tower) for tower in alpha}
    return alpha_of(alpha, TOWERS[0])


def tower_of(name: str) -> str:
    """The tower that a parameter of an open_clip or transformers model belongs to, by its name.

    What belongs to neither tower (the logit scale) and all of a pure vision model count as "image".
    """
    first = name.split(".", 1)[0]
    return "text" if first in _TEXT_PARTS and first not in _IMAGE_PARTS else "image"


def _finite(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise TetherError(f"alpha is a finite number, or one per tower, not {value!r}.")
    return number
