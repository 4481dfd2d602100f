"""What can be done to every picture of a split after reading: borders cut, corruptions, simulated shifts.

An alteration is written `kind:arguments`, for example "crop_border:2", "corruption:fog:3:0" (name, severity,
seed), "corruption:mixture:0" (seed; each picture under a corruption drawn by its name) or
"simulated:greyscale:0" (name, seed). It is a pure function of the picture, these words and the
picture's name, so a test split with an alteration is the same pictures in every run, on every machine and in
any order.
"""

from PIL import Image

from tether.errors import TetherError, near_misses

_KINDS = ("crop_border", "corruption", "simulated")


def alter(picture: Image.Image, alteration: str, key: str) -> Image.Image:
    """The altered picture; `key` names it, so that chance differs from picture to picture.

    Raises:
        TetherError: an alteration that is not known.
    """
    if not alteration:
        return picture
    kind, *arguments = alteration.split(":")
    match kind, arguments:
        case "crop_border", [width]:
            border = int(width)
            return picture.crop((border, border, picture.width - border, picture.height - border))
        case "corruption", [name, severity, seed]:
            from tether.data.corruptions import corrupt_as_benchmark

            return corrupt_as_benchmark(picture, name, int(severity), seed=int(seed), key=key)
        case "corruption", ["mixture", seed]:
            from tether.data.corruptions import corrupt_as_benchmark, drawn

            return corrupt_as_benchmark(picture, *drawn(int(seed), key), seed=int(seed), key=key)
        case "simulated", [name, seed]:
            from tether.data.simulated import simulate

            return simulate(picture, name, seed=int(seed), key=key)
    raise TetherError(f"There is no alteration {alteration!r}{near_misses(kind, _KINDS)}")
