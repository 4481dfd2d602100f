"""Typed configuration: dataclasses from plain dicts and back, with errors that name the option and its near misses."""

import dataclasses
import math
import re
import sys
import types
import typing
from abc import ABC
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, Union, get_args, get_origin

import yaml

from tether.errors import TetherError, is_utf8, near_misses


def build(kind: Any, value: Any, where: str = "") -> Any:
    """Make `kind` (a dataclass, a family of them told apart by `method`, a union, or a plain type) from plain data.

    Integers are taken where numbers are wanted, lists where tuples are; nothing else is converted.

    Raises:
        TetherError: an option that does not exist, is missing, or has the wrong type; a number that is NaN, infinite
            or beyond 64 bits; a text that is not UTF-8. `where` names its place.
    """
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise TetherError(f"{where} takes no number beyond 64 bits, found about 2^{value.bit_length() - 1}.")
    if isinstance(value, float) and not math.isfinite(value):
        raise TetherError(f"{where} takes a finite number, found {value}.")
    if isinstance(value, str) and not is_utf8(value):
        raise TetherError(f"{where} takes text in UTF-8, found {value!a}. Rename what is called so.")
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _union(arguments, value, where)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    if is_family(kind):
        return _member(kind, value, where)
    if origin is Literal:
        if value not in arguments:
            raise TetherError(
                f"{where} is {value!r}{near_misses(str(value), [str(known) for known in arguments])}"
            )
        return value
    if origin is tuple and isinstance(value, list | tuple):
        inner = arguments[0] if len(arguments) == 2 and arguments[1] is ... else None
        kinds = [inner] * len(value) if inner else arguments
        if len(kinds) != len(value):
            raise TetherError(f"{where} takes {len(kinds)} values, found {len(value)}.")
        return tuple(
            build(one, item, f"{where}[{i}]") for i, (one, item) in enumerate(zip(kinds, value, strict=True))
        )
    if origin in (dict, Mapping) and isinstance(value, Mapping):
        return {
            build(arguments[0], name, f"A name in {where}"): build(arguments[1], item, f"{where}.{name}")
            for name, item in value.items()
        }
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path and isinstance(value, str):
        return Path(value)
    plain = origin or kind
    if origin in (dict, Mapping) and isinstance(value, str):
        raise TetherError(
            f"{where} takes values by name, such as {where}.NAME={value}; found {value!r} alone."
        )
    if plain is not Any and (not isinstance(value, plain) or (isinstance(value, bool) and plain is not bool)):
        raise TetherError(f"{where} takes {_name(kind)}, found {value!r}.")
    return value


def plain(value: Any) -> Any:
    """The reverse of `build`: dataclasses as dicts (with their `method`), tuples as lists, paths as strings."""
    if dataclasses.is_dataclass(value):
        fields = {
            f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value) if _is_said(f, value)
        }
        method = method_of(type(value))
        return {"method": method, **fields} if method else fields
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _is_said(option: dataclasses.Field, value: Any) -> bool:
    """Whether `plain` says an option; not one that came later (metadata `added`) and is at its default, so that runs
    of before are still the same."""
    if not option.metadata.get("added"):
        return option.init
    made = option.default_factory is not dataclasses.MISSING
    default = option.default_factory() if made else option.default
    return option.init and getattr(value, option.name) != default


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        TetherError: it is missing, not YAML, says something twice, is nested too deep, has aliases that hold themselves
            or stand for too much, or is something else than a mapping.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise TetherError(f"There is no file {path}.") from error
    except OSError as error:
        raise TetherError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise TetherError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(value, dict):
        raise TetherError(f"{path} should hold options by name, found {type(value).__name__}.")
    return value


