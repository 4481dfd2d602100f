"""Fisher-weighted averaging in a run: another path from the zero-shot to the tuned weights.

Only the image tower has Fisher information: the texts' features are the classifier, and backward passes through
all prompts for every picture would cost more than training. The text tower and a linear head go straight.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tether._alpha import tower_of
from tether._choosing import GRID, SIMULATED_PICTURES, check_pictures, check_weight
from tether.config import method
from tether.data.dataset import ImageDataset
from tether.data.records import Split
from tether.data.seeds import derived_seed
from tether.data.transforms import test_transform
from tether.ensembles.ensemble import Ensemble, choose, require_validation
from tether.ensembles.fisher.formulas import FisherPath, diagonal_fisher
from tether.ensembles.pair import Pair, Respond
from tether.errors import TetherError
from tether.evaluation.alpha import AlphaChoice
from tether.evaluation.classification import no_autocast_cache
from tether.evaluation.classifier import Classifier
from tether.evaluation.scores import SplitScores, Sweep
from tether.families import EnsembleConfig
from tether.models.model import Model
from tether.models.modes import in_evaluation_mode

BATCH = 4
"""Pictures whose graph is kept at a time; each is one backward pass anyway."""

Fishers = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


@method("fisher")
@dataclass(frozen=True, kw_only=True)
class FisherConfig(EnsembleConfig):
    """Zero-shot and tuned weights averaged with (1−α)F_zero-shot and αF_tuned, α given or chosen on validation."""

    alpha: float | str = "auto"
    """Weight of the tuned model from 0 to 1, or "auto": chosen on validation pictures."""
    grid: tuple[float, ...] = GRID
    """What "auto" chooses from."""
    rule: str = "bounded loss"
    """How "auto" chooses, see `tether.evaluation.alpha`."""
    simulated_pictures: int | None = field(default=SIMULATED_PICTURES, metadata={"added": True})
    """Validation pictures of which simulated shifts are evaluated, at most; null for all."""
    curve: bool = True
    """Whether the test pictures are answered at every alpha of the grid, not only at 0, 1 and the chosen one."""
    examples: int = 256
    """Training pictures from which Fisher information is estimated, one backward pass each and model."""
    labels: str = "model"
    """"model" draws the label from the model's own prediction (the Fisher); "data" is the empirical Fisher."""
    floor: float = 1e-8
    """Smallest Fisher information of a weight."""

    @property
    def needs_validation(self) -> bool:
        return self.alpha == "auto"

    def fit(self, pair: Any, *, train: Split, validation: Split, seed: int = 0) -> Ensemble:
        return fit_fisher(self, pair, train, validation, seed)

    def __post_init__(self) -> None:
        check_weight("alpha", self.alpha, self.grid, self.rule)
        check_pictures(self.simulated_pictures)
        if self.labels not in ("model", "data"):
            raise TetherError(f"labels is 'model' or 'data', not {self.labels!r}.")
        if self.examples < 1 or not self.floor > 0:
            raise TetherError(
                f"Fisher information needs examples and a floor above 0; found {self.examples} and {self.floor}."
            )


def fit_fisher(config: FisherConfig, pair: Pair, train: Split, validation: Split, seed: int) -> Ensemble:
    """Fisher information of both ends from training pictures, and the alpha that the rule prefers.

    Raises:
        TetherError: the models have no common architecture, or there are no training pictures, or alpha is to
            be chosen and there are no validation pictures.
    """
    if pair.delta is None or pair.classifier_at is None:
        raise TetherError("Weights can be averaged only between a model and its own tuned weights (Pair.of).")
    if config.alpha == "auto":
        require_validation(validation)
    fishers = end_points(config, pair, train, seed)
    if config.alpha != "auto":
        return Merged(pair, fishers, config, config.alpha, None)

    def answer(splits: Mapping[str, Split], weights: Sequence[float]) -> list[dict[str, SplitScores]]:
        with walking(pair, fishers, config, weights) as respond:
            return pair.answer(respond, splits)

    choice = choose(config, validation, sorted(config.grid), answer)
    return Merged(pair, fishers, config, choice.alpha, choice)


