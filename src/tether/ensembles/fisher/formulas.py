"""Fisher-weighted averaging: every weight of every model counts by how much its predictions depend on it.

Matena and Raffel, "Merging Models with Fisher-Weighted Averaging" (NeurIPS 2022, arXiv 2111.09832), with
the floor and the defaults of WiSE-FT's published code. Use it instead of a plain average when the models
were trained on different data; it costs one backward pass per example of a few hundred examples, and two
copies of the weights.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from tether._averaging import State, check_compatible, normalised_weights
from tether.errors import TetherError
from tether.models.weight_path import WeightPath

Batch = TypeVar("Batch")


def diagonal_fisher(
    parameters: Mapping[str, Tensor],
    negative_log_likelihood: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
) -> dict[str, Tensor]:
    """Mean over examples of (∂ −log p(y|x) / ∂θ)², in float32 or better, shaped as the parameters.

    `negative_log_likelihood` gives one value *per example*: the square is taken before the mean, which a
    batch's mean loss cannot give. With y from the data this is the empirical Fisher; with y drawn from the
    model's own prediction, the Fisher. Each example costs a backward pass over its batch's graph: batches
    of 1 to 8 suit. A parameter that the loss does not reach has Fisher 0. Put the model into evaluation
    mode first.

    >>> weight = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> examples = torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    >>> fisher = diagonal_fisher({"weight": weight}, lambda x: x @ weight, [examples])
    >>> fisher["weight"].tolist()
    [5.0, 0.0]

    Raises:
        TetherError: a parameter without requires_grad, no examples, or a loss that is not one value per
            example.
    """
    frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
    if frozen:
        raise TetherError(
            f"Fisher information needs gradients; call requires_grad_(True) on {frozen[:5]} first."
        )
    wide = {name: torch.promote_types(p.dtype, torch.float32) for name, p in parameters.items()}
    total = {name: torch.zeros_like(p, dtype=wide[name]) for name, p in parameters.items()}
    examples = 0
    for batch in batches:
        losses = negative_log_likelihood(batch)
        if losses.ndim != 1:
            raise TetherError(
                f"Expected one loss per example, shape (batch,); found shape {tuple(losses.shape)}. "
                f'Compute it with reduction="none".'
            )
        for number, loss in enumerate(losses):
            last = number == len(losses) - 1
            gradients = torch.autograd.grad(
                loss, list(parameters.values()), retain_graph=not last, allow_unused=True
            )
            for (name, summed), gradient in zip(total.items(), gradients, strict=True):
                if gradient is not None:
                    summed.add_(gradient.to(wide[name]).square())
        examples += len(losses)
    if not examples:
        raise TetherError("Fisher information needs at least one example; there was none.")
    return {name: summed.div_(examples) for name, summed in total.items()}


def fisher_average(
    states: Sequence[State],
    fishers: Sequence[State],
    weights: Sequence[float] | None = None,
    *,
    floor: float = 1e-8,
) -> dict[str, Tensor]:
    """Σ w_m F_m θ_m / Σ w_m F_m, element by element, F_m = max(Fisher_m, floor), in the first state's dtypes.

    `weights` (1−α, α) make it WiSE-FT's Fisher merge. A key without Fisher information in any model is
    averaged plainly, tensors of integers are the first state's, and a weight of 0 leaves a model out
    exactly. The sum is in float64.

    >>> states = [{"w": torch.tensor([0.0, 0.0])}, {"w": torch.tensor([1.0, 1.0])}]
    >>> fishers = [{"w": torch.tensor([1.0, 3.0])}, {"w": torch.tensor([1.0, 1.0])}]
    >>> fisher_average(states, fishers)["w"].tolist()
    [0.5, 0.25]

    Raises:
        TetherError: states or Fisher information that do not fit each other, impossible weights, floor not
            above 0.
    """
    check_compatible(states)
    check_compatible(fishers)
    shares = normalised_weights(len(states), weights)
    first = states[0]
    unknown = sorted(fishers[0].keys() - first.keys())
    if len(fishers) != len(states) or unknown:
        raise TetherError(
            f"Expected Fisher information of {len(states)} models under their own keys; found {len(fishers)} "
            f"sets, with unknown keys {unknown[:5]}."
        )
    check_compatible([{key: first[key] for key in fishers[0]}, fishers[0]])
    if not floor > 0:
        raise TetherError(f"floor must be above 0, or untouched weights are 0/0; it is {floor}.")

    def merge(key: str) -> Tensor:
        if not first[key].is_floating_point():
            return first[key].clone()
        ones = torch.ones_like(first[key], dtype=torch.float64)
        counted = [(s, f, share) for s, f, share in zip(states, fishers, shares, strict=True) if share]
        coefficients = [
            share * (fisher[key].to(ones).clamp(min=floor) if key in fisher else ones)
            for _, fisher, share in counted
        ]
        total = sum(coefficients[1:], coefficients[0])
        # Divided first: a model that counts alone has coefficient 1 exactly.
        terms = [
            c / total * state[key].to(ones) for c, (state, *_) in zip(coefficients, counted, strict=True)
        ]
        return sum(terms[1:], terms[0]).to(first[key].dtype)

    return {key: merge(key) for key in first}


class FisherPath(WeightPath):
    """The way from W0 to W0 + delta on which every weight goes at its own pace, walked in place.

    At α every element is its `fisher_average` with weights (1−α, α):
    W0 + r · delta,  r = αF₁ / ((1−α)F₀ + αF₁),  F = max(Fisher, floor),
    so α = 0 and 1 are the two models exactly. Tensors without Fisher information go straight, r = α.

    Args:
        module, delta: as in `WeightPath`.
        fishers: Fisher information of the two ends, by the same names as delta, or fewer.
        floor: smallest Fisher information.
    """

    def __init__(
        self,
        module: nn.Module,
        delta: Mapping[str, Tensor],
        fishers: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
        *,
        floor: float = 1e-8,
    ) -> None:
        super().__init__(module, delta)
        start, end = fishers
        self._ratios = {name: start[name].clamp(min=floor) / end[name].clamp(min=floor) for name in start}

    def _weight(self, name: str, alpha: float) -> float | Tensor:
        return alpha / (alpha + (1 - alpha) * self._ratios[name]) if name in self._ratios else alpha
