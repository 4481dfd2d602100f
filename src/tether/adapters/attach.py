"""Attach a method to a model, chosen by the type of its config."""

from typing import Any

from tether.adapters.attached import Attached
from tether.adapters.bias_only import BiasOnlyAttached, BiasOnlyConfig
from tether.adapters.full import FullAttached, FullConfig
from tether.adapters.last_blocks import LastBlocksAttached, LastBlocksConfig
from tether.adapters.norm_only import NormOnlyAttached, NormOnlyConfig
from tether.adapters.r_adapter import RAdapterConfig
from tether.adapters.r_attached import RAttached
from tether.errors import TetherError

METHODS: dict[type, type[Attached]] = {
    RAdapterConfig: RAttached,
    FullConfig: FullAttached,
    BiasOnlyConfig: BiasOnlyAttached,
    NormOnlyConfig: NormOnlyAttached,
    LastBlocksConfig: LastBlocksAttached,
}
"""The config of every method, and what attaches it. Files name a method by the `method` of the latter."""


def attach(model: Any, config: Any, *, seed: int = 0) -> Attached:
    """Attach a method to a model, freeze everything else, and return the handle.

    Right after it the model computes exactly what it computed before.

    Args:
        model: a `tether.Model` or any module.
        config: an instance of one of the config classes of `tether.adapters`.
        seed: of whatever is random in the method.

    Raises:
        TetherError: the config is of no known method, something is attached already, or the method does not
            fit the model.
    """
    if type(config) not in METHODS:
        known = ", ".join(cls.__name__ for cls in METHODS)
        raise TetherError(f"attach takes one of the configs {known}, not {type(config).__name__}.")
    return METHODS[type(config)](model, config, seed=seed)
