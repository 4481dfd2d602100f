"""The 15 common corruptions at five severities (Hendrycks & Dietterich, ICLR 2019), by
`imagecorruptions-imaug`.

The published parameters are lengths in pixels of a picture 224 pixels high; on smaller pictures the same blur
would hide more. A benchmark of ours therefore corrupts every picture at 224 pixels (the shorter side,
bicubic) and lets the model's own transform make it as small as the model wants. Corrupted in memory, without
the JPEG step of the distributed ImageNet-C files: numbers are not comparable with those files'
(hendrycks/robustness issues 14 and 16).
"""

import threading
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from tether.data.records import PictureSplit
from tether.data.seeds import derived_seed
from tether.data.transforms import fit_shortest
from tether.errors import TetherError, near_misses

CORRUPTIONS = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
SEVERITIES = (1, 2, 3, 4, 5)
BENCHMARK_SIZE = 224
_CELLS = len(CORRUPTIONS) * len(SEVERITIES)

_global_stream = threading.Lock()


def corrupt(image: Image.Image, name: str, severity: int, *, seed: int = 0, key: str = "") -> Image.Image:
    """The RGB picture corrupted at its own size; a pure function of the arguments.

    Args:
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        key: the picture's name, so that chance differs from picture to picture.

    Raises:
        TetherError: an unknown corruption or severity, a side under 32 pixels, or the library is not
            installed.
    """
    if name not in CORRUPTIONS:
        raise TetherError(f"There is no corruption {name!r}{near_misses(name, CORRUPTIONS)}")
    if severity not in SEVERITIES:
        raise TetherError(f"The severity is {severity}; expected 1, 2, 3, 4 or 5.")
    if min(image.size) < 32:
        raise TetherError(f"{image.width} × {image.height} pixels are too few; corruptions need 32 each way.")
    library = _library()
    chance = derived_seed(seed, name, severity, key) % 2**32
    own = {"seed": chance} if name in ("impulse_noise", "glass_blur") else {}
    with _global_stream:  # the other corruptions draw from numpy's global stream
        before = np.random.get_state()
        np.random.seed(chance)
        try:
            pixels = library.corrupt(np.asarray(image), severity, name, **own)
        finally:
            np.random.set_state(before)
    return Image.fromarray(pixels)


def corrupt_as_benchmark(image: Image.Image, name: str, severity: int, *, seed: int, key: str) -> Image.Image:
    """Like `corrupt`, with the picture's shorter side brought to 224 pixels first.

    Raises:
        TetherError: as for `corrupt`.
    """
    return corrupt(fit_shortest(image, BENCHMARK_SIZE), name, severity, seed=seed, key=key)


def corrupted(
    split: PictureSplit,
    names: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = SEVERITIES,
    *,
    seed: int = 0,
) -> dict[str, PictureSplit]:
    """The split once per corruption and severity, named "fog 3" and so on; the pictures are corrupted when
    read.

    Raises:
        TetherError: an unknown corruption or severity, a split that is altered already, or the library is not
            installed.
    """
    splits = {}
    for name in names:
        for severity in severities:
            if name not in CORRUPTIONS or severity not in SEVERITIES:
                raise TetherError(f"There is no corruption {name} {severity}{near_misses(name, CORRUPTIONS)}")
            splits[f"{name} {severity}"] = _altered(
                split, f"{name} {severity}", "corrupted", f"{name}:{severity}:{seed}"
            )
    return splits


def mixed_corruptions(split: PictureSplit, *, seed: int = 0) -> PictureSplit:
    """The split with each picture under a corruption and severity of its own, see `drawn`.

    Raises:
        TetherError: a split that is altered already, or the library is not installed.
    """
    how = f"each under one of {_CELLS} corruptions, drawn by its name,"
    return _altered(split, "corrupted", how, f"mixture:{seed}")


def drawn(seed: int, key: str) -> tuple[str, int]:
    """The corruption and severity of a picture in a mixture: all 75 equally likely, by nothing but its name.

    A picture's corruption is therefore the same in every fold, subset and process.
    """
    name, severity = divmod(derived_seed(seed, "mixture", key) % _CELLS, len(SEVERITIES))
    return CORRUPTIONS[name], SEVERITIES[severity]


def _altered(split: PictureSplit, look: str, how: str, alteration: str) -> PictureSplit:
    if split.alteration:
        raise TetherError(f"The split {split.name!r} is altered already, by {split.alteration!r}.")
    _library()
    return replace(
        split,
        name=f"{split.name} {look}",
        domain=f"{split.domain} {look}",
        convention=f"{split.convention}; {how} in memory at {BENCHMARK_SIZE} pixels",
        alteration=f"corruption:{alteration}",
    )


def _library():
    try:
        import imagecorruptions
    except ImportError as error:
        raise TetherError(
            f"Corruptions need the package imagecorruptions-imaug ({error}): pip install "
            "'.[corruptions]'. On a machine without a display, also: pip install "
            "opencv-python-headless. Data sets do without corrupted tests with corruptions: none."
        ) from error
    return imagecorruptions
