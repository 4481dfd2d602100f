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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tether.config import method
from tether.ensembles.choosing import check_rule
from tether.ensembles.output_space import calibrate, output_ensemble, restrict
from tether.ensembles.views import Views
from tether.errors import TetherError, near_misses
from tether.families import EnsembleConfig

_CHUNK = 2**26  # cosines at a time, 256 MiB in fp32: 50,000 pictures × 250,000 failures are 50 GB
K_RULES = ("share_of_failures", "per_thousand_training")


@method("vrf")
@dataclass(frozen=True, kw_only=True)
class VRFConfig(EnsembleConfig):
    """How the distance is measured and weighed; a and b left at None are chosen by validation accuracy."""

    share: float = 0.001  # p
    k_rule: str = "share_of_failures"  # the paper's ⌊p·|V|⌋; the code's round(1000·|V|/|D|) ignores p
    squared: bool = True
    a: float | None = None
    b: float | None = None
    fit_temperatures: bool = True
    rule: str = "in distribution"
    """How a run chooses a and b; the other rules also look at simulated shifts of the validation pictures."""

    @property
    def needs_validation(self) -> bool:
        return True

    def __post_init__(self) -> None:
        check_rule(self.rule)
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


def is_failure(views: Views, labels: Int[Tensor, "batch"]) -> Bool[Tensor, "batch"]:
    """Which samples the tuned model gets right and the zero-shot model wrong."""
    return (views.tuned.argmax(-1) == labels) & (views.zero_shot.argmax(-1) != labels)


def neighbour_count(failures: int, training_size: int, config: VRFConfig) -> int:
    """k for |V| failures among |D| training samples, clamped to 1…|V| (0 where there are none)."""
    if config.k_rule == "per_thousand_training":
        k = round(1000 * failures / training_size)
    else:
        k = math.floor(config.share * failures + 1e-9)  # 0.001 · 1000 may come out below 1
    return min(max(k, 1), failures)


def neighbour_distance(
    features: Float[Tensor, "batch dim"], failures: Float[Tensor, "size dim"], k: int, squared: bool = True
) -> Float[Tensor, "batch"]:
    """(Squared) Euclidean distance to the k-th nearest row of `failures`, rows scaled to unit length, in
    fp32 or better.

    Infinite where there is no failure. Many features are compared in chunks, to bound the memory.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    if not len(failures):
        return torch.full((len(features),), torch.inf, dtype=dtype, device=features.device)
    with torch.autocast(features.device.type, enabled=False):
        rows, known = F.normalize(features.to(dtype), dim=-1), F.normalize(failures.to(dtype), dim=-1)
        chunks = [rows] if torch.compiler.is_compiling() else rows.split(max(1, _CHUNK // len(known)))
        cosine = torch.cat([(chunk @ known.T).topk(k).values[:, -1] for chunk in chunks])
    distance = (2 - 2 * cosine).clamp(min=0)
    return distance if squared else distance.sqrt()


def tuned_weight(distance: Float[Tensor, "batch"], a: float, b: float) -> Float[Tensor, "batch"]:
    """ω = sigmoid(−(d − a)/b): ½ at d = a, falling with distance; b is how softly."""
    return torch.sigmoid((a - distance) / b)


def candidate_shapes(distance: Float[Tensor, "samples"]) -> list[tuple[float, float]]:
    """(a, b) at multiples of the median distance: a in ¼…2, b in 0.1…1 medians.

    The grid is this library's choice; it holds what the paper found for its data sets.
    """
    median = float(distance.median())
    unit = median if 0 < median < math.inf else 1.0
    return [(unit * step / 4, unit * b) for step in range(1, 9) for b in (0.1, 0.2, 0.4, 0.6, 1.0)]


def choose_shape(
    distance: Float[Tensor, "samples"],
    zero_shot: Float[Tensor, "samples classes"],
    tuned: Float[Tensor, "samples classes"],
    labels: Int[Tensor, "samples"],
) -> tuple[float, float]:
    """(a, b) of the best accuracy on *validation* among `candidate_shapes`, ties by likelihood.

    `zero_shot` and `tuned` are probabilities.
    """
    rows = torch.arange(len(labels), device=labels.device)
    best, shapes = (-1.0, -math.inf), candidate_shapes(distance)
    chosen = shapes[0]
    for a, b in shapes:
        weight = tuned_weight(distance, a, b)[:, None]
        mixed = weight * tuned + (1 - weight) * zero_shot
        accuracy = float((mixed.argmax(-1) == labels).double().mean())
        likelihood = float(mixed[rows, labels].double().clamp(min=1e-30).log().mean())
        if (accuracy, likelihood) > best:
            best, chosen = (accuracy, likelihood), (a, b)
    return chosen


class VRF(nn.Module):
    """The fitted ensemble: logits and features in, probabilities out. The failure set is a buffer and
    exports along.

    >>> failures = F.normalize(torch.eye(3, 8), dim=-1)
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

    def forward(self, views: Views, classes: Sequence[int] | None = None) -> Float[Tensor, "batch kept"]:
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
