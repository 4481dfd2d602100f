"""What every method gives back when it is attached to a model: one handle with the same few verbs."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tether._alpha import TOWERS, Alpha, alpha_of
from tether.adapters._tensors import base_tensors, check_known, check_state
from tether.errors import TetherError
from tether.models.fingerprint import fingerprint_of
from tether.models.site import Site
from tether.models.weight_path import MARK, Path


class BranchPath:
    """The way of a method that is not linear in its weights: its branches scaled while the model runs, or on and off.

    At alpha 0 the method is taken out, so that the model is the base bit for bit.
    """

    def __init__(self, attached: "Attached") -> None:
        self._attached, self._alphas, self._engaged = attached, dict.fromkeys(TOWERS, 1.0), True

    def set(self, alpha: Alpha, tower: str | None = None) -> None:
        for name in TOWERS if tower is None else (tower,):
            self._alphas[name] = alpha_of(alpha, name)
        wanted = any(self._alphas.values())
        if wanted:
            self._attached.scale(self._alphas)
        if wanted != self._engaged:
            (self._attached.put_in if wanted else self._attached.take_out)()
            self._engaged = wanted

    def changes(self, tower: str | None = None) -> frozenset[str]:
        return self._attached.branches(tower)

    def restore(self) -> None:
        self.set(0.0)


class Attached(ABC):
    """A method attached to a module; the module computes with it until `detach`, `merge` or `ordinary`.

    Only what is trained requires a gradient; the logit scale never does unless a method says so. The base
    weights keep their names and values in the module's state dict.

    Args:
        model: a `tether.Model` or any module.
        config: the method's config.

    Attributes:
        mergeable: whether the method is linear in the weights, so that it has a delta and can be merged; see
            `tether.adapters.mergeable`.
        identity_at_start: whether the model computes what it computed before, bit for bit, right after `attach`.
        moves_weights: whether the method trains tensors of the module itself, so that taking it out writes them.

    Raises:
        TetherError: something is attached to the module already.
    """

    mergeable: ClassVar[bool] = False
    identity_at_start: bool = True
    moves_weights: ClassVar[bool] = False

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
    def _engage(self) -> None:
        """Make the module compute with the method."""

    @abstractmethod
    def _withdraw(self) -> None:
        """Make the module the ordinary one with the base weights."""

    def scale(self, alphas: Mapping[str, float]) -> None:
        """Scale what the method adds, by tower, until the next call; in evaluation only. 1 is as it was trained.

        Raises:
            TetherError: the method has nothing to scale.
        """
        if not set(alphas.values()) <= {0.0, 1.0}:
            raise TetherError(
                f"What {type(self).__name__} does cannot be scaled, so it has two ends only: alpha 0, the base, and "
                f"alpha 1, as trained. Give alpha.value=1, or alpha.grid=[0, 1]."
            )

    def branches(self, tower: str | None = None) -> frozenset[str]:
        """Names, or beginnings of names, of the parts of the module in which it differs from the base.

        By default all of it, which is always right; what lies in front of the first is computed once in a sweep.
        """
        return frozenset(name for name, _ in self.module.named_parameters())

    def zero_anchored(self) -> frozenset[str]:
        """What of `named_parameters` an optimizer with anchors is to hold near zero: factors of which one is random at
        the start, which is no place to return to."""
        return frozenset()

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

    def check(self, state: Mapping[str, Tensor]) -> None:
        """Refuse what is no state of this adapter.

        Raises:
            TetherError: it is none.
        """
        check_state(state, self.state_dict())

    @contextmanager
    def path(self, state: Mapping[str, Tensor] | None = None) -> Iterator[Path]:
        """Inside, the module computes at whatever alpha is set, at first as the base; afterwards as before.

        Args:
            state: an adapter state, such as an average; None is the current one.

        Raises:
            TetherError: it is merged or detached, or the state is not one of this adapter.
        """
        self._require_engaged("walk the path of")
        before = {name: tensor.clone() for name, tensor in self.state_dict().items()}
        if state is not None:
            self.load_state_dict(self.complete(state))
        path = BranchPath(self)
        path.set(0.0)
        try:
            yield path
        finally:
            path.set(1.0)
            self.load_state_dict(before)

    def complete(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A state made from parameters alone, such as an average, with what else belongs to a state."""
        return dict(state)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Copy a state in, strictly.

        Raises:
            TetherError: a tensor is missing, unexpected or of another shape; nothing is changed then.
        """
        current = self.state_dict()
        check_state(state, current)
        for name, tensor in current.items():
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
        self.take_out()
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

    # Internals.

    def _others(self) -> dict[str, nn.Parameter]:
        """The module's parameters that are not the method's."""
        trained = {id(parameter) for parameter in self.named_parameters().values()}
        named = self.module.named_parameters(remove_duplicate=False)
        return {name: parameter for name, parameter in named if id(parameter) not in trained}

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

    def take_out(self) -> None:
        """Make the module the ordinary one with the base weights, until `put_in`."""
        self._withdraw()
        setattr(self.module, MARK, None)

    def put_in(self) -> None:
        """Have the module compute with the method again."""
        setattr(self.module, MARK, type(self).__name__)
        self._engage()

    def _base_tensor(self, name: str) -> Tensor | None:
        """The base's own tensor; None if a linear has no bias."""
        path, _, kind = name.rpartition(".")
        tensor = getattr(self.module.get_submodule(path), kind)
        return None if tensor is None else tensor.detach()

    @contextmanager
    def _base(self) -> Iterator[None]:
        """The ordinary module with base weights, from whatever state, and back."""
        if self._detached:
            yield
            return
        self.take_out()
        try:
            yield
        finally:
            self.put_in()

    def _require_engaged(self, verb: str) -> None:
        if self._detached:
            raise TetherError(f"Cannot {verb} this module: the adapter is detached from it. Attach it again.")


def _stay(self: nn.Module, mode: bool = True) -> nn.Module:
    """`train` of a frozen batch norm."""
    return self
