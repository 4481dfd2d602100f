"""What the makers share: how their commands end, their arguments, and archives that are always the same."""

import argparse
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from tether._files import write_atomically
from tether.errors import TetherError


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """Within, an error that the caller can mend ends the command with one line, and Ctrl-C with exit code 130."""
    try:
        yield
    except TetherError as error:
        raise SystemExit(str(error)) from error
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        raise SystemExit(f"{error.strerror or error}{place}.") from error
    except KeyboardInterrupt as error:
        print("Stopped by Ctrl-C.", file=sys.stderr)
        raise SystemExit(130) from error


def command(build: Callable[[Path, Path], None], description: str, packages: str) -> None:
    """Run `build(packages, out)` with the two folders that the command line names.

    Args:
        description: documentation of the module that is run; its first line is shown.
        packages: what the first folder holds.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("packages", type=Path, help=f"folder of the packages: {packages}")
    parser.add_argument("out", type=Path, help="folder to write")
    arguments = parser.parse_args()
    with errors_as_lines():
        build(arguments.packages, arguments.out)


def on_white(picture: Image.Image) -> Image.Image:
    """A transparent picture on white paper."""
    canvas = Image.new("RGBA", picture.size, "white")
    canvas.alpha_composite(picture.convert("RGBA"))
    return canvas.convert("RGB")


def member(name: str) -> zipfile.ZipInfo:
    """A stored file of an archive, with a fixed date so that the archive's bytes depend on the files only."""
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))


def write_zip(path: Path, files: Mapping[str, bytes]) -> None:
    """An archive of the files as they are, sorted by name without suffix: the same files give the same bytes."""

    def write(temporary: Path) -> None:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name in sorted(files, key=lambda name: name.rpartition(".")[0]):
                archive.writestr(member(name), files[name])

    write_atomically(path, write)
