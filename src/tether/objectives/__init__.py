"""What is minimised."""

from tether.objectives.cross_entropy import cross_entropy as cross_entropy
from tether.objectives.info_nce import InfoNCE as InfoNCE
from tether.objectives.info_nce import info_nce as info_nce
from tether.objectives.mpm_nce import MPMNCE as MPMNCE
from tether.objectives.mpm_nce import MPMNCEConfig as MPMNCEConfig
from tether.objectives.mpm_nce import mpm_nce as mpm_nce
from tether.objectives.mpm_nce import soft_labels as soft_labels
