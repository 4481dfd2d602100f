"""Training in the loop of another library: Lightning, Accelerate, the Trainer of transformers.

Whoever runs the loop must do three things for what is attached to a model: begin each training step (so that drop
masks are drawn for its rows), take the trained values into the running average after it, and keep in a checkpoint
what is trained instead of the whole model. There is one piece for each library here, which does all three:

    lightning_callback(attached)                    for lightning.pytorch.Trainer(callbacks=[...])
    trainer_callback(attached)                      for transformers.Trainer(callbacks=[...])
    AccelerateSteps(accelerator, module, attached)  begin(batch) and end() in a loop of your own

Each library is imported when its piece is made. What is trained in all of them is a module of yours around the
model's: its `forward` gives the loss, and it holds `model.module` as an attribute, so that its parameters are found.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tether.adapters import Attached
from tether.ensembles.accumulation import Accumulation
from tether.errors import TetherError

Keys = Callable[[Any], tuple[Tensor | None, Tensor | None]]
"""From a batch to what identifies its pictures and its texts, as `Attached.begin_step` takes it."""

AVERAGE = "tether_average"


def by_index(batch: Any) -> tuple[Tensor, Tensor]:
    """The keys of a batch with a text for each picture: its entry "index", each picture's number in the data set.

    Raises:
        TetherError: there is none.
    """
    if not isinstance(batch, Mapping) or "index" not in batch:
        found = sorted(batch) if isinstance(batch, Mapping) else type(batch).__name__
        raise TetherError(
            f"A batch needs an entry 'index', the number of each picture in the data set, by which adapters draw "
            f"their drop masks; found {found}. Add it, or give keys=…, from a batch to (picture keys, text keys)."
        )
    return batch["index"], batch["index"]


def keep_adapter_only(module: nn.Module, attached: Attached, average: Accumulation | None = None) -> None:
    """From now on the state dict of `module` holds, of the model inside, only what is trained, and the average.

    Every library here writes checkpoints through it. Loading one back is as strict as ever about what it holds.

    Args:
        module: around the model that `attached` belongs to, which is an attribute of it.

    Raises:
        TetherError: the model is not inside the module, or is the module itself.
    """
    paths = [path for path, part in module.named_modules() if part is attached.module]
    if not any(paths):
        raise TetherError(
            f"{type(module).__name__} is to be a module around the model, with the model's own as an attribute: "
            f"`self.towers = model.module`. "
            + (
                "It is the model itself."
                if paths
                else "It has no such part, so nothing of it would be trained."
            )
        )
    if average is not None:
        module.add_module(AVERAGE, _SavedAverage(average))

    def is_left_out(name: str) -> bool:
        for path in paths:
            if name.startswith(f"{path}."):
                parts = dict(attached.module.named_parameters())
                tensor = parts.get(name.removeprefix(f"{path}."))
                return tensor is None or not tensor.requires_grad
        return False

    def after_saving(_module: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
        for name in [name for name in state if name.startswith(prefix)]:
            if is_left_out(name.removeprefix(prefix)):
                del state[name]

    def after_loading(_module: nn.Module, keys: Any) -> None:
        missing = [name for name in keys.missing_keys if not any(is_left_out(end) for end in _ends(name))]
        keys.missing_keys[:] = missing

    module.register_state_dict_post_hook(after_saving)
    module.register_load_state_dict_post_hook(after_loading)


def _ends(name: str) -> list[str]:
    """A name without its first parts, one after the other: it may come with the prefix of a wrapper."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


class _SavedAverage(nn.Module):
    """A running average as a part of a module's state dict."""

    def __init__(self, average: Accumulation) -> None:
        super().__init__()
        self._average = average

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        state = self._average.state_dict()
        destination[f"{prefix}updates"] = torch.tensor(state["updates"])
        destination.update({f"{prefix}{name}": tensor for name, tensor in state["average"].items()})

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        saved = {
            name.removeprefix(prefix): value for name, value in state_dict.items() if name.startswith(prefix)
        }
        if "updates" not in saved:
            missing_keys.append(f"{prefix}updates")
            return
        updates = int(saved.pop("updates"))
        own = {"momentum": self._average.momentum, "correction": self._average.correction}
        self._average.load_state_dict({"updates": updates, "average": saved, **own})