class Merged(Ensemble):
    """Zero-shot and tuned weights averaged into one model: no second forward at inference."""

    def __init__(
        self, pair: Pair, fishers: Fishers, config: FisherConfig, alpha: float, choice: AlphaChoice | None
    ) -> None:
        super().__init__(pair, alpha, choice)
        self._fishers, self._config = fishers, config

    def sweep(self, splits: Mapping[str, Split]) -> Sweep:
        alphas = sorted({0.0, 1.0, self.alpha, *(self._config.grid if self._config.curve else ())})
        with walking(self.pair, self._fishers, self._config, alphas) as respond:
            return Sweep(tuple(alphas), tuple(self.pair.answer(respond, splits)))

    def merged(self) -> tuple[dict[str, Tensor], Classifier]:
        with FisherPath(
            self.pair.zero_shot.module, self.pair.delta, self._fishers, floor=self._config.floor
        ) as path:
            path.set(self.alpha)
            classifier = self.pair.classifier_at(self.alpha)
            module = self.pair.zero_shot.module
            tensors = dict(module.named_parameters()) | dict(module.named_buffers())
            return {name: tensors[name].detach().clone() for name in self.pair.delta}, classifier


@contextmanager
def walking(pair: Pair, fishers: Fishers, config: FisherConfig, alphas: Sequence[float]) -> Iterator[Respond]:
    """Inside, the model of a pair answers at each alpha of the Fisher-weighted path; then it is as before."""
    model = pair.zero_shot
    with FisherPath(model.module, pair.delta, fishers, floor=config.floor) as path, no_autocast_cache():
        classifiers: list[Classifier] = []
        for alpha in alphas:
            path.set(alpha)
            classifiers.append(pair.classifier_at(alpha))

        def respond(pixels: Tensor, split: Split) -> list[Tensor]:
            logits = []
            for alpha, classifier in zip(alphas, classifiers, strict=True):
                path.set(alpha)
                logits.append(classifier(model.encode_image(pixels)))
            return logits

        yield respond


def end_points(config: FisherConfig, pair: Pair, train: Split, seed: int) -> Fishers:
    """Diagonal Fisher information of the tuned image weights, at the zero-shot and at the tuned model.

    From the same training pictures, unaugmented, drawn by the seed; each end point with its own classifier.

    Raises:
        TetherError: there are no training pictures, or no tuned image weights.
    """
    chosen = sorted(range(len(train)), key=lambda index: derived_seed(seed, "fisher", index))[
        : config.examples
    ]
    if not chosen:
        raise TetherError("Fisher information is estimated from training pictures, and there are none.")
    pictures = replace(train, examples=tuple(train.examples[index] for index in sorted(chosen)))
    parameters = dict(pair.zero_shot.module.named_parameters())
    names = [name for name in pair.delta if tower_of(name) == "image" and name in parameters]
    if not names:
        raise TetherError(
            "Fisher-weighted averaging is one of image weights, and training changed none here. Use the ensemble "
            "of weights (alpha) or of outputs."
        )
    return tuple(
        _information(config, model, classifier, names, pictures, seed, pair)
        for model, classifier in zip((pair.zero_shot, pair.tuned), pair.classifiers, strict=True)
    )


def _information(
    config: FisherConfig,
    model: Model,
    classifier: Classifier,
    names: Sequence[str],
    pictures: Split,
    seed: int,
    pair: Pair,
) -> dict[str, Tensor]:
    data = ImageDataset(pictures, test_transform(model.image))
    chance = torch.Generator().manual_seed(derived_seed(seed, "labels"))
    every = dict(model.module.named_parameters())
    parameters = {name: every[name] for name in names}

    def batches() -> Iterator[list]:
        for start in range(0, len(data), BATCH):
            yield [data[index] for index in range(start, min(start + BATCH, len(data)))]
            if pair.progress:
                pair.progress("Fisher information", min(start + BATCH, len(data)), len(data))

    def negative_log_likelihood(batch: list) -> Tensor:
        pixels = torch.stack([item["pixels"] for item in batch]).to(model.device)
        logits = classifier(model.encode_image(pixels))
        if config.labels == "data":
            labels = torch.tensor([item["label"] for item in batch])
        else:
            labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=chance)[:, 0]
        return F.cross_entropy(logits, labels.to(model.device), reduction="none")

    with _differentiable(model, parameters), torch.enable_grad():
        return diagonal_fisher(parameters, negative_log_likelihood, batches())


@contextmanager
def _differentiable(model: Model, parameters: Mapping[str, Tensor]) -> Iterator[None]:
    """Gradients of these parameters alone, nothing random; all is as before afterwards."""
    required = [(parameter, parameter.requires_grad) for parameter in model.module.parameters()]
    model.module.requires_grad_(False)
    try:
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        with in_evaluation_mode(model.module):
            yield
    finally:
        for parameter, value in required:
            parameter.requires_grad_(value)
