"""What every method gives back when it is attached to a model: one handle with the same few verbs."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tether._alpha import Alpha, alpha_of
from tether.adapters._tensors import (
    all_finite,
    base_tensors,
    check_known,
    check_state,
    difference,
    not_finite,
    tensors_of,
)
from tether.errors import TetherError
from tether.models.fingerprint import fingerprint_of
from tether.models.site import Site
from tether.models.weight_path import MARK

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


class Attached(ABC):
    """A method attached to a module; the module computes with it until `detach`, `merge` or `ordinary`.

    Only what is trained requires a gradient; the logit scale never does unless a method says so. The base
    weights keep their names and values in the module's state dict.

    Args:
        model: a `tether.Model` or any module.
        config: the method's config.

    Raises:
        TetherError: something is attached to the module already.
    """

    def __init__(self, model: Any, config: Any) -> None:
        self.module: nn.Module = model if isinstance(model, nn.Module) else model.module
        if hasattr(self.module, MARK):
            raise TetherError(
                f"{type(self.module).__name__} has something attached already; call its detach() first, or "
                f"attach to a copy of the model."
            )
        self.config = config
        self.sites: list[Site] = []
        self._model = model
        self._required_grad = {name: p.requires_grad for name, p in self.module.named_parameters()}
        self._originals: dict[str, Tensor] | None = None
        self._before_unfreezing: dict[str, Tensor] = {}
        self._left_unfrozen: dict[str, Tensor] = {}  # what was unfrozen, from `detach` on
        self._detached = False

    @property
    def source(self) -> str | None:
        """Where the model was loaded from; None for a bare module."""
        return None if self._model is self.module else getattr(self._model, "source", None)

    # What a method says about itself.

    @abstractmethod
    def named_parameters(self) -> dict[str, nn.Parameter]:
        """What is trained, by name."""

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
    def _engage(self) -> None:
        """Make the module compute with the method."""

    @abstractmethod
    def _withdraw(self) -> None:
        """Make the module the ordinary one with the base weights."""

    @abstractmethod
    def tower_of(self, name: str) -> str:
        """The tower whose alpha applies to a base tensor."""

    # What follows from it.

    def begin_step(
        self,
        step: int,
        image_keys: Int[Tensor, " b"] | None = None,
        text_keys: Int[Tensor, " n"] | None = None,
    ) -> None:
        """Prepare the coming training forward; call it before each one. Draws masks where a method has any: a
        training forward without them warns.

        Args:
            step: number of the optimizer step.
            image_keys: what identifies each picture of the coming batch (its number in the data set), best on
                the CPU.
            text_keys: the same for each text that is encoded. None where a tower is not run.

        Raises:
            TetherError: a trained parameter is float16, in which optimizers make NaN.
        """
        self._check_precision()

    def train_mode(self) -> None:
        """Set the module to training mode.

        Raises:
            TetherError: a trained parameter is float16, in which optimizers make NaN.
        """
        self._check_precision()
        self.module.train()

    def eval_mode(self) -> None:
        """Set the module to evaluation mode: nothing random."""
        self.module.eval()

    def state_dict(self) -> dict[str, Tensor]:
        """The trained tensors by name, sharing memory with the parameters."""
        return {name: parameter.detach() for name, parameter in self.named_parameters().items()}

    def unfrozen(self) -> dict[str, Tensor]:
        """What else is trained, by name: parameters of the module itself that require a gradient again after `attach`
        froze them, such as those of a new head. They share memory with the module.

        They are no part of `state_dict` and `delta`, so they are the same at every alpha; `save_adapter` stores them
        beside the state, and the fingerprint leaves them out.
        """
        if self._detached:
            return dict(self._left_unfrozen)
        return {
            name: self._base_tensor(name)
            for name, parameter in self._others().items()
            if parameter.requires_grad
        }

    def complete(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state made from parameters alone, such as an average, with what else belongs to a state."""
        return dict(state)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a state in, strictly.

        Raises:
            TetherError: a tensor is missing, unexpected or of another shape; nothing is changed then.
        """
        own = self.state_dict()
        check_state(state, own)
        for name, tensor in own.items():
            tensor.copy_(state[name])

    @torch.no_grad()
    def unfreeze(self, values: Mapping[str, Tensor]) -> None:
        """Train parameters of the module itself too, such as a new head's, from given values; `detach` puts those of
        the base back.

        Raises:
            TetherError: the module has no such parameter, or one of another shape, or the method trains it already;
                nothing is changed then.
        """
        parameters = self._others()
        check_known(values, parameters)
        base = {name: parameters[name].detach().clone() for name in values}
        self._before_unfreezing = base | self._before_unfreezing
        for name, value in values.items():
            parameters[name].copy_(value)
            parameters[name].requires_grad_(True)

    def fingerprint(self) -> str:
        """Fingerprint of the frozen base, whatever is attached, trained or merged; what is `unfrozen` is left out."""
        without = self.unfrozen().keys()
        with self._base():
            return fingerprint_of(self._model, without=without)

    @contextmanager
    def ordinary(self) -> Iterator[nn.Module]:
        """The ordinary module with its base weights, for the duration of a `with` block.

        Raises:
            TetherError: it is merged or detached.
        """
        self._require_engaged("take the adapters out of")
        with self._base():
            yield self.module

    def detach(self) -> nn.Module:
        """Give the module back, bit for bit as it was before `attach`; the handle keeps its state.

        Only what was unfrozen in the module itself and trained there stays as trained.
        """
        if self._detached:
            return self.module
        self._left_unfrozen = {name: tensor.clone() for name, tensor in self.unfrozen().items()}
        if self._originals is not None:
            self._restore()
        else:
            self._withdraw()
        with torch.no_grad():
            for name, tensor in base_tensors(self.module, self._before_unfreezing).items():
                tensor.copy_(self._before_unfreezing[name])
        for name, parameter in self.module.named_parameters():
            parameter.requires_grad_(self._required_grad[name])
        for part in self.module.modules():
            if part.__dict__.pop("train", None) is not None:
                part.training = self.module.training
        delattr(self.module, MARK)
        self._detached = True
        return self.module

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
        found = self._run(probe)
        if not all_finite(found):
            self.unmerge()
            raise TetherError(
                f"The merged model answers NaN or infinity on the probe; nothing was merged. The largest change is "
                f"{_largest(delta)}. {_LOST}"
            )
        if expected is None:
            return MergeReport(alpha, tuple(delta))
        error, relative = difference(found, expected)
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

    def _others(self) -> dict[str, nn.Parameter]:
        """The module's parameters that are not the method's."""
        own = {id(parameter) for parameter in self.named_parameters().values()}
        named = self.module.named_parameters(remove_duplicate=False)
        return {name: parameter for name, parameter in named if id(parameter) not in own}

    def _check_precision(self) -> None:
        half = [
            name for name, p in self.module.named_parameters() if p.requires_grad and p.dtype == torch.float16
        ]
        if half:
            raise TetherError(
                f"{half[0]} is float16, in which training becomes NaN after a step. Load the model in float32, as "
                f"tether.load does by default, and use torch.autocast for the arithmetic; float16 is for inference."
            )

    def _start(self) -> None:
        """Freeze everything but what is trained, and engage; the last line of a method's constructor."""
        self.module.requires_grad_(False)
        setattr(self.module, MARK, type(self).__name__)
        self._engage()
        for parameter in self.named_parameters().values():
            parameter.requires_grad_(True)
        trained = {id(tensor) for tensor in self.named_parameters().values()}
        for part in self.module.modules():
            if getattr(part, "running_mean", None) is not None and not any(
                id(p) in trained for p in part.parameters()
            ):
                part.eval()
                part.train = MethodType(_stay, part)

    def _base_tensor(self, name: str) -> Tensor | None:
        """The base's own tensor, merged or not; None if a linear has no bias."""
        if self._originals is not None and name in self._originals:
            return self._originals[name]
        path, _, kind = name.rpartition(".")
        tensor = getattr(self.module.get_submodule(path), kind)
        return None if tensor is None else tensor.detach()

    def _restore(self) -> None:
        with torch.no_grad():
            for name, tensor in base_tensors(self.module, self._originals).items():
                tensor.copy_(self._originals[name])
        self._originals = None

    @contextmanager
    def _base(self) -> Iterator[None]:
        """The ordinary module with base weights, from whatever state, and back."""
        merged = None
        if self._detached:
            yield
            return
        if self._originals is not None:
            merged = {n: t.detach().clone() for n, t in base_tensors(self.module, self._originals).items()}
            originals = self._originals
            self._restore()
        else:
            self._withdraw()
        setattr(self.module, MARK, None)
        try:
            yield
        finally:
            setattr(self.module, MARK, type(self).__name__)
            if merged is None:
                self._engage()
            else:
                self._originals = originals
                with torch.no_grad():
                    for name, tensor in base_tensors(self.module, merged).items():
                        tensor.copy_(merged[name])

    def _require_engaged(self, verb: str) -> None:
        if self._detached:
            raise TetherError(f"Cannot {verb} this module: the adapter is detached from it. Attach it again.")
        if self._originals is not None:
            raise TetherError(
                f"Cannot {verb} this module: the adapter is merged into it. Call unmerge() first."
            )

    def _outputs_unmerged(
        self, alpha: Alpha, state: Mapping[str, Tensor] | None, probe: Probe
    ) -> list[Tensor] | None:
        """What the probe gives with the un-merged method at alpha; None where there is no such form."""
        return None

    @torch.no_grad()
    def _run(self, probe: Probe) -> list[Tensor]:
        modes = [(module, module.training) for module in self.module.modules()]
        self.module.eval()
        try:
            if callable(probe) and not isinstance(probe, Tensor):
                output = probe()
            else:
                output = self.module(*(probe if isinstance(probe, tuple) else (probe,)))
        finally:
            for module, training in modes:
                module.training = training
        outputs = [tensor.float() for tensor in tensors_of(output)]
        if not outputs:
            raise TetherError("The probe gave no tensors to compare; return the model's outputs from it.")
        return outputs


def _largest(delta: Mapping[str, Tensor]) -> str:
    """The largest number in a delta, and where it is."""
    peaks = {name: float(tensor.abs().max()) for name, tensor in delta.items() if tensor.numel()}
    name = max(peaks, key=peaks.__getitem__)
    return f"{peaks[name]:.2g} in {name}"


def _stay(self: nn.Module, mode: bool = True) -> nn.Module:
    """`train` of a frozen batch norm."""
    return self
