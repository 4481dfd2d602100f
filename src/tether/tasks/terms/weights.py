"""The term that holds the weights themselves."""

from collections.abc import Mapping
from contextlib import nullcontext

from torch import Tensor

from tether.objectives.l2_sp import L2SPPenalty, L2SPPenaltyConfig
from tether.tasks.terms.step import Shared, Step


class L2SPTerm:
    """½ ‖θ − θ⁰‖² over what is trained, with θ⁰ where the pre-trained model is.

    That is: for the model's own weights their pre-trained values; for a head what it starts
    as; for the matrices of an adapter zero, and for its vectors and scalars (gains, norms) where they start.
    """

    separable = True

    def __init__(self, config: L2SPPenaltyConfig, shared: Shared) -> None:
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

    def __call__(self, step: Step) -> Tensor:
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
