"""The training loop: one for pre-training, fine-tuning and every task.

    gradient → optimizer → what comes after the step → accumulation → log, validate, save

A run can be killed at any moment and continued; on a CPU the result is bit-equal to that of a run that never
stopped. For this the data must be a pure function of (epoch, index), and everything that learns or remembers
must be in the state dicts of the task, the optimizer, the schedule or the accumulation.
"""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any, Protocol, runtime_checkable

from torch import Tensor
from torch.optim import Optimizer
from torch.utils.data import Dataset

from tether._distributed import from_main, is_main, world_size
from tether.errors import TetherError
from tether.training.checkpoint import checkpoint_to_resume, load_checkpoint, save_checkpoint
from tether.training.config import FitConfig
from tether.training.failures import NonFiniteWatch, inseparable, memory_explained, non_finite, unconnected
from tether.training.gradients import Gradient, Gradients
from tether.training.interrupts import Interrupted, Interrupts
from tether.training.loading import load
from tether.training.optimizer_state import check_trains
from tether.training.plan import Plan, Step
from tether.training.progress import Pace, Progress
from tether.training.run_directory import RunDirectory
from tether.training.sampler import Order
from tether.training.state import RunState

_SKIPPED_AT_MOST = 10  # steps in a row: by then it is the weights, not the batch


@runtime_checkable
class Trainable(Protocol):
    """What can be trained. Two things more are used where a task has them:

    `begin_step(step, batch)` is called before every forward pass (adapters draw their drop masks there);
    `separable = True` says that the loss is a mean over examples, so that a batch may be taken in pieces.
    """

    def named_parameters(self) -> Any:
        """Trained parameters by name, as a dict or as pairs."""

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a batch and further scalars to log."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@runtime_checkable
class AfterStep(Protocol):
    """What is done after every step of the optimizer, such as `tether.optimizers.tpgm.RadiusLearner`.

    What it remembers must follow from the number of steps done, or be in the optimizer's state dict.
    """

    def __call__(self, done: int, *, last: bool) -> None:
        """Called when `done` steps are done, the last one of the run or not; not after a step that was skipped."""

    def identity(self) -> dict[str, Any]:
        """What must not change between the parts of a run, as JSON can hold it."""

    def close(self) -> None:
        """Called when training ends, in whatever way."""


@dataclasses.dataclass(frozen=True)
class FitResult:
    """What came of a run: steps, epochs and the last measurements (none if it was finished before)."""

    steps: int
    epochs: int
    metrics: dict[str, float]


def fit(
    task: Trainable,
    data: Dataset,
    optimizer: Optimizer,
    config: FitConfig,
    *,
    schedule: Any = None,
    accumulation: Any = None,
    order: Order | None = None,
    collate: Callable[[list[Any]], Any] | None = None,
    validate: Callable[[int, int], Mapping[str, float | int] | None] | None = None,
    after_step: AfterStep | None = None,
    run: RunDirectory | None = None,
    show_progress: bool = True,
) -> FitResult:
    """Train `task` on `data`; if `run` has a checkpoint, go on from there.

    Args:
        data: map-style; `data[(epoch, index)]` is a pure function (augmentation seeded by epoch and index).
            With a method `identity(index)`, errors name examples by it; `sampler="balanced"` needs a method
            `labels()`, the label of every example.
        schedule: sets learning rates, see `tether.optimizers.schedule.Schedule`.
        accumulation: `update()` after every optimizer step, and state dicts.
        order: examples of an epoch in order, see `tether.training.sampler`; that of `config.sampler` by default.
        validate: called with (epoch, step) after every epoch and at the end, in every process; its result is
            logged, unless it is None. It must leave weights and random streams as they are.
        after_step: what belongs to a step besides the optimizer's own, as for TPGM.
        run: where checkpoints and metrics go; without one nothing is written.

    Raises:
        TetherError: options do not fit the task, data or checkpoint; a loss or gradient is not finite; memory
            ran out; the last checkpoint could not be written.
        Interrupted: Ctrl-C or SIGTERM came. The step was finished and a checkpoint written. Uncaught, it ends
            the process with exit code 130 or 143.
    """
    parameters = dict(task.named_parameters())
    check_trains(optimizer, parameters)
    _check_fitting(task, optimizer, config, after_step)
    plan = Plan(data, config, order)
    identity = {**config.identity(), "examples": len(data), **(after_step.identity() if after_step else {})}
    state = RunState(task, optimizer, parameters, schedule, accumulation, identity, config.seed)
    state.start()
    start = _resume(state, run)
    device = state.device.type
    always_looks = (
        device == "cpu" or config.non_finite == "skip"
    )  # to look at a GPU's numbers is to wait for them
    pieces = partial(plan.pieces_from, start)
    batches = load(data, pieces, workers=config.workers, collate=collate, pin_memory=device == "cuda")
    gradients, watch, pace = Gradients(task, parameters, config), NonFiniteWatch(state.device), Pace()
    progress = Progress(start, plan.total, visible=show_progress and is_main())
    metrics: dict[str, float] = {}
    closing_hook = closing(after_step) if after_step else nullcontext()
    with Interrupts() as interrupts, progress, closing(batches), closing_hook:
        for step in plan.steps(start):
            looks = always_looks or step.logs or step.saves or step.ends_epoch
            with memory_explained(step.number):
                if schedule is not None:
                    schedule.set(step.number)
                gradient = gradients.compute(step.number, plan.pieces(step), batches, interrupts)
                watch.note(step.number, gradient.loss, gradient.norm)
                bad = watch.first() if looks else None
                if bad is None:
                    _take(step, gradient, state, after_step)
                elif config.non_finite == "stop" or state.skipped == _SKIPPED_AT_MOST:
                    raise non_finite(*bad, plan.batches, data, run)
                else:
                    _skip(step, gradient, state, watch, progress)
            pace.add(plan.examples(step))
            progress.advance(step.done)
            if step.logs:
                if not gradients.connected:
                    raise unconnected()
                metrics = _log_training(step, state, pace, run, progress) or metrics
            if validate is not None and (step.ends_epoch or step.ends_run):
                with pace.paused():
                    _log(run, "validation", step, validate(step.epoch, step.done))
            signal = _signal(interrupts, gradient, looks)
            if run is not None and (step.saves or signal):
                _save(state, run, step.done, config.keep, progress, must=bool(step.ends_run or signal))
            if signal:
                raise _interrupted(signal, step.done, plan.total, run, progress)
    return FitResult(plan.total, plan.epochs, metrics)


