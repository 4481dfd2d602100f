"""Frozen dataclasses to JSON and back, strictly, and the JSON Schema that describes them."""

import math
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tether.errors import TetherError, near_misses

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
    """The value as `kind` says: a dataclass, tuple[x, ...], dict[str, x], union, literal, or plain type.

    Raises:
        TetherError: a missing or unknown name, or a value of another type; the message says where.
    """
    origin = get_origin(kind)
    if is_dataclass(kind):
        return _decode_dataclass(kind, value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in get_args(kind):
            return None
        options = [option for option in get_args(kind) if option is not type(None)]
        if len(options) == 1:  # say what is wrong inside rather than that nothing fits
            return decode(options[0], value, where)
        for option in options:
            try:
                return decode(option, value, where)
            except TetherError:
                continue
        raise _unexpected(where, _text(kind), value)
    if origin is tuple and isinstance(value, list):
        return tuple(decode(get_args(kind)[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin in (dict, Mapping) and isinstance(value, dict):
        return {key: decode(get_args(kind)[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if origin is Literal and value in get_args(kind):
        return value
    if kind is float:
        if type(value) in (int, float) and math.isfinite(value):
            return float(value)
    elif kind in _PLAIN and type(value) is kind:
        return value
    raise _unexpected(where, _text(kind), value)


def schema(kind: Any) -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of what `encode` makes of a dataclass and `decode` accepts."""
    definitions: dict[str, Any] = {}
    root = _schema(kind, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": definitions}


def _decode_dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _unexpected(where, kind.__name__, value)
    hints = get_type_hints(kind)
    names = [f.name for f in fields(kind)]
    for name in value:
        if name not in names:
            raise TetherError(f"{where} has an unknown entry {name!r}{near_misses(name, names)}")
    if missing := [name for name in names if name not in value]:
        raise TetherError(
            f"{where} lacks {', '.join(map(repr, missing))}; the file may be of another version."
        )
    return kind(**{name: decode(hints[name], value[name], f"{where}.{name}") for name in names})


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


def _unexpected(where: str, expected: str, value: Any) -> TetherError:
    return TetherError(f"{where} should be {expected}, but is {value!r:.60}.")


def _text(kind: Any) -> str:
    return getattr(kind, "__name__", None) if isinstance(kind, type) else str(kind).replace("typing.", "")
