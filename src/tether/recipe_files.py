"""Recipes as files: which come with tether, what each is in a line, and a file's options before they are checked.

Nothing here imports torch: who lists recipes, or misspells one, need not wait for it.
"""

from importlib import resources
from pathlib import Path
from typing import Any

from tether.config import merged, read_yaml
from tether.errors import TetherError, near_misses


def names() -> list[str]:
    """The recipes that come with tether."""
    return sorted(
        path.name.removesuffix(".yaml") for path in _folder().iterdir() if path.name.endswith(".yaml")
    )


def description(name: str) -> str:
    """What a recipe that comes with tether is: the first line of its file, a comment."""
    first = (_folder() / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()


def find(source: str | Path) -> Path:
    """The file of a recipe, by name (of those that come with tether) or by path.

    Raises:
        TetherError: it is neither a path of a YAML file nor a known name.
    """
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    if str(source) in names():
        return Path(str(_folder() / f"{source}.yaml"))
    raise TetherError(
        f"There is no recipe {str(source)!r}{near_misses(str(source), names())} A path ends in .yaml."
    )


def read_options(source: str | Path) -> dict[str, Any]:
    """A recipe's options as its file gives them, laid over those of the recipe that it extends.

    Raises:
        TetherError: a file is missing or not valid YAML, or extends itself.
    """
    return _options(find(source), ())


def _options(path: Path, children: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in children:
        raise TetherError(f"{path} extends itself, by way of {len(children) - 1} others.")
    options = read_yaml(path)
    if isinstance(options.get("imports"), list):  # their paths are from the file's own folder
        beside = [path.parent / str(name) for name in options["imports"]]
        options["imports"] = [
            str(file.resolve()) if file.suffix == ".py" else name
            for file, name in zip(beside, options["imports"], strict=True)
        ]
    parent = options.pop("extends", None)
    if parent is None:
        return options
    if not isinstance(parent, str):
        raise TetherError(f"{path}: extends takes the name or path of one recipe, found {parent!r}.")
    beside = path.parent / parent
    found = beside if beside.suffix in (".yaml", ".yml") else find(parent)
    return merged(_options(found, (*children, path.resolve())), options)


def _folder() -> Any:
    return resources.files("tether") / "recipes"
