"""The numbers that the benchmark prints are right where they can be found by hand."""

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from benchmarks._count import Operations, PeakMemory, SavedActivations, cost, flop_counter

TOKENS, INPUTS, HIDDEN, OUTPUTS = 10, 3, 5, 2
FLOAT = 4


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, OUTPUTS))


def cost_of(module: nn.Sequential, x: torch.Tensor):
    return cost(lambda: module(x).sum(), lambda: module.zero_grad(), lambda: [*module.parameters(), x])


def test_a_step_of_two_linears() -> None:
    module, x = network(), torch.randn(TOKENS, INPUTS)
    found = cost_of(module, x)
    first, second = 2 * TOKENS * INPUTS * HIDDEN, 2 * TOKENS * HIDDEN * OUTPUTS
    assert found.flops == 2 * first + 3 * second  # the input needs no gradient
    assert (
        found.saved_bytes == FLOAT * TOKENS * HIDDEN
    )  # tanh's result, which is also the second linear's input
    weights = sum(parameter.numel() for parameter in module.parameters())
    assert found.peak_bytes >= FLOAT * (2 * weights + x.numel())


def test_a_frozen_linear_keeps_no_input() -> None:
    module, x = network(), torch.randn(TOKENS, INPUTS)
    module[2].requires_grad_(False)
    module[1] = nn.Identity()
    assert cost_of(module, x).saved_bytes == 0


def test_shapes_alone_give_the_same_numbers() -> None:
    real = cost_of(network(), torch.randn(TOKENS, INPUTS))
    with FakeTensorMode():
        module, x = network(), torch.randn(TOKENS, INPUTS)
    assert cost_of(module, x) == real


def test_solve() -> None:
    n, columns = 6, 4
    with flop_counter() as counter:
        torch.linalg.solve_ex(torch.eye(n), torch.ones(n, columns))
    assert counter.get_total_flops() == 2 * n**3 // 3 + 2 * n**2 * columns


def test_saved_storages_count_once_and_whole() -> None:
    x = torch.randn(8, 4)
    weight = nn.Parameter(torch.randn(4, 4))
    saved = SavedActivations([x, weight])
    with saved.collect():
        hidden = x @ weight
        loss = (hidden[:1] * hidden[:1].exp()).sum()
    assert saved.bytes() == FLOAT * (8 * 4 + 4)  # hidden's whole storage, for its slice, and the exponential
    loss.backward()


def test_peak_memory_forgets_what_is_gone() -> None:
    known = torch.empty(100)
    with PeakMemory([known]) as memory:
        for _ in range(3):
            a = torch.zeros(1000)
            b = a + 1
            del a, b
    assert memory.peak == FLOAT * (100 + 2000)
    assert memory.now == FLOAT * 100


def test_operations_are_listed_with_shapes() -> None:
    with Operations() as operations:
        torch.ones(2, 3).sum(0)
    assert [(name.split(".")[1], shapes) for name, shapes in operations.listed] == [
        ("ones", ((2, 3),)),
        ("sum", ((3,),)),
    ]


@pytest.mark.parametrize("groups", [1, 4])
def test_each_gradient_of_a_convolution_costs_what_the_convolution_does(groups: int) -> None:
    convolution = nn.Conv2d(4, 8, 3, groups=groups, bias=False)
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    with flop_counter() as counter:
        y = convolution(x)
        forward = counter.get_total_flops()
        y.sum().backward()
    assert forward == 2 * y.numel() * (4 // groups) * 3 * 3
    assert counter.get_total_flops() == 3 * forward
