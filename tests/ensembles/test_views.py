from contextlib import contextmanager

import torch
from torch import nn

from tether.ensembles.views import base_and_adapter, two_models


class Adapted(nn.Module):
    """A stem, then a layer with a switchable additive adapter."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.layer, self.adapter = (nn.Linear(3, 3) for _ in range(3))
        self.on, self.stems = True, 0

    def prefix(self, pixels):
        self.stems += 1
        return torch.tanh(self.stem(pixels))

    def rest(self, hidden):
        return self.layer(hidden) + (self.adapter(hidden) if self.on else 0)

    def forward(self, pixels):
        return self.rest(self.prefix(pixels))

    @contextmanager
    def off(self):
        self.on = False
        try:
            yield
        finally:
            self.on = True


@torch.no_grad()
def test_one_model_with_its_adapter_is_two_models_and_shares_the_prefix():
    model, heads, pixels = Adapted(), (nn.Linear(3, 2), nn.Linear(3, 2)), torch.randn(4, 3)

    def base(pixels):
        with model.off():
            return model(pixels)

    expected = two_models((base, model), heads)(pixels)
    assert not torch.equal(expected.zero_shot, heads[0](expected.features))
    model.stems = 0
    plain = base_and_adapter(model, heads, model.off)(pixels)
    assert model.stems == 2
    shared = base_and_adapter(model.rest, heads, model.off, prefix=model.prefix)(pixels)
    assert model.stems == 3 and model.on
    for found in (plain, shared):
        for name in ("zero_shot", "tuned", "features"):
            assert torch.equal(getattr(found, name), getattr(expected, name))
