"""The documentation holds: examples run, recipes are read, commands are understood, links lead somewhere."""

import copy
import importlib
import re
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from tether import recipe, recipe_files
from tether.cli.parser import parse

pytestmark = pytest.mark.usefixtures("own_methods")

ROOT = Path(__file__).parents[1]
START = ROOT / "docs" / "README.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
METHODS = sorted((ROOT / "docs" / "methods").glob("*.md"))
HEADINGS = ["When", "Cost", "Source", "In a loop", "As a recipe"]
FENCE = re.compile(r"^```(\S*) *(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, what follows it on the fence (`no-run`), and the line its text begins on."""

    language: str
    mark: str
    line: int
    text: str


def blocks(page: Path, language: str) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    found = [
        Block(match[1], match[2], text.count("\n", 0, match.start(3)) + 1, match[3])
        for match in FENCE.finditer(text)
    ]
    return [block for block in found if block.language == language]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def with_blocks(language: str) -> list[Any]:
    return [pytest.param(page, id=name(page)) for page in PAGES if blocks(page, language)]


def play(page: Path, names: dict[str, Any]) -> dict[str, Any]:
    """Run the Python blocks of a page in order, in one namespace; a traceback names the page and its line."""
    for block in blocks(page, "python"):
        if block.mark != "no-run":
            code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
            exec(code, names)
    return names


@pytest.fixture(scope="module")
def start() -> dict[str, Any]:
    """What the index makes for the pages of methods."""
    return play(START, {"__name__": "example"})


def names_for(page: Path, start: dict[str, Any]) -> dict[str, Any]:
    """What a page may take for granted: the index's names on pages of methods, a loader in the README, else nothing."""
    model = start["model"]
    if page.parent.name == "methods":
        return {**start, "model": replace(model, module=copy.deepcopy(model.module))}
    loader = []
    if page == ROOT / "README.md":
        for batch in start["loader"]:
            texts = [f"an emoji of {start['benchmark'].class_names[label]}" for label in batch["label"]]
            loader.append((batch["pixels"], texts, batch["label"], batch["index"]))
    return {"__name__": "example", **({"loader": loader} if loader else {})}


@pytest.mark.parametrize("page", with_blocks("python"))
def test_the_examples_run(page, start, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    play(page, names_for(page, start))


def test_hardly_an_example_is_left_out():
    marks = [block.mark for page in PAGES for block in blocks(page, "python")]
    assert set(marks) <= {"", "no-run"}
    assert marks.count("no-run") <= 2


def write_named_files(page: Path, folder: Path) -> None:
    """Python blocks that begin with the name of their file, which recipes of the page may import."""
    for block in blocks(page, "python"):
        if named := re.match(r"# (\w+\.py)\n", block.text):
            (folder / named[1]).write_text(block.text)
            sys.modules.pop(Path(named[1]).stem, None)  # of another folder


@pytest.mark.parametrize("page", with_blocks("yaml"))
def test_the_recipes_are_read(page, tmp_path):
    """A block that is no whole recipe is completed by a name and a length, so that its options are read as well."""
    write_named_files(page, tmp_path)
    for block in blocks(page, "yaml"):
        options = yaml.safe_load(block.text)
        whole = options if "extends" in options else {"name": "page", "training": {"epochs": 1}, **options}
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(whole))
        read = recipe.read(path)
        assert recipe.from_plain(recipe.to_plain(read)) == read


@pytest.mark.parametrize("page", with_blocks("yaml"))
def test_an_alpha_to_be_chosen_has_a_choice(page, tmp_path):
    """`extends: flyp` alone would leave its two ends to choose from."""
    write_named_files(page, tmp_path)
    for block in blocks(page, "yaml"):
        if "extends" in yaml.safe_load(block.text):
            (tmp_path / "recipe.yaml").write_text(block.text)
            alpha = recipe.read(tmp_path / "recipe.yaml").alpha
            assert alpha.value != "auto" or len(alpha.grid) >= 3


@pytest.mark.parametrize("page", with_blocks("sh"))
def test_the_commands_are_understood(page):
    for block in blocks(page, "sh"):
        for line in block.text.splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] != ["tether"]:
                continue
            options = parse(words[1:])
            if options.name_of_command == "train" and options.recipe in recipe_files.names():
                recipe.read(options.recipe, options.overrides)


@pytest.mark.parametrize("page", [pytest.param(page, id=name(page)) for page in PAGES])
def test_the_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{target} does not exist"
        if anchor:
            assert anchor in map(slug, headings(there)), f"{target} has no such heading"


@pytest.mark.parametrize("page", [pytest.param(page, id=page.stem) for page in METHODS])
def test_a_method_page_answers_all_questions(page):
    text = page.read_text(encoding="utf-8")
    title, *found = headings(page)
    assert [heading for heading in found if heading in HEADINGS] == HEADINGS
    parts = re.split(r"^#+ .*$", FENCE.sub("CODE", text), flags=re.MULTILINE)[1:]
    assert all(part.strip() for part in parts), "a heading without a text"
    summary = re.sub(r"\s+", " ", parts[0]).strip()
    assert 1 <= len(re.findall(r"[.?](?= |$)", summary)) <= 3, f"{title} is not told in about two sentences"
    shown = dict(zip([title, *found], parts, strict=True))
    assert "CODE" in shown["In a loop"] and "CODE" in shown["As a recipe"]


def test_the_index_names_every_page():
    linked = set(re.findall(r"\]\(([^)#\s]+)", START.read_text(encoding="utf-8")))
    pages = {page.relative_to(START.parent).as_posix() for page in PAGES if page.is_relative_to(START.parent)}
    assert pages - {"README.md"} <= linked


@pytest.mark.parametrize("module", ["optimizers", "objectives", "ensembles"])
def test_every_public_name_is_on_a_page(module):
    home = importlib.import_module(f"tether.{module}")
    public = {
        name
        for name, value in vars(home).items()
        if name[0] != "_" and getattr(value, "__qualname__", None) == name
    }
    words = set(re.findall(r"\w+", " ".join(page.read_text(encoding="utf-8") for page in PAGES)))
    assert len(public) > 5 and public <= words, sorted(public - words)


def headings(page: Path) -> list[str]:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    return [line.lstrip("#").strip() for line in text.splitlines() if re.match(r"#+ ", line)]


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