def lightning_callback(
    attached: Attached, *, keys: Keys = by_index, average: Accumulation | None = None
) -> Any:
    """A `lightning.pytorch.Callback` for a LightningModule around the model.

    Args:
        keys: from a batch, as `training_step` gets it, to picture and text keys.
        average: updated after every optimizer step and kept in the checkpoints. Make it where the model is to be
            trained: load the model with its device.

    Raises:
        ImportError: lightning is not installed.
    """
    from lightning.pytorch import Callback

    class AdapterCallback(Callback):
        def __init__(self) -> None:
            self._module: Any = None
            self._steps = 0

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            if self._module is not pl_module:
                keep_adapter_only(pl_module, attached, average)
                self._module = pl_module
            if stage == "fit":
                attached.train_mode()  # as models are loaded in evaluation mode, of which lightning warns

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self._steps = trainer.global_step

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            attached.train_mode()
            attached.begin_step(trainer.global_step, *keys(batch))

        def on_train_batch_end(self, trainer: Any, *arguments: Any) -> None:
            if average is not None and trainer.global_step > self._steps:  # not where gradients are gathered
                average.update()
            self._steps = trainer.global_step

    return AdapterCallback()


def trainer_callback(
    attached: Attached, *, keys: Keys = by_index, average: Accumulation | None = None
) -> Any:
    """A `transformers.TrainerCallback` for a module around the model, whose `forward` takes a batch's entries.

    The trainer needs `remove_unused_columns=False`, lest it drops the entry that `keys` looks at.

    Args:
        keys: from the keyword arguments of `forward` to picture and text keys.
        average: updated after every optimizer step and kept in the checkpoints. Make it where the model is to be
            trained: load the model with its device.

    Raises:
        ImportError: transformers is not installed.
    """
    from transformers import TrainerCallback

    class AdapterCallback(TrainerCallback):
        def __init__(self) -> None:
            self._step = 0
            self._hook: Any = None

        def on_init_end(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
            keep_adapter_only(model, attached, average)
            # A callback is not told of the batch, the module is.
            model.register_forward_pre_hook(self._begin, with_kwargs=True)

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self._step = state.global_step

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if average is not None:
                average.update()

        def _begin(self, module: nn.Module, arguments: Any, batch: dict[str, Any]) -> None:
            if module.training:
                attached.train_mode()
                attached.begin_step(self._step, *keys(batch))

    return AdapterCallback()


class AccelerateSteps:
    """The steps of a loop with `accelerate.Accelerator`.

        steps = AccelerateSteps(accelerator, module, attached)
        module, optimizer, loader = accelerator.prepare(module, optimizer, loader)
        for batch in loader:
            steps.begin(batch)
            with accelerator.accumulate(module):
                ...                                # loss, accelerator.backward, optimizer.step, optimizer.zero_grad
            steps.end()

    `accelerator.save_state` then keeps the adapter, the average and the number of steps.

    Args:
        module: around the model, before `accelerator.prepare`.
        keys: from a batch to picture and text keys.
        average: updated after every optimizer step and kept in the checkpoints. Make it where the model is to be
            trained: load the model with its device.
    """

    def __init__(
        self,
        accelerator: Any,
        module: nn.Module,
        attached: Attached,
        *,
        keys: Keys = by_index,
        average: Accumulation | None = None,
    ) -> None:
        self.step = 0
        self._accelerator, self._attached, self._keys, self._average = accelerator, attached, keys, average
        keep_adapter_only(module, attached, average)
        accelerator.register_for_checkpointing(self)

    def begin(self, batch: Any) -> None:
        """Before each forward that trains."""
        self._attached.train_mode()
        self._attached.begin_step(self.step, *self._keys(batch))

    def end(self) -> None:
        """After each batch; counts where the optimizer has stepped, which it does not while gradients are gathered."""
        if self._accelerator.sync_gradients:
            if self._average is not None:
                self._average.update()
            self.step += 1

    def state_dict(self) -> dict[str, int]:
        return {"step": self.step}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.step = state["step"]
