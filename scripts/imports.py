"""Which file of the package imports which: a list, and whether the house still stands in its order.

    python scripts/imports.py             # every file with what it imports
    python scripts/imports.py --folders   # the same between folders, with the number of imports

`tests/test_imports.py` holds the order: no circle of files, no import upward, none between sibling folders.
"""

import argparse
import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src"
Imports = dict[str, set[str]]


def imports(source: Path = SOURCE) -> Imports:
    """By the name of each module of the package, the modules of the package that it imports anywhere.

    Imports inside functions count, those under `if TYPE_CHECKING` do not: these are no imports at run time.
    """
    modules = {_name(path, source): path for path in sorted(source.rglob("*.py"))}
    return {name: set(_imported(path, name, modules)) - {name} for name, path in modules.items()}


def circles(graph: Imports) -> list[list[str]]:
    """Groups of modules each of which imports every other of its group, if only by way of more (Tarjan 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    path: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        number[node] = lowest[node] = len(number)
        path.append(node)
        for target in sorted(graph[node]):
            if target not in number:
                visit(target)
            if target in path:
                lowest[node] = min(lowest[node], lowest[target])
        if lowest[node] == number[node]:
            members = path[path.index(node) :]
            del path[path.index(node) :]
            if len(members) > 1:
                found.append(sorted(members))

    for node in sorted(graph):
        if node not in number:
            visit(node)
    return found


def folder_of(module: str) -> str:
    """The folder of the package that a module lies in, or the module's own name at its top: "adapters", "config"."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def _name(path: Path, source: Path) -> str:
    parts = path.relative_to(source).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, name: str, modules: dict[str, Path]) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                if inner in modules:
                    yield inner
                elif node.module in modules:
                    yield node.module


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folders", action="store_true", help="between folders only")
    graph = imports()
    if parser.parse_args().folders:
        edges = Counter(
            (folder_of(name), folder_of(target)) for name, targets in graph.items() for target in targets
        )
        for (one, other), count in sorted(edges.items()):
            if one != other:
                print(f"{one or 'tether':16} -> {other or 'tether':16} {count:3}")
    else:
        for name, targets in graph.items():
            print(name, *(f"    {target}" for target in sorted(targets)), sep="\n")
    for circle in circles(graph):
        print("circle:", ", ".join(circle))
