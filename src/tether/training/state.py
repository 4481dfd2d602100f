"""Everything that changes in the course of a run, gathered for a checkpoint and put back from one."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from tether._distributed import average, gather, rank
from tether.errors import TetherError
from tether.training.optimizer_state import load_named_state, named_state
from tether.training.random_streams import capture_streams, restore_streams, seed_streams
from tether.training.run_directory import differences


@dataclass
class Window:
    """Sums of the measurements since the last log line, on the device."""

    steps: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, values: dict[str, Tensor]) -> None:
        self.steps += 1
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value

    def means(self) -> dict[str, float]:
        """Mean of each measurement over the steps and the processes; starts a new window."""
        if not self.steps:
            return {}
        stacked = average(torch.stack([total.float() for total in self.sums.values()])) / self.steps
        means = dict(zip(self.sums, stacked.tolist(), strict=True))
        self.steps, self.sums = 0, {}
        return means

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        self.steps = state["steps"]
        self.sums = {name: total.to(device) for name, total in state["sums"].items()}


@dataclass
class RunState:
    """The parts of a run that a checkpoint holds; `identity` is what must not change between its parts."""

    task: Any
    optimizer: Optimizer
    parameters: dict[str, Tensor]
    schedule: Any
    accumulation: Any
    identity: dict[str, Any]
    seed: int
    window: Window = field(default_factory=Window)
    skipped: int = 0
    """Steps in a row that were skipped for NaN or infinity."""

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(iter(self.parameters.values())).device

    def start(self) -> None:
        """Start the random streams, one per process."""
        seed_streams(self.seed + rank())

    def capture(self, step: int) -> dict[str, Any]:
        """The state after `step` steps. All processes must call it: their random streams are gathered."""
        return {
            "step": step,
            "identity": self.identity,
            "model": self.task.state_dict(),
            "optimizer": named_state(self.optimizer, self.parameters),
            **{name: part and part.state_dict() for name, part in self._optional().items()},
            "window": {**self.window.state_dict(), "skipped": self.skipped},
            "random": {name: gather(stream[None]) for name, stream in capture_streams().items()},
        }

    def restore(self, state: dict[str, Any]) -> int:
        """Put everything back; gives the number of steps done.

        Raises:
            TetherError: the run was started with other options, data or parts.
        """
        changed = differences(state["identity"], self.identity)
        if changed:
            raise TetherError(
                f"The checkpoint belongs to a run with other options: {'; '.join(changed.values())}. Use the "
                f"same to continue it, or start a new run."
            )
        for name, part in self._optional().items():
            if (part is None) != (state[name] is None):
                raise TetherError(
                    f"The checkpoint was made {'without' if part else 'with'} {name} and the run now is "
                    f"{'with' if part else 'without'} it: this is not the same run."
                )
        self.task.load_state_dict(state["model"])
        load_named_state(self.optimizer, self.parameters, state["optimizer"])
        for name, part in self._optional().items():
            if part is not None:
                part.load_state_dict(state[name])
        self.window.load_state_dict(state["window"], self.device)
        self.skipped = state["window"]["skipped"]
        if rank() < len(state["random"]["torch"]):
            restore_streams({name: streams[rank()] for name, streams in state["random"].items()})
        return state["step"]

    def _optional(self) -> dict[str, Any]:
        return {"schedule": self.schedule, "accumulation": self.accumulation}
