"""A class for every pixel of any picture, by what a run of segmentation left: its adapter, its head, or both merged."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image

from tether._alpha import Alpha
from tether._files import read_json
from tether.adapters.files import apply, load_adapter
from tether.adapters.head import HEAD_FILE, ModuleHead, read_head
from tether.data.dense_transforms import dense_test_transform
from tether.data.reading import as_rgb
from tether.data.targets import DenseTarget
from tether.errors import TetherError
from tether.evaluation.classifier import evaluating
from tether.heads.segmentation import SegmentationHead, classes_of_pixels
from tether.models import Model, load
from tether.runs.export import adapter_folder, base_of
from tether.runs.outcome import Base


class Segmenter:
    """Tells the pixels of pictures apart.

        segmenter = load_segmenter("runs/segmentation-001")
        (labels,) = segmenter([Image.open("street.png")])       # [h, w], numbers of segmenter.class_names

    Args:
        model: with what was trained of it.
        head: as it was saved.
        held: kept for as long as the segmenter is, such as what keeps an adapter at its alpha.

    Raises:
        TetherError: the head is for another task, or does not fit the model.
    """

    def __init__(self, model: Model, head: ModuleHead, *, held: object = None) -> None:
        if head.task != "segmentation":
            raise TetherError(f"The head is for {head.task}, and this is for segmentation.")
        self.model, self.class_names, self._fit = model, tuple(head.class_names), head.fit
        self._held = held
        self.head = SegmentationHead(**head.options).eval()
        try:
            self.head.load_state_dict(dict(head.state))
        except RuntimeError as error:
            raise TetherError(f"The head is not the one that its options describe: {error}") from error
        self.head.to(model.device)

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Image.Image]) -> list[Int[np.ndarray, "_ _"]]:
        """The class of every pixel of each picture.

        Args:
            pictures: opened ones of any size.

        Raises:
            TetherError: a picture has no RGB form.
        """
        transform = dense_test_transform(self.model.image, fit=self._fit)
        answers = []
        with evaluating(self.model):
            for picture in map(as_rgb, pictures):
                item = transform(picture, DenseTarget())
                logits = self.head(self.model.feature_maps(item["pixels"][None]))[0]
                sizes = (tuple(item["pixels"].shape[1:]), item["content"], (picture.height, picture.width))
                answers.append(classes_of_pixels(logits, *sizes).cpu().numpy())
        return answers


def load_segmenter(
    source: str | Path,
    *,
    base: str | None = None,
    alpha: Alpha | None = None,
    device: torch.device | str = "cpu",
) -> Segmenter:
    """What a run of segmentation left, ready for pictures.

    Args:
        source: a run, an adapter's folder, or a model that `tether merge` wrote.
        base: the model that was tuned, if it is not where the adapter says.
        alpha: in place of the one that the adapter was saved with.
        device: where it computes.

    Raises:
        TetherError: there is no head for segmentation, or a part of it is missing or damaged.
    """
    path = Path(source)
    folder = adapter_folder(path)
    if folder is None:
        if not (path / HEAD_FILE).is_file():
            raise TetherError(
                f"There is no head in {path}: give a run of task.method=segmentation, its adapter's folder, or what "
                "`tether merge` made of it."
            )
        recorded = read_json(path / "base.json", Base).model if (path / "base.json").is_file() else str(path)
        return Segmenter(load(base or recorded, device=device), _module(read_head(path / HEAD_FILE), path))
    saved = load_adapter(folder)
    model = load(base or base_of(saved, folder), device=device)
    head = _module(saved.head, folder)
    held = ExitStack()  # closing it would give the adapter back its own alpha
    held.enter_context(apply(model, saved).path()).set(saved.alpha if alpha is None else alpha)
    return Segmenter(model, head, held=held)


def _module(head: object, path: Path) -> ModuleHead:
    if not isinstance(head, ModuleHead):
        raise TetherError(f"{path} has no head for segmentation, but {type(head).__name__}.")
    return head
