"""One loop, its batches, its checkpoints and the directory it writes to."""

from tether.training.config import FitConfig as FitConfig
from tether.training.held_out import HeldOut as HeldOut
from tether.training.interrupts import Interrupted as Interrupted
from tether.training.loop import AfterStep as AfterStep
from tether.training.loop import FitResult as FitResult
from tether.training.loop import Trainable as Trainable
from tether.training.loop import fit as fit
from tether.training.run_directory import RunDirectory as RunDirectory
from tether.training.run_directory import read_metrics as read_metrics
