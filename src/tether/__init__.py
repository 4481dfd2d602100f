"""Robust, parameter-efficient fine-tuning of vision-language models: better on your data, still good elsewhere."""

from importlib import import_module

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

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'tether' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
