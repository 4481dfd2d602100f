"""Configuration from plain data: what is taken, and what a wrong option is told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from tether.config import build, method, override, plain, read_yaml
from tether.errors import TetherError


@method("test-round")
@dataclass(frozen=True, kw_only=True)
class Round:
    radius: float = 1.0


@method("test-square")
@dataclass(frozen=True, kw_only=True)
class Square:
    side: float


@dataclass(frozen=True, kw_only=True)
class Inner:
    mode: Literal["fast", "slow"] = "fast"
    pair: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    shape: Round | Square = field(default_factory=Round)
    inner: Inner = field(default_factory=Inner)
    limit: float | None = None
    count: int = 0
    alpha: float | dict[str, float] | str = 0.5


def test_builds_nested_values_and_gives_them_back():
    value = {
        "name": "a",
        "shape": {"method": "test-square", "side": 2},
        "inner": {"mode": "slow", "pair": [1, 2]},
        "limit": 3,
        "alpha": {"image": 1, "text": 0.5},
    }
    built = build(Outer, value)
    assert built.shape == Square(side=2.0) and built.inner.pair == (1.0, 2.0) and built.limit == 3.0
    assert built.alpha == {"image": 1.0, "text": 0.5}
    assert build(Outer, plain(built)) == built


def test_options_without_a_method_belong_to_the_default_one():
    assert build(Outer, {"name": "a", "shape": {"radius": 2}}).shape == Round(radius=2.0)


def test_defaults_fill_what_is_not_said():
    assert build(Outer, {"name": "a"}) == Outer(name="a")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"name": "a", "shap": {}}, "shape"),
        ({"name": "a", "inner": {"mod": "fast"}}, "inner.mod"),
        ({"name": "a", "inner": {"mode": "fats"}}, "fast"),
        ({"name": "a", "shape": {"method": "test-rond"}}, "test-round"),
        ({"name": "a", "shape": {"method": "test-square"}}, "lacks side"),
        ({"name": "a", "limit": "much"}, "limit"),
        ({"name": "a", "inner": {"pair": [1]}}, "2 values"),
        ({"name": 3}, "name takes a text"),
        ({"name": "a", "limit": True}, "limit"),
        ({"name": "a", "limit": 10**400}, r"limit takes no number beyond 64 bits, found about 2\^1328"),
        ({"name": "a", "count": 10**30}, "count takes no number beyond 64 bits"),
        ({"name": "a", "inner": 4}, "options by name"),
        ({}, "lacks name"),
    ],
)
def test_a_wrong_option_is_named(value, told):
    with pytest.raises(TetherError, match=told):
        build(Outer, value)


def test_override_reads_values_as_yaml_and_leaves_the_original_alone():
    options = {"a": {"b": 1}, "c": 2}
    changed = override(options, ["a.b=1e-3", "d.e=[1, 2]", "c=null"])
    assert changed == {"a": {"b": 1e-3}, "c": None, "d": {"e": [1, 2]}}
    assert options == {"a": {"b": 1}, "c": 2}


@pytest.mark.parametrize("order", [1, -1])
def test_another_method_starts_its_block_anew(order: int):
    options = {"a": {"method": "old", "b": 1}, "c": {"method": "old", "b": 1}}
    changed = override(options, ["a.method=new", "a.d=2", "c.method=old"][::order])
    assert changed == {"a": {"method": "new", "d": 2}, "c": {"method": "old", "b": 1}}


@pytest.mark.parametrize("wrong", ["a", "=1", "c.d=1", "a=[1"])
def test_override_refuses_what_is_no_assignment(wrong):
    with pytest.raises(TetherError):
        override({"c": 2}, [wrong])


def test_read_yaml_says_what_is_wrong(tmp_path: Path):
    with pytest.raises(TetherError, match="no file"):
        read_yaml(tmp_path / "none.yaml")
    path = tmp_path / "a.yaml"
    path.write_text("- 1\n")
    with pytest.raises(TetherError, match="options by name"):
        read_yaml(path)
    path.write_text("a: [")
    with pytest.raises(TetherError, match="not valid YAML"):
        read_yaml(path)


@dataclass(frozen=True, kw_only=True)
class Careful:
    inner: Inner = field(default_factory=lambda: Inner(mode="slow", pair=(1.0, 2.0)))


def test_part_of_a_block_changes_the_default_of_the_block_and_not_that_of_its_class():
    assert build(Careful, {"inner": {"pair": [3, 4]}}).inner == Inner(mode="slow", pair=(3.0, 4.0))


@pytest.mark.parametrize("text", ("1e-4", "1E4", "-2e3", "1.5e-4", "1.e2"))
def test_numbers_with_an_exponent_are_numbers_in_files_and_on_the_command_line(text, tmp_path):
    (tmp_path / "a.yaml").write_text(f"lr: {text}\n")
    assert read_yaml(tmp_path / "a.yaml") == override({}, [f"lr={text}"]) == {"lr": float(text)}


@pytest.mark.parametrize(
    "text", ("a: 1\nb: {c: 2}\na: 3\n", "x: 1\nb:\n  a: 2\n  a: 2\n", "b: [{a: 1,\n  c: 2,\n  a: 1}]\n")
)
def test_a_key_given_twice_is_refused_with_its_line(text, tmp_path):
    (tmp_path / "a.yaml").write_text(text)
    line = len(text.splitlines())
    with pytest.raises(TetherError, match=rf"a\.yaml .*a is given twice .*line {line}"):
        read_yaml(tmp_path / "a.yaml")


def test_yaml_may_merge_what_was_merged_before(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("b: &b {lr: 1, wd: 2}\ngroup: {x: &x {<<: *b, lr: 3}}\ny: {<<: *x, z: 1}\n")
    assert read_yaml(path)["y"] == {"lr": 3, "wd": 2, "z": 1}
