"""What `import tether` offers is the same to a program and to an editor."""

import ast
from importlib.metadata import version
from pathlib import Path

import tether


def test_every_public_name_is_there_for_programs_and_for_type_checkers():
    tree = ast.parse(Path(tether.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == tether._HOME and set(tether.__all__) == set(seen)
    assert set(dir(tether)) == {*seen, "__version__"} and tether.__version__ == version("tether")
    for name in tether.__all__:
        assert getattr(tether, name).__module__.startswith("tether.")
    assert Path(tether.__file__).with_name("py.typed").is_file()
