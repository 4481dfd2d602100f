"""Robust, parameter-efficient fine-tuning of vision-language models: better on your data, still good elsewhere."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# For editors and type checkers; the names themselves are imported when they are first used.
if TYPE_CHECKING:
    from tether.adapters import Attached, FullConfig, RAdapterConfig, attach, load_adapter, save_adapter
    from tether.ensembles import Accumulation, wise_ft
    from tether.errors import TetherError
    from tether.models import Model, Select, Site, load, sites
    from tether.objectives import MPMNCE, MPMNCEConfig

    __version__: str

_HOME = {
    "Accumulation": "tether.ensembles",
    "Attached": "tether.adapters",
    "FullConfig": "tether.adapters",
    "Model": "tether.models",
    "MPMNCE": "tether.objectives",
    "MPMNCEConfig": "tether.objectives",
    "RAdapterConfig": "tether.adapters",
    "Select": "tether.models",
    "Site": "tether.models",
    "TetherError": "tether.errors",
    "attach": "tether.adapters",
    "load": "tether.models",
    "load_adapter": "tether.adapters",
    "save_adapter": "tether.adapters",
    "sites": "tether.models",
    "wise_ft": "tether.ensembles",
}

__all__ = [
    "MPMNCE",
    "Accumulation",
    "Attached",
    "FullConfig",
    "MPMNCEConfig",
    "Model",
    "RAdapterConfig",
    "Select",
    "Site",
    "TetherError",
    "attach",
    "load",
    "load_adapter",
    "save_adapter",
    "sites",
    "wise_ft",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tether")
    if name not in _HOME:
        raise AttributeError(f"module 'tether' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
