"""What describes a model in a folder of its library, for a folder with other weights."""

import shutil
from pathlib import Path

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".index.json")


def copy_description(base: Path, folder: Path) -> None:
    """The base's own files but for its weights."""
    for file in base.iterdir():
        if file.is_file() and not file.name.endswith(WEIGHTS):
            shutil.copy2(file, folder)
