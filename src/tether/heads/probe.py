"""LP-FT's first stage: the linear head alone, before everything moves from there.

Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution" (ICLR 2022, arXiv
2202.10054): a head that fits already gives small gradients, which distort the features less. The second stage is
ordinary fine-tuning with cross-entropy, as a rule at a tenth of the usual learning rate.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.data import Dataset

from tether import _distributed
from tether._files import read_tensors, write_tensors
from tether.data.dataset import ImageDataset
from tether.data.records import Split
from tether.errors import TetherError
from tether.evaluation.classification import batches_of
from tether.evaluation.classifier import evaluating
from tether.evaluation.metrics import once_by_index
from tether.evaluation.scoring import Progress
from tether.models.model import Model
from tether.objectives.cross_entropy import cross_entropy
from tether.optimizers.schedule import Schedule, ScheduleConfig
from tether.training import fit
from tether.training.config import FitConfig


@dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """The head alone first: AdamW with a cosine to 0 on features of the frozen model."""

    epochs: int = 5
    """Passes over the training pictures."""
    steps: int | None = None
    """Optimizer steps, instead of epochs."""
    lr: float = 1e-2
    """Learning rate at the start."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    batch_size: int = 256
    """Pictures per optimizer step."""
    augmented: bool = False
    """Encode augmented pictures in every epoch; otherwise each picture is encoded once, as in a test."""

    def __post_init__(self) -> None:
        if not 0 < self.lr < float("inf"):
            raise TetherError(f"probe.lr must be positive, found {self.lr}.")
        for name in ("epochs", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise TetherError(f"probe.{name} must be at least 1, found {value}.")


def no_head() -> TetherError:
    """Why a contrastive objective cannot begin with a linear probe."""
    return TetherError(
        "A probe trains a linear head, and a contrastive objective has none: its classifier is the text tower. Use "
        "objective.method=cross_entropy with it, or leave probe out."
    )


def train_probe(
    config: ProbeConfig,
    model: Model,
    data: ImageDataset,
    head: Float[Tensor, "classes dim"] | None,
    *,
    loss: Callable[..., Tensor] = cross_entropy,
    seed: int = 0,
    workers: int = 0,
    progress: Progress | None = None,
    show_progress: bool = True,
) -> Float[Tensor, "classes dim"]:
    """The head after training it alone with cross-entropy; neither the model nor `head` itself is changed.

    A pure function of its arguments: the same on every call, also for another number of processes up to rounding.

    Args:
        data: training pictures; their augmentation is used where the config asks for it.
        head: where it starts, as a rule the zero-shot classifier; logits are logit scale · features · headᵀ.
        loss: of features, head, labels and scale; the objective's.
        seed: of the order of the pictures.
        workers: processes that read pictures.
        progress: told how many pictures are encoded.
        show_progress: whether training shows its progress.

    Raises:
        TetherError: there is no head, or training fails.
    """
    if head is None:
        raise no_head()
    training = FitConfig(
        epochs=config.epochs if config.steps is None else None,
        steps=config.steps,
        batch_size=min(config.batch_size, len(data)),
        seed=seed,
        workers=workers if config.augmented else 0,
    )
    examples = data if config.augmented else _encoded(model, data.split, workers, progress)
    task = _Head(model, head, loss)
    optimizer = torch.optim.AdamW([task.head], lr=config.lr, weight_decay=config.weight_decay)
    steps = training.total_steps(len(data))
    schedule = Schedule.of(optimizer, ScheduleConfig(warmup=0), steps)
    with evaluating(model), torch.enable_grad():
        fit(task, examples, optimizer, training, schedule=schedule, show_progress=show_progress)
    return task.head.detach()


def probed_head(
    path: Path,
    config: ProbeConfig,
    model: Model,
    data: ImageDataset,
    head: Float[Tensor, "classes dim"] | None,
    **options: Any,
) -> Float[Tensor, "classes dim"]:
    """`train_probe` once: its head is kept in the safetensors file `path`, and read from there the next time.

    So a run that is continued does not encode its training pictures again.

    Args:
        options: of `train_probe`.

    Raises:
        TetherError: as `train_probe`, or the file cannot be read or written.
    """
    if not _distributed.from_main(path.is_file):
        trained = train_probe(config, model, data, head, **options)
        _distributed.from_main(lambda: write_tensors(path, {"weight": trained}))
    return read_tensors(path)["weight"].to(model.device)


class _Head:
    """What `fit` trains: a head on features that are given, or computed from pixels without gradients."""

    separable = True

    def __init__(self, model: Model, head: Tensor, loss: Callable[..., Tensor]) -> None:
        self.head = nn.Parameter(head.detach().clone())
        self._model, self._loss = model, loss

    def named_parameters(self) -> dict[str, nn.Parameter]:
        return {"head.weight": self.head}

    def loss(self, batch: dict[str, Any], step: int) -> tuple[Tensor, dict[str, Tensor]]:
        features = batch.get("features")
        if features is None:
            with torch.no_grad():
                features = self._model.encode_image(batch["pixels"])
        scale = self._model.head_scale
        loss = self._loss(features, self.head, batch["label"], scale)
        return loss, {"accuracy": (features @ self.head.T).argmax(1).eq(batch["label"]).float().mean()}

    def state_dict(self) -> dict[str, Tensor]:
        return {"head.weight": self.head.detach()}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.head.copy_(state["head.weight"])


class _Features(Dataset):
    """Features [n, dim] of pictures in place of the pictures."""

    def __init__(self, features: Tensor, split: Split) -> None:
        self._features, self._split = features, split

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, position: tuple[int, int]) -> dict[str, Any]:
        _, index = position
        return {"features": self._features[index], "label": self._split.examples[index].label, "index": index}


def _encoded(model: Model, split: Split, workers: int, progress: Progress | None) -> _Features:
    """Each picture through the frozen image tower, once and unaugmented; processes share the work."""
    if not len(split):
        raise TetherError("A probe needs training pictures, and there are none.")
    seen, parts, done = [], [], 0
    with evaluating(model):
        for pixels, index in batches_of(model, split, 64, workers):
            parts.append(model.encode_image(pixels).cpu())
            seen.append(index)
            done += len(index) * _distributed.world_size()
            if progress:
                progress("features for the probe", min(done, len(split)), len(split))
    index, features = (_distributed.gather(torch.cat(parts_of_process)) for parts_of_process in (seen, parts))
    return _Features(*once_by_index(index, len(split), features), split)
