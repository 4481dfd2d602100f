"""What the makers share: how their commands end, their arguments, and archives that are always the same."""

import argparse
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
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


def pretraining_parser(description: str) -> argparse.ArgumentParser:
    """What every command that pre-trains is asked; read it with `pretraining_options`.

    Args:
        description: documentation of the module that is run; its first line is shown.
    """
    parser = argparse.ArgumentParser(
        description=description.splitlines()[0],
        epilog="A run that was stopped or killed goes on with the same command and --resume RUN.",
        allow_abbrev=False,
    )
    parser.add_argument("pictures", type=Path, help="folder with pictures.zip and pictures.json")
    parser.add_argument(
        "--runs", type=Path, default=Path("runs"), help="where the run gets its directory (%(default)s)"
    )
    parser.add_argument(
        "--resume", type=Path, metavar="RUN", help="go on with a run that was stopped or killed"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own)")
    parser.add_argument("overrides", nargs="*", metavar="NAME=VALUE", help="such as training.steps=500")
    return parser


def pretraining_options(
    parser: argparse.ArgumentParser, arguments: Sequence[str] | None
) -> argparse.Namespace:
    """The options of a command that pre-trains; torch gets its threads."""
    options = parser.parse_intermixed_args(arguments)
    if options.threads is not None:
        if options.threads < 1:
            parser.error(f"argument --threads: expected a whole number from 1, found {options.threads}")
        torch.set_num_threads(options.threads)
    return options


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
