"""What methods share that train some of a model's own weights: everything, biases, norms, the last blocks.

Nothing is added to the model. What is trained is named as in the base, the base's values are kept on the CPU,
and an adapter file holds the tuned values.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tether._alpha import tower_of
from tether.adapters._tensors import base_tensors, check_state
from tether.adapters.files import Adapter
from tether.adapters.mergeable import Mergeable
from tether.adapters.shared import mean_state
from tether.errors import TetherError
from tether.families import AdapterConfig

LOGIT = ("logit_scale", "logit_bias")
"""Never trained by default: the published recipes keep CLIP's temperature."""


class BaseWeightsConfig(AdapterConfig):
    """Which of the model's own weights are trained."""

    def mean(self, adapters: Sequence[Adapter]) -> tuple["BaseWeightsConfig", dict[str, Tensor]]:
        """Of the tuned values, tensor by tensor."""
        return self, mean_state(adapters)


class BaseWeightsAttached(Mergeable):
    """Some of a module's own weights are trained; `delta` is tuned minus base.

    Buffers that belong to trained modules (running statistics of batch norms) count as tuned: they are in the
    state, are interpolated by `merge` unless they are integers, and are the base's again after `detach`.

    Args:
        model: a `tether.Model` or any module.
        config: which weights.
        seed: not used; nothing is random.

    Raises:
        TetherError: something is attached already, a pattern matches nothing, or nothing is left to train.
    """

    moves_weights: ClassVar[bool] = True

    def __init__(self, model: Any, config: Any, *, seed: int = 0) -> None:
        super().__init__(model, config)
        names = self._chosen()
        if not names:
            raise TetherError(
                f"{type(config).__name__} finds nothing to train in {type(self.module).__name__}."
            )
        buffers = self._buffers(names)
        tensors = base_tensors(self.module, names + buffers)
        self._parameters: dict[str, nn.Parameter] = {name: tensors[name] for name in names}
        self._trained_buffers = {name: tensors[name] for name in buffers}
        self._set_aside = {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}
        """The base's values while the tuned ones are in the module, and the other way round."""
        self._start()

    def _chosen(self) -> list[str]:
        """Names of the parameters to train."""
        raise NotImplementedError

    def _buffers(self, parameters: list[str]) -> list[str]:
        owners = {name.rpartition(".")[0] for name in parameters}
        persistent = self.module.state_dict().keys()
        return [
            name
            for name, _ in self.module.named_buffers()
            if name in persistent and name.rpartition(".")[0] in owners
        ]

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return dict(self._parameters)

    def state_dict(self) -> dict[str, Tensor]:
        return self._values() if self._tuned_is_in_place else dict(self._set_aside)

    def delta(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        tuned = self.state_dict() if state is None else self.complete(state)
        base = self._set_aside if self._tuned_is_in_place else self._originals or self._values()
        result = {}
        for name, tensor in tuned.items():
            if not tensor.is_floating_point():
                continue
            dtype = torch.promote_types(tensor.dtype, torch.float32)
            result[name] = tensor.to(dtype) - base[name].to(tensor.device, dtype)
        return result

    def complete(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        current = self.state_dict()
        state = {name: current[name] for name in self._trained_buffers} | dict(state)
        check_state(state, current)
        return state

    def tower_of(self, name: str) -> str:
        return tower_of(name)

    def _engage(self) -> None:
        self._exchange()
        self._tuned_is_in_place = True

    def _withdraw(self) -> None:
        self._exchange()
        self._tuned_is_in_place = False

    @torch.no_grad()
    def _exchange(self) -> None:
        """Swap the values in the module with those kept aside."""
        for name, tensor in self._values().items():
            inside = tensor.to("cpu", copy=True)
            tensor.copy_(self._set_aside[name])
            self._set_aside[name] = inside

    def _values(self) -> dict[str, Tensor]:
        """The tensors in the module, whatever they are at present."""
        return {name: tensor.detach() for name, tensor in (self._parameters | self._trained_buffers).items()}
