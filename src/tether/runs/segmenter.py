"""A class for every pixel of any picture, by what a run of segmentation left: its adapter, its head, or both merged."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from PIL import Image
from torch import Tensor

from tether._alpha import Alpha
from tether.adapters.head import ModuleHead
from tether.errors import TetherError
from tether.heads.segmentation import SegmentationHead, classes_of_pixels
from tether.models import Model
from tether.runs.module_heads import Size, WithHead, load_with_head


class Segmenter(WithHead):
    """Tells the pixels of pictures apart.

        segmenter = load_segmenter("runs/segmentation-001")
        (labels,) = segmenter([Image.open("street.png")])       # [h, w], numbers of segmenter.class_names

    Args:
        model: with what was trained of it.
        head: as it was saved.
        held: kept for as long as the segmenter is, such as what keeps an adapter at its alpha.

    Raises:
        TetherError: the head is not the one that its options describe.
    """

    def __init__(self, model: Model, head: ModuleHead, *, held: object = None) -> None:
        super().__init__(model, head, held=held)
        self.head = SegmentationHead(**head.options).eval()
        try:
            self.head.load_state_dict(dict(head.state))
        except RuntimeError as error:
            raise TetherError(f"The head is not the one that its options describe: {error}") from error
        self.head.to(model.device)

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Int[np.ndarray, "_ _"]]:
        """The class of every pixel of each picture.

        Args:
            pictures: opened ones of any size.

        Raises:
            TetherError: a picture has no RGB form.
        """
        return self._answers(pictures)

    def _answer(self, pixels: Tensor, size: Size, content: Size) -> Int[np.ndarray, "h w"]:
        (logits,) = self.head(self.model.feature_maps(pixels))
        return classes_of_pixels(logits, tuple(pixels.shape[2:]), content, size).cpu().numpy()


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
    model, head, held = load_with_head(source, tasks=("segmentation",), base=base, alpha=alpha, device=device)
    return Segmenter(model, head, held=held)
