"""What a detector finds in a picture."""

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Detections:
    """The n objects that a detector found in one picture.

    Args:
        boxes: left, top, right, bottom in pixels of the picture; continuous, as in `tether.data.targets`.
        labels: index of each object's class.
        scores: how sure the detector is, greater is surer.
        masks: the objects' pixels, of the picture's size; None from a detector of boxes.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Int[Tensor, " n"]
    scores: Float[Tensor, " n"]
    masks: Bool[Tensor, "n h w"] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def best(self, count: int) -> "Detections":
        """The `count` with the highest scores, highest first; of equal scores the earlier first."""
        order = self.scores.argsort(descending=True, stable=True)[:count]
        masks = None if self.masks is None else self.masks[order]
        return Detections(self.boxes[order], self.labels[order], self.scores[order], masks)

    def cpu(self) -> "Detections":
        """The same in the CPU's memory."""
        masks = None if self.masks is None else self.masks.cpu()
        return Detections(self.boxes.cpu(), self.labels.cpu(), self.scores.cpu(), masks)
