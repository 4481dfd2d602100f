"""The objects in any picture, by what a run of detection or instances left: its adapter, its head, or both merged."""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from tether._alpha import Alpha
from tether.adapters.head import ModuleHead
from tether.evaluation.detections import Detections
from tether.models import Model
from tether.runs.module_heads import Size, WithHead, load_with_head
from tether.tasks.detection import ObjectTask

TASKS = ("detection", "instances")


class ObjectFinder(WithHead):
    """Finds objects in pictures.

        finder = load_finder("runs/detection-001")
        (found,) = finder([Image.open("street.png")])
        print(found.boxes, found.scores, [finder.class_names[label] for label in found.labels])

    Args:
        model: with what was trained of it.
        head: as it was saved.
        held: kept for as long as the finder is, such as what keeps an adapter at its alpha.

    Attributes:
        finds_masks: whether what is found has masks.

    Raises:
        TetherError: the head does not fit the model.
    """

    def __init__(self, model: Model, head: ModuleHead, *, held: object = None) -> None:
        super().__init__(model, head, held=held)
        self.detector = ObjectTask.make_head(model, head.options, seed=0).eval()
        self.detector.load_head_state_dict(head.state)
        self.finds_masks = self.detector.finds_masks

    def __call__(self, pictures: Sequence[Image.Image]) -> list[Detections]:
        """What is found in each picture, in its pixels, best first; also what is found with little certainty.

        Args:
            pictures: opened ones of any size.

        Raises:
            TetherError: a picture has no RGB form.
        """
        return self._answers(pictures)

    def _answer(self, pixels: Tensor, size: Size, content: Size) -> Detections:
        (found,) = self.detector.predict(pixels, [size], [content])
        return found.cpu()


def load_finder(
    source: str | Path,
    *,
    base: str | None = None,
    alpha: Alpha | None = None,
    device: torch.device | str = "cpu",
) -> ObjectFinder:
    """What a run of detection or instances left, ready for pictures.

    Args:
        source: a run, an adapter's folder, or a model that `tether merge` wrote.
        base: the model that was tuned, if it is not where the adapter says.
        alpha: in place of the one that the adapter was saved with.
        device: where it computes.

    Raises:
        TetherError: there is no head for objects, or a part of it is missing or damaged.
    """
    model, head, held = load_with_head(source, tasks=TASKS, base=base, alpha=alpha, device=device)
    return ObjectFinder(model, head, held=held)
