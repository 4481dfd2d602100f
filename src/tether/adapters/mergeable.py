"""What methods have that are linear in the weights: a delta, and merging without cost at inference."""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from tether._alpha import Alpha, alpha_of
from tether.adapters._tensors import all_finite, base_tensors, difference, not_finite, tensors_of
from tether.adapters.attached import Attached
from tether.config import method_of
from tether.errors import TetherError
from tether.models.modes import in_evaluation_mode
from tether.models.weight_path import MARK, Path, WeightPath

Probe = Callable[[], Any] | Tensor | tuple[Tensor, ...]
"""A function that runs the model and returns tensors, or the inputs to run the module on."""

ERROR_BOUNDS = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest accepted error of a merge, relative to the largest output, by the precision of the weights."""

_LOST = "The adapter is of a training that diverged, or its file was changed: take an earlier one, or a smaller alpha."


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    Args:
        alpha: the ensemble weight that was merged.
        changed: names of the base parameters that were changed.
        max_error: largest absolute difference between the merged model's outputs on the probe and those of
            the base with its adapters; None without a probe, or where the method changes the weights
            themselves.
        relative_error: the same, divided by the largest absolute output.
    """

    alpha: Alpha
    changed: tuple[str, ...]
    max_error: float | None = None
    relative_error: float | None = None


