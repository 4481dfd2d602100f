"""Pictures made to look as if they came from elsewhere: batches of a simulated distribution shift.

Pure functions of (pixels, generator) on normalised pixels; equal generator states give equal pictures.
Those in `SHIFTS` borrow from another picture of the batch; `jitter` leaves what is shown as it is and suits
consistency.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Pixels = Float[Tensor, "batch 3 height width"]
Simulator = Callable[[Tensor, torch.Generator], Tensor]


def mix_amplitude(pixels: Pixels, generator: torch.Generator) -> Pixels:
    """Fourier phase of each picture with a random blend of its own amplitude and another picture's.

    The phase carries the shapes, the amplitude much of the style (Xu et al., CVPR 2021).
    """
    spectrum = torch.fft.rfft2(pixels.float())
    amplitude = torch.lerp(spectrum.abs(), _others(spectrum.abs(), generator), _uniform(pixels, generator))
    return torch.fft.irfft2(torch.polar(amplitude, spectrum.angle()), s=pixels.shape[-2:]).to(pixels.dtype)


def mix_style(pixels: Pixels, generator: torch.Generator) -> Pixels:
    """Each channel's mean and spread blended at random with those of another picture (as in MixStyle, ICLR
    2021)."""
    wide = pixels.float()
    mean, spread = wide.mean((2, 3), keepdim=True), wide.std((2, 3), keepdim=True) + 1e-6
    share, order = _uniform(pixels, generator), _order(len(pixels), generator, pixels.device)
    new_mean, new_spread = torch.lerp(mean, mean[order], share), torch.lerp(spread, spread[order], share)
    return ((wide - mean) / spread * new_spread + new_mean).to(pixels.dtype)


def cut_mix(pixels: Pixels, generator: torch.Generator) -> Pixels:
    """A random box, the same for the batch, filled from another picture (Yun et al., ICCV 2019); area even
    in 0…1."""
    height, width = pixels.shape[-2:]
    area, middle_y, middle_x = torch.rand(3, generator=generator, device=generator.device).tolist()
    side = area**0.5 / 2
    top, bottom = (round(height * min(max(middle_y + s, 0), 1)) for s in (-side, side))
    left, right = (round(width * min(max(middle_x + s, 0), 1)) for s in (-side, side))
    mixed = pixels.clone()
    mixed[..., top:bottom, left:right] = _others(pixels, generator)[..., top:bottom, left:right]
    return mixed


def jitter(pixels: Pixels, generator: torch.Generator) -> Pixels:
    """Brightness, contrast and noise, each up to a fifth of a normalised channel's unit spread."""
    gain = 1 + 0.4 * (_uniform(pixels, generator) - 0.5)
    shift = 0.4 * (_uniform(pixels, generator) - 0.5)
    amount = 0.2 * _uniform(pixels, generator)
    # As many numbers as pixels: drawn where the pixels are, from a stream that the generator starts.
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    there = torch.Generator(pixels.device).manual_seed(seed)
    noise = torch.randn(pixels.shape, generator=there, device=pixels.device)
    return (pixels * gain + shift + amount * noise).to(pixels.dtype)


def any_shift(pixels: Pixels, generator: torch.Generator) -> Pixels:
    """One of the others in `SHIFTS`, drawn anew for each batch."""
    others = [simulate for simulate in SHIFTS.values() if simulate is not any_shift]
    return others[int(torch.randint(len(others), (), generator=generator, device=generator.device))](
        pixels, generator
    )


SHIFTS: dict[str, Simulator] = {
    "any": any_shift,
    "mix_amplitude": mix_amplitude,
    "mix_style": mix_style,
    "cut_mix": cut_mix,
}


def _order(count: int, generator: torch.Generator, device: torch.device) -> Tensor:
    return torch.randperm(count, generator=generator, device=generator.device).to(device)


def _others(values: Tensor, generator: torch.Generator) -> Tensor:
    return values[_order(len(values), generator, values.device)]


def _uniform(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """One number in 0…1 per picture, shaped to multiply with the batch."""
    return torch.rand(len(pixels), 1, 1, 1, generator=generator, device=generator.device).to(pixels.device)
