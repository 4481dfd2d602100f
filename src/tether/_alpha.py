"""The ensemble weight alpha: one number, or one per tower."""

from collections.abc import Mapping

from tether.errors import TetherError, near_misses

Alpha = float | int | Mapping[str, float]
"""Weight-space interpolation W(alpha) = W0 + alpha · delta: a number, or {"image": a, "text": b}."""

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
        TetherError: alpha is a mapping and misses the tower, or names one that does not exist.
    """
    if not isinstance(alpha, Mapping):
        return float(alpha)
    for name in alpha:
        if name not in TOWERS:
            raise TetherError(f"alpha names the tower {name!r}{near_misses(name, TOWERS)}")
    if tower not in alpha:
        raise TetherError(
            f"alpha says nothing about the {tower} tower; give both, as in {{'image': 0.5, 'text': 0.5}}."
        )
    return float(alpha[tower])


def tower_of(name: str) -> str:
    """The tower that a parameter of an open_clip or transformers model belongs to, by its name.

    What belongs to neither tower (the logit scale) and all of a pure vision model count as "image".
    """
    first = name.split(".", 1)[0]
    return "text" if first in _TEXT_PARTS and first not in _IMAGE_PARTS else "image"
