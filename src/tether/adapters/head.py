"""A head that is trained with or without an adapter, and its file: a linear one on its way from the zero-shot
classifier, or a module of many tensors, which has no such beginning and is the same at every alpha.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tether._files import read_json, read_tensors, write_json, write_tensors
from tether.config import build
from tether.errors import TetherError

HEAD_FILE = "head.safetensors"


@dataclass(frozen=True)
class Head:
    """A trained linear head and the zero-shot classifier that it began as.

    Args:
        weight: the trained head [classes, dim].
        zero_shot: what it began as, of the same shape.
    """

    weight: Float[Tensor, "classes dim"]
    zero_shot: Float[Tensor, "classes dim"]

    def at(self, alpha: float) -> Float[Tensor, "classes dim"]:
        """The head on the way from the zero-shot classifier (0) to the trained one (1)."""
        return head_at(self.weight, self.zero_shot, alpha)

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, as they are named in files."""
        return {"weight": self.weight, "zero_shot": self.zero_shot}


@dataclass(frozen=True)
class ModuleHead:
    """A trained head of several layers.

    Args:
        task: the method of the task that it answers for, such as "segmentation".
        options: by which that task makes the module again, as plain data.
        state: its tensors by name.
        class_names: of what it tells apart, in the order of its answers.
        fit: how pictures are brought to the model's size, "pad" or "squash".
    """

    task: str
    options: Mapping[str, Any]
    state: Mapping[str, Tensor] = field(repr=False)
    class_names: Sequence[str]
    fit: str

    def at(self, alpha: float) -> "ModuleHead":
        """Itself: it began at random, and there is nothing to go back to."""
        return self

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors, as they are named in files."""
        return dict(self.state)

    def described(self) -> dict[str, Any]:
        """What stands beside the tensors."""
        return {
            "task": self.task,
            "options": dict(self.options),
            "class_names": list(self.class_names),
            "fit": self.fit,
        }


def head_at(head: Tensor, zero_shot: Tensor, alpha: float) -> Tensor:
    """The linear head on the way from the zero-shot classifier to the trained one."""
    return zero_shot + alpha * (head - zero_shot)


def mean_head(heads: Sequence[Head | ModuleHead]) -> Head:
    """The mean of trained heads that began as one zero-shot classifier.

    Raises:
        TetherError: they began as different ones, or at random.
    """
    zero_shot = _shared_start(heads)
    return Head(torch.stack([head.weight for head in heads]).mean(0), zero_shot)


def combined_head(heads: Sequence[Head | ModuleHead], weights: Sequence[float]) -> Head:
    """The weighted sum of what training added to the one zero-shot classifier that all heads began as.

    Raises:
        TetherError: they began as different ones, or at random.
    """
    zero_shot = _shared_start(heads)
    steps = [weight * (head.weight - zero_shot) for head, weight in zip(heads, weights, strict=True)]
    return Head(zero_shot + torch.stack(steps).sum(0), zero_shot)


def _shared_start(heads: Sequence[Head | ModuleHead]) -> Tensor:
    if tasks := [head.task for head in heads if isinstance(head, ModuleHead)]:
        raise TetherError(
            f"Heads of several layers, here for {tasks[0]}, began at random, each elsewhere, and have no mean and no "
            f"sum. Use one of these adapters, or train a head on the mean of merged models."
        )
    first = heads[0].zero_shot
    for number, head in enumerate(heads[1:], start=2):
        # On another machine a classifier differs by rounding; other classes or prompts differ by far more.
        if head.zero_shot.shape != first.shape or not torch.allclose(
            head.zero_shot, first, rtol=0, atol=1e-3
        ):
            raise TetherError(
                f"The heads of the first adapter and of number {number} began as different zero-shot classifiers: they "
                f"are of other classes, in another order, or of other prompts, and cannot be combined."
            )
    return first


def save_head(path: Path, head: Head | ModuleHead) -> None:
    """Keep a head that was trained without an adapter; one that was trained with it is in the adapter's folder.

    What a module is made by stands in a JSON file beside its tensors.
    """
    write_tensors(path, head.tensors())
    if isinstance(head, ModuleHead):
        write_json(described_at(path), head.described())


def read_head(path: Path) -> Head | ModuleHead:
    """A trained head, as `save_head` keeps it.

    Raises:
        TetherError: a file is missing, not whole or another one.
    """
    tensors = read_tensors(path)
    described = read_json(described_at(path), dict) if described_at(path).is_file() else {}
    return module_head_of(tensors, described, path) if "task" in described else head_of(tensors, path)


def described_at(path: Path) -> Path:
    """Where it stands what a head is made by, of the file of its tensors."""
    return path.with_suffix(".json")


def module_head_of(tensors: Mapping[str, Tensor], described: Mapping[str, Any], path: Path) -> ModuleHead:
    """The head that a file's tensors are, by what stands beside them.

    Raises:
        TetherError: that is not whole.
    """
    entries = {"task": str, "options": dict, "class_names": tuple[str, ...], "fit": str}
    if missing := [name for name in entries if name not in described]:
        raise TetherError(
            f"The head in {path} does not say by what it is made: {', '.join(missing)} are missing."
        )
    parts = {name: build(kind, described[name], f"{path}: {name}") for name, kind in entries.items()}
    return ModuleHead(state=tensors, **parts)


def head_of(tensors: Mapping[str, Tensor], path: Path) -> Head:
    """The head that a file's tensors are.

    Raises:
        TetherError: they are no head's.
    """
    weight, zero_shot = tensors.get("weight"), tensors.get("zero_shot")
    if weight is None or zero_shot is None or weight.ndim != 2 or weight.shape != zero_shot.shape:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in list(tensors.items())[:4])
        raise TetherError(
            f"{path} is no {HEAD_FILE}: expected weight and zero_shot, both [classes, dim]; found "
            f"{shapes or 'nothing'}."
        )
    return Head(weight, zero_shot)


def earlier_head(adapter: Path, extra: Mapping[str, Any]) -> Path | None:
    """Where earlier versions put the head of an adapter: into its folder unlisted, or beside it; None where they put
    none, or it was not copied.

    Args:
        adapter: the adapter's folder.
        extra: of its description: `head` says that one was trained, `ensemble` that a run's weights were averaged.
    """
    beside = adapter.absolute().parent / HEAD_FILE
    files: tuple[Path, ...] = ()
    if extra.get("head"):
        files = (adapter / HEAD_FILE, beside)
    elif extra.get("ensemble") == "fisher" and beside.is_file():
        files = (adapter / "classifier.safetensors",)
    return next((file for file in files if file.is_file()), None)
