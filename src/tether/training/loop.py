"""The training loop: one for pre-training, fine-tuning and every task.

    batch → loss → backward → average over processes → clip → optimizer (→ radii) → accumulation → log, validate, save

A run can be killed at any moment and continued; on a CPU the result is bit-equal to that of a run that never
stopped. For this the data must be a pure function of (epoch, index), and everything that learns or remembers
must be in the state dicts of the task, the optimizer, the schedule or the accumulation.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.utils.data import Dataset

from tether._distributed import average_gradients, from_main, is_main, rank, world_size
from tether.errors import TetherError, is_out_of_memory
from tether.training.checkpoint import checkpoint_to_resume, load_checkpoint, save_checkpoint
from tether.training.config import FitConfig
from tether.training.failures import inseparable, non_finite, out_of_memory
from tether.training.interrupts import Interrupted, Interrupts
from tether.training.loading import Key, load, parts, to_device
from tether.training.optimizer_state import check_trains
from tether.training.progress import Progress
from tether.training.radii import Radii, RadiiConfig
from tether.training.run_directory import RunDirectory
from tether.training.sampler import Batches, Order, shuffled
from tether.training.state import RunState

_SKIPPED_AT_MOST = 10  # steps in a row: by then it is the weights, not the batch


@runtime_checkable
class Trainable(Protocol):
    """What can be trained. Three things more are used where a task has them:

    `begin_step(step, batch)` is called before every forward pass (adapters draw their drop masks there);
    `separable = True` says that the loss is a mean over examples, so that a batch may be taken in pieces;
    `held_out_loss(batch, step)` is the loss in evaluation mode, without any drop, on which TPGM learns its radii.
    """

    def named_parameters(self) -> Any:
        """Trained parameters by name, as a dict or as pairs."""

    def loss(self, batch: Any, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The loss of a batch and further scalars to log."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


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
    held_out: Dataset | None = None,
    radii: RadiiConfig | None = None,
    run: RunDirectory | None = None,
    show_progress: bool = True,
) -> FitResult:
    """Train `task` on `data`; if `run` has a checkpoint, go on from there.

    Args:
        data: map-style; `data[(epoch, index)]` is a pure function (augmentation seeded by epoch and index).
            With a method `identity(index)`, errors name examples by it.
        schedule: sets learning rates, see `tether.optimizers.schedule.Schedule`.
        accumulation: `update()` after every optimizer step, and state dicts.
        order: examples of an epoch in order, see `tether.training.sampler`; shuffled by default.
        validate: called with (epoch, step) after every epoch and at the end, in every process; its result is
            logged, unless it is None. It must leave weights and random streams as they are.
        held_out: what TPGM learns its radii on, map-style as `data` and collated alike: examples that are
            neither trained on nor reported.
        radii: when it does so; after every step if not given.
        run: where checkpoints and metrics go; without one nothing is written.

    Raises:
        TetherError: options do not fit the task, data or checkpoint; a loss or gradient is not finite; memory
            ran out; the last checkpoint could not be written.
        Interrupted: Ctrl-C or SIGTERM came. The step was finished and a checkpoint written. Uncaught, it ends
            the process with exit code 130 or 143.
    """
    parameters = dict(task.named_parameters())
    check_trains(optimizer, parameters)
    if config.micro_batch is not None and not getattr(task, "separable", False):
        raise inseparable(config.micro_batch)
    device = next(iter(parameters.values())).device
    count, processes = len(data), world_size()
    order = order or partial(shuffled, count, config.seed)
    batches = Batches(order, count, config.batch_size, drop_last=config.drop_last)
    batches.check_shares(processes)
    total = config.total_steps(count)
    log_every = config.log_interval(total)
    learner = Radii(task, optimizer, list(parameters.values()), held_out, radii, config, collate)
    fixed = {n: v for n, v in dataclasses.asdict(config).items() if n not in FitConfig.MAY_CHANGE}
    identity = {**fixed, "examples": count, **learner.identity()}
    state = RunState(task, optimizer, parameters, schedule, accumulation, identity, config.seed, device)
    state.start()
    start = _resume(state, run)

    def pieces(step: int) -> list[list[Key]]:
        epoch, share = batches.share(step, rank(), processes)
        return parts(share, epoch, config.micro_batch)

    def plan(skip: int) -> Iterator[list[Key]]:
        return islice((piece for step in range(start, total) for piece in pieces(step)), skip, None)

    loader = load(data, plan, workers=config.workers, collate=collate, pin_memory=device.type == "cuda")
    progress = Progress(start, total, visible=show_progress and is_main())
    watches = device.type == "cpu" or config.non_finite == "skip"  # to read a GPU's value is to wait for it
    no_bad = torch.tensor([-1.0, 0.0, 0.0], device=device)
    first_bad = no_bad  # step, loss and gradient norm where they first were not finite
    metrics: dict[str, float] = {}
    connected, seen, since = False, 0, time.monotonic()
    with Interrupts() as interrupts, progress, closing(loader), closing(learner):
        for step in range(start, total):
            done, epoch = step + 1, step // batches.per_epoch
            epoch_ends, ends = done % batches.per_epoch == 0, done == total
            logs = ends or done % log_every == 0
            every = config.checkpoint_every or batches.per_epoch
            saves = run is not None and (ends or done % every == 0)
            looks = watches or logs or saves or epoch_ends

            if schedule is not None:
                schedule.set(step)
            optimizer.zero_grad(set_to_none=True)
            try:
                values, has_gradient = _forward_backward(task, loader, pieces(step), step, config, device)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                raise out_of_memory(step, error) from error
            connected |= has_gradient
            seen += len(batches.batch(step)[1])

            signals = [float(interrupts.received == number) for number in (SIGINT, SIGTERM)]
            extras = torch.cat([values["loss"].float()[None], torch.tensor(signals, device=device)])
            extras = average_gradients(list(parameters.values()), extras)
            norm = get_total_norm([parameter.grad for parameter in parameters.values()])
            if config.clip_norm is not None:
                clip_grads_with_norm_(parameters.values(), config.clip_norm, norm)

            is_bad = ~(torch.isfinite(norm) & torch.isfinite(extras[0]))
            now = torch.stack([torch.full_like(no_bad[0], step), extras[0].to(no_bad), norm.to(no_bad)])
            first_bad = torch.where(is_bad & (first_bad[0] < 0), now, first_bad)
            bad_step, *bad_values = first_bad.tolist() if looks else (-1, 0, 0)
            if bad_step >= 0:
                if config.non_finite == "stop" or state.skipped == _SKIPPED_AT_MOST:
                    raise non_finite(int(bad_step), *bad_values, batches, data, run)
                state.skipped += 1
                first_bad = no_bad
                progress.say(f"Step {step} skipped: loss {float(extras[0])}, gradient norm {float(norm)}.")
            else:
                state.skipped = 0
                optimizer.step()
                learner.after_step(done, ends=ends, looks=looks)
                if accumulation is not None:
                    accumulation.update()
                state.window.add({**values, "gradient_norm": norm})

            progress.advance(done)
            if logs:
                if not connected:
                    raise TetherError(
                        "The loss does not depend on any trained parameter. Is the adapter attached to the "
                        "model that computes the loss?"
                    )
                means = state.window.means()
                if means:  # not where every step was skipped
                    rate = seen / max(time.monotonic() - since, 1e-9)
                    learning_rate = optimizer.param_groups[0]["lr"]
                    metrics = {**means, "learning_rate": learning_rate, "examples_per_second": rate}
                    _log(run, "train", done, {"epoch": epoch + 1, **metrics})
                    progress.report(done, epoch, metrics)
                seen, since = 0, time.monotonic()
            if (epoch_ends or ends) and validate is not None:
                started = time.monotonic()
                if measured := validate(epoch, done):
                    _log(run, "validation", done, {"epoch": epoch + 1, **measured})
                since += time.monotonic() - started

            signal = interrupts.received or 0
            if processes > 1:  # all stop after the same step, the one whose all-reduce carried the signal
                signal = (SIGINT if extras[1] > 0 else SIGTERM if extras[2] > 0 else 0) if looks else 0
            if run is not None and (saves or signal):
                _save(state, run, done, config.keep, progress, must=bool(ends or signal))
            if signal:
                raise _interrupted(signal, done, total, run, progress)
    return FitResult(total, total // batches.per_epoch, metrics)


def _forward_backward(
    task: Trainable,
    loader: Iterator[Any],
    pieces: list[list[Key]],
    step: int,
    config: FitConfig,
    device: torch.device,
) -> tuple[dict[str, Tensor], bool]:
    """Gradients of a step's loss, piece by piece; the measurements, and whether there is any gradient."""
    begin_step = getattr(task, "begin_step", None)
    examples = sum(map(len, pieces))
    sums: dict[str, Tensor] = {}
    has_gradient = False
    for piece in pieces:
        batch = to_device(next(loader), device)
        weight = len(piece) / examples
        if begin_step is not None:
            begin_step(step, batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            loss, scalars = task.loss(batch, step)
        if loss.requires_grad:  # not where every adapter is dropped
            (loss * weight).backward()
            has_gradient = True
        for name, value in {"loss": loss, **scalars}.items():
            part = value.detach() * weight
            sums[name] = sums[name] + part if name in sums else part
    return sums, has_gradient


def _resume(state: RunState, run: RunDirectory | None) -> int:
    """Take up the newest whole checkpoint of the run; gives the steps that are done."""
    if run is None:
        return 0
    path = from_main(lambda: str(checkpoint_to_resume(run.checkpoints) or ""))
    done = state.restore(load_checkpoint(Path(path))) if path else 0
    run.rewind(done)
    return done


def _log(run: RunDirectory | None, kind: str, done: int, values: Mapping[str, float | int]) -> None:
    if run is not None:
        run.log(kind, done, values)


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
    kept = (
        f"The checkpoint is written; the run in {run.path} can be continued."
        if run is not None
        else "Nothing was saved: there is no run directory."
    )
    message = f"Stopped by {name} after step {done} of {total}. {kept}"
    progress.say(message)
    return Interrupted(signal, message)
