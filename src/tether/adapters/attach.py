"""Attach a method to a model, chosen by the type of its config."""

from typing import Any

from tether.adapters.attached import Attached
from tether.config import methods_of
from tether.errors import TetherError
from tether.families import AdapterConfig


def attach(model: Any, config: AdapterConfig | Any, *, seed: int = 0) -> Attached:
    """Attach a method to a model, freeze everything else, and return the handle.

    Right after it the model computes exactly what it computed before, unless the handle says that it does not
    (`identity_at_start`).

    Args:
        model: a `tether.Model` or any module.
        config: an instance of one of the config classes of `tether.adapters`, or of your own `AdapterConfig`.
        seed: of whatever is random in the method.

    Raises:
        TetherError: the config is of no known method, something is attached already, or the method does not
            fit the model.
    """
    if not isinstance(config, AdapterConfig):
        known = ", ".join(cls.__name__ for cls in methods_of(AdapterConfig).values())
        raise TetherError(f"attach takes one of the configs {known}, not {type(config).__name__}.")
    return config.attach(model, seed=seed)
