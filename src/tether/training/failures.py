"""What goes wrong in a step: noticed, and said such that something can be done about it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tether._distributed import is_main
from tether._files import write_json
from tether.errors import TetherError, is_out_of_memory
from tether.training.run_directory import RunDirectory
from tether.training.sampler import Batches


def inseparable(micro_batch: int) -> TetherError:
    """Gradient accumulation was asked for with a loss that does not allow it."""
    return TetherError(
        f"micro_batch={micro_batch} would change the result: this task's loss, or a regularizer added to it, "
        f"looks at the examples of a batch together, so it is not the mean of the losses of its pieces. Leave "
        f"micro_batch out, or use a smaller batch_size (or more processes)."
    )


def unconnected() -> TetherError:
    """No step so far had a gradient."""
    return TetherError(
        "The loss does not depend on any trained parameter. Is the adapter attached to the model that computes "
        "the loss?"
    )


@contextmanager
def memory_explained(step: int) -> Iterator[None]:
    """Within this context, memory that runs out is a `TetherError` that says what helps."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TetherError(
            f"Memory ran out in step {step}. Use a smaller batch_size, more processes, precision='bf16', or a "
            f"smaller micro_batch where the task allows one; the run's last checkpoint is intact. "
            f"({str(error).splitlines()[0] if str(error) else 'MemoryError'})"
        ) from error


class NonFiniteWatch:
    """Remembers, on the device, the first step whose loss or gradient norm is NaN or infinite."""

    def __init__(self, device: torch.device) -> None:
        self._step = torch.tensor(-1, device=device)  # none so far
        self._numbers = torch.zeros(2, device=device)

    def note(self, step: int, loss: Float[Tensor, ""], norm: Float[Tensor, ""]) -> None:
        """Take up a step; a GPU is not waited for."""
        first = ~(torch.isfinite(norm) & torch.isfinite(loss)) & (self._step < 0)
        numbers = torch.stack([loss.to(self._numbers), norm.to(self._numbers)])
        self._step = torch.where(first, torch.full_like(self._step, step), self._step)
        self._numbers = torch.where(first, numbers, self._numbers)

    def first(self) -> tuple[int, float, float] | None:
        """That step, its loss and its gradient norm; None if there is none. A GPU is waited for."""
        step = int(self._step)
        return None if step < 0 else (step, *self._numbers.tolist())

    def forget(self) -> None:
        """Begin anew."""
        self._step = torch.full_like(self._step, -1)


def non_finite(
    step: int, loss: float, norm: float, batches: Batches, data: Any, run: RunDirectory | None
) -> TetherError:
    """A loss or gradient is NaN or infinite; lists the examples of the step in the run's directory."""
    epoch, examples = batches.batch(step)
    identity = getattr(data, "identity", str)
    names = [str(identity(int(index))) for index in examples]
    where = ""
    if run is not None:
        path = run.path / f"non-finite-step-{step}.json"
        if is_main():
            write_json(path, {"epoch": epoch + 1, "examples": names})
        where = f" All are listed in {path}; the last checkpoint is intact."
    what, cure = ("gradient", "set clip_norm") if math.isfinite(loss) else ("loss", "lengthen the warm-up")
    return TetherError(
        f"The {what} of step {step} (epoch {epoch + 1}) is not finite: loss {loss}, gradient norm {norm}. Its "
        f"examples: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}.{where} Look at them, "
        f"lower the learning rate, {cure}, or use non_finite='skip'."
    )
