import pytest
import timm
from open_clip.transformer import QuickGELU
from torch import nn
from transformers.activations import ACT2FN

from tether.models.activation import describe_activation


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (QuickGELU(), "quick_gelu"),
        (ACT2FN["quick_gelu"], "quick_gelu"),
        (nn.GELU(), "gelu"),
        (ACT2FN["gelu"], "gelu"),
        (nn.GELU(approximate="tanh"), "gelu_tanh"),
        (ACT2FN["gelu_pytorch_tanh"], "gelu_tanh"),
        (nn.SiLU(), "silu"),
        (ACT2FN["silu"], "silu"),
        (nn.Linear(2, 2), "none"),
    ],
)
def test_each_library_has_its_own_class_for_the_same_function(module: nn.Module, name: str) -> None:
    assert describe_activation(image=nn.Sequential(nn.Linear(2, 2), module)) == name


def test_towers_that_differ_are_named() -> None:
    assert describe_activation(image=nn.GELU(), text=nn.GELU()) == "gelu"
    assert describe_activation(image=nn.GELU(), text=QuickGELU()) == "image: gelu, text: quick_gelu"
    both = nn.Sequential(nn.ReLU(), nn.GELU())
    assert describe_activation(image=both, text=nn.GELU()) == "image: gelu+relu, text: gelu"


def test_a_gated_mlp_is_named_by_its_activation() -> None:
    model = timm.create_model(
        "eva02_base_patch14_448", img_size=28, embed_dim=32, depth=1, num_heads=4, num_classes=0
    )
    assert describe_activation(image=model) == "silu"
