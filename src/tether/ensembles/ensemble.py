"""What every fitted ensemble can do, and how its settings are chosen."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from tether.data.records import Split
from tether.ensembles.pair import Pair, as_logits, competing
from tether.ensembles.views import Views
from tether.errors import TetherError
from tether.evaluation.alpha import AlphaChoice, choose_economically
from tether.evaluation.classifier import Classifier
from tether.evaluation.scores import SplitScores, Sweep

GIVEN = "given in the recipe"

Mix = Callable[[Views, Sequence[int] | None], Tensor]
"""Probabilities over some classes, or over all, from what both models say."""


class Ensemble(ABC):
    """A fitted ensemble of a pair.

    Attributes:
        alpha: its place in `sweep`: the weight of the tuned model; for VRF the mean on validation pictures.
        reason: why this one, in words.
        choice: what it was chosen from; None where the recipe gave it.
    """

    def __init__(self, pair: Pair, alpha: float, choice: AlphaChoice | None) -> None:
        self.pair, self.alpha, self.choice = pair, alpha, choice
        self.reason = choice.reason if choice else GIVEN

    @abstractmethod
    def sweep(self, splits: Mapping[str, Split]) -> Sweep:
        """Scores of the zero-shot model at 0, the tuned one at 1, the ensemble at `alpha`, and more between."""

    def merged(self) -> tuple[dict[str, Tensor], Classifier] | None:
        """The weights that differ from the base's in one model that answers like this, and its classifier.

        None where it takes both models to answer: then `mix` says how.
        """
        return None


class Mixed(Ensemble):
    """Both models answer, and a mix makes one answer of theirs: the output-space ensemble and VRF.

    Args:
        mixes: by weight of the tuned model; all of them stand in the sweep.
    """

    def __init__(
        self, pair: Pair, mixes: Mapping[float, Mix], alpha: float, choice: AlphaChoice | None
    ) -> None:
        super().__init__(pair, alpha, choice)
        self._mixes = mixes

    def sweep(self, splits: Mapping[str, Split]) -> Sweep:
        between = sorted(weight for weight in self._mixes if weight not in (0, 1))

        def respond(pixels: Tensor, split: Split) -> list[Tensor]:
            views = self.pair(pixels)
            mixed = [mixed_logits(self._mixes[weight], views, split) for weight in between]
            return [views.zero_shot, *mixed, views.tuned]

        return Sweep((0.0, *between, 1.0), tuple(self.pair.answer(respond, splits)))

    @property
    def mix(self) -> Mix:
        """What makes one answer of both models' at `alpha`."""
        return self._mixes[self.alpha]


def mixed_logits(mix: Mix, views: Views, split: Split) -> Tensor:
    """Logits over all classes of what a mix says where the classes of a split compete."""
    candidates = competing(split, views.tuned.shape[1])
    wide = Views(views.zero_shot.double(), views.tuned.double(), views.features)
    return as_logits(mix(wide, candidates), candidates, views.tuned.shape[1])


def choose(
    config: Any,
    validation: Split,
    weights: Sequence[float],
    answer: Callable[[Mapping[str, Split], Sequence[float]], list[dict[str, SplitScores]]],
    at_home: Sequence[SplitScores] | None = None,
) -> AlphaChoice:
    """The weight that a rule prefers, by validation pictures and, where they decide, simulated shifts.

    Args:
        config: with the rule, and the number of pictures to alter.
        answer: scores on splits of some of the weights.
        at_home: scores on the validation pictures at each weight, where they are known already.
    """

    def evaluate(splits: Mapping[str, Split], some: Sequence[float]) -> Sweep:
        if at_home is not None and splits.keys() == {"validation"}:
            return Sweep(tuple(some), tuple({"validation": known} for known in at_home))
        return Sweep(tuple(some), tuple(answer(splits, some)))

    options = {"rule": config.rule, "pictures": config.simulated_pictures}
    return choose_economically(evaluate, validation, weights, **options)


def require_validation(validation: Split) -> None:
    """Refuse to choose without anything to choose from.

    Raises:
        TetherError: there are no validation pictures.
    """
    if not len(validation):
        raise TetherError(
            "An ensemble is fitted on validation pictures, and this data set has none. Set some aside, or give "
            "weight and fit_temperatures=false to the output-space ensemble, or alpha to the Fisher-weighted one."
        )
