"""Robust, parameter-efficient fine-tuning of vision-language models: better on your data, still good elsewhere."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# For editors and type checkers, which read imports only; the names themselves are imported when they are first used.
if TYPE_CHECKING:
    from tether.adapters import Attached as Attached
    from tether.adapters import FullConfig as FullConfig
    from tether.adapters import RAdapterConfig as RAdapterConfig
    from tether.adapters import attach as attach
    from tether.adapters import load_adapter as load_adapter
    from tether.adapters import save_adapter as save_adapter
    from tether.ensembles import Accumulation as Accumulation
    from tether.ensembles import wise_ft as wise_ft
    from tether.errors import TetherError as TetherError
    from tether.models import Model as Model
    from tether.models import Select as Select
    from tether.models import Site as Site
    from tether.models import load as load
    from tether.models import sites as sites
    from tether.objectives import MPMNCE as MPMNCE
    from tether.objectives import MPMNCEConfig as MPMNCEConfig

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

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("tether")
    if name not in _HOME:
        raise AttributeError(f"module 'tether' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