def _check_fitting(
    task: Trainable, optimizer: Optimizer, config: FitConfig, after_step: AfterStep | None
) -> None:
    if config.micro_batch is not None and not getattr(task, "separable", False):
        raise inseparable(config.micro_batch)
    needed = getattr(optimizer, "needs_after_step", None)
    if needed and after_step is None:
        raise TetherError(
            f"{type(optimizer).__name__} is not complete with its own step; give fit(after_step=…) {needed}."
        )


def _resume(state: RunState, run: RunDirectory | None) -> int:
    """Take up the newest whole checkpoint of the run; gives the steps that are done."""
    if run is None:
        return 0
    path = from_main(lambda: str(checkpoint_to_resume(run.checkpoints) or ""))
    done = state.restore(load_checkpoint(Path(path))) if path else 0
    run.rewind(done)
    return done


def _take(step: Step, gradient: Gradient, state: RunState, after_step: AfterStep | None) -> None:
    """Move the weights, and whatever follows them."""
    state.skipped = 0
    state.optimizer.step()
    if after_step is not None:
        after_step(step.done, last=step.ends_run)
    if state.accumulation is not None:
        state.accumulation.update()
    state.window.add({**gradient.values, "gradient_norm": gradient.norm})


def _skip(step: Step, gradient: Gradient, state: RunState, watch: NonFiniteWatch, progress: Progress) -> None:
    """Leave the weights as they are."""
    state.skipped += 1
    watch.forget()
    loss, norm = float(gradient.loss), float(gradient.norm)
    progress.say(f"Step {step.number} skipped: loss {loss}, gradient norm {norm}.")


def _log_training(
    step: Step, state: RunState, pace: Pace, run: RunDirectory | None, progress: Progress
) -> dict[str, float]:
    """The means since the last line; none where every step was skipped."""
    means = state.window.means()
    rate = pace.take()
    if not means:
        return {}
    learning_rate = state.optimizer.param_groups[0]["lr"]
    metrics = {**means, "learning_rate": learning_rate, "examples_per_second": rate}
    _log(run, "train", step, metrics)
    progress.report(step.done, step.epoch, metrics)
    return metrics


def _log(run: RunDirectory | None, kind: str, step: Step, values: Mapping[str, float | int] | None) -> None:
    if run is not None and values:
        run.log(kind, step.done, {"epoch": step.epoch + 1, **values})


def _signal(interrupts: Interrupts, gradient: Gradient, looks: bool) -> int | None:
    """The signal that stops the run after this step.

    Several processes stop after the same step, the one whose all-reduce carried the signal, where they look at it.
    """
    if world_size() == 1:
        return interrupts.received
    if not looks:
        return None
    interrupted, terminated = gradient.signals.tolist()
    return SIGINT if interrupted > 0 else SIGTERM if terminated > 0 else None


def _save(
    state: RunState, run: RunDirectory, done: int, keep: int, progress: Progress, *, must: bool
) -> None:
    """Write a checkpoint. If that fails in mid-run the run goes on with the last good one."""
    captured = state.capture(done)
    if not is_main():
        return
    run.sync()
    try:
        save_checkpoint(run.checkpoints, done, captured, keep=keep)
    except TetherError as error:
        if must:
            raise
        progress.say(f"{error} Training goes on.")


def _interrupted(
    signal: int, done: int, total: int, run: RunDirectory | None, progress: Progress
) -> Interrupted:
    name = "Ctrl-C" if signal == SIGINT else "SIGTERM"
    saved = (
        f"The checkpoint is written; the run in {run.path} can be continued."
        if run is not None
        else "Nothing was saved: there is no run directory."
    )
    message = f"Stopped by {name} after step {done} of {total}. {saved}"
    progress.say(message)
    return Interrupted(signal, message)
