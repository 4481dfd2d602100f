"""Averages of the weights of several runs: uniform and greedy soups.

Wortsman et al., "Model soups" (ICML 2022, arXiv 2203.05482). Runs that start from the same pre-trained
weights often lie in one basin; their average is as fast as one model and usually more robust. Use a uniform
soup for seeds of one recipe, a greedy one for a hyper-parameter search; the cost is in training the runs.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tether._averaging import State, check_compatible
from tether._averaging import average as average
from tether.errors import TetherError


@dataclass(frozen=True)
class Soup:
    """A greedy soup: its weights, the names of what went in (best first) and its validation score."""

    state: dict[str, Tensor]
    ingredients: tuple[str, ...]
    score: float


def greedy_soup(
    states: Mapping[str, State], scores: Mapping[str, float], evaluate: Callable[[dict[str, Tensor]], float]
) -> Soup:
    """Take the runs from best to worst and keep each whose addition does not lower the score of the average.

    `scores` are the runs' own and `evaluate` the soup's score, both on *in-distribution validation*, higher
    better; `evaluate` is called once for every run but the best. Equal scores go by name. `states` may be a
    mapping that loads a state when it is asked for: one is held at a time, next to the average in float64.

    >>> runs = {name: {"w": torch.tensor([value])} for name, value in (("a", 0.0), ("b", 2.0), ("c", 9.0))}
    >>> def nearness(state): return -abs(float(state["w"]) - 1)
    >>> greedy_soup(runs, {name: nearness(run) for name, run in runs.items()}, nearness).ingredients
    ('a', 'b')

    Raises:
        TetherError: no states, states of different models, or scores that are not numbers, one per state.
    """
    if not states or states.keys() != scores.keys() or any(score != score for score in scores.values()):
        raise TetherError(f"Expected one score for each of {sorted(states)}; found {dict(scores)}.")
    best, *others = sorted(states, key=lambda name: (-scores[name], name))
    first = states[best]
    soup = {key: tensor.double() if tensor.is_floating_point() else tensor for key, tensor in first.items()}
    result = Soup({key: tensor.clone() for key, tensor in first.items()}, (best,), scores[best])
    for name in others:
        check_compatible([first, candidate := states[name]])
        share = 1 / (len(result.ingredients) + 1)
        mixed = {
            key: torch.lerp(tensor, candidate[key].to(tensor), share)
            if tensor.is_floating_point()
            else tensor
            for key, tensor in soup.items()
        }
        served = {key: tensor.to(first[key].dtype) for key, tensor in mixed.items()}
        score = evaluate(served)
        if score >= result.score:
            soup, result = mixed, Soup(served, (*result.ingredients, name), score)
    return result
