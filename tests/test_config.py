"""Configuration from plain data: what is taken, and what a wrong option is told."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from tether.config import Family, build, method, override, plain, read_yaml
from tether.errors import TetherError


class Shape(Family, folder="tether.models"):
    """Its methods are here alone."""


@method("test-round")
@dataclass(frozen=True, kw_only=True)
class Round(Shape):
    radius: float = 1.0


@method("test-square")
@dataclass(frozen=True, kw_only=True)
class Square(Shape):
    side: float


@dataclass(frozen=True, kw_only=True)
class Inner:
    mode: Literal["fast", "slow"] = "fast"
    pair: tuple[float, float] = (0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    shape: Shape = field(default_factory=Round)
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


NINE = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {x: 1, y: 2}\n" + "".join(
    f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (NINE, "all aliases stand for more than 100,000 characters; write less, or none"),
        (MERGES, "all aliases stand for more than 100,000 characters"),
        ("a: &a " + "x" * 60_000 + "\nb: [*a, *a]\n", "all aliases stand for more than 100,000 characters"),
        ("a: &a {b: *a}\n", r"the alias \*a stands for something that holds it"),
        ("a: &a {<<: *a}\n", r"the alias \*a stands for something that holds it"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested more than 100 levels deep"),
        ("a: " + "{a: " * 5000 + "}" * 5000, "nested more than 100 levels deep"),
        ("a: !!python/object:os.system x\n", "could not determine a constructor"),
        ("a: !!bool maybe\n", "not true or false"),
        ("a: !!int ''\n", "invalid literal"),
        ("a: " + "9" * 5000, "Exceeds the limit"),
    ],
)
def test_yaml_that_is_a_trap_is_refused(text, told, tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(TetherError, match=rf"a\.yaml is not valid YAML: .*{told}"):
        read_yaml(path)


@pytest.mark.parametrize(
    ("value", "told"), [("[" * 5000, "nested more"), ("&a {b: *a}", "something that holds it")]
)
def test_a_trap_on_the_command_line_is_refused_with_its_beginning(value, told):
    with pytest.raises(TetherError, match=told) as refusal:
        override({}, [f"a={value}"])
    assert str(refusal.value).startswith(repr(value)[:100]) and len(str(refusal.value)) < 500


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("0o10", 8),
        ("0x1F", 31),
        ("-7", -7),
        ("+7", 7),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("yes", "yes"),
        ("off", "off"),
        ("True", True),
        ("false", False),
        ("~", None),
        ("Null", None),
        ("", None),
        (".5", 0.5),
        ("5.", 5.0),
        ("-.inf", float("-inf")),
        ("2020-13-45", "2020-13-45"),
        ("'010'", "010"),
    ],
)
def test_plain_values_are_those_of_yaml_1_2(text, value, tmp_path):
    (tmp_path / "a.yaml").write_text(f"a: {text}\n")
    found = read_yaml(tmp_path / "a.yaml")["a"]
    assert (found, type(found)) == (value, type(value))
    assert override({}, [f"a={text}"]) == {"a": value}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ({"limit": float("nan")}, "limit takes a finite number, found nan"),
        ({"inner": {"pair": [0.0, float("inf")]}}, r"inner.pair\[1\] takes a finite number, found inf"),
        ({"alpha": {"image": float("-inf")}}, "alpha takes a number or dict"),
        ({"alpha": float("nan")}, "^alpha takes a finite number, found nan"),
        ({"name": "caf\udce9"}, r"name takes text in UTF-8, found 'caf\\udce9'"),
        ({"alpha": {1: 0.5}}, "alpha takes"),
    ],
)
def test_numbers_are_finite_and_texts_can_be_written(value, told):
    with pytest.raises(TetherError, match=told):
        build(Outer, {"name": "a", **value})


def test_a_path_that_cannot_be_read_is_said(tmp_path):
    with pytest.raises(TetherError, match="cannot be read: Is a directory"):
        read_yaml(tmp_path)


def test_data_options_that_lack_a_method_or_a_name_say_what_to_write():
    from tether.families import DataConfig

    for options, message in (
        (
            {"train": "x"},
            "set data.method to coco or folder or imagenet or mask_folders or voc, which have these options",
        ),
        ({}, "data lacks its method: set data.method to ade20k or caption_table or coco or emoji_"),
        (
            {"method": "emoji_shift", "train": "x"},
            r"no option 'data\.train' of the method emoji_shift.*imagenet, mask_folders, voc: name the one that",
        ),
        (
            {"method": "folder", "train": "x", "shifted": "pictures"},
            r"data\.shifted takes values by name, such as data\.shifted\.NAME=pictures; found 'pictures' alone",
        ),
    ):
        with pytest.raises(TetherError, match=message):
            build(DataConfig, options, "data")
