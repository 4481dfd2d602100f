"""A recipe with every option, what it means and its default beside it, as YAML that can be kept and changed."""

import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tether.cli.sources import REQUIRED, Config, Option, Sources
from tether.config import build
from tether.errors import TetherError
from tether.recipe_files import read_options

_COLUMN = 36
"""Where comments begin, behind what is not longer."""


def recipe_text(source: str | Path, width: int = 110) -> str:
    """The recipe as YAML; values are shown as they are given, without the checks of a run.

    Args:
        width: of lines, where their words allow it.

    Raises:
        TetherError: there is no such recipe, or an option that does not exist.
    """
    given = read_options(source)
    try:
        sources = Sources(build(tuple[str, ...], given.get("imports", ()), "imports"))
        config = sources.recipe
        rows = list(_rows(config, config.complete(given), ""))
    except TetherError as error:
        raise TetherError(f"{source}: {error}") from error
    return "".join(line + "\n" for row in rows for line in _lines(*row, width))


def _rows(config: Config, values: Mapping[str, Any], indent: str) -> Iterator[tuple[str, str]]:
    """Each option as what stands in the recipe, and the comment beside it."""
    for name, option in config.options().items():
        value = values[name]
        inner = option.config(value, name)
        if inner:
            yield f"{indent}{name}:", _block_comment(option)
            yield from _method_rows(option, inner, indent + "  ")
            yield from _rows(inner, value, indent + "  ")
        elif isinstance(value, list) and value and option.config(value[0], name):
            yield f"{indent}{name}:", _block_comment(option)
            for item in value:
                member = option.config(item, name)
                yield from _method_rows(option, member, indent + "- ")
                yield from _rows(member, item, indent + "  ")
        else:
            yield f"{indent}{name}: {_flow(value)}", _comment(option, value)


def _method_rows(option: Option, config: Config, indent: str) -> Iterator[tuple[str, str]]:
    if config.method:
        others = ", ".join(name for name in option.methods if name != config.method)
        yield (
            f"{indent}method: {config.method}",
            _sentence(config.summary) + (f" Others: {others}." if others else ""),
        )


def _block_comment(option: Option) -> str:
    default = option.default
    return " ".join(filter(None, ["Default null." if default is None else "", _sentence(option.meaning)]))


def _comment(option: Option, value: Any) -> str:
    if option.default is REQUIRED:
        default = "No default."
    elif option.default == value:
        default = "Default."
    elif option.config(option.default):
        default = f"Default {{method: {option.default['method']}}}."
    else:
        default = f"Default {_flow(option.default)}."
    choices = ", ".join(map(_flow, option.choices))
    methods = ", ".join(option.methods)
    parts = [default, _sentence(option.meaning), f"One of {choices}." if choices else ""]
    return " ".join(filter(None, [*parts, f"Methods: {methods}." if methods else ""]))


def _sentence(text: str) -> str:
    """What a docstring says in Python's words, as a sentence about YAML."""
    for python, ours in (("None", "null"), ("True", "true"), ("False", "false")):
        text = re.sub(rf"\b{python}\b", ours, text)
    return text[:1].upper() + text[1:] + ("" if not text or text[-1] in ".?!:" else ".")


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=2**30, allow_unicode=True, sort_keys=False)
    return text.removesuffix("\n").removesuffix("\n...")


def _lines(text: str, comment: str, width: int) -> Iterator[str]:
    """The text with its comment beside it, or beginning below it where it is long."""
    words = textwrap.wrap(
        comment, max(30, width - _COLUMN - 2), break_long_words=False, break_on_hyphens=False
    )
    if len(text) < _COLUMN and words:
        text = f"{text:<{_COLUMN}}# {words.pop(0)}"
    yield text
    yield from (f"{'':<{_COLUMN}}# {line}" for line in words)
