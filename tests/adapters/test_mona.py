"""Mona against a literal twin, its published counts, and what its options do."""

import math

import pytest
import timm
import torch
from torch import Tensor
from torch.nn import functional as F

from tether.adapters import MonaConfig, attach
from tether.adapters.taps import Tapped
from tether.errors import TetherError
from tether.models.site import Select

from ..models.image_models import IMAGE_MODELS, TIMM_SWIN, TIMM_VIT
from .checks import (
    WIDTH,
    assert_everything_moves,
    assert_independent_of_the_batch,
    assert_same_with_gradients,
    made,
    site,
)
from .models import open_clip_model, pixels, timm_model
from .r_adapter.test_method import disturb

HIDDEN, GRID = 5, (3, 4)


def twin(tensors: dict[str, Tensor], x: Tensor, prefix: int, skip: bool) -> Tensor:
    """f(x) of one sequence [tokens, width], by the order of the published forward: one convolution at a time."""
    mean = x.mean(1, keepdim=True)
    variance = ((x - mean) ** 2).mean(1, keepdim=True)
    normal = (x - mean) / torch.sqrt(variance + 1e-5) * tensors["norm.weight"] + tensors["norm.bias"]
    u = tensors["scale_norm"] * normal + tensors["scale_input"] * x
    z = u @ tensors["down.weight"].T + tensors["down.bias"]
    patches = z[prefix:].T.reshape(1, -1, *GRID)
    mixed = []
    for size in (3, 5, 7):
        weight, bias = tensors[f"convolutions.weight{size}"], tensors[f"convolutions.bias{size}"]
        mixed.append(F.conv2d(patches, weight, bias, padding=size // 2, groups=HIDDEN))
    a = (mixed[0] + mixed[1] + mixed[2]) / 3 + patches
    a = torch.cat([z[:prefix], a.flatten(2)[0].T])
    point, bias = tensors["convolutions.pointwise.weight"], tensors["convolutions.pointwise.bias"]
    convolved = F.conv2d(a.T[None, :, :, None], point[:, :, None, None], bias)[0, :, :, 0].T
    b = a + convolved
    b = b * (1 + torch.erf(b / math.sqrt(2))) / 2
    result = b @ tensors["up.weight"].T + tensors["up.bias"]
    return torch.cat([torch.zeros_like(result[:prefix]), result[prefix:]]) if skip else result


@pytest.mark.parametrize(("prefix", "how"), [(0, "linear"), (1, "linear"), (5, "linear"), (2, "skip")])
def test_forward_and_gradients_are_those_of_the_literal_form(prefix, how):
    module = made(MonaConfig(hidden=HIDDEN, prefix=how), site(prefix=prefix, grid=GRID))
    x = torch.randn(2, prefix + math.prod(GRID), WIDTH, dtype=torch.float64, requires_grad=True)
    named = dict(module.named_parameters())
    expected = torch.stack([twin(named, row, prefix, how == "skip") for row in x])
    assert_same_with_gradients(module(x), expected, [x, *named.values()])


def test_a_map_is_the_same_as_a_sequence():
    module = made(MonaConfig(hidden=HIDDEN), site(grid=GRID))
    x = torch.randn(2, *GRID, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(module(x).flatten(1, 2), module(x.flatten(1, 2)))


COUNTS = {  # exact numbers of the published code
    "swin_tiny_patch4_window7_224": {32: 701_568, 64: 1_408_128, 128: 2_968_704},
    "swin_base_patch4_window7_224": {32: 1_844_736, 64: 3_667_456, 128: 7_607_808},
    "swin_large_patch4_window7_224": {32: 2_674_944, 64: 5_267_712, 128: 10_748_160},
    "vit_base_patch16_224": {64: 2_684_928},
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_those_of_the_published_code(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    for hidden, expected in COUNTS[name].items():
        attached = attach(model, MonaConfig(hidden=hidden))
        assert sum(tensor.numel() for tensor in attached.named_parameters().values()) == expected
        for placed, found in zip(attached._placed.values(), attached.sites, strict=True):
            m, n = found.width, hidden
            count = sum(parameter.numel() for parameter in placed.parameters())
            assert count == (2 * n + 5) * m + n * n + 88 * n
        attached.detach()


@torch.no_grad()
def test_the_first_values_are_the_published_ones():
    module = MonaConfig(hidden=64).module(site(512), torch.Generator().manual_seed(0))
    named = dict(module.named_parameters())
    assert (named["scale_norm"] == 1e-6).all() and (named["scale_input"] == 1).all()
    for name in ("down", "up"):
        assert named[f"{name}.weight"].std() == pytest.approx(0.02, rel=0.03)
        assert not named[f"{name}.bias"].any()
    for size in (3, 5, 7):
        assert named[f"convolutions.weight{size}"].abs().max() <= 1 / size
        assert named[f"convolutions.bias{size}"].abs().max() <= 1 / size
    x = torch.randn(
        2, 7, 7, 512, generator=torch.Generator().manual_seed(1)
    )  # not the numbers of the weights
    moved = module.eval()(x).norm() / x.norm()
    assert moved == pytest.approx(
        0.054, rel=0.1
    )  # measured on the published code with unit noise of this width


@pytest.mark.parametrize(("initialisation", "steps"), [("official", 1), ("zero", 2)])
def test_every_parameter_gets_a_gradient(initialisation, steps):
    assert_everything_moves(MonaConfig(hidden=HIDDEN, initialisation=initialisation), steps)


def test_a_picture_has_the_same_features_in_any_batch():
    assert_independent_of_the_batch(MonaConfig(hidden=HIDDEN))


@torch.no_grad()
def test_a_skipped_prefix_sees_patches_only_through_the_model():
    """In the last block a skipped class token keeps what it had; with "linear" it moves."""
    for how, moves in (("skip", False), ("linear", True)):
        model = timm_model()
        before = model(pixels())
        last = Select(kinds=("mlp",), depths=(-1, -1), tower="image")
        disturb(attach(model, MonaConfig(hidden=HIDDEN, prefix=how, select=last)))
        assert torch.equal(model(pixels()), before) != moves


@pytest.mark.parametrize(
    ("name", "options", "grids"),
    [  # a picture of 16 × 64 pixels has as many patches as one of 32 × 32
        ("timm Swin", {"strict_img_size": False}, [(8, 32)] * 2 + [(4, 16)] * 4),
        ("transformers Swin", {}, [(8, 32)] * 2 + [(4, 16)] * 4),
        ("torchvision Swin", {}, [(8, 32)] * 2 + [(4, 16)] * 4),
        ("transformers DINOv2", {}, [(2, 8)] * 4),
        ("timm ViT", {"dynamic_img_size": True}, [(2, 8)] * 4),
    ],
)
@torch.no_grad()
def test_pictures_of_any_shape_have_their_own_grid(name, options, grids):
    of_any_size = {
        "timm Swin": lambda: timm.create_model("swin_tiny_patch4_window7_224", **TIMM_SWIN, **options),
        "timm ViT": lambda: timm.create_model("vit_tiny_patch16_224", **TIMM_VIT, **options),
    }
    model = of_any_size.get(name, IMAGE_MODELS[name][0])()
    attached = attach(model.eval(), MonaConfig(hidden=4))
    seen = []
    for placed in attached._placed.values():
        placed.convolutions.register_forward_pre_hook(
            lambda part, given: seen.append(tuple(given[0].shape[1:3]))
        )
    model(torch.randn(1, 3, 32, 32))
    seen.clear()
    model(torch.randn(2, 3, 16, 64))
    assert seen == grids
    attached.detach()
    assert not any(isinstance(part, Tapped) for part in model.modules())


def test_what_makes_no_sense_is_refused(unchecked):
    with pytest.raises(TetherError, match="did you mean 'zero'"):
        MonaConfig(initialisation="zeros")
    with pytest.raises(TetherError, match="hidden is a whole number from 1"):
        MonaConfig(hidden=0)
    with pytest.raises(TetherError, match="dropout is a probability"):
        MonaConfig(dropout=1.0)
    with pytest.raises(TetherError, match=r"texts have none.*select\.tower=image"):
        attach(open_clip_model(), MonaConfig(select=Select()))
    attached = attach(timm_model(), MonaConfig(hidden=HIDDEN))
    placed = attached._placed["blocks.0.mona"]
    with pytest.raises(TetherError, match=r"has 7 tokens, where 1 in front of 2 × 2 patches"):
        placed(torch.randn(1, 7, 16))
