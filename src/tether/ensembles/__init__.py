"""What is kept."""

from tether.ensembles.accumulation import Accumulation as Accumulation
from tether.ensembles.fisher.formulas import FisherPath as FisherPath
from tether.ensembles.fisher.formulas import diagonal_fisher as diagonal_fisher
from tether.ensembles.fisher.formulas import fisher_average as fisher_average
from tether.ensembles.fisher.method import FisherConfig as FisherConfig
from tether.ensembles.model_average import Soup as Soup
from tether.ensembles.model_average import average as average
from tether.ensembles.model_average import greedy_soup as greedy_soup
from tether.ensembles.output import Calibration as Calibration
from tether.ensembles.output import OutputConfig as OutputConfig
from tether.ensembles.output import OutputEnsemble as OutputEnsemble
from tether.ensembles.output import calibrate as calibrate
from tether.ensembles.output import output_ensemble as output_ensemble
from tether.ensembles.sweep import alpha_sweep as alpha_sweep
from tether.ensembles.views import Views as Views
from tether.ensembles.views import base_and_adapter as base_and_adapter
from tether.ensembles.views import two_models as two_models
from tether.ensembles.vrf.files import load_vrf as load_vrf
from tether.ensembles.vrf.files import save_vrf as save_vrf
from tether.ensembles.vrf.method import VRF as VRF
from tether.ensembles.vrf.method import VRFConfig as VRFConfig
from tether.ensembles.weight_space import interpolate as interpolate
from tether.ensembles.weight_space import wise_ft as wise_ft
from tether.models.shared_copy import shared_copy as shared_copy
from tether.models.weight_path import WeightPath as WeightPath
