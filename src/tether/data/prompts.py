"""Prompt templates: sentences with one `{}` for the class name."""

import warnings
from collections.abc import Hashable, Sequence
from functools import cache

from tether.errors import TetherError, near_misses

# The prompts CLIP was evaluated with, per kind of data set (Radford et al. 2021, section 3.1.4; also CoOp's
# hand-made prompts, Zhou et al. 2022, Table 1); "characters" is for `makers.typefaces`.
TEMPLATE_SETS = {
    "photo": ("a photo of a {}.",),
    "aircraft": ("a photo of a {}, a type of aircraft.",),
    "actions": ("a photo of a person doing {}.",),
    "cars": ("a photo of a {}.",),
    "characters": ("{}", "a picture of {}", "{} in print", "{} in black on white"),
    "flowers": ("a photo of a {}, a type of flower.",),
    "food": ("a photo of {}, a type of food.",),
    "objects": ("a photo of a {}.",),
    "pets": ("a photo of a {}, a type of pet.",),
    "satellite": ("a centered satellite photo of {}.",),
    "scenes": ("a photo of a {}.",),
    "textures": ("{} texture.",),
}


@cache
def imagenet_templates(count: int = 80) -> tuple[str, ...]:
    """The 80 ImageNet templates of CLIP (Radford et al. 2021), or the 7 of them that work about as well.

    Raises:
        TetherError: `count` is neither 80 nor 7.
    """
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    if count not in (7, 80):
        raise TetherError(f"There are 80 or 7 ImageNet templates, not {count}.")
    return tuple(
        template("{}") for template in {80: OPENAI_IMAGENET_TEMPLATES, 7: SIMPLE_IMAGENET_TEMPLATES}[count]
    )


def templates(source: str | Sequence[str]) -> tuple[str, ...]:
    """Templates by the name of their set ("imagenet-80", "imagenet-7", "photo", "pets", ...), or given as
    they are.

    Raises:
        TetherError: an unknown name, or a template that does not hold exactly one `{}`.
    """
    if not isinstance(source, str):
        return check_templates(tuple(source))
    if "{}" in source:
        return check_templates((source,))
    if source in ("imagenet-80", "imagenet-7"):
        return imagenet_templates(int(source.removeprefix("imagenet-")))
    if source not in TEMPLATE_SETS:
        known = ("imagenet-80", "imagenet-7", *TEMPLATE_SETS)
        raise TetherError(f"There is no template set {source!r}{near_misses(source, known)}")
    return TEMPLATE_SETS[source]


def check_templates(candidates: tuple[str, ...]) -> tuple[str, ...]:
    """The templates, unchanged, if each holds exactly one `{}` and no other brace.

    Raises:
        TetherError: no template at all, or one that is not of this form.
    """
    if not candidates:
        raise TetherError("At least one prompt template is needed, for example 'a photo of a {}.'.")
    for template in candidates:
        if template.count("{}") != 1 or template.count("{") != 1 or template.count("}") != 1:
            raise TetherError(
                f"The prompt template {template!r} must hold the two characters {{}} exactly once, where the "
                "class name goes, and no other brace."
            )
    return candidates


def warn_of_same_prompts(names: Sequence[str], prompts: Sequence[Hashable], reader: str) -> None:
    """Warn of classes of different names whose prompts a model reads as the same.

    That happens to names that are longer than what it reads, and to those that differ in capital letters only.

    Args:
        names: of the classes.
        prompts: what the model is given of each class's prompts.
        reader: the model, and how much it reads.
    """
    alike: dict[Hashable, list[str]] = {}
    for name, own in zip(names, prompts, strict=True):
        alike.setdefault(own, []).append(name)
    groups = [
        " and ".join(repr(_short(name)) for name in same[:3]) for same in alike.values() if len(set(same)) > 1
    ]
    if groups:
        more = f" (and {len(groups) - 3} more such groups)" if len(groups) > 3 else ""
        warnings.warn(
            f"The classes {'; '.join(groups[:3])}{more} have the same prompts for {reader}, so no answer of the text "
            f"tower can tell them apart. Give them shorter or clearly different names.",
            stacklevel=3,
        )


def _short(name: str) -> str:
    return name if len(name) <= 80 else f"{name[:50]}…{name[-29:]}"


def fill(candidates: Sequence[str], names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Every template with every name put in: `filled[class][template]`.

    Braces in a name are text like any other.
    """
    pieces = [template.split("{}") for template in check_templates(tuple(candidates))]
    return tuple(tuple(name.join(piece) for piece in pieces) for name in names)
