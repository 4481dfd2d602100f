"""What the package imports and what it says it needs are the same."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parent.parent
NEEDED_BY_OTHERS = {
    "sentencepiece": "transformers reads the tokenizer of SigLIP 1 with it",
    "tensorboard": "torch.utils.tensorboard writes with it",
    "opencv-python-headless": "imagecorruptions draws with it, and asks for the build that needs a desktop",
    "scipy": "transformers matches objects with detections with it",
    "accelerate": "its Accelerator is the user's own, and comes in as an argument",
}
"""Dependencies that no file of ours imports, and why they are there all the same."""


def normalized(distribution: str) -> str:
    """The name of a package as every registry takes it: "open_clip_torch>=3.2" is "open-clip-torch"."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", distribution)[0]).lower()


def declared() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {
        normalized(requirement)
        for requirements in (project["dependencies"], *project["optional-dependencies"].values())
        for requirement in requirements
    }


def imported(source: Path) -> dict[str, str]:
    """Distributions that the files of a folder import anywhere, by normalized name; the value is one such file.

    A module that belongs to no installed distribution stands under its own name.
    """
    distributions = packages_distributions()
    found = {}
    for path in sorted(source.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            else:
                continue
            for module in (
                {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"tether"}
            ):
                for distribution in distributions.get(module, [module]):
                    found[normalized(distribution)] = str(path)
    return found


def test_every_import_is_of_a_declared_dependency():
    found = imported(ROOT / "src")
    assert "torch" in found  # the search works
    assert {name: file for name, file in found.items() if name not in declared()} == {}


def test_every_declared_dependency_is_imported_or_has_its_reason():
    unused = declared() - imported(ROOT / "src").keys()
    assert unused == NEEDED_BY_OTHERS.keys()


def test_an_import_that_nothing_declares_is_seen(tmp_path):
    (tmp_path / "a.py").write_text(
        "import os\nfrom tether import load\n\ndef f():\n    import makers.typefaces\n"
    )
    assert imported(tmp_path) == {"makers": str(tmp_path / "a.py")}
