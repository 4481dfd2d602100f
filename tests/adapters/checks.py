"""What every method that puts modules at sites is asked, in the words that its tests share."""

from collections.abc import Sequence

import timm
import torch
from torch import Tensor, nn

from tether.adapters import PlacedConfig, attach
from tether.models.site import Site

from .models import pixels, timm_model
from .r_adapter.test_method import disturb

WIDTH = 12


def site(
    width: int = WIDTH, prefix: int = 0, grid: tuple[int, int] | None = None, tokens: str = "BNC"
) -> Site:
    """A place for a module alone."""
    return Site("here", "image", 0, "mlp", width, tokens, prefix, None, False, grid=grid)


def made(config: PlacedConfig, at: Site, spread: float = 0.3) -> nn.Module:
    """A module of doubles in evaluation mode, none of its numbers as it is at the start."""
    module = config.module(at, torch.Generator().manual_seed(0)).double().eval()
    for parameter in module.parameters():
        parameter.data += spread * torch.randn_like(parameter)
    return module


def assert_same_with_gradients(found: Tensor, expected: Tensor, leaves: Sequence[Tensor]) -> None:
    """Two forms of one function have the same values, and the same gradients of all leaves."""
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(found)
    ours = torch.autograd.grad((found * weights).sum(), leaves)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def count(name: str, config: PlacedConfig) -> int:
    """How many numbers a method trains in one of timm's models, which is made without memory."""
    with torch.device("meta"):
        module = timm.create_model(name)
    return sum(tensor.numel() for tensor in attach(module, config).named_parameters().values())


def assert_everything_moves(config: PlacedConfig, steps: int) -> None:
    """Every parameter has a gradient at this step, the first of which is 1."""
    model = timm_model()
    attached = attach(model, config)
    optimizer = torch.optim.SGD(attached.named_parameters().values(), lr=0.1)
    for step in range(steps):
        attached.train_mode()
        attached.begin_step(step, torch.arange(len(pixels())))
        optimizer.zero_grad()
        model.forward_features(pixels()).square().sum().backward()  # of every token: none is pooled away
        optimizer.step()
    still = [name for name, one in attached.named_parameters().items() if not bool(one.grad.any())]
    assert not still, still


@torch.no_grad()
def assert_independent_of_the_batch(config: PlacedConfig) -> None:
    """A picture has the same features alone and among others."""
    model = timm_model()
    before = model(pixels())
    disturb(attach(model, config))
    together = model(pixels())
    assert not torch.allclose(together, before, atol=1e-3)
    alone = torch.cat([model(picture[None]) for picture in pixels()])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)
