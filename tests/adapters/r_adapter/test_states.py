"""States of R-Adapters: the four forms, and what is refused."""

import pytest
import torch

from tether.adapters import RAdapterConfig, attach, full_rank, matrices
from tether.adapters.r_adapter.states import by_path
from tether.errors import TetherError

from ..models import open_clip_model
from .test_method import disturb


def test_every_form_stands_for_one_matrix():
    up, down, s = torch.randn(6, 2), torch.randn(2, 6), torch.tensor(0.3)
    expected = 0.3 * up @ down
    forms = [
        {"a.r_adapter.up": up, "a.r_adapter.down": down, "a.r_adapter.scale": s},
        {"a.r_adapter.up": 0.3 * up, "a.r_adapter.down": down},
        {"a.r_adapter.weight": up @ down, "a.r_adapter.scale": s},
        {"a.r_adapter.weight": expected},
    ]
    for state in forms:
        assert torch.allclose(matrices(state)["a"], expected, atol=1e-6)
        assert torch.allclose(matrices(full_rank(state))["a"], expected, atol=1e-6)


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a.weight": torch.zeros(2, 2)}, "not a tensor of an R-Adapter"),
        ({"a.r_adapter.middle": torch.zeros(2, 2)}, "not a tensor of an R-Adapter"),
        ({"a.r_adapter.up": torch.zeros(2, 2)}, "incomplete"),
        ({"a.r_adapter.weight": torch.zeros(2, 3)}, "do not fit"),
        ({"a.r_adapter.up": torch.zeros(4, 2), "a.r_adapter.down": torch.zeros(3, 4)}, "do not fit"),
        ({"a.r_adapter.weight": torch.zeros(2, 2), "a.r_adapter.scale": torch.zeros(1)}, "do not fit"),
    ],
)
def test_broken_states_are_refused(state, message):
    with pytest.raises(TetherError, match=message):
        by_path(state)


def test_delta_takes_any_form_and_refuses_other_places_and_widths():
    attached = attach(open_clip_model(), RAdapterConfig(rank=3))
    disturb(attached)
    delta, products = attached.delta(), attached.products()
    for name, tensor in attached.delta(products).items():
        assert torch.allclose(tensor, delta[name], atol=1e-6)
    with torch.no_grad():
        report = attached.merge(
            0.5, state=products, probe=lambda: attached.module.encode_text(torch.ones(2, 9).long())
        )
    assert report.max_error < 1e-5
    attached.unmerge()
    name = next(iter(products))
    with pytest.raises(TetherError, match="Missing"):
        attached.delta({key: tensor for key, tensor in products.items() if key != name})
    with pytest.raises(TetherError, match="unexpected: other"):
        attached.delta(products | {"other.r_adapter.weight": torch.zeros(2, 2)})
    with pytest.raises(TetherError, match="is for width 5"):
        attached.delta(products | {name: torch.zeros(5, 5)})


def test_config_of_a_state():
    state = {
        "a.r_adapter.weight": torch.zeros(4, 4),
        "b.r_adapter.up": torch.zeros(4, 1),
        "b.r_adapter.down": torch.zeros(1, 4),
    }
    config = RAdapterConfig(drop=0.3).fitting(state)
    assert config.rank == {"a": None, "b": 1} and config.scale is None and config.drop == 0.3
