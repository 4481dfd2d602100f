"""What may move: methods that train a little of a model and leave the rest as it was."""

from tether.adapters.attach import METHODS, attach
from tether.adapters.attached import Attached, MergeReport
from tether.adapters.r_adapter import RAdapter, RAdapterConfig
from tether.adapters.r_attached import RAttached

__all__ = ["METHODS", "Attached", "MergeReport", "RAdapter", "RAdapterConfig", "RAttached", "attach"]
