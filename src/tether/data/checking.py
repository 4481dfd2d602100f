"""Whether the pictures of a split can be read, before somebody waits for them."""

import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from PIL import Image

from tether.data.reading import FORMATS, MAX_BYTES, MAX_PIXELS, check_aspect, read_bytes, read_image
from tether.data.records import ImageRef, MadeImage, PictureBenchmark, PictureSplit, Split
from tether.errors import TetherError


@dataclass(frozen=True)
class Unreadable:
    """A picture of a split that cannot be read, and why."""

    image: ImageRef
    reason: str


def check(
    split: PictureSplit, *, threads: int = 4, progress: Callable[[int, int], None] | None = None
) -> tuple[Unreadable, ...]:
    """Read every picture of the split once and list all that cannot be read.

    `progress` is called with (pictures done, pictures in all).
    """

    found = []
    with ThreadPoolExecutor(threads) as pool:
        for done, result in enumerate(
            pool.map(unreadable, (example.image for example in split.examples)), start=1
        ):
            if result:
                found.append(result)
            if progress:
                progress(done, len(split))
    return tuple(found)


def unreadable(image: ImageRef) -> Unreadable | None:
    """What is wrong with a picture; None if it can be read."""
    try:
        read_image(image)
    except TetherError as error:
        return Unreadable(image, str(error))
    return None


def require_readable(
    benchmark: PictureBenchmark, *, threads: int = 8, progress: Callable[[str, int, int], None] | None = None
) -> None:
    """Refuse a benchmark with pictures that are missing, empty, no pictures, cut short, too large or too thin.

    Takes about 0.03 ms a picture: the header is parsed and the file's last bytes are looked at (an archive's member is
    read whole); only a picture with something odd about these is decoded, and refused if that fails. Damage in
    between is not found; `check` finds it.

    Raises:
        TetherError: with the number of such pictures, and the first ten.
    """
    splits = (benchmark.train, benchmark.validation, *benchmark.tests.values())
    images = list(dict.fromkeys(example.image for split in splits for example in split.examples))
    batches = [images[start : start + 256] for start in range(0, len(images), 256)]
    with ThreadPoolExecutor(threads) as pool:  # for slow disks; from memory one thread is as fast
        found = []
        for number, bad in enumerate(pool.map(_not_whole, batches), start=1):
            found += bad
            if progress:
                progress("checking pictures", min(256 * number, len(images)), len(images))
    if found:
        more = f" And {len(found) - 10} more." if len(found) > 10 else ""
        raise TetherError(
            f"{len(found)} of {len(images)} pictures of {benchmark.name} cannot be read; mend them or take them "
            f"out. {' '.join(item.reason for item in found[:10])}{more}"
        )


def _not_whole(images: Iterable[ImageRef]) -> list[Unreadable]:
    return [bad for image in images if not _looks_whole(image) and (bad := unreadable(image))]


_ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b";"}  # WEBP tells its length at the beginning


def _looks_whole(ref: ImageRef) -> bool:
    """Whether header and end are those of a whole picture; False where that takes decoding to know."""
    if isinstance(ref, MadeImage):
        return True
    try:
        if not ref.in_archive and not os.path.isfile(ref.path):  # opening a pipe would wait
            return False
        with io.BytesIO(read_bytes(ref)) if ref.in_archive else open(ref.path, "rb") as file:
            with Image.open(file, formats=FORMATS) as image:
                if image.width * image.height > MAX_PIXELS or image.mode == "F":
                    return False
                check_aspect(image.width, image.height)
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
