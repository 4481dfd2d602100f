"""Cross-modal retrieval: the captions that fit a picture, and the pictures that fit a caption.

Both ways in one run: every picture asks among all captions of its split, every caption among all pictures. With an
objective that has many positives (MPM-NCE) a batch holds several captions of a picture; without that two captions of
one picture almost never meet, and it would have none beyond the pair's own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from tether._distributed import world_size
from tether.config import method
from tether.data.caption_dataset import CaptionDataset, collate_captions
from tether.data.captions import CaptionBenchmark
from tether.data.records import PictureBenchmark, PictureSplit
from tether.errors import TetherError
from tether.evaluation.retrieval_scores import CaptionReader, RetrievalScores, caption_reader
from tether.evaluation.scoring import Progress
from tether.families import TaskConfig
from tether.models import Model
from tether.recipe import Recipe
from tether.tasks.task import Task, TrainingData
from tether.training.caption_sampler import CaptionSamplerConfig


@method("retrieval")
@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(TaskConfig):
    """Pictures for texts and texts for pictures; judged by the mean of recall at 1 both ways.

    Args:
        together: captions of one picture that come together in a batch; None for 2 where the objective has many
            positives, else 1, as further captions of a picture would count as wrong ones.

    Raises:
        TetherError: it is below 1.
    """

    together: int | None = None

    def __post_init__(self) -> None:
        if self.together is not None and self.together < 1:
            raise TetherError(f"task.together is at least 1 or null, found {self.together}.")

    def make(
        self, recipe: Recipe, model: Model, benchmark: Any, *, progress: Progress | None = None
    ) -> "Retrieval":
        return Retrieval(recipe, model, benchmark, progress)

    def examples(self, benchmark: Any) -> int:
        return len(benchmark.train.captions)

    def scores(
        self, benchmark: PictureBenchmark, split: PictureSplit, tensors: Mapping[str, Tensor]
    ) -> RetrievalScores:
        return RetrievalScores(split=split, **tensors)


class Retrieval(Task):
    """Captions with their pictures; equal captions of a batch and its pictures are encoded once.

    Raises:
        TetherError: the pictures have no captions, the objective is not on pairs, or an ensemble is asked for that is
            one of classifiers.
    """

    benchmark: CaptionBenchmark

    def __init__(
        self,
        recipe: Recipe,
        model: Model,
        benchmark: PictureBenchmark,
        progress: Progress | None = None,
    ) -> None:
        super().__init__(recipe, model, benchmark, progress)
        if not isinstance(benchmark, CaptionBenchmark):
            raise TetherError(
                f"Retrieval needs pictures with captions, and {benchmark.name} has {benchmark.knows}. Use "
                "data.method=karpathy, caption_table or emoji_captions, or task.method=classification."
            )
        if not recipe.objective.pairs:
            raise TetherError(
                "Retrieval learns from pairs of pictures and texts, and this objective is on a linear head. Use "
                "objective.method=mpm_nce or info_nce."
            )
        if recipe.ensemble:
            raise TetherError(
                "This ensemble is one of classifiers, and retrieval has none. Leave `ensemble` out: the weights are "
                "interpolated by `alpha`."
            )
        together = recipe.task.together or (2 if recipe.objective.many_positives else 1)
        self._sampler = CaptionSamplerConfig(together=together)
        self._sampler.check_batches(recipe.training.batch_size, world_size())

    def training_data(self, transform: Callable[..., Tensor], *, seed: int) -> TrainingData:
        split = self.benchmark.train
        order = self._sampler.order(split.pictures, seed) if self._sampler.together > 1 else None
        data = CaptionDataset(split, transform, seed=seed)
        return TrainingData(data=data, collate=collate_captions, order=order)

    def held_out_data(self, transform: Callable[..., Tensor], *, seed: int) -> Dataset:
        return CaptionDataset(self.benchmark.validation, transform, seed=seed)

    def keys(self, batch: Mapping[str, Any]) -> tuple[Tensor | None, Tensor | None]:
        return batch["pictures"], batch["index"].cpu().unique()

    def objective(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        row, labels = batch["row"], batch["label"]
        image = self.model.encode_image(batch["pixels"])[row]
        index = batch["index"].cpu()
        distinct, inverse = index.unique(return_inverse=True)
        text_of = dict(zip(index.tolist(), batch["text"], strict=True))
        tokens = self.model.tokenize([text_of[number] for number in distinct.tolist()])
        text = self.model.encode_text(tokens)
        inverse = inverse.to(image.device)
        loss = self._loss(image, text, labels, self.scale, index=inverse)
        if not self._terms:  # nobody looks at the features, and copying pixels takes time
            return loss, {}, {}
        features = {
            "pixels": batch["pixels"][row],
            "labels": labels,
            "index": batch["index"],
            "image": image,
            "text": text,
            "tokens": tokens,
            "text_index": inverse,
        }
        return loss, {}, features

    def reader(self, splits: Mapping[str, PictureSplit]) -> Callable[[float], CaptionReader]:
        return lambda alpha: caption_reader(self.model, splits.values(), progress=self.progress)

    def live_reader(self, split: PictureSplit) -> CaptionReader:
        return caption_reader(self.model, [split], progress=self.progress)
