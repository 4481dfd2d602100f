"""How weights move: optimizers that do not let go of the pre-trained weights."""

from tether.optimizers.digrap import DiGraP, DiGraPConfig
from tether.optimizers.from_config import AdamWConfig, SGDConfig, create
from tether.optimizers.ftp import FTP, FTPConfig
from tether.optimizers.groups import parameter_groups
from tether.optimizers.l2sp import L2SP, L2SPConfig
from tether.optimizers.marssp import MARSSP, MARSSPConfig
from tether.optimizers.spd import SPD, SPDConfig
from tether.optimizers.tpgm import TPGM, RadiiConfig, RadiusLearner, TPGMConfig

__all__ = [
    "FTP",
    "L2SP",
    "MARSSP",
    "SPD",
    "TPGM",
    "AdamWConfig",
    "DiGraP",
    "DiGraPConfig",
    "FTPConfig",
    "L2SPConfig",
    "MARSSPConfig",
    "RadiiConfig",
    "RadiusLearner",
    "SGDConfig",
    "SPDConfig",
    "TPGMConfig",
    "create",
    "parameter_groups",
]
