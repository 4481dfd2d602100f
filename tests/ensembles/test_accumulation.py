"""The running average: closed forms, corrections, exact products, resuming."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tether.adapters import RAdapterConfig
from tether.adapters.r_adapter.method import RAttached
from tether.adapters.r_adapter.states import matrices
from tether.ensembles.accumulation import CORRECTIONS, Accumulation
from tether.errors import TetherError
from tether.models.site import Site

VALUES = st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=30)
MOMENTUM = st.floats(0, 0.999)


@given(VALUES, MOMENTUM, st.floats(-3, 3, width=32))
@settings(deadline=None)
def test_all_corrections_follow_their_recursions(values, momentum, initial):
    for correction in CORRECTIONS:
        w = torch.tensor([initial], requires_grad=True)
        average = Accumulation({"w": w}, momentum, correction)
        expected = 0.0 if correction == "run_length" else initial
        for t, value in enumerate(values):
            with torch.no_grad():
                w.fill_(value)
            average.update()
            m = min(momentum, (1 + t) / (10 + t)) if correction == "warmup" else momentum
            expected = m * expected + (1 - m) * value
        if correction == "run_length":
            expected /= 1 - momentum ** len(values)
        assert float(average.average()["w"]) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("correction", "share"), [("none", 1 - 0.999**500), ("run_length", 1.0), ("warmup", None)]
)
def test_constant_weights_after_n_steps(correction, share):
    w = torch.zeros(3)
    average = Accumulation({"w": w}, 0.999, correction)
    w.fill_(1.0)
    for _ in range(500):
        average.update()
    found = average.average()["w"]
    if share is None:  # Π (1 + t) / (10 + t), which is 9! 500! / 509!
        share = 1 - torch.tensor([(1 + t) / (10 + t) for t in range(500)], dtype=torch.float64).prod().item()
    assert torch.allclose(found, torch.full((3,), share), atol=1e-5)


def test_starts_where_the_weights_are_and_never_shares_memory():
    for correction in CORRECTIONS:
        w = torch.tensor([2.0], requires_grad=True)
        average = Accumulation({"w": w}, 0.9, correction)
        first = average.average()["w"]
        assert torch.equal(first, torch.tensor([2.0])) and not first.requires_grad
        first.zero_()
        with torch.no_grad():
            w.add_(1)
        average.update()
        average.average()["w"].zero_()
        assert float(average.average()["w"]) > 2


def test_half_weights_are_averaged_in_fp32():
    w = torch.ones(1, dtype=torch.bfloat16)
    average = Accumulation({"w": w}, 0.999)
    w.add_(1)
    for _ in range(10):
        average.update()  # in bf16, a change of 0.001 would be lost every time
    found = average.average()["w"]
    assert found.dtype == torch.float32
    assert float(found) == pytest.approx(2 - 0.999**10, abs=1e-6)


def site(path: str = "linear") -> Site:
    return Site(path, "image", 0, "linear", 6, "BNC", False, path, False)


def test_average_of_the_product_is_not_the_product_of_averages():
    module = torch.nn.Module()
    module.linear = torch.nn.Linear(4, 6)
    attached = RAttached(module, RAdapterConfig(rank=2), sites=[site()])
    factors = Accumulation(attached.named_parameters(), 0.5)
    products = Accumulation(attached.products, 0.5)
    expected = torch.zeros(6, 6)
    for step in range(5):
        with torch.no_grad():
            for parameter in attached.named_parameters().values():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(step)))
        factors.update()
        products.update()
        expected = 0.5 * expected + 0.5 * matrices(attached.state_dict())["linear"]
    exact = attached.delta(products.average())["linear.weight"]
    assert torch.allclose(exact, expected @ module.linear.weight.detach(), atol=1e-5)
    assert (attached.delta(factors.average())["linear.weight"] - exact).abs().max() > 0.1


@pytest.mark.parametrize("correction", CORRECTIONS)
def test_resuming_is_bit_equal(correction):
    def run(saves: bool) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        weights = {"a": torch.zeros(5), "b": torch.ones(2, 3)}
        average = Accumulation(weights, 0.97, correction)
        for step in range(20):
            for tensor in weights.values():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            average.update()
            if saves and step == 11:
                state = average.state_dict()
                tensors = state.pop("average")
                state = json.loads(json.dumps(state)) | {
                    "average": {name: t.clone() for name, t in tensors.items()}
                }
                average = Accumulation(weights, 0.97, correction)
                average.load_state_dict(state)
        return average.average()

    whole, resumed = run(False), run(True)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_refused_values_and_states():
    with pytest.raises(TetherError, match="momentum"):
        Accumulation({"w": torch.zeros(1)}, 1.0)
    state = Accumulation({"w": torch.zeros(1)}, 0.9).state_dict()
    with pytest.raises(TetherError, match=r"momentum 0\.9"):
        Accumulation({"w": torch.zeros(1)}, 0.99).load_state_dict(state)
    with pytest.raises(TetherError, match="correction 'none'"):
        Accumulation({"w": torch.zeros(1)}, 0.9, "warmup").load_state_dict(state)
    for other in ({"v": torch.zeros(1)}, {"w": torch.zeros(2)}, {"w": torch.zeros(1), "v": torch.zeros(1)}):
        with pytest.raises(TetherError, match="other tensors"):
            Accumulation(other, 0.9).load_state_dict(state)
