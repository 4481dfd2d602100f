"""Reading pictures that somebody else made: bounded, deterministic, 8-bit RGB, and never silently wrong."""

import hashlib
import io
import os
import stat
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tether.data.records import Benchmark, ImageRef, Split
from tether.errors import TetherError

MAX_PIXELS = 80_000_000  # below the 89 million at which Pillow itself begins to warn
MAX_BYTES = 256 * 2**20
PICTURE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif")
)

# Pillow's other readers start programs (EPS) or are rarely exercised; none is needed for the formats above.
Image.init()
_FORMATS = sorted(set(Image.OPEN) & {"JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF"})

# RuntimeError is what an encrypted member raises, NotImplementedError an unknown compression.
_UNREADABLE = (OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError)


def read_image(ref: ImageRef, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as 8-bit RGB, upright, transparent parts on white, the first frame of an animation.

    Raises:
        TetherError: it is missing, unreadable, cut short, too large, or of a kind with no unambiguous RGB
            form; the message names the file.
    """
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
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size  # from the header: nothing is decoded yet
            if width * height > max_pixels:
                raise TetherError(f"it has {width} × {height} pixels, more than the limit of {max_pixels:,}.")
            return as_rgb(image)
    except (TetherError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TetherError(f"it has far more pixels than the limit of {max_pixels:,}.") from error
    except Exception as error:  # decoders meet broken files with every kind of exception
        raise TetherError(
            f"it is damaged, cut short or no picture ({type(error).__name__}: {error})."
        ) from error


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
        path = os.path.join(ref.root, *ref.name.split("/"))
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise TetherError("it is not a regular file.")
            _check_size(status.st_size)
            return file.read()
    except _UNREADABLE as error:
        raise TetherError(f"{getattr(error, 'strerror', None) or error}.") from error


def files_digest(split: Split) -> str:
    """SHA-256 over the size of every picture's file, in an archive over its checksum too.

    Nothing is decoded; but for one of equal size in a folder, a picture that was replaced under its name is noticed.

    Raises:
        TetherError: a picture is missing.
    """
    digest = hashlib.sha256()
    for image in (example.image for example in split.examples):
        try:
            if image.in_archive:
                member = _open_archive(image.root, os.getpid()).getinfo(image.name)
                digest.update(f"{member.file_size} {member.CRC}\n".encode())
            else:
                digest.update(
                    f"{os.stat(os.path.join(image.root, *image.name.split('/'))).st_size}\n".encode()
                )
        except (KeyError, *_UNREADABLE) as error:
            raise TetherError(f"There is no picture {image} ({error}).") from error
    return digest.hexdigest()


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


@dataclass(frozen=True)
class Unreadable:
    """A picture of a split that cannot be read, and why."""

    image: ImageRef
    reason: str


def check(
    split: Split, *, threads: int = 4, progress: Callable[[int, int], None] | None = None
) -> tuple[Unreadable, ...]:
    """Read every picture of the split once and list all that cannot be read.

    `progress` is called with (pictures done, pictures in all).
    """

    found = []
    with ThreadPoolExecutor(threads) as pool:
        for done, result in enumerate(
            pool.map(_attempt, (example.image for example in split.examples)), start=1
        ):
            if result:
                found.append(result)
            if progress:
                progress(done, len(split))
    return tuple(found)


def _attempt(image: ImageRef) -> Unreadable | None:
    try:
        read_image(image)
    except TetherError as error:
        return Unreadable(image, str(error))
    return None


def require_readable(benchmark: Benchmark, *, threads: int = 8) -> None:
    """Refuse a benchmark with pictures that are missing, empty, no pictures or cut short.

    Takes about 0.03 ms a picture: the header is parsed and the file's last bytes are looked at; only a picture
    with something odd about these is decoded, and refused if that fails. Damage in between is not found; `check`
    finds it.

    Raises:
        TetherError: with the number of such pictures, and the first ten.
    """
    splits = (benchmark.train, benchmark.validation, *benchmark.tests.values())
    images = list(dict.fromkeys(example.image for split in splits for example in split.examples))
    batches = [images[start : start + 256] for start in range(0, len(images), 256)]
    with ThreadPoolExecutor(threads) as pool:  # for slow disks; from memory one thread is as fast
        found = [unreadable for batch in pool.map(_not_whole, batches) for unreadable in batch]
    if found:
        more = f" And {len(found) - 10} more." if len(found) > 10 else ""
        raise TetherError(
            f"{len(found)} of {len(images)} pictures of {benchmark.name} cannot be read; mend them or take them "
            f"out. {' '.join(item.reason for item in found[:10])}{more}"
        )


def _not_whole(images: Iterable[ImageRef]) -> list[Unreadable]:
    return [bad for image in images if not _looks_whole(image) and (bad := _attempt(image))]


_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}  # WEBP tells its length at the beginning


def _looks_whole(ref: ImageRef) -> bool:
    """Whether header and end are those of a whole picture; False where that takes decoding to know."""
    path = os.path.join(ref.root, *ref.name.split("/"))
    try:
        if not ref.in_archive and not os.path.isfile(path):  # opening a pipe would wait
            return False
        with io.BytesIO(_read_member(ref)) if ref.in_archive else open(path, "rb") as file:
            with Image.open(file, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS or image.mode == "F":
                    return False
            end = _ENDS.get(image.format, b"")
            size = file.seek(-len(end), os.SEEK_END) + len(end)
            if size > MAX_BYTES or file.read() != end:
                return False
            if image.format == "WEBP":
                file.seek(4)
                return int.from_bytes(file.read(4), "little") + 8 <= size
            return True
    except Exception:  # what is wrong, if anything, decoding will say
        return False


def drop_unreadable(split: Split, unreadable: Sequence[Unreadable], *, max_rate: float = 0.01) -> Split:
    """The split without the pictures that `check` found unreadable; its convention says how many are missing.

    Raises:
        TetherError: more than `max_rate` of the split is unreadable; the message lists the files.
    """
    bad = {item.image for item in unreadable}
    kept = tuple(example for example in split.examples if example.image not in bad)
    lost = len(split) - len(kept)
    if lost > max_rate * len(split):
        listing = "\n".join(f"  {item.reason}" for item in unreadable[:20])
        raise TetherError(
            f"{lost} of {len(split)} pictures of split {split.name!r} cannot be read, more than "
            f"{max_rate:.1%}; repair the data set or raise the limit.\n{listing}"
        )
    if not lost:
        return split
    return replace(
        split, examples=kept, convention=f"{split.convention}; {lost} unreadable pictures left out"
    )


def list_pictures(root: str | Path) -> list[str]:
    """Names (paths with forward slashes) of all picture files below `root`, sorted.

    Hidden files and folders are passed over; files of other kinds too, with a warning that counts them.

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
            else:
                others[suffix or "no suffix"] += 1
    if others:
        kinds = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common(5))
        warnings.warn(
            f"{root} holds {others.total():,} files that are no pictures of a known kind and are passed over: {kinds}.",
            stacklevel=2,
        )
    return sorted(names)
