"""Options of the training loop."""

from dataclasses import dataclass, field
from typing import Any, Literal

from tether.config import plain
from tether.errors import TetherError
from tether.training.checkpoint import MOST_STEPS
from tether.training.sampler import batches_per_epoch

_MOST_WORKERS = 1024  # each is a process of some hundred megabytes


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How long, in what batches and how carefully to train. Give `epochs` or `steps`."""

    epochs: int | None = None
    """Passes over the training pictures."""
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    batch_size: int = 512
    """Examples per optimizer step, over all processes."""
    micro_batch: int | None = None
    """Examples at a time in one process, to save memory; only for losses that are a mean over examples."""
    sampler: Literal["shuffled", "balanced"] = field(default="shuffled", metadata={"added": True})
    """Order of the examples: all once in an epoch, or every class equally often, for long-tailed data."""
    drop_last: bool = False
    """Leave out an epoch's last batch where it is not full."""
    seed: int = 0
    """Decides everything random in the run."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """bf16 runs the model under autocast; parameters, gradients and losses stay fp32."""
    clip_norm: float | None = None
    """Largest norm of the gradient of all parameters together (1 in R-Adapter's classification recipes)."""
    non_finite: Literal["stop", "skip"] = "stop"
    """What to do when a loss or gradient is NaN or infinite; "skip" looks at every step, slow on a GPU."""
    workers: int = 0
    """Processes that read pictures, in training and in the evaluation after it; 0 reads in the run's own."""
    log_every: int | None = None
    """Steps between lines of metrics.jsonl; None for a twentieth of the run, at most 20."""
    checkpoint_every: int | None = None
    """Steps between checkpoints; None for the end of every epoch. There is always one at the end."""
    keep: int = 2
    """Checkpoints to keep."""

    MAY_CHANGE = ("micro_batch", "workers", "log_every", "checkpoint_every", "keep")
    """Options that may differ when a run is continued."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise TetherError(
                f"Give either epochs or steps; found epochs={self.epochs} and steps={self.steps}."
            )
        least = {"epochs": 1, "steps": 1, "batch_size": 1, "micro_batch": 1, "checkpoint_every": 1}
        for name, bound in {**least, "log_every": 1, "keep": 1, "workers": 0, "seed": 0}.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise TetherError(f"{name} must be at least {bound}, found {value}.")
        for name, bound in {"epochs": MOST_STEPS, "steps": MOST_STEPS, "workers": _MOST_WORKERS}.items():
            value = getattr(self, name)
            if value is not None and value > bound:
                raise TetherError(f"{name} must be at most {bound:,}, found {value:,}.")
        if self.seed >= 2**63:
            raise TetherError(f"seed must be below 2**63, as torch takes it, found {self.seed}.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise TetherError(f"clip_norm must be greater than 0 or None, found {self.clip_norm}.")
        choices = {"precision": ("fp32", "bf16"), "non_finite": ("stop", "skip")}
        for name, known in {**choices, "sampler": ("shuffled", "balanced")}.items():
            if getattr(self, name) not in known:
                raise TetherError(f"{name} must be one of {known}, found {getattr(self, name)!r}.")

    def identity(self) -> dict[str, Any]:
        """The options that must not differ when a run is continued."""
        return {name: value for name, value in plain(self).items() if name not in self.MAY_CHANGE}

    def steps_per_epoch(self, examples: int) -> int:
        """Optimizer steps that one pass over `examples` examples takes.

        Raises:
            TetherError: none, as there are no examples, or too few for a batch with `drop_last`.
        """
        return batches_per_epoch(examples, self.batch_size, drop_last=self.drop_last)

    def total_steps(self, examples: int) -> int:
        """Optimizer steps of the whole run on `examples` examples; what a schedule needs to know.

        Raises:
            TetherError: as `steps_per_epoch`, or more steps than a checkpoint can be numbered by.
        """
        if self.steps is not None:
            return self.steps
        steps = self.epochs * self.steps_per_epoch(examples)
        if steps > MOST_STEPS:
            raise TetherError(
                f"{self.epochs:,} epochs of {self.steps_per_epoch(examples):,} steps are more than {MOST_STEPS:,} "
                f"steps, the most a run can have. Use fewer epochs."
            )
        return steps

    def log_interval(self, total: int) -> int:
        """Steps between log lines in a run of `total` steps: a short one has some twenty points too."""
        return self.log_every or max(1, min(20, total // 20))
