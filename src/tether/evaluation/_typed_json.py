"""Frozen dataclasses to JSON and back, strictly, and the JSON Schema that describes them."""

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tether.config import build
from tether.errors import TetherError

_PLAIN = {str: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def encode(value: Any, where: str = "results") -> Any:
    """What JSON can hold of a dataclass of dataclasses, tuples, dicts, text and numbers.

    Raises:
        TetherError: a number is NaN or infinite; the message says where.
    """
    if is_dataclass(value):
        return {f.name: encode(getattr(value, f.name), f"{where}.{f.name}") for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: encode(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise TetherError(f"{where} is {value}; results hold finite numbers only.")
    return value


def decode(kind: Any, value: Any, where: str = "results") -> Any:
    """What `encode` made of a dataclass; unlike in a recipe, nothing may be left out.

    Raises:
        TetherError: a missing or unknown name, or a value of another type; the message says where.
    """
    made = build(kind, value, where)
    if missing := _missing(encode(made, where), value, where):
        raise TetherError(f"{missing} is not there; the file may be of another version.")
    return made


def schema(kind: Any) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what `encode` makes of a dataclass and `decode` accepts."""
    definitions: dict[str, Any] = {}
    root = _schema(kind, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": definitions}


def _missing(whole: Any, value: Any, where: str) -> str:
    """The first entry that `value` leaves to a default."""
    if isinstance(whole, dict):
        for name, item in whole.items():
            if name not in value:
                return f"{where}.{name}"
            if inner := _missing(item, value[name], f"{where}.{name}"):
                return inner
    if isinstance(whole, list):
        pairs = enumerate(zip(whole, value, strict=True))
        return next(filter(None, (_missing(one, own, f"{where}[{i}]") for i, (one, own) in pairs)), "")
    return ""


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin = get_origin(kind)
    if is_dataclass(kind):
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # a placeholder, so that a type may hold itself
            hints = get_type_hints(kind)
            names = [f.name for f in fields(kind)]
            definitions[kind.__name__] = {
                "type": "object",
                "description": (kind.__doc__ or "").split("\n")[0],
                "properties": {name: _schema(hints[name], definitions) for name in names},
                "required": names,
                "additionalProperties": False,
            }
        return {"$ref": f"#/$defs/{kind.__name__}"}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(option, definitions) for option in get_args(kind)]}
    if origin is tuple:
        return {"type": "array", "items": _schema(get_args(kind)[0], definitions)}
    if origin in (dict, Mapping):
        return {"type": "object", "additionalProperties": _schema(get_args(kind)[1], definitions)}
    if origin is Literal:
        return {"enum": list(get_args(kind))}
    return {"type": _PLAIN[kind]}
