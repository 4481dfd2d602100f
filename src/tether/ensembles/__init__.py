"""What is kept."""

from tether.ensembles.accumulation import Accumulation as Accumulation
from tether.ensembles.fisher import FisherConfig as FisherConfig
from tether.ensembles.fisher import FisherPath as FisherPath
from tether.ensembles.fisher import diagonal_fisher as diagonal_fisher
from tether.ensembles.fisher import fisher_average as fisher_average
from tether.ensembles.model_average import Soup as Soup
from tether.ensembles.model_average import average as average
from tether.ensembles.model_average import greedy_soup as greedy_soup
from tether.ensembles.output_space import Calibration as Calibration
from tether.ensembles.output_space import OutputConfig as OutputConfig
from tether.ensembles.output_space import OutputEnsemble as OutputEnsemble
from tether.ensembles.output_space import calibrate as calibrate
from tether.ensembles.output_space import output_ensemble as output_ensemble
from tether.ensembles.shared_copy import shared_copy as shared_copy
from tether.ensembles.views import Views as Views
from tether.ensembles.views import base_and_adapter as base_and_adapter
from tether.ensembles.views import two_models as two_models
from tether.ensembles.vrf import VRF as VRF
from tether.ensembles.vrf import VRFConfig as VRFConfig
from tether.ensembles.vrf_files import load_vrf as load_vrf
from tether.ensembles.vrf_files import save_vrf as save_vrf
from tether.ensembles.weight_space import WeightPath as WeightPath
from tether.ensembles.weight_space import interpolate as interpolate
from tether.ensembles.weight_space import wise_ft as wise_ft
