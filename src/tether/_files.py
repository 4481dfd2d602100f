"""Files that are whole or not there: write to a sibling, flush to disk, rename."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tether.config import build
from tether.errors import TetherError


def temporary_beside(path: Path) -> Path:
    """A hidden sibling for what is to become `path`: no two writers have the same, of whatever machine."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write(temporary)` and move the result to `path`; on any failure `path` is as it was before.

    The data is flushed to the disk before the rename and the folder after it, so that neither a killed process
    nor a power loss leaves half a file under the final name.

    Raises:
        TetherError: the disk is full or the folder cannot be written.
    """
    temporary = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush(path.parent)
    except OSError as error:
        raise TetherError(
            f"Could not write {path}: {error.strerror or error}. What was there before is untouched; free some "
            f"space or choose another folder, and run again."
        ) from error
    finally:
        with suppress(OSError):  # such as a parent that is no folder: the error above says so
            temporary.unlink(missing_ok=True)


def refuse_existing(out: Path) -> None:
    """See that a new folder overwrites nothing, before any work is done for it.

    Raises:
        TetherError: there is something at `out`.
    """
    if out.exists():
        raise TetherError(f"{out} exists already, and nothing is overwritten. Name a folder that does not.")


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Gives a folder to fill, which becomes `out` at the end; if anything fails, nothing is left behind.

    What is written with the functions of this module is on the disk before the folder has its name.

    Raises:
        TetherError: the disk is full or the folder cannot be written.
    """
    temporary = temporary_beside(out)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(out)
        _flush(out.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TetherError(f"Could not write {out}: {reason}. Nothing was left behind.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _flush(folder: Path) -> None:
    """See that the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, whatever device and memory layout they have; those that share memory as copies.

    Raises:
        OSError: the file cannot be written; half of it may be there.
    """
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    path.touch()
    mode = path.stat().st_mode  # as any new file has it; safetensors would leave it to its owner alone
    try:
        save_file(plain, path)
        path.chmod(mode)
    except SafetensorError as error:  # the library's own type for a full disk
        raise OSError(str(error)) from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """`save_tensors`, atomically.

    Raises:
        TetherError: the disk is full or the folder cannot be written.
    """
    write_atomically(path, lambda temporary: save_tensors(temporary, tensors))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        TetherError: it is missing or not whole.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise TetherError(
            f"{path} cannot be read ({error}); it is missing or cut short. Copy it again."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write a text as UTF-8; see `write_atomically`."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically. NaN and infinity are refused: they are not JSON."""
    text = json.dumps(value, indent=2, sort_keys=False, allow_nan=False, ensure_ascii=False) + "\n"
    write_text(path, text)


def read_json(path: Path, kind: Any = Any) -> Any:
    """Read a JSON file.

    Args:
        kind: what it should hold: `dict`, or whatever else `tether.config.build` makes of plain data.

    Raises:
        TetherError: there is no such file, it is not JSON, or it holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TetherError(f"There is no file {path}.") from error
    except RecursionError as error:
        raise TetherError(f"{path} is nested too deep to be read.") from error
    except ValueError as error:  # also of text that is not UTF-8, and of numbers of thousands of digits
        raise TetherError(f"{path} is not valid JSON ({error}); it may be cut short.") from error
    try:
        return build(kind, value)
    except TetherError as error:
        raise TetherError(f"{path} holds something else than it should: {error}") from error


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
