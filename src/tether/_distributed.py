"""What the processes of one run need of each other; with one process every function here is the identity.

Each process computes its own loss, and the run minimises the *mean of these losses over the processes*.
Gathered features and averaged gradients below are exact for that objective, whether the losses are equal
(computed from gathered features) or differ (each from its own share of the batch).
"""

import functools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Shaped
from torch import Tensor

from tether.errors import TetherError


def rank() -> int:
    """Number of this process, 0 ≤ rank < world size."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes that train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is the process that writes files and talks to the user."""
    return rank() == 0


@contextmanager
def joined(timeout: timedelta = timedelta(minutes=30)) -> Iterator[torch.device]:
    """Join the other processes that `torchrun` started, if it did, and give the device this one should use.

    Without torchrun's environment variables there is nothing to join: the device is the first GPU or the CPU.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield device
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=timeout)
    try:
        yield device
    finally:
        dist.destroy_process_group()


class _GatherWithGradient(torch.autograd.Function):
    """All-gather along the first dimension. Its adjoint is the reduce-scatter of the gathered gradients.

    The sum (not the mean) over the processes is right: it is world_size times the gradient of the *mean*
    loss, and the parameters' gradients are averaged afterwards, which divides by world_size again.
    """

    @staticmethod
    def forward(ctx: Any, local: Tensor, _participate: Tensor) -> Tensor:
        gathered = local.new_empty((world_size() * len(local), *local.shape[1:]))
        dist.all_gather_into_tensor(gathered, local.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        local = gradient.new_empty((len(gradient) // world_size(), *gradient.shape[1:]))
        dist.reduce_scatter_tensor(local, gradient.contiguous())
        return local, None


def gather_with_grad(local: Float[Tensor, "local ..."]) -> Float[Tensor, "global ..."]:
    """Rows of every process, in order of rank, differentiable; all processes must bring equally many rows.

    The backward pass is a collective as well, so every process takes part in it, also where nothing before
    `local` needs a gradient (all adapters dropped): one that stayed away would leave the others waiting.
    """
    if world_size() == 1:
        return local
    participate = torch.empty(0, requires_grad=torch.is_grad_enabled())
    return _GatherWithGradient.apply(local, participate)


def gather(local: Shaped[Tensor, "local ..."]) -> Shaped[Tensor, "global ..."]:
    """Rows of every process, in order of rank, without gradient; all must bring equally many rows."""
    if world_size() == 1:
        return local
    here = local.detach().to(_meeting_device(local.device)).contiguous()
    gathered = here.new_empty((world_size() * len(here), *here.shape[1:]))
    dist.all_gather_into_tensor(gathered, here)
    return gathered.to(local.device)


def average_gradients(
    parameters: Sequence[Tensor], extras: Float[Tensor, " extras"]
) -> Float[Tensor, " extras"]:
    """Replace every gradient by its mean over the processes, in one all-reduce; return the mean of `extras`.

    A missing gradient counts as zero, on one process as on many: an adapter that was dropped everywhere still
    takes its optimizer step with gradient zero, and one dropped on a single process makes nobody wait. So a tensor
    whose first real gradient comes late has its optimizer clock (bias corrections, first radii) started at step 0
    all the same.
    """
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    if world_size() == 1:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return extras
    dtype = functools.reduce(torch.promote_types, (p.dtype for p in parameters), torch.float32)
    flat = torch.cat([*(g.reshape(-1).to(dtype) for g in gradients), extras.to(dtype)])
    dist.all_reduce(flat)
    flat /= world_size()
    pieces = flat.split([*(p.numel() for p in parameters), len(extras)])
    for parameter, piece in zip(parameters, pieces[:-1], strict=True):
        parameter.grad = piece.view_as(parameter).to(parameter.dtype)
    return pieces[-1].to(extras.dtype)


def average(values: Float[Tensor, " values"]) -> Float[Tensor, " values"]:
    """Mean over the processes, element by element."""
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / world_size()


def from_main(compute: Callable[[], Any]) -> Any:
    """Run `compute` on the first process only and give its result (anything JSON can hold) to all.

    Raises:
        TetherError: on every process, when `compute` raised one on the first.
    """
    if world_size() == 1:
        return compute()
    message = ""
    if is_main():
        try:
            message = json.dumps({"value": compute()})
        except TetherError as error:
            message = json.dumps({"error": str(error)})
    answer = json.loads(_broadcast(message))
    if "error" in answer:
        raise TetherError(answer["error"])
    return answer["value"]


def _broadcast(text: str) -> str:
    device = _meeting_device(torch.device("cpu"))
    data = torch.tensor(list(text.encode()), dtype=torch.uint8, device=device)
    length = torch.tensor([len(data)], device=device)
    dist.broadcast(length, src=0)
    data = data if is_main() else torch.empty(int(length), dtype=torch.uint8, device=device)
    dist.broadcast(data, src=0)
    return bytes(data.tolist()).decode()


def _meeting_device(wanted: torch.device) -> torch.device:
    """`wanted` if the process group can talk there, else the GPU (a group that knows NCCL only)."""
    if wanted.type == "cpu" and "cpu" not in dist.get_backend_config():
        return torch.device("cuda", torch.cuda.current_device())
    return wanted
