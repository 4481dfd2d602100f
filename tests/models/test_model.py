import pytest
import torch

from tether.errors import TetherError
from tether.models import load


@pytest.fixture
def model(clip):
    return load(clip)


def test_features_have_length_one(model) -> None:
    image = model.encode_image(torch.randn(3, 3, 32, 32))
    text = model.encode_text(model.tokenize(["a", "b c"]))
    for features in (image, text):
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))


@pytest.mark.parametrize("size", [(32, 64), (64, 64), (16, 32)])
def test_pictures_of_another_size_are_refused(size: tuple[int, int], model) -> None:
    with pytest.raises(TetherError, match=rf"32 × 32 pixels.*{size[0]} × {size[1]}"):
        model.encode_image(torch.zeros(1, 3, *size))


@pytest.mark.parametrize("length", [0, 25, 77])
def test_rows_of_another_length_are_refused(length: int, model) -> None:
    with pytest.raises(TetherError, match=f"1 to 24 tokens.*{length}"):
        model.encode_text(torch.zeros(1, length, dtype=torch.long))


def test_tokens_come_as_the_tower_takes_them(model, unchecked: None) -> None:
    tokens = model.tokenize(["a cat", "word " * 100])
    assert tokens.dtype == torch.long
    assert tokens.shape == (2, 24)
    assert int(tokens[1, -1]) == 713  # cut off, but still with its end
    assert model.tokenize([]).shape == (0, 24)
    with pytest.raises(TetherError, match="list of strings"):
        model.tokenize([b"bytes"])


def test_modes_and_moves_reach_the_module(model) -> None:
    assert model.train().module.training
    assert not model.eval().module.training
    assert model.to("cpu") is model


def test_nothing_but_trained_parameters_gets_a_gradient(model) -> None:
    """With only the last block's MLP trained, no gradient is even computed below it, in either tower."""
    model.module.requires_grad_(False)
    tracked = {}
    for tower, blocks in (("image", model.module.visual.transformer), ("text", model.module.transformer)):
        blocks.resblocks[-1].mlp.requires_grad_(True)
        for depth, block in enumerate(blocks.resblocks):
            block.register_forward_hook(
                lambda block, given, result, key=(tower, depth): tracked.update({key: result.requires_grad})
            )
    image = model.encode_image(torch.randn(2, 3, 32, 32))
    text = model.encode_text(model.tokenize(["a", "b"]))
    (image @ text.T).sum().backward()
    assert tracked == {
        ("image", 0): False,
        ("image", 1): False,
        ("image", 2): True,
        ("text", 0): False,
        ("text", 1): True,
    }
    for name, parameter in model.module.named_parameters():
        trained = ".mlp." in name and (
            "visual.transformer.resblocks.2" in name or name.startswith("transformer.resblocks.1")
        )
        assert (parameter.grad is not None) == trained
