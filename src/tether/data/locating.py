"""From what a list says about a picture to where it is, without opening it."""

import os
from collections.abc import Sequence

from tether.data.reading import archive_members
from tether.data.records import ImageRef
from tether.errors import TetherError


def image_inside(root: str, name: str, place: str) -> ImageRef:
    """The picture of a path that is absolute or relative to the root.

    Args:
        root: an absolute folder, or a `.zip` archive.
        place: where the path is written, for the message: "table.csv, row 3".

    Raises:
        TetherError: it lies outside the root.
    """
    inside = os.path.relpath(name, root) if os.path.isabs(name) else name
    try:
        return ImageRef(root, os.path.normpath(inside).replace(os.sep, "/"))
    except TetherError as error:
        raise TetherError(
            f"{place}: {name!r} lies outside {root}; set `root` to a folder that holds all pictures."
        ) from error


def require_there(root: str, images: Sequence[ImageRef]) -> None:
    """See that all pictures of one root exist.

    Raises:
        TetherError: some do not; the message names the first ten.
    """
    if images[0].in_archive:
        members = archive_members(root)
        missing = [image.name for image in images if image.name not in members]
    else:
        missing = [image.name for image in images if not os.path.isfile(os.path.join(root, image.name))]
    if missing:
        listing = "".join(f"\n  {name}" for name in missing[:10])
        raise TetherError(f"{len(missing)} of {len(images)} pictures are not in {root}:{listing}")
