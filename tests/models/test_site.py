import pytest

from tether.errors import TetherError
from tether.models import Select, Site
from tether.models.site import choose

SITES = [
    Site(f"{tower}.blocks.{depth}.{name}", tower, depth, kind, 8, "BNC", 0, None, False)
    for tower, depths in (("image", 4), ("text", 2))
    for depth in range(depths)
    for name, kind in (("attn.proj", "attention"), ("mlp.fc2", "mlp"), ("norm1", "norm"))
]


def paths(**options) -> list[str]:
    return [site.path for site in choose(SITES, Select(**options))]


def test_by_default_attention_and_mlp_of_every_block() -> None:
    assert len(paths()) == 12
    assert paths()[:2] == ["image.blocks.0.attn.proj", "image.blocks.0.mlp.fc2"]


def test_tower_and_kinds(unchecked: None) -> None:
    assert paths(tower="text", kinds=("norm",)) == ["text.blocks.0.norm1", "text.blocks.1.norm1"]
    # a list, as recipes have it
    assert paths(tower="text", kinds=["norm"]) == paths(tower="text", kinds=("norm",))


def test_depths_count_from_either_end_per_tower() -> None:
    assert paths(depths=(-1, -1), kinds=("mlp",)) == ["image.blocks.3.mlp.fc2", "text.blocks.1.mlp.fc2"]
    assert paths(depths=(0, -2), kinds=("mlp",), tower="image") == [
        f"image.blocks.{n}.mlp.fc2" for n in range(3)
    ]
    assert len(paths(depths=(0, 1))) == 8


def test_pattern() -> None:
    assert paths(pattern="*.blocks.1.attn.*") == ["image.blocks.1.attn.proj", "text.blocks.1.attn.proj"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tower": "vision"}, "Unknown tower 'vision'"),
        ({"kinds": ("attntion",)}, "did you mean 'attention'"),
        ({"kinds": "mlp"}, "is a tuple"),
        ({"kinds": ()}, "is a tuple"),
        ({"depths": (3, 1)}, "is empty"),
        ({"depths": (-1, -2)}, "is empty"),
    ],
)
def test_a_select_that_means_nothing_is_refused_when_made(
    options: dict, message: str, unchecked: None
) -> None:
    with pytest.raises(TetherError, match=message):
        Select(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ("block",)}, "has sites of kind attention, mlp, norm"),
        ({"depths": (2, 3)}, r"does not fit the text tower, whose blocks are 0 to 1"),
        ({"depths": (0, 4), "tower": "image"}, "does not fit the image tower"),
        ({"depths": (1, 0)}, "is empty"),
        ({"pattern": "*.mlp.fc3"}, r"did you mean '(image|text)\.blocks\.\*\.mlp\.fc2'"),
        ({"pattern": "*", "kinds": ("attention", "mlp", "norm")}, "matches all 18 sites"),
        ({"count": 24}, "12 sites match where count=24"),
    ],
)
def test_nothing_or_too_much_is_an_error(options: dict, message: str) -> None:
    with pytest.raises(TetherError, match=message):
        paths(**options)


def test_a_tower_the_model_does_not_have() -> None:
    images = [site for site in SITES if site.tower == "image"]
    with pytest.raises(TetherError, match="no text tower; it has: image"):
        choose(images, Select(tower="text"))
