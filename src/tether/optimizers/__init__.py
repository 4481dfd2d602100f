"""How weights move: optimizers that do not let go of the pre-trained weights."""

from tether.optimizers.digrap import DiGraP
from tether.optimizers.ftp import FTP
from tether.optimizers.l2sp import L2SP
from tether.optimizers.marssp import MARSSP
from tether.optimizers.spd import SPD
from tether.optimizers.tpgm import TPGM

__all__ = ["FTP", "L2SP", "MARSSP", "SPD", "TPGM", "DiGraP"]