class Mergeable(Attached):
    """A method whose weights at alpha are W0 + alpha · delta."""

    mergeable: ClassVar[bool] = True

    _originals: dict[str, Tensor] | None = None
    """While it is merged, the base's values of what was changed."""

    # What a method says about itself.

    @abstractmethod
    def delta(self, state: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Merged weights at alpha = 1 minus base weights, in fp32, by the names of the base's tensors.

        To use it on the module itself, take the adapters out first: `with attached.ordinary(): ...`.

        Args:
            state: an adapter state, such as an average; None is the current one.

        Raises:
            TetherError: the state is not one of this adapter.
        """

    @abstractmethod
    def tower_of(self, name: str) -> str:
        """The tower whose alpha applies to a base tensor."""

    # What follows from it.

    def check(self, state: Mapping[str, Tensor]) -> None:
        self.delta(state)

    @contextmanager
    def path(self, state: Mapping[str, Tensor] | None = None) -> Iterator[Path]:
        """Inside, the module is an ordinary one with the weights of whatever alpha is set; see `Attached.path`."""
        delta = self.delta(state)
        towers = {name: self.tower_of(name) for name in delta}
        with self.ordinary() as module, WeightPath(module, delta, towers) as path:
            yield path

    def merge(
        self,
        alpha: Alpha = 1.0,
        state: Mapping[str, Tensor] | None = None,
        probe: Probe | None = None,
        bound: float | None = None,
    ) -> MergeReport:
        """Put W0 + alpha · delta into the module's own weights: an ordinary model, without cost at inference.

        Computed in fp32 and cast last. `unmerge` undoes it bit for bit. What is `unfrozen` stays as it is.

        Args:
            alpha: ensemble weight, or one per tower; 0 is the base, 1 the fine-tuned model, beyond them an
                extrapolation.
            state: the adapter state to merge, such as an average; None is the current one.
            probe: a batch or a function that runs the model, best every tower that changes; the outputs before and
                after are compared, and NaN or infinity in them is refused.
            bound: largest accepted relative error on the probe; None is 1e-4 for fp32 weights, 1e-2 for fp16,
                5e-2 for bf16.

        Raises:
            TetherError: it is merged already, or alpha or state do not fit; or the merged weights or their outputs
                on the probe are not finite, or the error exceeds the bound. The module is as before then.
        """
        self._require_engaged("merge into")
        delta = self.delta(state)
        weights = {name: alpha_of(alpha, self.tower_of(name)) for name in delta}
        expected = None if probe is None else self._outputs_unmerged(alpha, state, probe)
        self._withdraw()
        originals = base_tensors(self.module, delta)
        self._originals = {name: tensor.detach().clone() for name, tensor in originals.items()}
        with torch.no_grad():
            for name, tensor in originals.items():
                tensor.copy_(tensor.to(delta[name].dtype) + weights[name] * delta[name])
        if wrong := not_finite(originals):
            self.unmerge()
            names = f"{', '.join(wrong[:3])}{', …' if len(wrong) > 3 else ''}"
            raise TetherError(f"NaN or infinity would be merged into {names}; nothing was merged. {_LOST}")
        if probe is None:
            return MergeReport(alpha, tuple(delta))
        outputs = self._run(probe)
        if not all_finite(outputs):
            self.unmerge()
            raise TetherError(
                f"The merged model answers NaN or infinity on the probe; nothing was merged. The largest change is "
                f"{_largest(delta)}. {_LOST}"
            )
        if expected is None:
            return MergeReport(alpha, tuple(delta))
        error, relative = difference(outputs, expected)
        if bound is None:
            bound = max(ERROR_BOUNDS.get(tensor.dtype, 5e-2) for tensor in originals.values())
        if not relative <= bound:
            self.unmerge()
            raise TetherError(
                f"Merging changes the outputs on the probe by {relative:.2g} of the largest output, more "
                f"than {bound:.2g}. Nothing was merged. Merge into weights of higher precision, or pass a "
                f"larger bound if you accept it."
            )
        return MergeReport(alpha, tuple(delta), error, relative)

    def unmerge(self) -> None:
        """Undo `merge`, bit for bit, and compute with the adapters again.

        Raises:
            TetherError: nothing is merged.
        """
        if self._originals is None:
            raise TetherError("Nothing is merged, so there is nothing to undo.")
        self._restore()
        self._engage()

    # Internals.

    def take_out(self) -> None:
        if self._originals is None:
            super().take_out()
        else:
            self._restore()
            setattr(self.module, MARK, None)

    def _base_tensor(self, name: str) -> Tensor | None:
        if self._originals is not None and name in self._originals:
            return self._originals[name]
        return super()._base_tensor(name)

    def _restore(self) -> None:
        with torch.no_grad():
            for name, tensor in base_tensors(self.module, self._originals).items():
                tensor.copy_(self._originals[name])
        self._originals = None

    @contextmanager
    def _base(self) -> Iterator[None]:
        if self._detached or self._originals is None:
            with super()._base():
                yield
            return
        originals = self._originals
        merged = {
            name: tensor.detach().clone() for name, tensor in base_tensors(self.module, originals).items()
        }
        self.take_out()
        try:
            yield
        finally:
            setattr(self.module, MARK, type(self).__name__)
            self._originals = originals
            with torch.no_grad():
                for name, tensor in base_tensors(self.module, merged).items():
                    tensor.copy_(merged[name])

    def _require_engaged(self, verb: str) -> None:
        super()._require_engaged(verb)
        if self._originals is not None:
            raise TetherError(
                f"Cannot {verb} this module: the adapter is merged into it. Call unmerge() first."
            )

    def _outputs_unmerged(
        self, alpha: Alpha, state: Mapping[str, Tensor] | None, probe: Probe
    ) -> list[Tensor] | None:
        """What the probe gives with the un-merged method at alpha; None where there is no such form."""
        return None

    @contextmanager
    def _in_state(self, state: Mapping[str, Tensor]) -> Iterator[None]:
        """Inside, the method has another state."""
        before = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        self.load_state_dict(state)
        try:
            yield
        finally:
            self.load_state_dict(before)

    @torch.no_grad()
    def _run(self, probe: Probe) -> list[Tensor]:
        with in_evaluation_mode(self.module):
            if callable(probe) and not isinstance(probe, Tensor):
                output = probe()
            else:
                output = self.module(*(probe if isinstance(probe, tuple) else (probe,)))
        outputs = [tensor.float() for tensor in tensors_of(output)]
        if not outputs:
            raise TetherError("The probe gave no tensors to compare; return the model's outputs from it.")
        return outputs


def mergeable(attached: Attached) -> Mergeable:
    """The handle of a method that can be merged.

    Raises:
        TetherError: it is of another method.
    """
    if not isinstance(attached, Mergeable):
        raise TetherError(
            f"The method {method_of(type(attached.config))} is not linear in the weights and cannot be merged. Use the "
            f"adapter as it is: tether.load_adapter and tether.adapters.apply."
        )
    return attached


def _largest(delta: Mapping[str, Tensor]) -> str:
    """The largest number in a delta, and where it is."""
    peaks = {name: float(tensor.abs().max()) for name, tensor in delta.items() if tensor.numel()}
    name = max(peaks, key=peaks.__getitem__)
    return f"{peaks[name]:.2g} in {name}"
