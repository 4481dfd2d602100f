"""What the robust optimizers share: anchors, excluded parts, clocks, state that survives a restart."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from inspect import signature
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from tether.errors import TetherError, near_misses
from tether.optimizers._bucket import Bucket, collect, scalar_dtype
from tether.optimizers._checks import (
    TREATMENTS,
    check_anchor,
    check_precision,
    check_state,
    check_tensor,
    choose,
    fits,
    fitted_anchor,
    matched_groups,
    require,
    shown,
)
from tether.optimizers._options import OF_BASE, AnchoredConfig, Base, check_shared, own_defaults

_ON_CPU = ("step", "treatment")  # numbers that no kernel reads
Params = Iterable[Any]  # tensors, (name, tensor) pairs, or groups {"params": ..., option: value}
Anchors = Literal["start", "zero"] | Mapping[Any, Tensor | None]  # by name or by parameter
Exclude = Sequence[str | Tensor]


def options_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a constructor, from its `locals()`, as the base class takes them."""
    return {name: value for name, value in arguments.items() if name not in ("self", "__class__")}


class AnchoredOptimizer(torch.optim.Optimizer):
    """Base class: `_update` moves the tensors of a bucket by one step around their anchors.

    Args:
        params: tensors, (name, tensor) pairs, or groups of them with options of their own. What is trained is
            float32 or float64; bfloat16 is taken (its updates are rounded), float16 is not.
        lr: learning rate of the base step.
        base: the step that is made robust.
        betas, eps, amsgrad: of AdamW.
        momentum, dampening, nesterov: of SGD.
        weight_decay: decay toward zero of the excluded tensors, and where a method says so of the anchored
            ones: decoupled for AdamW, as in torch.optim.SGD for SGD.
        maximize: ascend instead of descend; the pull toward the anchor stays a pull.
        anchors: "start": a copy of each tensor when it joins the optimizer; "zero": no anchor, as for the
            factors of low-rank adapters; or a mapping from a name or a parameter to its anchor (used as it is,
            without a copy, when it has the parameter's type and device) or to None for zero. A tensor that is
            not in the mapping is copied. Anchors of either kind are in the state dict, and a state is loaded
            only where the same tensors are excluded, anchored at zero, copied or given, the given ones with the
            same values.
        exclude: names (with * and ?) or parameters that take the plain base step, such as a new head. A group
            does it with {"excluded": True}.
        foreach: False updates one tensor at a time: the same numbers with less temporary memory, slower on a
            GPU.
        **own: options of the method, which its config lists.

    Raises:
        TetherError: an option is unknown, out of range or contradicts another; a name or an anchor fits no
            parameter, or an excluded one is given an anchor; a trained parameter is float16.
    """

    config: ClassVar[type[AnchoredConfig]]  # the method's own options: names, defaults, ranges
    learned: ClassVar[dict[str, float]] = {}  # numbers kept beside every anchored tensor: what they start at
    remembered: ClassVar[tuple[str, ...]] = ()  # tensors of its shape kept beside it, zero at the start

    def __init__(
        self,
        params: Params,
        lr: float | int = 1e-3,
        *,
        base: Base = "adamw",
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float | int = 1e-8,
        amsgrad: bool = False,
        momentum: float | int = 0.0,
        dampening: float | int = 0.0,
        nesterov: bool = False,
        weight_decay: float | int = 0.0,
        maximize: bool = False,
        anchors: Anchors = "start",
        exclude: Exclude = (),
        foreach: bool = True,
        **own: Any,
    ) -> None:
        steps: dict[str, dict[str, Any]] = {
            "adamw": {"betas": betas, "eps": eps, "amsgrad": amsgrad},
            "sgd": {"momentum": momentum, "dampening": dampening, "nesterov": nesterov},
        }
        choose({"base": base}, "base", *steps)
        for other in steps.keys() - {base}:
            for name, default in OF_BASE[other].items():
                if steps[other][name] != default:
                    raise TetherError(f"{name} is no option of base={base!r}, but of the other base.")
        own_options = own_defaults(self.config)
        for name in own.keys() - own_options.keys():
            known = [*own_options, *signature(AnchoredOptimizer).parameters]
            raise TetherError(f"{type(self).__name__} has no option {name!r}{near_misses(name, known)}")
        self._foreach = foreach
        self._exclude = list(exclude)
        self._excluded: set[Tensor] = set()
        self._given: dict[Tensor, Tensor | None] = {}
        self._mapping = {} if isinstance(anchors, str) else dict(anchors)
        self._met: set[tuple[str, Any]] = set()  # entries of `exclude` and `anchors` that a parameter fits
        shared = {"weight_decay": weight_decay, "maximize": maximize}
        of_group = {"anchors": anchors if isinstance(anchors, str) else "start", "excluded": False}
        defaults = {"lr": lr, **shared, **of_group, **steps[base], **own_options, **own, "base": base}
        super().__init__(params, defaults)
        self._refuse_what_fits_nothing()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; options it does not set are those of the optimizer.

        Raises:
            TetherError: an option is out of range or contradicts another, a tensor cannot be trained here, an
                anchor does not fit its parameter, or an excluded parameter is given one.
        """
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        names = group.get("param_names") or [None] * len(group["params"])
        for name, param in zip(names, group["params"], strict=True):
            check_tensor(param, name)
            exclusions = [entry for entry in self._exclude if fits(entry, name, param)]
            anchors = [entry for entry in (param, name) if entry is not None and entry in self._mapping]
            self._met.update(("exclude", entry) for entry in exclusions)
            self._met.update(("anchors", entry) for entry in anchors)
            excluded = bool(exclusions) or group["excluded"]
            if excluded and anchors:
                raise TetherError(
                    f"{shown(anchors[0])} is excluded, so the anchor given for it would have no effect; leave it "
                    f"out of anchors, or do not exclude it."
                )
            if excluded:
                self._excluded.add(param)
            for entry in anchors:
                self._given[param] = fitted_anchor(self._mapping[entry], param, name)
            if param.requires_grad:
                self._start(param, group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step for every tensor that has a gradient and is not frozen; returns what `closure` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            ready = [param for param in group["params"] if param.requires_grad and param.grad is not None]
            for bucket in self._buckets(group, [param for param in ready if param in self._excluded]):
                bucket.base_step(weight_decay=group["weight_decay"])
            for bucket in self._buckets(group, [param for param in ready if param not in self._excluded]):
                self._update(bucket)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what the same optimizer saved over the same parameters, matched by name where both have names.

        Raises:
            TetherError: a parameter is missing, unexpected or of another shape, was treated otherwise
                (another base step; excluded, or anchored at zero, its start or a given tensor), or was given
                another anchor; or the state lacks a parameter that is trained. Nothing is changed then.
        """
        saved_groups = matched_groups(state_dict["param_groups"], self.param_groups)
        ids = [index for group in saved_groups for index in group["params"]]
        saved = {
            param: state_dict["state"].get(index)
            for index, (_, param) in zip(ids, self._named(), strict=True)
        }
        groups = [group for group in self.param_groups for _ in group["params"]]
        for group, (name, param) in zip(groups, self._named(), strict=True):
            if saved[param]:
                check_state(saved[param], self.state.get(param), self._treatment(param, group), name)
                if self._given.get(param) is not None:
                    anchors = (saved[param]["anchor"], self._given[param])
                    check_anchor(*(self._as_kept(anchor, "anchor", param) for anchor in anchors), name)
            elif param.requires_grad:
                raise TetherError(
                    f"The saved state holds nothing of {name}, which is trained here: its anchor would be the "
                    f"weights of now. Load the whole state; if {name} was frozen when it was saved, load it with "
                    f"requires_grad_(False) and unfreeze it afterwards."
                )
        fresh = dict(self.state)
        super().load_state_dict({**state_dict, "param_groups": saved_groups})
        for param, state in saved.items():
            if state:  # torch shares memory with what it loads and casts all numbers to the parameter's type
                given = self._given.get(param)
                shared = {} if given is None else {"anchor": given}
                self.state[param] = {
                    name: self._as_kept(value, name, param, copy=True)
                    for name, value in state.items()
                    if name not in shared
                } | shared
            elif param in fresh:
                self.state[param] = fresh[param]

    def __getstate__(self) -> dict[str, Any]:
        own = ("_foreach", "_exclude", "_excluded", "_given", "_mapping", "_met")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def _check(self, group: dict[str, Any]) -> None:
        """Refuse options of a group that are out of range or contradict each other."""
        check_shared(group)
        require(group["base"] == self.defaults["base"], "base of a group", group["base"], "the optimizer's")
        choose(group, "anchors", "start", "zero")
        self.config.check(group)

    def _refuse_what_fits_nothing(self) -> None:
        """Refuse entries of `exclude` and `anchors` that no parameter fits."""
        names = [name for group in self.param_groups for name in group.get("param_names", ())]
        for option, entries in (("exclude", self._exclude), ("anchors", self._mapping)):
            for entry in entries:
                if (option, entry) in self._met:
                    continue
                if not isinstance(entry, str):
                    hint = "; it is not a parameter of this optimizer"
                elif names:
                    hint = near_misses(entry, names)
                else:
                    hint = "; names need named parameters: pass model.named_parameters()"
                raise TetherError(f"{option} names {shown(entry)}, but no parameter fits{hint}")

    def _check_precision(self, param: Tensor) -> None:
        if param.dtype == torch.float16:
            check_precision(param, next(name for name, other in self._named() if other is param))

    def _update(self, bucket: Bucket) -> None:
        raise NotImplementedError

    def _named(self) -> Iterator[tuple[str, Tensor]]:
        for number, group in enumerate(self.param_groups):
            names = group.get("param_names") or [
                f"group {number} tensor {i}" for i in range(len(group["params"]))
            ]
            yield from zip(names, group["params"], strict=True)

    def _treatment(self, param: Tensor, group: dict[str, Any]) -> str:
        """One of `TREATMENTS`."""
        if param in self._excluded:
            return "excluded"
        if param in self._given:
            return "zero" if self._given[param] is None else "given"
        return group["anchors"]

    def _start(self, param: Tensor, group: dict[str, Any]) -> None:
        """All state of a tensor, at once: a checkpoint written before its first gradient is complete."""
        self._check_precision(param)
        treatment = self._treatment(param, group)
        state = {"step": torch.tensor(0.0), "treatment": torch.tensor(list(TREATMENTS).index(treatment))}
        shaped: tuple[str, ...] = ("exp_avg", "exp_avg_sq") if group["base"] == "adamw" else ()
        if group.get("amsgrad"):
            shaped += ("max_exp_avg_sq",)
        if group.get("momentum"):
            shaped += ("momentum_buffer",)
        if param not in self._excluded:
            shaped += self.remembered
            if treatment == "given":
                state["anchor"] = self._given[param]
            elif treatment == "start":
                state["anchor"] = param.detach().clone()
            for name, value in self.learned.items():
                state[name] = torch.tensor(value, dtype=scalar_dtype(param), device=param.device)
        state.update({name: torch.zeros_like(param.detach()) for name in shaped})
        self.state[param] = state

    def _buckets(self, group: dict[str, Any], params: Iterable[Tensor]) -> list[Bucket]:
        """These tensors of a group with their anchors and states, which are made where they are missing."""
        entries = []
        for param in params:
            if not self.state[param]:
                self._start(param, group)
            state = self.state[param]
            if not self._fits(state, param):  # the model was moved or cast after the optimizer was made
                self._check_precision(param)
                state = self.state[param] = {n: self._as_kept(value, n, param) for n, value in state.items()}
                if self._given.get(param) is not None:
                    self._given[param] = state["anchor"]
            entries.append((param, state.get("anchor"), state))
        return collect(entries, group, self._foreach)

    def _fits(self, state: dict[str, Tensor], param: Tensor) -> bool:
        device, dtype = param.device, param.dtype
        return all(
            value.device == device and (value.dtype == dtype or name in self.learned)
            for name, value in state.items()
            if name not in _ON_CPU
        )

    def _as_kept(self, value: Tensor, name: str, param: Tensor, *, copy: bool = False) -> Tensor:
        """A state tensor where and in the type in which it is kept."""
        if name in _ON_CPU:
            return value.detach().to("cpu", copy=copy)
        dtype = scalar_dtype(param) if name in self.learned else param.dtype
        return value.detach().to(param.device, dtype, copy=copy)
