import pytest
import torch
from torch import nn

from tether.adapters import RAdapterConfig, attach
from tether.errors import TetherError
from tether.models import load
from tether.models.shared_copy import shared_copy


@pytest.fixture
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Tanh(), nn.Linear(4, 4)), nn.Linear(4, 2))


def test_the_copy_is_the_moved_model_and_the_module_stays(module):
    delta = {"1.1.weight": torch.randn(4, 4), "2.bias": torch.randn(2)}
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    tuned = shared_copy(module, delta)
    for name, tensor in tuned.state_dict().items():
        assert torch.equal(tensor, before[name] + delta[name] if name in delta else before[name]), name
        assert torch.equal(module.state_dict()[name], before[name])
    assert [tuned[0] is module[0], tuned[1] is module[1], tuned[1][0] is module[1][0]] == [True, False, True]
    own = {id(tensor) for tensor in module.parameters()}
    assert {name for name, tensor in tuned.named_parameters() if id(tensor) not in own} == set(delta)


def test_beside_an_adapter_that_is_taken_out_it_is_an_ordinary_model(tiny_model):
    model = load(tiny_model)
    attached = attach(model, RAdapterConfig(drop=0.0))
    with torch.no_grad():
        for parameter in attached.named_parameters().values():
            parameter.add_(0.3 * torch.randn_like(parameter))
    attached.eval_mode()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.encode_image(pixels)
        with pytest.raises(TetherError, match="adapter"):
            shared_copy(model.module, attached.delta())
        with attached.ordinary() as module:
            tuned = shared_copy(module, attached.delta())
        torch.testing.assert_close(
            model.image_features(tuned, pixels), model.image_features(model.module, pixels)
        )
        assert torch.equal(model.encode_image(pixels), expected)
    attach(tuned, RAdapterConfig())
