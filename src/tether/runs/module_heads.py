"""A model with the head of several layers that a run left: from the run, its adapter, or both merged."""

from contextlib import ExitStack
from pathlib import Path

import torch

from tether._alpha import Alpha
from tether._files import read_json
from tether.adapters.files import apply, load_adapter
from tether.adapters.head import HEAD_FILE, ModuleHead, read_head
from tether.errors import TetherError
from tether.models import Model, load
from tether.runs.export import adapter_folder, base_of
from tether.runs.outcome import Base


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
