"""VRF in a run: failures from the training pictures; temperatures, a and b from the validation pictures."""

from collections.abc import Mapping

import torch
from torch import Tensor

from tether.data.records import Split
from tether.ensembles.output_space import output_ensemble, restrict
from tether.ensembles.views import Views
from tether.ensembles.vrf import (
    VRF,
    VRFConfig,
    candidate_shapes,
    choose_shape,
    is_failure,
    neighbour_count,
    neighbour_distance,
    tuned_weight,
)
from tether.errors import TetherError
from tether.evaluation.alpha import AlphaChoice
from tether.tasks.ensembling.ensemble import Ensemble, Mixed, choose, require_validation
from tether.tasks.ensembling.output import fit_temperatures
from tether.tasks.ensembling.pair import Pair, as_logits, competing, labels_among, score

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

    def logits(views: Views, split: Split) -> list[Tensor]:
        kept = competing(split, pair.classes)
        one, other = (restrict(own.double(), kept) for own in (views.zero_shot, views.tuned))
        weights = (tuned_weight(distance_of(views), *shape) for shape in shapes.values())
        mixed = (output_ensemble(one, other, weight, temperatures=temperatures) for weight in weights)
        return [as_logits(own, kept, pair.classes) for own in mixed]

    choice = choose(
        config.rule,
        pair,
        validation,
        list(shapes),
        lambda pixels, split: logits(pair(pixels), split),
        [score(validation, own) for own in logits(at_home, validation)],
    )
    shape = shapes[choice.alpha]
    if config.rule == "in distribution":
        kept = competing(validation, pair.classes)
        one, other = (
            (restrict(own, kept) / temperature).softmax(-1)
            for own, temperature in zip((at_home.zero_shot, at_home.tuned), temperatures, strict=True)
        )
        shape = choose_shape(distance, one, other, labels_among(validation, kept, distance.device))
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
