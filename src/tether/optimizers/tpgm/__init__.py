"""Trainable Projected Gradient Method (TPGM): its formulas, the optimizer, and what learns its radii in a run.

Tian, Dai, Ma, et al.: "Trainable Projected Gradient Method for Robust Fine-Tuning", CVPR 2023, arXiv
2303.10720.
"""

from tether.optimizers.tpgm.method import TPGM as TPGM
from tether.optimizers.tpgm.method import TPGMConfig as TPGMConfig
from tether.optimizers.tpgm.radii import RadiiConfig as RadiiConfig
from tether.optimizers.tpgm.radii import RadiusLearner as RadiusLearner
