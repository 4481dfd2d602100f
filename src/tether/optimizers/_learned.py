"""Adam on the numbers that FTP, TPGM and DiGraP learn beside the weights, one per tensor."""

from typing import Literal

from torch import Tensor

BiasCorrection = Literal["published", "exact"]


def adam_move(gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, updates: Tensor) -> Tensor:
    """m̂ / (√v̂ + ε) after so many updates with this one (betas .9, .999, ε 1e-8); the moments change in place.

    All arguments have one shape: no dimension, or one entry per tensor.
    """
    exp_avg.lerp_(gradient, 0.1)
    exp_avg_sq.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
    return exp_avg / (1 - 0.9**updates) / ((exp_avg_sq / (1 - 0.999**updates)).sqrt() + 1e-8)


def counted(step: Tensor, bias_correction: BiasCorrection) -> Tensor:
    """The exponent of the bias correction at a tensor's step 1, 2, …

    A number that is first updated at step 2 has had step − 1 updates; the published code of FTP and DiGraP
    counts one more, which makes its first move 0.744 of the learning rate.
    """
    return step if bias_correction == "published" else (step - 1).clamp(min=1)
