"""What is pre-trained on: names as words, other people's words for them, and nobody whom a benchmark tests."""

import json

import pytest

from makers._emoji_sources import IconSet, Packages, words_of
from makers._icon_sources import DERIVED, FAMILIES
from makers.builtin_clip.pictures import _prefixes, _synonyms


@pytest.mark.parametrize(
    ("icon", "words"),
    [
        ("arrow-up-bold-24", "arrow up"),
        ("home-light", "home"),
        ("light-bulb-light", "light bulb"),
        ("baseline-traffic-light", "traffic light"),
        ("traffic-cone-light", "traffic cone"),
    ],
)
def test_the_words_of_a_name_are_those_of_the_thing(icon, words):
    assert " ".join(words_of(icon)) == words


def test_synonyms_are_further_names_of_few_words_for_the_same_drawing():
    aliases = {
        "cog": {"parent": "gear"},
        "gear-outline": {"parent": "gear"},
        "a-wheel-with-many-teeth": {"parent": "gear"},
        "gear-left": {"parent": "gear", "hFlip": True},
        "lock": {"parent": "padlock"},
    }
    icons = IconSet("a", "A", "Ann", "MIT", "", False, {"gear": {}, "padlock": {}}, aliases, {}, 24.0, 24.0)
    assert _synonyms(icons) == {"gear": ["cog"], "padlock": ["lock"]}


def test_a_set_is_drawn_from_if_its_licence_allows_and_no_benchmark_tests_its_designer(tmp_path):
    def collection(licence, category="UI 24px"):
        return {"license": {"spdx": licence}, "category": category}

    left_out = {prefix: collection("MIT") for prefix in (*DERIVED, *FAMILIES["lucide"], "svg-spinners")}
    collections = {
        "new": collection("MIT"),
        "copyleft": collection("CC-BY-SA-4.0"),
        "brands": collection("MIT", "Logos"),
        **left_out,
    }
    for package in ("iconify", "emojibase"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "package.json").write_text("{}")
    (tmp_path / "iconify" / "collections.json").write_text(json.dumps(collections))
    assert _prefixes(Packages(tmp_path)) == ["new"]
