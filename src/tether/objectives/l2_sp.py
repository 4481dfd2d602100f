"""L2-SP as a penalty: the squared distance of the weights from where fine-tuning started.

Li, Grandvalet, Davoine, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks" (ICML
2018). The simplest way to stay near the pre-trained weights; as part of the loss, Adam rescales its
gradient by the second moment (the decoupled form is an optimizer). It costs one copy of the penalised
weights.
"""

from collections.abc import Iterable, Mapping, Set
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tether.config import method
from tether.errors import TetherError
from tether.families import RegularizerConfig
from tether.objectives._checks import check_strengths
from tether.objectives._precision import widen


@method("l2_sp_penalty")
@dataclass(frozen=True, kw_only=True)
class L2SPPenaltyConfig(RegularizerConfig):
    """The squared distance from the start, as a term of the loss."""

    weight: float = 0.1
    """α; the original work searches 1e-3…1."""

    def term(self, shared: Any) -> "L2SPTerm":
        return L2SPTerm(self, shared)

    def __post_init__(self) -> None:
        check_strengths("l2_sp_penalty", weight=self.weight)


def l2_sp(
    pairs: Iterable[tuple[Tensor, Tensor | None]], new: Iterable[Tensor], alpha: float, beta: float
) -> Float[Tensor, ""]:
    """(α/2) Σ ‖θ − θ⁰‖² over (θ, θ⁰) pairs + (β/2) Σ ‖θ‖² over new tensors, in float32 or better.

    An anchor θ⁰ of None stands for zero, as it should be for the factors of a low-rank update.
    """
    terms = [
        alpha / 2 * (widen(now) if start is None else widen(now) - widen(start.detach())).square().sum()
        for now, start in pairs
    ]
    terms += [beta / 2 * widen(tensor).square().sum() for tensor in new]
    return torch.stack([term.to(terms[0].device) for term in terms]).sum() if terms else torch.zeros(())


class L2SPPenalty:
    """The penalty on named parameters, with anchors kept by name and saved by `state_dict`.

    α (`alpha`) holds the pre-trained tensors, β (`beta`) the new ones; 0.01 is β's original value.

    >>> layer = torch.nn.Linear(3, 2)
    >>> penalty = L2SPPenalty(dict(layer.named_parameters()), new=["bias"])
    >>> loss = layer(torch.ones(1, 3)).sum() + penalty()
    """

    def __init__(
        self,
        parameters: Mapping[str, Tensor],
        *,
        alpha: float = 0.1,
        beta: float = 0.01,
        anchors: Mapping[str, Tensor | None] | None = None,
        new: Iterable[str] = (),
    ) -> None:
        """Anchor `parameters` where they are now, or at `anchors`, which then names exactly those not `new`.

        Raises:
            TetherError: a negative strength, a name in `new` or `anchors` that is no parameter, an anchor
                missing or of another shape.
        """
        check_strengths("L2-SP", alpha=alpha, beta=beta)
        self.alpha, self.beta = alpha, beta
        self.new = frozenset(new)
        self.parameters = dict(parameters)
        _expect_names("new tensors", self.new & set(self.parameters), self.new)
        held = self.parameters.keys() - self.new
        if anchors is None:
            anchors = {name: self.parameters[name] for name in held}
        _expect_names("anchors", held, set(anchors))
        self.anchors = {name: self._anchor(name, anchors[name]) for name in self.parameters if name in held}

    def __call__(self) -> Float[Tensor, ""]:
        """The penalty for the parameters as they are."""
        pairs = [(self.parameters[name], anchor) for name, anchor in self.anchors.items()]
        new = [tensor for name, tensor in self.parameters.items() if name in self.new]
        return l2_sp(pairs, new, self.alpha, self.beta)

    def state_dict(self) -> dict[str, Tensor]:
        """The anchors by parameter name; those that stand for zero are left out."""
        return {name: anchor for name, anchor in self.anchors.items() if anchor is not None}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take saved anchors instead of the present ones.

        Raises:
            TetherError: the names or shapes are not those of `state_dict`.
        """
        _expect_names("saved anchors", set(self.state_dict()), set(state))
        self.anchors |= {name: self._anchor(name, anchor) for name, anchor in state.items()}

    def _anchor(self, name: str, anchor: Tensor | None) -> Tensor | None:
        parameter = self.parameters[name]
        if anchor is None:
            return None
        if anchor.shape != parameter.shape:
            raise TetherError(
                f"The anchor of {name} has shape {tuple(anchor.shape)}; the parameter has "
                f"{tuple(parameter.shape)}."
            )
        return anchor.detach().to(parameter.device, parameter.dtype, copy=True)


def _expect_names(what: str, expected: Set[str], found: Set[str]) -> None:
    missing, unexpected = sorted(expected - found), sorted(found - expected)
    if missing or unexpected:
        raise TetherError(
            f"The {what} do not fit the parameters: missing {missing}, unexpected {unexpected}."
        )


class L2SPTerm:
    """½ ‖θ − θ⁰‖² over what is trained, with θ⁰ where the pre-trained model is.

    That is: for the model's own weights their pre-trained values; for a head what it starts
    as; for the matrices of an adapter zero, and for its vectors and scalars (gains, norms) where they start.
    """

    separable = True

    def __init__(self, config: L2SPPenaltyConfig, shared: Any) -> None:
        context, attached = shared.context, shared.context.attached
        with attached.ordinary() if attached is not None else nullcontext():
            own = {id(tensor) for tensor in context.model.module.parameters()}
            base = {name for name, tensor in context.parameters.items() if id(tensor) in own}
            anchors = {
                name: None if name not in base and tensor is not context.head and tensor.ndim >= 2 else tensor
                for name, tensor in context.parameters.items()
            }
            self._penalty = L2SPPenalty(context.parameters, alpha=1.0, anchors=anchors)
        self._kept = sorted(self._penalty.state_dict().keys() - base)

    def __call__(self, step: Any) -> Tensor:
        return self._penalty()

    def state_dict(self) -> dict[str, Tensor]:
        """Anchors that are not the pre-trained weights, which any run has."""
        anchors = self._penalty.state_dict()
        return {name: anchors[name] for name in self._kept}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take saved anchors.

        Raises:
            TetherError: names or shapes do not fit.
        """
        self._penalty.load_state_dict(self._penalty.state_dict() | dict(state))
