"""Texts from outside on a terminal: names of domains, classes, runs and files may hold anything."""

import shlex
import unicodedata
from os import PathLike

from rich.text import Text

_CONTROL = {"Cc", "Cs", "Zl", "Zp"}
_TURNING = set("\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of writing, so that a name could show as another."""


def printable(text: object) -> str:
    """A text with control characters written out (`\\x1b`), so that none of them reaches the terminal.

    What is no text at all, such as the bytes of a file name that is not UTF-8, is written out too.
    """
    return "".join(
        character.encode("unicode_escape", "surrogatepass").decode()
        if unicodedata.category(character) in _CONTROL or character in _TURNING
        else character
        for character in str(text)
    )


def cell(text: object, style: str = "") -> Text:
    """A text for rich, in which square brackets are square brackets."""
    return Text(printable(text), style=style)


def quoted(path: str | PathLike) -> str:
    """A path, or another word, as a shell takes it."""
    return shlex.quote(str(path))
