"""A model with the head of several layers that a run left: from the run, its adapter, or both merged."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tether._alpha import Alpha
from tether._files import read_json
from tether.adapters.files import apply, load_adapter
from tether.adapters.head import HEAD_FILE, ModuleHead, read_head
from tether.data.dense_transforms import dense_test_transform
from tether.data.reading import as_rgb
from tether.data.targets import DenseTarget
from tether.errors import TetherError
from tether.evaluation.classifier import evaluating
from tether.models import Model, load
from tether.runs.export import adapter_folder, base_of
from tether.runs.outcome import Base

Size = tuple[int, int]
"""Height and width."""


class WithHead(ABC):
    """A model and its head, which answer for pictures of any size.

    Args:
        model: with what was trained of it.
        head: as it was saved.
        held: kept for as long as this is, such as what keeps an adapter at its alpha.
    """

    def __init__(self, model: Model, head: ModuleHead, *, held: object = None) -> None:
        self.model, self.class_names, self._fit = model, tuple(head.class_names), head.fit
        self._held = held

    @abstractmethod
    def _answer(self, pixels: Tensor, size: Size, content: Size) -> Any:
        """For one picture, as a batch; its size, and what it fills of the input."""

    def _answers(self, pictures: Sequence[Image.Image]) -> list[Any]:
        """For each picture, in evaluation mode and without gradients.

        Raises:
            TetherError: a picture has no RGB form.
        """
        transform = dense_test_transform(self.model.image, fit=self._fit)
        answers = []
        with evaluating(self.model):
            for picture in map(as_rgb, pictures):
                item = transform(picture, DenseTarget())
                pixels = item["pixels"][None].to(self.model.device)
                answers.append(self._answer(pixels, (picture.height, picture.width), item["content"]))
        return answers


def load_with_head(
    source: str | Path,
    *,
    tasks: tuple[str, ...],
    base: str | None = None,
    alpha: Alpha | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Model, ModuleHead, object]:
    """The model with what was trained of it, its head, and what to hold for as long as it is used.

    Args:
        source: a run, an adapter's folder, or a model that `tether merge` wrote.
        tasks: methods of the tasks that the head may be for.
        base: the model that was tuned, if it is not where the adapter says.
        alpha: in place of the one that the adapter was saved with.
        device: where it computes.

    Raises:
        TetherError: there is no head for such a task, or a part of it is missing or damaged.
    """
    path = Path(source)
    folder = adapter_folder(path)
    if folder is None:
        if not (path / HEAD_FILE).is_file():
            raise TetherError(
                f"There is no head in {path}: give a run of task.method={' or '.join(tasks)}, its adapter's folder, or "
                "what `tether merge` made of it."
            )
        recorded = read_json(path / "base.json", Base).model if (path / "base.json").is_file() else str(path)
        head = _for_task(read_head(path / HEAD_FILE), tasks, path)
        return load(base or recorded, device=device), head, None
    saved = load_adapter(folder)
    head = _for_task(saved.head, tasks, folder)
    model = load(base or base_of(saved, folder), device=device)
    held = ExitStack()  # closing it would give the adapter back its own alpha
    held.enter_context(apply(model, saved).path()).set(saved.alpha if alpha is None else alpha)
    return model, head, held


def _for_task(head: object, tasks: tuple[str, ...], path: Path) -> ModuleHead:
    if not isinstance(head, ModuleHead):
        raise TetherError(f"{path} has no head for {' or '.join(tasks)}, but {type(head).__name__}.")
    if head.task not in tasks:
        raise TetherError(f"The head in {path} is for {head.task}, and this is for {' or '.join(tasks)}.")
    return head
