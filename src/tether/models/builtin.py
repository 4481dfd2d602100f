"""Where the built-in model lies: a small CLIP in open_clip's folder format, shipped with the package."""

from pathlib import Path

from tether.errors import TetherError

FOLDER = Path(__file__).with_name("builtin_clip")
ARCHITECTURE = "tether_vit_lite0"
"""Of the image tower, by which timm knows it once it is registered."""


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


def register() -> None:
    """Make the image tower of the built-in model known to timm.

    `tether.load` does it by itself. open_clip needs it before it can load the built-in model, or one that an
    adapter was merged into:

        builtin.register()
        model, _, preprocess = open_clip.create_model_and_transforms("local-dir:merged")
    """
    from tether.models import hybrid  # noqa: F401  (registers when it is imported, which takes timm)
