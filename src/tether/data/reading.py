"""Reading pictures that somebody else made: bounded, deterministic, 8-bit RGB, and never silently wrong."""

import hashlib
import io
import os
import stat
import warnings
import zipfile
import zlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from tether.data.records import ImageRef, MadeImage, PictureSplit
from tether.errors import TetherError

MAX_PIXELS = 80_000_000  # below the 89 million at which Pillow itself begins to warn
MAX_BYTES = 256 * 2**20
MAX_ASPECT = 200
"""Of the longer side to the shorter: resized to 224 pixels on the shorter side it has ten million pixels then."""
PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif")
)

_DIGEST_BYTES, _END_BYTES = 16, 4096

_OTHER_PICTURES = frozenset(
    ".heic .heif .jxl .jp2 .jfif .psd .svg .tga .exr .dng .cr2 .nef .arw .raw".split()
)

# Pillow's other readers start programs (EPS) or are rarely exercised; none is needed for the formats above.
Image.init()
FORMATS = sorted(set(Image.OPEN) & {"JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF"})

# RuntimeError is what an encrypted member raises, NotImplementedError an unknown compression.
_UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)


def read_image(ref: ImageRef, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as 8-bit RGB, upright, transparent parts on white, the first frame of an animation.

    Raises:
        TetherError: it is missing, unreadable, cut short, too large, too thin, or of a kind with no unambiguous
            RGB form; the message names the file.
    """
    if isinstance(ref, MadeImage):
        return ref.make()
    try:
        return decode_image(read_bytes(ref), max_pixels=max_pixels)
    except TetherError as error:
        raise TetherError(f"Cannot read the picture {ref}: {error}") from error


def decode_image(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Like `read_image`, from a picture file's bytes.

    Raises:
        TetherError: as for `read_image`.
    """
    if not data:
        raise TetherError("the file is empty.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size  # from the header: nothing is decoded yet
            if width * height > max_pixels:
                raise TetherError(f"it has {width} × {height} pixels, more than the limit of {max_pixels:,}.")
            check_aspect(width, height)
            return as_rgb(image)
    except (TetherError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TetherError(f"it has far more pixels than the limit of {max_pixels:,}.") from error
    except Exception as error:  # decoders meet broken files with every kind of exception
        raise TetherError(
            f"it is damaged, cut short or no picture ({type(error).__name__}: {error})."
        ) from error


def check_aspect(width: int, height: int) -> None:
    """Refuse a picture so thin that to resize its shorter side would take gigabytes.

    Raises:
        TetherError: one side is more than `MAX_ASPECT` times the other.
    """
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise TetherError(
            f"it has {width} × {height} pixels, and one side may be at most {MAX_ASPECT} times the other: resized by "
            f"its shorter side it would be enormous. Crop it, or take it out."
        )


def as_rgb(picture: Image.Image) -> Image.Image:
    """An opened picture as `read_image` gives it: 8-bit RGB, upright by its EXIF, transparent parts on white.

    Raises:
        TetherError: it is of a kind with no unambiguous RGB form.
        OSError: its file is cut short.
    """
    picture.load()
    return _upright(_to_rgb(picture), _orientation(picture))


def read_bytes(ref: ImageRef) -> bytes:
    """The bytes of the file or archive member, at most `MAX_BYTES`.

    Raises:
        TetherError: there is no such file or member, it is no regular file, or it is too large.
    """
    try:
        if ref.in_archive:
            return _read_member(ref)
        with open(os.open(ref.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise TetherError("it is not a regular file.")
            _check_size(status.st_size)
            return file.read()
    except _UNREADABLE as error:
        raise TetherError(f"{getattr(error, 'strerror', None) or error}.") from error


def files_digest(split: PictureSplit) -> str:
    """SHA-256 over the size of every picture's file, in an archive over its checksum too.

    What stands in the files of runs that were made before `file_digests` looked closer.

    Raises:
        TetherError: a picture is missing.
    """
    digest = hashlib.sha256()
    for image in (example.image for example in split.examples):
        try:
            if isinstance(image, MadeImage):
                digest.update(f"{image}\n".encode())
            elif image.in_archive:
                member = _open_archive(image.root, os.getpid()).getinfo(image.name)
                digest.update(f"{member.file_size} {member.CRC}\n".encode())
            else:
                digest.update(f"{os.stat(image.path).st_size}\n".encode())
        except (KeyError, *_UNREADABLE) as error:
            raise TetherError(f"There is no picture {image} ({error}).") from error
    return digest.hexdigest()


def file_digests(split: PictureSplit) -> UInt8[np.ndarray, "pictures 16"]:
    """A hash of each picture's file: of its size and its first and last 4 KiB, in an archive of size and checksum.

    Nothing is decoded; a picture that was replaced under its name is noticed.

    Raises:
        TetherError: a picture is missing or cannot be opened.
    """
    images = [example.image for example in split.examples]
    batches = [images[start : start + 256] for start in range(0, len(images), 256)]
    with ThreadPoolExecutor(8) as pool:  # for slow disks; from memory one thread is as fast
        digests = b"".join(pool.map(lambda batch: b"".join(map(_file_digest, batch)), batches))
    return np.frombuffer(bytearray(digests), np.uint8).reshape(-1, _DIGEST_BYTES)


def _file_digest(image: ImageRef) -> bytes:
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    try:
        if isinstance(image, MadeImage):
            digest.update(str(image).encode())
        elif image.in_archive:
            member = _open_archive(image.root, os.getpid()).getinfo(image.name)
            digest.update(f"{member.file_size} {member.CRC}".encode())
        else:
            with open(os.open(image.path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb", 0) as file:
                size = os.fstat(file.fileno()).st_size
                digest.update(f"{size} ".encode() + (file.read(_END_BYTES) or b""))
                if size > _END_BYTES:
                    file.seek(max(_END_BYTES, size - _END_BYTES))
                    digest.update(file.read(_END_BYTES))
    except (KeyError, *_UNREADABLE) as error:
        raise TetherError(f"There is no picture {image} ({error}).") from error
    return digest.digest()


def archive_members(path: str) -> frozenset[str]:
    """Names of all files in a zip archive.

    Raises:
        TetherError: there is no such archive, or it is damaged.
    """
    try:
        return frozenset(_open_archive(path, os.getpid()).namelist())
    except _UNREADABLE as error:
        raise TetherError(
            f"Cannot read the archive {path}: {getattr(error, 'strerror', None) or error}."
        ) from error


def _read_member(ref: ImageRef) -> bytes:
    archive = _open_archive(ref.root, os.getpid())
    try:
        member = archive.getinfo(ref.name)
    except KeyError:
        raise TetherError(f"the archive has no member {ref.name!r}.") from None
    _check_size(member.file_size)
    with archive.open(member) as file:
        return file.read(member.file_size)  # what a false header hides beyond this size is never inflated


@lru_cache(maxsize=32)
def _open_archive(path: str, process: int) -> zipfile.ZipFile:
    # One handle per process: a forked worker that used its parent's would move the parent's file position.
    return zipfile.ZipFile(path)


def _check_size(size: int):
    if size > MAX_BYTES:
        raise TetherError(f"the file has {size:,} bytes, more than the limit of {MAX_BYTES:,}.")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.mode == "F":
        raise TetherError(
            "it holds floating-point values of unknown range; convert it to 8 or 16 bits first."
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> np.ndarray:
    """16-bit grey as 8-bit grey; Pillow's own conversion clips at 255 instead of scaling."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise TetherError("its grey values do not fit in 16 bits; convert it first.")
    return ((values * 255 + 0x7FFF) // 0xFFFF).astype(np.uint8)


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a header that cannot be parsed says nothing about orientation, and spoils no pixel
        return 1


def _upright(image: Image.Image, orientation: int) -> Image.Image:
    if orientation not in range(2, 9):
        return image
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    return ImageOps.exif_transpose(image)


def list_pictures(root: str | Path) -> list[str]:
    """Names (paths with forward slashes) of all picture files below `root`, sorted.

    Hidden files and folders are passed over; files of other kinds too, pictures among them (such as .heic) with a
    warning that counts them.

    Raises:
        TetherError: there is no such folder.
    """
    root = os.fspath(root)
    if not os.path.isdir(root):
        raise TetherError(f"There is no folder {root}.")
    names, others, visited = [], Counter(), set()
    for folder, folders, files in os.walk(root, followlinks=True):
        if (place := os.path.realpath(folder)) in visited:  # a link that leads back up would never end
            folders.clear()
            continue
        visited.add(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        for file in files:
            if file.startswith("."):
                continue
            suffix = os.path.splitext(file)[1].lower()
            if suffix in PICTURE_SUFFIXES:
                names.append(file if inside == "." else f"{inside}/{file}")
            elif suffix in _OTHER_PICTURES:
                others[suffix] += 1
    if others:
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common(5))
        warnings.warn(
            f"{root} also holds pictures of kinds that cannot be read here, which are passed over: {kinds}.",
            stacklevel=2,
        )
    return sorted(names)
