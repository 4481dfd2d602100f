"""What may move: methods that train a little of a model and leave the rest as it was."""

from tether.adapters.adaptformer import AdaptFormer, AdaptFormerConfig
from tether.adapters.attach import attach
from tether.adapters.attached import Attached
from tether.adapters.bias_only import BiasOnlyAttached, BiasOnlyConfig
from tether.adapters.bottleneck import Bottleneck, BottleneckConfig
from tether.adapters.convpass import Convpass, ConvpassConfig
from tether.adapters.files import Adapter, apply, load_adapter, save_adapter
from tether.adapters.frozen import FrozenConfig
from tether.adapters.full import FullAttached, FullConfig
from tether.adapters.head import Head
from tether.adapters.last_blocks import LastBlocksAttached, LastBlocksConfig
from tether.adapters.lorand import LoRand, LoRandConfig
from tether.adapters.mergeable import Mergeable, MergeReport
from tether.adapters.mona import Mona, MonaConfig
from tether.adapters.norm_only import NormOnlyAttached, NormOnlyConfig
from tether.adapters.placed import PlacedAttached, PlacedConfig
from tether.adapters.placed_module import Placed
from tether.adapters.r_adapter.arithmetic import add, average, combine
from tether.adapters.r_adapter.method import RAdapterConfig, RAttached
from tether.adapters.r_adapter.module import RAdapter
from tether.adapters.r_adapter.rank import Factored, at_rank
from tether.adapters.r_adapter.states import full_rank, matrices
from tether.adapters.ranks import RankResult, size_in_bytes, smallest_within
from tether.adapters.rep_adapter import RepAdapter, RepAdapterAttached, RepAdapterConfig
from tether.adapters.sct import SalientChannels, SCTAttached, SCTConfig
from tether.adapters.ssf import SSFAttached, SSFConfig
from tether.adapters.vpt import Prompts, VPTAttached, VPTConfig

__all__ = [
    "AdaptFormer",
    "AdaptFormerConfig",
    "Adapter",
    "Attached",
    "BiasOnlyAttached",
    "BiasOnlyConfig",
    "Bottleneck",
    "BottleneckConfig",
    "Convpass",
    "ConvpassConfig",
    "Factored",
    "FrozenConfig",
    "FullAttached",
    "FullConfig",
    "Head",
    "LastBlocksAttached",
    "LastBlocksConfig",
    "LoRand",
    "LoRandConfig",
    "MergeReport",
    "Mergeable",
    "Mona",
    "MonaConfig",
    "NormOnlyAttached",
    "NormOnlyConfig",
    "Placed",
    "PlacedAttached",
    "PlacedConfig",
    "Prompts",
    "RAdapter",
    "RAdapterConfig",
    "RAttached",
    "RankResult",
    "RepAdapter",
    "RepAdapterAttached",
    "RepAdapterConfig",
    "SCTAttached",
    "SCTConfig",
    "SSFAttached",
    "SSFConfig",
    "SalientChannels",
    "VPTAttached",
    "VPTConfig",
    "add",
    "apply",
    "at_rank",
    "attach",
    "average",
    "combine",
    "full_rank",
    "load_adapter",
    "matrices",
    "save_adapter",
    "size_in_bytes",
    "smallest_within",
]
