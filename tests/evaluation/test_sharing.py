import pytest
import torch
from torch import nn

from tether.evaluation.sharing import shared_prefix


class Counting(nn.Linear):
    calls = 0

    def forward(self, value):
        self.calls += 1
        return super().forward(value)


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return nn.Sequential(Counting(4, 4), nn.ReLU(), Counting(4, 4), Counting(4, 4)).eval()


def passes(chain, batches, weights):
    """Outputs of every batch with every weight of the third layer; the counts start anew."""
    outputs = []
    with torch.no_grad(), shared_prefix(chain, ["2.weight"]) as forget_useless:
        for batch in batches:
            for weight in weights:
                chain[2].weight.copy_(weight)
                outputs.append(chain(batch).clone())
            forget_useless()
    return outputs


def test_the_part_before_the_change_runs_once_per_batch_and_the_outputs_are_the_same(chain):
    batches, weights = [torch.randn(3, 4) for _ in range(5)], [torch.randn(4, 4) for _ in range(3)]
    found = passes(chain, batches, weights)
    assert (chain[0].calls, chain[2].calls, chain[3].calls) == (5, 15, 15)
    expected = []
    with torch.no_grad():
        for batch in batches:
            for weight in weights:
                chain[2].weight.copy_(weight)
                expected.append(chain(batch))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_an_equal_batch_of_another_object_is_recognised_and_a_changed_one_is_not(chain):
    batch = torch.randn(2, 4)
    with torch.no_grad(), shared_prefix(chain, ["2.bias"]):
        first, again, other = chain(batch), chain(batch.clone()), chain(batch + 1)
    assert chain[0].calls == 2
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_every_forward_is_given_back_also_after_an_error_and_where_it_was_replaced_before(chain):
    own = chain[3].forward = lambda value: value
    with pytest.raises(RuntimeError), shared_prefix(chain, ["2.weight"]):
        raise RuntimeError
    assert "forward" not in chain[0].__dict__
    assert chain[3].forward is own


def test_nothing_is_shared_where_everything_changes(chain):
    with torch.no_grad(), shared_prefix(chain, [name for name, _ in chain.named_parameters()]):
        chain(torch.ones(1, 4))
        chain(torch.ones(1, 4))
    assert chain[0].calls == 2


def test_an_output_that_is_changed_in_place_is_not_used_again():
    chain = nn.Sequential(nn.Linear(4, 4), nn.Hardswish(inplace=True), nn.Linear(4, 4)).eval()
    batch = torch.randn(2, 4)
    with torch.no_grad():
        expected = chain(batch)
        with shared_prefix(chain, ["2.weight"]):
            assert all(torch.equal(chain(batch), expected) for _ in range(3))
