"""Where the built-in model lies: a small CLIP in open_clip's folder format, shipped with the package."""

from pathlib import Path

from tether.errors import TetherError

FOLDER = Path(__file__).with_name("builtin_clip")


def folder() -> Path:
    """The folder of the built-in model.

    Raises:
        TetherError: the package was installed without its weights.
    """
    if not (FOLDER / "open_clip_model.safetensors").is_file():
        raise TetherError(
            f"The built-in model is missing from {FOLDER}; install tether again from a complete source."
        )
    return FOLDER
