"""The order of the house: no circle of files, no import upward, none between folders of methods."""

from collections import Counter

import pytest

from scripts import imports as tool

FLOORS = (
    ("errors",),
    ("_files", "_sealed", "_averaging", "_distributed", "_alpha", "_text", "config"),
    ("_choosing", "families"),
    ("models",),
    ("data",),
    ("adapters", "objectives", "optimizers"),
    ("training",),
    ("evaluation",),
    ("ensembles", "heads"),
    ("recipe", "recipe_files", "integrations"),
    ("tasks",),
    ("runs",),
    ("cli",),
)
"""Folders and files at the top of the package; whatever stands on a floor imports from its own and lower ones only."""

METHODS = ("adapters", "objectives", "optimizers", "ensembles")
"""Folders of methods: each is usable alone, so none imports another."""


@pytest.fixture(scope="module")
def edges():
    """(importer, imported) for all modules but the package's own face, which hands names on."""
    return [
        (name, target)
        for name, targets in tool.imports().items()
        for target in targets
        if name != "tether" and target != "tether"
    ]


def test_there_is_no_circle_of_files():
    assert tool.circles(tool.imports()) == []


def test_nothing_imports_upward(edges):
    floor = {name: height for height, names in enumerate(FLOORS) for name in names}
    assert {tool.folder_of(name) for edge in edges for name in edge} <= floor.keys()
    upward = [edge for edge in edges if floor[tool.folder_of(edge[0])] < floor[tool.folder_of(edge[1])]]
    assert upward == []


def test_folders_of_methods_do_not_know_each_other(edges):
    between = Counter((tool.folder_of(one), tool.folder_of(other)) for one, other in edges)
    known = [(one, other) for one, other in between if {one, other} <= set(METHODS) and one != other]
    assert known == []


def test_the_tool_sees_a_circle(tmp_path):
    package = tmp_path / "tether"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("def f():\n    from tether import b\n")
    (package / "b.py").write_text("from tether.c import x\n")
    (package / "c.py").write_text(
        "from typing import TYPE_CHECKING\nimport tether.a\nif TYPE_CHECKING:\n    import tether.d\nx = 1\n"
    )
    (package / "d.py").write_text("import tether.a\n")
    graph = tool.imports(tmp_path)
    assert tool.circles(graph) == [["tether.a", "tether.b", "tether.c"]]
    assert graph["tether.c"] == {"tether.a"}
