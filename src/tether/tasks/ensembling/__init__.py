"""Ensembles of zero-shot and tuned model other than by alpha, fitted after training on validation pictures.

What is fitted answers like a path of alphas: 0 is the zero-shot model, 1 the tuned one, and the ensemble stands
between them at the weight that it gives the tuned model. So tables and reports need to know nothing of it.
"""

from tether.data.records import Split
from tether.ensembles.fisher import FisherConfig
from tether.ensembles.output_space import OutputConfig
from tether.ensembles.vrf import VRFConfig
from tether.tasks.ensembling.ensemble import Ensemble as Ensemble
from tether.tasks.ensembling.fisher import fit_fisher
from tether.tasks.ensembling.output import fit_output
from tether.tasks.ensembling.pair import Pair as Pair
from tether.tasks.ensembling.predictor import Predictor as Predictor
from tether.tasks.ensembling.predictor import export_predictor as export_predictor
from tether.tasks.ensembling.predictor import load_predictor as load_predictor
from tether.tasks.ensembling.predictor import save_predictor as save_predictor
from tether.tasks.ensembling.vrf import fit_vrf

EnsembleConfig = OutputConfig | VRFConfig | FisherConfig
"""The `ensemble` of a recipe, besides the path of alphas."""


def combine(
    config: EnsembleConfig, pair: Pair, *, train: Split, validation: Split, seed: int = 0
) -> Ensemble:
    """Fit an ensemble of a pair on training and validation pictures, unaugmented; no test picture is involved.

    Args:
        train: what the tuned model was trained on.
        validation: in-distribution pictures that it was not trained on.
        seed: of the pictures and labels that Fisher information is estimated from.

    Raises:
        TetherError: there is something to choose but no validation picture, or the pair does not suit the
            method.
    """
    if isinstance(config, OutputConfig):
        return fit_output(config, pair, validation)
    if isinstance(config, VRFConfig):
        return fit_vrf(config, pair, train, validation)
    return fit_fisher(config, pair, train, validation, seed)


def needs_validation(config: EnsembleConfig) -> bool:
    """Whether something is to be chosen or fitted on validation pictures."""
    if isinstance(config, OutputConfig):
        return config.weight == "auto" or config.fit_temperatures
    return isinstance(config, VRFConfig) or config.alpha == "auto"
