"""The output-space ensemble of a run: one weight for all pictures."""

from torch import Tensor

from tether.data.records import Split
from tether.ensembles.output_space import OutputConfig, OutputEnsemble, calibrate, restrict
from tether.ensembles.views import Views
from tether.tasks.ensembling.ensemble import Ensemble, Mixed, choose, mixed_logits, require_validation
from tether.tasks.ensembling.pair import Pair, competing, labels_among, score


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

    def respond(pixels: Tensor, split: Split) -> list[Tensor]:
        views = pair(pixels)
        return [mixed_logits(mix, views, split) for mix in mixes.values()]

    at_home = [score(validation, mixed_logits(mix, views, validation)) for mix in mixes.values()]
    choice = choose(config.rule, pair, validation, weights, respond, at_home)
    return Mixed(pair, mixes, choice.alpha, choice)


def fit_temperatures(views: Views, validation: Split) -> tuple[float, float]:
    """At which each model's mean confidence on validation pictures is its accuracy: (zero-shot, tuned)."""
    kept = competing(validation, views.tuned.shape[1])
    labels = labels_among(validation, kept, views.tuned.device)
    zero_shot, tuned = (
        calibrate(restrict(own, kept), labels).temperature for own in (views.zero_shot, views.tuned)
    )
    return zero_shot, tuned
