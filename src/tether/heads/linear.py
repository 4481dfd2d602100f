"""A linear head that is trained with or without an adapter: its way from the zero-shot classifier, and its file."""

from pathlib import Path

from torch import Tensor

from tether._files import read_tensors, write_tensors
from tether.errors import TetherError

HEAD_FILE = "head.safetensors"


def head_at(head: Tensor, zero_shot: Tensor, alpha: float) -> Tensor:
    """The linear head on the way from the zero-shot classifier to the trained one."""
    return zero_shot + alpha * (head - zero_shot)


def save_head(path: Path, head: Tensor, zero_shot: Tensor) -> None:
    """Keep a trained head and the zero-shot classifier that it began as, both [classes, dim]."""
    write_tensors(path, {"weight": head, "zero_shot": zero_shot})


def read_head(path: Path) -> tuple[Tensor, Tensor]:
    """A trained head and the zero-shot classifier that it began as, as `save_head` keeps them.

    Raises:
        TetherError: the file is missing, not whole or another one.
    """
    tensors = read_tensors(path)
    head, zero_shot = tensors.get("weight"), tensors.get("zero_shot")
    if head is None or zero_shot is None or head.ndim != 2 or head.shape != zero_shot.shape:
        found = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in list(tensors.items())[:4])
        raise TetherError(
            f"{path} is no {HEAD_FILE} of a run: expected weight and zero_shot, both [classes, dim]; found "
            f"{found or 'nothing'}."
        )
    return head, zero_shot


def head_of(adapter: Path) -> Path:
    """The file of the head that was trained with an adapter: beside its folder, as in a run, or in it.

    Raises:
        TetherError: there is none.
    """
    for path in (adapter / HEAD_FILE, adapter.absolute().parent / HEAD_FILE):
        if path.is_file():
            return path
    raise TetherError(
        f"{adapter} was trained with a linear head, but there is no {HEAD_FILE} in it or beside it. Copy the whole "
        f"run, or put that file into {adapter}."
    )
