"""Sealed folders: a JSON, written last, holds the SHA-256 of the other files. Adapters, predictors, checkpoints.

Each file is whole or not there (`tether._files`), so a folder without its JSON is none yet, and a file without its
hash was damaged afterwards.
"""

from pathlib import Path
from typing import Any

from tether._files import read_json, read_tensors, sha256_file, write_json, write_tensors
from tether.errors import TetherError


def write_part(path: Path, content: Any) -> str:
    """Write a file of a sealed folder: tensors by name as `.safetensors`, plain data as `.json`.

    Returns:
        Its SHA-256, to be put into the folder's JSON.

    Raises:
        TetherError: the disk is full or the folder cannot be written.
    """
    (write_tensors if path.suffix == ".safetensors" else write_json)(path, content)
    return sha256_file(path)


def read_part(path: Path, sha256: str) -> Any:
    """What `write_part` wrote.

    Args:
        sha256: from the folder's JSON.

    Raises:
        TetherError: the file is damaged.
    """
    check_part(path, sha256)
    return read_tensors(path) if path.suffix == ".safetensors" else read_json(path)


def check_part(path: Path, sha256: str) -> None:
    """See that a file of a sealed folder is the one that was written.

    Raises:
        TetherError: it is damaged: missing, cut short or changed.
    """
    if not path.is_file():
        damage = "it is missing"
    elif sha256_file(path) != sha256:
        damage = "it was cut short or changed after it was written, as its SHA-256 shows"
    else:
        return
    raise TetherError(f"{path} is damaged: {damage}. Copy the whole folder {path.parent} again.")


def part_of(folder: Path, name: str) -> Path:
    """The path of a file or folder that a folder's JSON names.

    Raises:
        TetherError: it would lie outside of the folder.
    """
    if Path(name).name != name or name in ("", ".", ".."):
        raise TetherError(f"{folder} names a file outside of itself ({name!r}); it is not to be trusted.")
    return folder / name
