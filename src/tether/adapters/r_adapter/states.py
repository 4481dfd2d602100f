"""R-Adapter states: dicts of tensors named `<path>.r_adapter.<weight | up | down | scale>`, and what they
stand for.

Every state stands for one matrix A_full = s · F or s · U D per path. Two states are the same adapter if these
matrices are equal, whatever they are made of: averages, sums and truncated ranks are states too.
"""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from tether.adapters.r_adapter.module import TENSORS, Factors, product
from tether.errors import TetherError

PART = ".r_adapter."
FORMS = ({"weight"}, {"weight", "scale"}, {"up", "down"}, {"up", "down", "scale"})


def by_path(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each adapter, by its path and then by "weight", "up", "down" and "scale".

    Raises:
        TetherError: a name is not that of an adapter's tensor, an adapter is incomplete, or shapes do not
            fit.
    """
    adapters: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        path, part, kind = name.rpartition(PART)
        if not part or kind not in TENSORS:
            raise TetherError(
                f"{name!r} is not a tensor of an R-Adapter; they end in {PART}weight, up, down or scale."
            )
        adapters.setdefault(path, {})[kind] = tensor
    for path, tensors in adapters.items():
        if set(tensors) not in FORMS or not _fits(tensors):
            shapes = ", ".join(f"{kind} {list(tensor.shape)}" for kind, tensor in tensors.items())
            raise TetherError(
                f"The adapter at {path} is incomplete or its shapes do not fit together: {shapes}. Expected "
                f"weight [d, d], or up [d, r] and down [r, d], and perhaps scale []."
            )
    return adapters


def factors_of(tensors: Mapping[str, Tensor]) -> tuple[Factors, Tensor | float]:
    """The factors of A and the factor k = s of one adapter's tensors."""
    factors = (tensors["weight"],) if "weight" in tensors else (tensors["up"], tensors["down"])
    return factors, tensors.get("scale", 1.0)


def matrices(state: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "d d"]]:
    """s · F or s · U D of each adapter by its path, in fp32: what the adapter adds, M − I at alpha = 1."""
    return {path: product(*factors_of(tensors)) for path, tensors in by_path(state).items()}


def full_rank(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same adapters with one full matrix each and no scale."""
    return {f"{path}{PART}weight": matrix for path, matrix in matrices(state).items()}


def _fits(tensors: Mapping[str, Tensor]) -> bool:
    shapes = {kind: tuple(tensor.shape) for kind, tensor in tensors.items()}
    if shapes.get("scale", ()) != ():
        return False
    if "weight" in shapes:
        return len(shapes["weight"]) == 2 and shapes["weight"][0] == shapes["weight"][1]
    return len(shapes["up"]) == 2 and shapes["up"] == shapes["down"][::-1]
