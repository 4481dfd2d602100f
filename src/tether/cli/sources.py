"""Config classes read from their source text: options, defaults and meanings, with nothing imported.

Importing them means importing torch and the model libraries, for seconds; and what is said of an option stands in the
source alone: in a class's docstring under `Attributes:` or `Args:`, or in a text right after the field.
"""

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tether.config import merged
from tether.errors import TetherError, near_misses

_PACKAGE = Path(__file__).parents[1]
REQUIRED = object()
"""In place of a default, where there is none."""


class Sources:
    """The files of the package, and those that a recipe imports; each is read once.

    Args:
        imports: modules, or Python files by path, with methods of a user's own.
    """

    def __init__(self, imports: Sequence[str] = ()) -> None:
        self._modules: dict[Path, Module] = {}
        self._methods: dict[str, dict[str, Config]] = {}
        self._imported = [_imported(name) for name in imports]

    @property
    def recipe(self) -> "Config":
        """The config of a whole recipe."""
        return self.read(_PACKAGE / "recipe.py").config("Recipe")

    def read(self, path: Path) -> "Module":
        if path not in self._modules:
            self._modules[path] = Module(path, self)
        return self._modules[path]

    def methods_of(self, family: "Config") -> dict[str, "Config"]:
        """The configs of a family by name: those in its folder, and those of files that a recipe imports."""
        if family.name not in self._methods:
            folder = _PACKAGE.joinpath(*family.folder.split(".")[1:])
            configs = {}
            for path in (*sorted(folder.rglob("*.py")), *self._imported):
                if "@method(" in path.read_text(encoding="utf-8"):
                    for config in self.read(path).configs():
                        if config.method and any(base.name == family.name for base in config.bases()):
                            configs[config.method] = config
            self._methods[family.name] = dict(sorted(configs.items()))
        return self._methods[family.name]


