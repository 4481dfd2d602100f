"""Output-space ensemble: the predictions of two models mixed, with temperatures fitted on validation data.

The simplest ensemble of a zero-shot and a fine-tuned model, and the baseline of the sample-wise one
(`vrf`). Use it when the weights cannot be averaged (another architecture, another head); it costs a second
forward at inference.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tether._choosing import GRID, SIMULATED_PICTURES, check_pictures, check_weight
from tether.config import method
from tether.data.records import Split
from tether.ensembles.ensemble import Ensemble, Mixed, choose, mixed_logits, require_validation
from tether.ensembles.pair import Pair, competing, labels_among, score
from tether.ensembles.views import Views
from tether.errors import TetherError, near_misses
from tether.evaluation.scores import SplitScores
from tether.families import EnsembleConfig

SPACES = ("probabilities", "logits")


@method("output")
@dataclass(frozen=True, kw_only=True)
class OutputConfig(EnsembleConfig):
    """Predictions mixed with one weight of the tuned model, given or chosen on validation pictures."""

    weight: float | str = "auto"
    """Of the tuned model from 0 to 1, or "auto": chosen on validation pictures."""
    grid: tuple[float, ...] = GRID
    """What "auto" chooses from."""
    rule: str = "bounded loss"
    """How "auto" chooses, see `tether.evaluation.alpha`."""
    simulated_pictures: int | None = field(default=SIMULATED_PICTURES, metadata={"added": True})
    """Validation pictures of which simulated shifts are evaluated, at most; null for all."""
    space: str = "probabilities"
    """What is mixed: "probabilities" or "logits"."""
    fit_temperatures: bool = True
    """Fit a temperature to each model on validation pictures first."""

    @property
    def needs_validation(self) -> bool:
        return self.weight == "auto" or self.fit_temperatures

    def fit(self, pair: Any, *, train: Split, validation: Split, seed: int = 0) -> Ensemble:
        return fit_output(self, pair, validation)

    def __post_init__(self) -> None:
        check_weight("weight", self.weight, self.grid, self.rule)
        check_pictures(self.simulated_pictures)
        _check_space(self.space)


def output_ensemble(
    zero_shot: Float[Tensor, "batch classes"],
    tuned: Float[Tensor, "batch classes"],
    weight: float | Float[Tensor, "batch"] = 0.5,
    *,
    temperatures: tuple[float, float] = (1.0, 1.0),
    space: str = "probabilities",
) -> Float[Tensor, "batch classes"]:
    """Probabilities ω·P_tuned + (1−ω)·P_zero-shot, P = softmax(logits / temperature), in float32 or better.

    `weight` ω in 0…1 is one number or one per sample; `temperatures` are (zero-shot, tuned). In the space
    of logits, the tempered logits are mixed before one softmax instead. Restrict logits to a data set's
    classes beforehand (`logits[:, classes]`): a softmax over absent classes weakens the more certain model.

    >>> output_ensemble(torch.zeros(1, 2), torch.tensor([[0.0, 100.0]]), 0.5).tolist()
    [[0.25, 0.75]]

    Raises:
        TetherError: an unknown space.
    """
    dtype = torch.promote_types(torch.promote_types(zero_shot.dtype, tuned.dtype), torch.float32)
    zero_shot, tuned = zero_shot.to(dtype) / temperatures[0], tuned.to(dtype) / temperatures[1]
    if isinstance(weight, Tensor):
        weight = weight.to(dtype)[:, None]
    _check_space(space)
    if space == "logits":
        return (weight * tuned + (1 - weight) * zero_shot).softmax(-1)
    return weight * tuned.softmax(-1) + (1 - weight) * zero_shot.softmax(-1)


@dataclass(frozen=True)
class OutputEnsemble:
    """The fitted ensemble: both models' logits in, probabilities out.

    At the weights 0 and 1 it is one of the models as it is, without temperature.

    >>> mix = OutputEnsemble(weight=0.5)
    >>> mix(Views(torch.zeros(1, 2), torch.tensor([[0.0, 100.0]]), torch.zeros(1, 3))).tolist()
    [[0.25, 0.75]]
    """

    weight: float
    temperatures: tuple[float, float] = (1.0, 1.0)
    space: str = "probabilities"

    def __call__(
        self, views: Views, classes: Sequence[int] | None = None
    ) -> Float[Tensor, "batch candidates"]:
        """Probabilities over `classes` (numbers of logits, for a data set with fewer), or over all."""
        alone = self.weight in (0, 1)
        return output_ensemble(
            restrict(views.zero_shot, classes),
            restrict(views.tuned, classes),
            self.weight,
            temperatures=(1.0, 1.0) if alone else self.temperatures,
            space=self.space,
        )


@dataclass(frozen=True)
class Calibration:
    """A temperature, the accuracy it was to match and the mean confidence that it reaches."""

    temperature: float
    accuracy: float
    confidence: float


def calibrate(
    logits: Float[Tensor, "samples classes"],
    labels: Int[Tensor, "samples"],
    bounds: tuple[float, float] = (0.01, 100.0),
) -> Calibration:
    """The temperature at which the mean of the largest probability equals the accuracy, on *validation* data.

    The mean confidence falls as the temperature rises, so the interval is halved 60 times and the search
    always ends. Where accuracy lies outside what `bounds` can reach (a model below chance, or without a
    mistake), the nearer bound is the answer and `confidence` shows the gap.

    Raises:
        TetherError: no samples, or logits that are no numbers (−∞ stands for a class that is not there).
    """
    if not len(logits):
        raise TetherError("A temperature is fitted on labelled validation data; there is none.")
    wide = logits.double()
    if not bool(wide.softmax(-1).isfinite().all()):
        raise TetherError(
            "Some logits are NaN or infinite, and no temperature fits them; has training diverged?"
        )
    accuracy = float((wide.argmax(-1) == labels).double().mean())

    def confidence(log_temperature: float) -> float:
        return float((wide / math.exp(log_temperature)).softmax(-1).amax(-1).mean())

    low, high = map(math.log, bounds)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if confidence(middle) > accuracy else (low, middle)
    return Calibration(math.exp(middle), accuracy, confidence(middle))


def restrict(
    logits: Float[Tensor, "batch classes"], classes: Sequence[int] | None
) -> Float[Tensor, "batch candidates"]:
    """Logits of the classes that a data set has, in its order; all of them where `classes` is None.

    Raises:
        TetherError: a class beyond the last, or none.
    """
    if classes is None:
        return logits
    if not classes or not all(0 <= index < logits.shape[-1] for index in classes):
        raise TetherError(
            f"Expected class numbers from 0 to {logits.shape[-1] - 1}; found {list(classes)[:10]}."
        )
    return logits[:, list(classes)]


def _check_space(space: str) -> None:
    if space not in SPACES:
        raise TetherError(f"Unknown space {space!r}{near_misses(space, SPACES)}")


def fit_output(config: OutputConfig, pair: Pair, validation: Split) -> Ensemble:
    """Temperatures at which both models are as confident as right, and the weight that the rule prefers.

    Raises:
        TetherError: something is to be fitted, and there are no validation pictures.
    """
    given = config.weight != "auto"
    views, temperatures = None, (1.0, 1.0)
    if config.fit_temperatures or not given:
        require_validation(validation)
        views = pair.collect(validation)
        temperatures = fit_temperatures(views, validation) if config.fit_temperatures else temperatures
    weights = sorted({*config.grid, config.weight} if given else config.grid)
    mixes = {weight: OutputEnsemble(weight, temperatures, config.space) for weight in weights}
    if given:
        return Mixed(pair, mixes, config.weight, None)

    def answer(splits: Mapping[str, Split], some: Sequence[float]) -> list[dict[str, SplitScores]]:
        def respond(pixels: Tensor, split: Split) -> list[Tensor]:
            views = pair(pixels)
            return [mixed_logits(mixes[weight], views, split) for weight in some]

        return pair.answer(respond, splits)

    at_home = [score(validation, mixed_logits(mix, views, validation)) for mix in mixes.values()]
    choice = choose(config, validation, weights, answer, at_home)
    return Mixed(pair, mixes, choice.alpha, choice)


def fit_temperatures(views: Views, validation: Split) -> tuple[float, float]:
    """At which each model's mean confidence on validation pictures is its accuracy: (zero-shot, tuned)."""
    candidates = competing(validation, views.tuned.shape[1])
    labels = labels_among(validation, candidates, views.tuned.device)
    zero_shot, tuned = (
        calibrate(restrict(z, candidates), labels).temperature for z in (views.zero_shot, views.tuned)
    )
    return zero_shot, tuned
