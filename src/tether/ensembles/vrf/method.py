"""VRF: a sample-wise ensemble of zero-shot and fine-tuned model that trusts fine-tuning near where it helped.

Zhu et al., "Robust Fine-tuning of Zero-shot Models via Variance Reduction" (NeurIPS 2024, arXiv
2411.06966). Use it when both in-distribution and shifted accuracy matter and a second forward is
affordable; it needs no training, only one pass over the training set (the failure set V, kept) and one over
validation data.

    V = {tuned features of training samples that the tuned model gets right and the zero-shot model wrong}
    d(x) = distance of x's tuned feature to its k-th nearest neighbour in V, all of unit length, k = ⌊p·|V|⌋
    ω(x) = sigmoid(−(d(x) − a)/b);   prediction  ω·P_tuned + (1−ω)·P_zero-shot

Defaults where paper and published code differ: the distance is *squared*, as in the code (the paper's a =
1.5, b = 0.6 for ImageNet make sense only so); k follows the paper's rule, clamped to 1…|V|; temperatures
are fitted, but on validation data, where the code uses the test set's labels. With no failures at all, ω is
0: fine-tuning helped nowhere.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tether._choosing import SIMULATED_PICTURES, check_pictures, check_rule
from tether.config import method
from tether.data.records import Split
from tether.ensembles.ensemble import Ensemble, Mixed, choose, require_validation
from tether.ensembles.output import calibrate, fit_temperatures, output_ensemble, restrict
from tether.ensembles.pair import Pair, as_logits, competing, labels_among, score
from tether.ensembles.views import Views
from tether.ensembles.vrf.formulas import (
    candidate_shapes,
    choose_shape,
    is_failure,
    neighbour_count,
    neighbour_distance,
    tuned_weight,
)
from tether.errors import TetherError, near_misses
from tether.evaluation.alpha import AlphaChoice
from tether.evaluation.scores import SplitScores
from tether.families import EnsembleConfig

K_RULES = ("share_of_failures", "per_thousand_training")


@method("vrf")
@dataclass(frozen=True, kw_only=True)
class VRFConfig(EnsembleConfig):
    """How the distance is measured and weighed; a and b left at None are chosen by validation accuracy."""

    share: float = 0.001
    """p: the neighbour that counts is the ⌊p·|V|⌋-th."""
    k_rule: str = "share_of_failures"
    """"share_of_failures" is the paper's ⌊p·|V|⌋; "per_thousand_training" the code's round(1000·|V|/|D|), without p."""
    squared: bool = True
    """Square the distance, as the published code does."""
    a: float | None = None
    """Distance at which both models weigh the same; None: chosen by validation accuracy."""
    b: float | None = None
    """Distance over which the weight changes; None: chosen by validation accuracy."""
    fit_temperatures: bool = True
    """Fit a temperature to each model on validation pictures first."""
    rule: str = "in distribution"
    """How a run chooses a and b; the other rules also look at simulated shifts of the validation pictures."""
    simulated_pictures: int | None = field(default=SIMULATED_PICTURES, metadata={"added": True})
    """Validation pictures of which simulated shifts are evaluated, at most; null for all."""

    @property
    def needs_validation(self) -> bool:
        return True

    def fit(self, pair: Any, *, train: Split, validation: Split, seed: int = 0) -> Ensemble:
        return fit_vrf(self, pair, train, validation)

    def __post_init__(self) -> None:
        check_rule(self.rule)
        check_pictures(self.simulated_pictures)
        if self.k_rule not in K_RULES:
            raise TetherError(f"Unknown k_rule {self.k_rule!r}{near_misses(self.k_rule, K_RULES)}")
        if not 0 < self.share <= 1:
            raise TetherError(
                f"The share of failures to look at must be above 0 and at most 1; it is {self.share}."
            )
        given = [value for value in (self.a, self.b) if value is not None]
        if len(given) == 1 or not all(map(math.isfinite, given)) or (given and self.b <= 0):
            raise TetherError(
                f"Give both a and b, finite and b above 0, or neither; found a={self.a}, b={self.b}."
            )


class VRF(nn.Module):
    """The fitted ensemble: logits and features in, probabilities out. The failure set is a buffer and
    exports along.

    >>> failures = torch.eye(3, 8)
    >>> vrf = VRF(VRFConfig(), failures, training_size=10, a=1.5, b=0.6)
    >>> vrf(Views(torch.zeros(1, 2), torch.tensor([[9.0, 0.0]]), failures[:1])).argmax().item()
    0
    """

    failures: Tensor

    def __init__(
        self,
        config: VRFConfig,
        failures: Float[Tensor, "size dim"],
        *,
        training_size: int,
        a: float,
        b: float,
        temperatures: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        super().__init__()
        self.config, self.training_size = config, training_size
        self.a, self.b, self.temperatures = a, b, temperatures
        self.neighbours = neighbour_count(len(failures), training_size, config)
        self.register_buffer("failures", failures.detach().clone())

    def weight(self, features: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch"]:
        """ω of each sample, from its features by the tuned model."""
        distance = neighbour_distance(features, self.failures, self.neighbours, self.config.squared)
        return tuned_weight(distance, self.a, self.b)

    def forward(
        self, views: Views, classes: Sequence[int] | None = None
    ) -> Float[Tensor, "batch candidates"]:
        """Mixed probabilities over `classes` (numbers of logits, for a data set with fewer), or over all."""
        return output_ensemble(
            restrict(views.zero_shot, classes),
            restrict(views.tuned, classes),
            self.weight(views.features),
            temperatures=self.temperatures,
        )

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        predict: Callable[[Tensor], Views],
        train: Iterable[tuple[Tensor, Tensor]],
        validation: Iterable[tuple[Tensor, Tensor]],
        config: VRFConfig | None = None,
    ) -> "VRF":
        """Collect the failures over `train`, then fit temperatures and (a, b) on `validation`.

        Both give (pixels, labels) batches, each sample once and unaugmented. `validation` is
        in-distribution data that neither the tuned model was trained on nor is reported as a test. See
        `tether.ensembles.views` for `predict`; its models are to be in evaluation mode.

        Raises:
            TetherError: no training or no validation samples.
        """
        config = config or VRFConfig()
        found, training_size = [], 0
        for pixels, labels in train:
            views = predict(pixels)
            found.append(views.features[is_failure(views, labels)])
            training_size += len(labels)
        checked = [(predict(pixels), labels) for pixels, labels in validation]
        if not (training_size and checked):
            raise TetherError("VRF needs the training samples and labelled validation samples; one has none.")
        failures, labels = torch.cat(found), torch.cat([labels for _, labels in checked])
        zero_shot, tuned, features = (
            torch.cat([getattr(views, name) for views, _ in checked])
            for name in ("zero_shot", "tuned", "features")
        )
        temperatures = (1.0, 1.0)
        if config.fit_temperatures:
            temperatures = (calibrate(zero_shot, labels).temperature, calibrate(tuned, labels).temperature)
        if config.a is not None and config.b is not None:
            a, b = config.a, config.b
        else:
            k = neighbour_count(len(failures), training_size, config)
            distance = neighbour_distance(features, failures, k, config.squared)
            probabilities = (
                (z / t).softmax(-1) for z, t in zip((zero_shot, tuned), temperatures, strict=True)
            )
            a, b = choose_shape(distance, *probabilities, labels)
        return cls(config, failures, training_size=training_size, a=a, b=b, temperatures=temperatures)


Shape = tuple[float, float]


def fit_vrf(config: VRFConfig, pair: Pair, train: Split, validation: Split) -> Ensemble:
    """VRF fitted as `VRF.fit` does; by rules other than "in distribution", a and b also by simulated shifts.

    In the sweep it stands at the mean weight of the tuned model over the validation pictures.

    Raises:
        TetherError: there are no training or no validation pictures.
    """
    require_validation(validation)
    failures = find_failures(pair, train)
    at_home = pair.collect(validation)
    temperatures = fit_temperatures(at_home, validation) if config.fit_temperatures else (1.0, 1.0)
    k = neighbour_count(len(failures), len(train), config)

    def distance_of(views: Views) -> Tensor:
        return neighbour_distance(views.features, failures, k, config.squared)

    distance = distance_of(at_home)
    given = config.a is not None and config.b is not None
    shapes = by_place(distance, [(config.a, config.b)] if given else candidate_shapes(distance))

    def vrf(shape: Shape, choice: AlphaChoice | None) -> Ensemble:
        a, b = shape
        fitted = VRF(config, failures, training_size=len(train), a=a, b=b, temperatures=temperatures)
        return Mixed(pair, {place(distance, shape): fitted}, place(distance, shape), choice)

    if given:
        return vrf((config.a, config.b), None)

    def logits(views: Views, split: Split, some: Iterable[float] = tuple(shapes)) -> list[Tensor]:
        candidates = competing(split, pair.classes)
        zero_shot, tuned = (restrict(z.double(), candidates) for z in (views.zero_shot, views.tuned))
        weights = (tuned_weight(distance_of(views), *shapes[weight]) for weight in some)
        mixed = (output_ensemble(zero_shot, tuned, weight, temperatures=temperatures) for weight in weights)
        return [as_logits(probabilities, candidates, pair.classes) for probabilities in mixed]

    def answer(splits: Mapping[str, Split], some: Sequence[float]) -> list[dict[str, SplitScores]]:
        return pair.answer(lambda pixels, split: logits(pair(pixels), split, some), splits)

    known = [score(validation, mixed) for mixed in logits(at_home, validation)]
    choice = choose(config, validation, list(shapes), answer, known)
    shape = shapes[choice.alpha]
    if config.rule == "in distribution":
        candidates = competing(validation, pair.classes)
        zero_shot, tuned = (
            (restrict(z, candidates) / temperature).softmax(-1)
            for z, temperature in zip((at_home.zero_shot, at_home.tuned), temperatures, strict=True)
        )
        shape = choose_shape(
            distance, zero_shot, tuned, labels_among(validation, candidates, distance.device)
        )
    return vrf(shape, _described(choice, shape, shapes, place(distance, shape)))


@torch.no_grad()
def find_failures(pair: Pair, train: Split) -> Tensor:
    """Tuned features [failures, dim] of the training pictures that only the tuned model gets right, in order.

    Raises:
        TetherError: there are no training pictures.
    """
    if not len(train):
        raise TetherError("VRF looks for failures among the training pictures, and there are none.")
    labels = torch.tensor([example.label for example in train.examples])
    found: dict[int, Tensor] = {}
    for views, index in pair.views(train):
        failed = is_failure(views, labels[index.cpu()].to(views.tuned.device))
        for row in failed.nonzero()[:, 0].tolist():
            found[int(index[row])] = views.features[row]
    if not found:
        return views.features.new_zeros(0, views.features.shape[1])
    return torch.stack([found[index] for index in sorted(found)])


def place(distance: Tensor, shape: Shape) -> float:
    """Mean weight of the tuned model, kept off 0 and 1, which stand for the models themselves."""
    mean = float(tuned_weight(distance.double(), *shape).mean())
    return min(max(round(mean, 6), 1e-6), 1 - 1e-6)


def by_place(distance: Tensor, shapes: list[Shape]) -> dict[float, Shape]:
    """Shapes by the mean weight they give, ascending; of those that give the same, the first."""
    found: dict[float, Shape] = {}
    for shape in shapes:
        found.setdefault(place(distance, shape), shape)
    return dict(sorted(found.items()))


def _described(
    choice: AlphaChoice, shape: Shape, shapes: Mapping[float, Shape], chosen: float
) -> AlphaChoice:
    """The choice of a and b as one of the mean weight, with the curve along a at the chosen b."""
    curve = tuple(
        point for point in choice.curve if point.alpha == chosen or shapes[point.alpha][1] == shape[1]
    )
    (point,) = (point for point in curve if point.alpha == chosen)
    a, b = shape
    what = f"a = {a:.4g} and b = {b:.4g} (the tuned model's weight is {chosen:.2f} on average)"
    if choice.rule == "in distribution":
        reason = (
            f"Of {len(shapes)} shapes of VRF's weight, {what} are right on the most validation pictures "
            f"({100 * point.in_distribution:.1f} % of {choice.pictures}); between equals the likelihood decides. "
            f"No test picture was used."
        )
    else:
        reason = f"VRF with {what}, which stands for alpha here. {choice.reason}"
    return AlphaChoice(chosen, choice.rule, reason, choice.pictures, curve)