class Module:
    """A source file: its classes and assigned values by name, and where imported names come from."""

    def __init__(self, path: Path, sources: Sources) -> None:
        self.sources = sources
        self._nodes: dict[str, ast.AST] = {}
        self._imports: dict[str, tuple[str, str]] = {}
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                self._nodes[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self._nodes[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
                self._nodes[node.target.id] = node.value
            elif isinstance(node, ast.ImportFrom) and node.module:
                self._imports |= {
                    alias.asname or alias.name: (node.module, alias.name) for alias in node.names
                }

    def find(self, name: str) -> "tuple[Module, ast.AST] | None":
        """What a name stands for and in which module of ours; None for what comes from elsewhere."""
        if name in self._nodes:
            return self, self._nodes[name]
        module, name = self._imports.get(name, ("", name))
        path = path_of(module)
        return self.sources.read(path).find(name) if path else None

    def config(self, name: str) -> "Config | None":
        """The class of a name; None for anything else."""
        definition = self.find(name)
        return Config(*definition) if definition and isinstance(definition[1], ast.ClassDef) else None

    def configs(self) -> list["Config"]:
        """The classes that are defined here."""
        return [Config(self, node) for node in self._nodes.values() if isinstance(node, ast.ClassDef)]


class Config:
    """A config class, or the base of a family of them."""

    def __init__(self, module: Module, node: ast.ClassDef) -> None:
        self._module, self._node = module, node
        self.name = node.name

    @property
    def folder(self) -> str:
        """Of a family's base the package that holds its methods; else ""."""
        return next((word.value.value for word in self._node.keywords if word.arg == "folder"), "")

    @property
    def method(self) -> str | None:
        """Its name in recipes."""
        for decorator in self._node.decorator_list:
            if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "method":
                return decorator.args[0].value
        return None

    @property
    def summary(self) -> str:
        """The first paragraph of its docstring."""
        return _line((ast.get_docstring(self._node) or "").partition("\n\n")[0])

    def bases(self) -> Iterator["Config"]:
        """Its bases and theirs, as far as they are ours."""
        for node in self._node.bases:
            base = self._module.config(node.id) if isinstance(node, ast.Name) else None
            if base:
                yield base
                yield from base.bases()

    def options(self) -> dict[str, "Option"]:
        """Its options by name, those of its bases first, in the order of a dataclass."""
        options: dict[str, Option] = {}
        meanings: dict[str, str] = {}
        for config in (*reversed(list(self.bases())), self):
            meanings |= config._meanings()
            if any("dataclass" in ast.unparse(decorator) for decorator in config._node.decorator_list):
                options |= {option.name: option for option in config._own_options()}
        return {name: option.with_meaning(meanings.get(name, "")) for name, option in options.items()}

    def complete(self, given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
        """All options as plain data, from those that are given and the defaults.

        Raises:
            TetherError: there is no such option or method, or a required one is missing.
        """
        options, method = self.options(), self.method
        for name in given:
            if name not in options and (name != "method" or method is None):
                path = f"{where}.{name}" if where else name
                raise TetherError(f"There is no option {path!r}{near_misses(str(name), list(options))}")
        result = {} if method is None else {"method": method}
        for name, option in options.items():
            value = option.default
            if name in given:
                value_given = given[name]
                both = isinstance(value, Mapping) and isinstance(value_given, Mapping)
                value = merged(value, value_given) if both and option.config(value) else value_given
            if value is REQUIRED:
                raise TetherError(f"{where or self.name} lacks {name}.")
            result[name] = option.complete(value, f"{where}.{name}" if where else name)
        return result

    def _own_options(self) -> Iterator["Option"]:
        for node in self._node.body:
            if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
                yield Option(self._module, node.target.id, node.annotation, node.value)

    def _meanings(self) -> dict[str, str]:
        """What the docstring and the texts after fields say, by option."""
        meanings = _sections(ast.get_docstring(self._node) or "")
        for node, after in zip(self._node.body, self._node.body[1:], strict=False):
            text = (
                after.value.value
                if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                else None
            )
            if isinstance(node, ast.AnnAssign) and isinstance(text, str):
                meanings[node.target.id] = _line(text)
        return meanings


@dataclass(frozen=True)
class Option:
    """An option of a config class; its type and default as they stand in the source of `module`."""

    module: Module
    name: str
    annotation: ast.expr
    value: ast.expr | None
    meaning: str = ""

    def with_meaning(self, meaning: str) -> "Option":
        return Option(self.module, self.name, self.annotation, self.value, meaning)

    @property
    def default(self) -> Any:
        """The default as plain data, or REQUIRED."""
        return REQUIRED if self.value is None else _evaluate(self.value, self.module)

    @property
    def choices(self) -> list[Any]:
        """The values of a `Literal`; nothing for other types."""
        for node, _ in self._parts(self.annotation, self.module):
            if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "Literal":
                values = ast.literal_eval(node.slice)
                return list(values) if isinstance(values, tuple) else [values]
        return []

    @property
    def methods(self) -> dict[str, Config]:
        """The methods to choose from, where the option is answered by one."""
        families = [config for config in self.configs() if config.folder]
        return self.module.sources.methods_of(families[0]) if families else {}

    def config(self, value: Any, where: str = "") -> Config | None:
        """The config class that a value is of; None for plain values.

        Raises:
            TetherError: there is no such method.
        """
        if not isinstance(value, Mapping):
            return None
        if methods := self.methods:
            name = value.get("method")
            if name not in methods:
                raise TetherError(f"{where}.method is {name!r}{near_misses(str(name), list(methods))}")
            return methods[name]
        return next(self.configs(), None)

    def complete(self, value: Any, where: str) -> Any:
        """A value with all options of the configs in it."""
        if isinstance(value, list | tuple):
            return [self.complete(item, f"{where}[{i}]") for i, item in enumerate(value)]
        config = self.config(value, where)
        return config.complete(value, where) if config else value

    def configs(self) -> Iterator[Config]:
        """The config classes, and bases of families, in its type."""
        for node, module in self._parts(self.annotation, self.module):
            config = module.config(node.id) if isinstance(node, ast.Name) else None
            if config:
                yield config

    def _parts(self, node: ast.AST, module: Module) -> Iterator[tuple[ast.AST, Module]]:
        """A type and all that it is made of, with the names of types replaced by what they stand for."""
        yield node, module
        if isinstance(node, ast.Name):
            definition = module.find(node.id)
            if definition and not isinstance(definition[1], ast.ClassDef):
                yield from self._parts(definition[1], definition[0])
        for child in ast.iter_child_nodes(node):
            yield from self._parts(child, module)


def path_of(module: str) -> Path | None:
    """The source of a module of ours; None for those of other libraries."""
    first, *rest = module.split(".")
    if first == "tether":
        path = _PACKAGE.joinpath(*rest)
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return None


def _imported(name: str) -> Path:
    """The source of a module that a recipe imports, or the file that it names by path."""
    try:
        path = Path(name) if name.endswith(".py") else Path(getattr(find_spec(name), "origin", None) or "")
    except ImportError:  # of a package that it lies in
        path = Path()
    if not path.is_file():
        raise TetherError(f"imports: there is no {name!r} to read. A file's path ends in .py.")
    return path


def _evaluate(node: ast.expr, module: Module) -> Any:
    """The plain value of a default: literals, names of values, and configs, with the options that they are given."""
    if isinstance(node, ast.Tuple | ast.List):
        return [_evaluate(item, module) for item in node.elts]
    if isinstance(node, ast.Dict):
        return {
            ast.literal_eval(key): _evaluate(value, module)
            for key, value in zip(node.keys, node.values, strict=True)
        }
    if isinstance(node, ast.Lambda):
        return _evaluate(node.body, module)
    if isinstance(node, ast.Subscript):
        return _evaluate(node.value, module)[ast.literal_eval(node.slice)]
    if isinstance(node, ast.Name) and (definition := module.find(node.id)):
        if isinstance(definition[1], ast.ClassDef):  # a default factory
            return Config(*definition).complete({})
        return _evaluate(definition[1], definition[0])
    if isinstance(node, ast.Name) and node.id in ("dict", "tuple", "list"):
        return {} if node.id == "dict" else []
    if isinstance(node, ast.Call):
        options = {word.arg: word.value for word in node.keywords}
        function = ast.unparse(node.func)
        if function == "field":
            return _evaluate(options.get("default_factory") or options["default"], module)
        if function == "made":
            family, name = node.args
            return module.sources.methods_of(module.config(family.id))[name.value].complete({})
        if config := module.config(function):
            return config.complete({name: _evaluate(value, module) for name, value in options.items()})
    try:
        return ast.literal_eval(node)
    except ValueError:  # computed in a user's own file: shown as it stands there
        return ast.unparse(node)


def _sections(docstring: str) -> dict[str, str]:
    """What the sections `Args:` and `Attributes:` say, by name; an entry may name several."""
    meanings: dict[str, str] = {}
    for section in re.findall(r"^(?:Args|Attributes):\n((?:[ ]+.*\n?|\n)+)", docstring, re.MULTILINE):
        for names, text in re.findall(r"^([\w, ]+): (.*(?:\n +.*)*)", textwrap.dedent(section), re.MULTILINE):
            meanings |= {name.strip(): _line(text) for name in names.split(",")}
    return meanings


def _line(text: str) -> str:
    return " ".join(text.split())
