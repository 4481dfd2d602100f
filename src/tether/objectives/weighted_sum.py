"""Adding objectives up."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from tether.errors import TetherError, near_misses


def weighted_sum(terms: Mapping[str, Float[Tensor, ""]], weights: Mapping[str, float]) -> Float[Tensor, ""]:
    """Σ weight · term; a term without a weight counts 1, one of weight 0 not at all, be it infinite.

    >>> import torch
    >>> float(weighted_sum({"task": torch.tensor(2.0), "l2_sp": torch.tensor(3.0)}, {"l2_sp": 0.5}))
    3.5

    Raises:
        TetherError: a weight for something that is no term, or no term at all.
    """
    for name in weights.keys() - terms.keys():
        raise TetherError(f"There is a weight for {name!r}, which is no term{near_misses(name, list(terms))}")
    counted = [weights.get(name, 1.0) * term for name, term in terms.items() if weights.get(name, 1.0) != 0]
    if not counted:
        raise TetherError(
            f"No term is left to minimise: the weights {dict(weights)} leave none of {list(terms)}."
        )
    return sum(counted[1:], counted[0])
