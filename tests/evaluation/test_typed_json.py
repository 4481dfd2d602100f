import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import pytest

from tether.errors import TetherError
from tether.evaluation._typed_json import decode, encode, schema


@dataclass(frozen=True)
class Leaf:
    kind: Literal["a", "b"]
    value: float | None


@dataclass(frozen=True)
class Tree:
    """A tree of everything."""

    name: str
    leaves: tuple[Leaf, ...]
    weights: dict[str, int]
    alpha: float | Mapping[str, float]
    right: bool


TREE = Tree("oak", (Leaf("a", 0.5), Leaf("b", None)), {"x": 3}, {"image": 0.5}, True)


def test_round_trip_through_text():
    assert decode(Tree, json.loads(json.dumps(encode(TREE)))) == TREE
    whole = decode(Tree, {**encode(TREE), "alpha": 1})
    assert whole.alpha == 1.0 and isinstance(whole.alpha, float)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"nmae": "oak"}, "no option 'results.nmae'; did you mean 'name'"),
        ({"name": 3}, "results.name takes a text, found 3"),
        ({"right": 1}, "results.right takes true or false"),
        ({"weights": {"x": True}}, r"results.weights.x takes a whole number"),
        ({"leaves": [{"kind": "c", "value": 1.0}]}, r"results.leaves\[0\].kind is 'c'"),
        ({"leaves": [{"kind": "a", "value": "high"}]}, r"results.leaves\[0\].value takes a number"),
        ({"leaves": [{"kind": "a"}]}, r"results.leaves\[0\] lacks value"),
        ({"alpha": "half"}, "results.alpha takes"),
        ({"leaves": "none"}, "results.leaves takes"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(change, message):
    with pytest.raises(TetherError, match=message):
        decode(Tree, {**encode(TREE), **change})


@dataclass(frozen=True)
class Versioned:
    rows: tuple[Leaf, ...]
    note: str = ""


def test_what_has_a_default_may_not_be_left_out_either():
    with pytest.raises(TetherError, match=r"results\.note is not there; the file may be of another version"):
        decode(Versioned, {"rows": []})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_finite_number_is_refused_both_ways(bad):
    with pytest.raises(TetherError, match=r"results.leaves\[0\].value is (nan|inf|-inf)"):
        encode(Tree("oak", (Leaf("a", bad),), {}, 0.5, True))
    with pytest.raises(TetherError, match=r"value takes a finite number, found (nan|inf|-inf)"):
        decode(Leaf, {"kind": "a", "value": bad})


def test_schema_names_every_type():
    found = schema(Tree)
    assert found["$ref"] == "#/$defs/Tree" and set(found["$defs"]) == {"Tree", "Leaf"}
    tree = found["$defs"]["Tree"]
    assert tree["required"] == ["name", "leaves", "weights", "alpha", "right"]
    assert tree["additionalProperties"] is False and tree["description"] == "A tree of everything."
    assert tree["properties"]["leaves"] == {"type": "array", "items": {"$ref": "#/$defs/Leaf"}}
    assert tree["properties"]["alpha"] == {
        "anyOf": [{"type": "number"}, {"type": "object", "additionalProperties": {"type": "number"}}]
    }
    assert found["$defs"]["Leaf"]["properties"]["kind"] == {"enum": ["a", "b"]}
    json.dumps(found)
