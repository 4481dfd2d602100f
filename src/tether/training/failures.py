"""What went wrong in a step, said such that something can be done about it."""

import math
from typing import Any

from tether._distributed import is_main
from tether._files import write_json
from tether.errors import TetherError
from tether.training.run_directory import RunDirectory
from tether.training.sampler import Batches


def inseparable(micro_batch: int) -> TetherError:
    """Gradient accumulation was asked for with a loss that does not allow it."""
    return TetherError(
        f"micro_batch={micro_batch} would change the result: this task's loss, or a regularizer added to it, "
        f"looks at the examples of a batch together, so it is not the mean of the losses of its pieces. Leave "
        f"micro_batch out, or use a smaller batch_size (or more processes)."
    )


def out_of_memory(step: int, error: RuntimeError | MemoryError) -> TetherError:
    """A step did not fit into memory."""
    return TetherError(
        f"Memory ran out in step {step}. Use a smaller batch_size, more processes, precision='bf16', or a "
        f"smaller micro_batch where the task allows one; the run's last checkpoint is intact. "
        f"({str(error).splitlines()[0] if str(error) else 'MemoryError'})"
    )


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