def override(options: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """`options` with assignments such as `optimizer.lr=1e-3` applied; values are read as YAML.

    Another `method` for a block starts the block anew, whatever the order of the assignments.

    Raises:
        TetherError: an assignment without `=`, or into something that has no options of its own.
    """
    result = _copy(options)
    for assignment in sorted(assignments, key=lambda text: not text.partition("=")[0].endswith(".method")):
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise TetherError(f"Expected NAME=VALUE such as optimizer.lr=1e-3, found {assignment!r}.")
        *parents, last = name.split(".")
        place = result
        for parent in parents:
            if place.get(parent) is None:
                place[parent] = {}
            place = place[parent]
            if not isinstance(place, dict):
                raise TetherError(f"{name}: {parent} has no options of its own, it is {place!r}.")
        value = _scalar(text)
        if last == "method" and place.get("method") not in (None, value):
            place.clear()
        place[last] = value
    return result


def merged(options: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`options` with `changes` laid over them, block by block; a block of another `method` replaces the old one."""
    if changes.get("method", options.get("method")) != options.get("method"):
        return dict(changes)
    result = dict(options)
    for name, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(options.get(name), Mapping)
        result[name] = merged(options[name], value) if both else value
    return result


class Family(ABC):
    """Base of the configs that answer one question; `methods_of` finds them in one folder of the package.

    class AdapterConfig(Family, folder="tether.adapters"): ...

    @method("mona")
    @dataclass(frozen=True, kw_only=True)
    class MonaConfig(AdapterConfig): ...
    """

    members: ClassVar[dict[str, type]]
    folder: ClassVar[str]

    def __init_subclass__(cls, folder: str = "", **rest: Any) -> None:
        super().__init_subclass__(**rest)
        if folder:
            cls.folder, cls.members = folder, {}


def is_family(kind: Any) -> bool:
    """Whether a type is the base of a family, not one of its members."""
    return isinstance(kind, type) and "members" in vars(kind)


def methods_of(family: type[Family]) -> dict[str, type]:
    """The configs of a family by name: those in its folder, and those of modules that were imported besides."""
    _import_methods(family.folder)
    return dict(sorted(family.members.items()))


@cache
def _import_methods(package: str) -> None:
    """Import the files of a package in which a method is marked, and no others: they may be slow to import."""
    (folder,) = map(Path, import_module(package).__path__)
    for path in sorted(folder.rglob("*.py")):
        if "@method(" in path.read_text(encoding="utf-8"):
            import_module(".".join((package, *path.relative_to(folder).with_suffix("").parts)))


def import_methods(name: str) -> str:
    """Import a module, or a Python file by its path, whose methods can then be named; gives what to import again.

    A file is imported under its own name, with its folder on `sys.path`: so processes that are started find it too.

    Raises:
        TetherError: it is not there, cannot be imported, or a module of that name is another file.
    """
    path = Path(name)
    if path.suffix != ".py":
        try:
            import_module(name)
        except ImportError as error:
            raise TetherError(
                f"imports: {name!r} cannot be imported ({error}). A file's path ends in .py."
            ) from error
        return name
    path = path.resolve()
    if not path.is_file():
        raise TetherError(f"imports: there is no file {path}.")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    try:
        module = import_module(path.stem)
    except ImportError as error:
        raise TetherError(f"imports: {path} cannot be imported ({error}).") from error
    if Path(module.__file__ or "").resolve() != path:
        raise TetherError(
            f"imports: {path} has the name of another module, {module.__file__}. Give the file another name."
        )
    return str(path)


def made(family: type[Family], name: str) -> Any:
    """The config of a family's method with all its defaults, such as `made(AdapterConfig, "r_adapter")`."""
    return build(family, {"method": name})


def method(name: str):
    """Class decorator: the `method` by which recipes and files name a config class.

    Raises:
        TetherError: another class of the same family has the name already.
    """

    def mark(cls: type) -> type:
        cls.__tether_method__ = name
        for family in filter(is_family, cls.__mro__):
            other = family.members.setdefault(name, cls)
            if _place(other) != _place(cls):
                raise TetherError(
                    f"{_place(cls)} and {_place(other)} both call themselves {name!r}; each method of "
                    f"{family.__name__} needs a name of its own."
                )
            family.members[name] = cls  # of a module that was imported anew
        return cls

    return mark


def method_of(cls: type) -> str | None:
    """The name that `method` gave a config class itself, not one that it inherits; None without one."""
    return vars(cls).get("__tether_method__")


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _member(family: type[Family], value: Any, where: str) -> Any:
    """One of a family's configs, by its `method`."""
    configs = methods_of(family)
    if isinstance(value, Mapping):
        name = value.get("method")
        if name is None:
            fitting = [known for known, kind in configs.items() if value.keys() <= _options(kind)]
            raise TetherError(
                f"{where} lacks its method: set {where}.method to {' or '.join(fitting or configs)}"
                f"{', which have these options' if fitting and value else ''}."
            )
        if name not in configs:
            raise TetherError(f"{where}.method is {name!r}{near_misses(str(name), list(configs))}")
        _check_method(configs, value, where)
        return _dataclass(configs[name], value, where)
    if isinstance(value, str) and value in configs:
        raise TetherError(f"{where} takes options by name; for this method write {{method: {value}}}.")
    raise TetherError(
        f"{where} takes options by name, with a method ({', '.join(configs)}); found {value!r}."
    )


def _check_method(configs: Mapping[str, type], value: Mapping[str, Any], where: str) -> None:
    """Refuse an option that belongs to other methods of the family than the one that is named, or there by default."""
    known = {name: _options(config) for name, config in configs.items()}
    for option in (name for name in value if name not in {*known[value["method"]], "method"}):
        if owners := [name for name, options in known.items() if option in options]:
            raise TetherError(
                f"There is no option '{where}.{option}' of the method {value['method']}: '{where}.{option}' belongs to "
                f"the methods {', '.join(owners)}: name the one that is meant, as {where}.method=…, with it."
            )


def _union(choices: tuple, value: Any, where: str) -> Any:
    if value is None and type(None) in choices:
        return None
    rest = [choice for choice in choices if choice is not type(None)]
    if len(rest) == 1:
        return build(rest[0], value, where)
    for choice in rest:
        try:
            return build(choice, value, where)
        except TetherError:
            continue
    raise TetherError(f"{where} takes {' or '.join(map(_name, choices))}, found {value!r}.")


def _dataclass(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise TetherError(f"{where or kind.__name__} takes options by name, found {value!r}.")
    value = {name: item for name, item in value.items() if not (name == "method" and method_of(kind) == item)}
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}
    for name in value:
        if name not in fields:
            place = f"{where}.{name}" if where else str(name)
            raise TetherError(f"There is no option {place!r}{near_misses(str(name), list(fields))}")
    required = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING and name not in value
    ]
    if required:
        raise TetherError(f"{where or kind.__name__} lacks {', '.join(required)}.")
    value = {name: _on_default(fields[name], item) for name, item in value.items()}
    prefix = f"{where}." if where else ""
    return kind(**{name: build(hints[name], item, prefix + name) for name, item in value.items()})


def _options(kind: type) -> set[str]:
    return {option.name for option in dataclasses.fields(kind) if option.init}


def _on_default(option: dataclasses.Field, value: Any) -> Any:
    """Options of an option whose default is a config change that default."""
    if not isinstance(value, Mapping) or option.default_factory is dataclasses.MISSING:
        return value
    default = option.default_factory()
    return merged(plain(default), value) if dataclasses.is_dataclass(default) else value


def _name(kind: Any) -> str:
    if kind is type(None):
        return "null"
    if get_origin(kind) is tuple:
        return "a list"
    return {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}.get(
        kind, getattr(kind, "__name__", str(kind))
    )


def _scalar(text: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise TetherError(f"{text!r:.200} is not a valid value: {error}") from error


class _Loader(yaml.SafeLoader):
    """YAML with the plain values of YAML 1.2's core schema, bounded, that refuses a key that is given twice.

    PyYAML's own 1.1 takes 010 for 8, 1:30 for 90, 1e-3 for a text, and silently the last of two equal keys.
    """

    yaml_implicit_resolvers: typing.ClassVar[dict[str, list]] = {}
    yaml_constructors: typing.ClassVar[dict[str | None, Any]] = {
        tag: yaml.SafeLoader.yaml_constructors[tag]
        for tag in (None, *(f"tag:yaml.org,2002:{name}" for name in ("null", "str", "seq", "map")))
    }

    DEEPEST = 100
    """Levels of nesting."""
    MOST_COPIED = 100_000
    """Characters (and one for each value) that all aliases together may stand for."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = 0
        self._copied = 0
        self._sizes: dict[yaml.Node, int] = {}  # of whole nodes, with what their aliases stand for

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        event = self.peek_event()
        if self._depth == self.DEEPEST:
            problem = f"nested more than {self.DEEPEST} levels deep"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if node not in self._sizes:
                problem = f"the alias *{event.anchor} stands for something that holds it"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
            self._copied += self._sizes[node]
            if self._copied > self.MOST_COPIED:
                problem = (
                    f"all aliases stand for more than {self.MOST_COPIED:,} characters; write less, or none"
                )
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        elif isinstance(node, yaml.ScalarNode):
            self._sizes[node] = 1 + len(node.value)
        else:
            parts = node.value
            inner = (part for pair in parts for part in pair) if isinstance(node, yaml.MappingNode) else parts
            self._sizes[node] = 1 + sum(self._sizes[part] for part in inner)
        return node

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node, seen = super().compose_mapping_node(anchor), set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value} is given twice", problem_mark=key.start_mark)
            seen.add((key.tag, key.value))
        return node

    def _bool(self, node: yaml.Node) -> bool:
        text = self.construct_scalar(node).lower()
        if text not in ("true", "false"):
            raise yaml.MarkedYAMLError(problem="not true or false", problem_mark=node.start_mark)
        return text == "true"

    def _int(self, node: yaml.Node) -> int:
        text = self.construct_scalar(node)
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))

    def _float(self, node: yaml.Node) -> float:
        return float(self.construct_scalar(node).lower().replace(".inf", "inf").replace(".nan", "nan"))


for _name_of_tag, _pattern, _first in (  # YAML 1.2.2, section 10.3.2; the merge key is from YAML 1.1
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_name_of_tag}", re.compile(f"^(?:{_pattern})$"), _first
    )
_Loader.add_constructor("tag:yaml.org,2002:bool", _Loader._bool)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader._int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader._float)


def _copy(value: Any) -> Any:
    return {name: _copy(item) for name, item in value.items()} if isinstance(value, dict) else value
