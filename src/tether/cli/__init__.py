"""The command line: it parses, calls, and prints; everything else is in the library."""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import Any

from tether._text import printable, quoted
from tether.cli.commands import say
from tether.cli.parser import parse
from tether.errors import TetherError, is_out_of_memory

_PYTHONS_OWN = warnings.formatwarning


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; errors a user can mend are one paragraph and exit code 2."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    number = int(os.environ.get("RANK", 0)) if options.joins else 0
    name = f"tether (process {number})" if number else "tether"
    _set_threads(options)
    warnings.formatwarning = _format_warning
    try:
        with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere) if number else nullcontext():
            return _run(options) or 0
    except TetherError as error:
        say(f"{name}: {error}", sys.stderr)
        return 2
    except SystemExit as stop:
        from tether.training import Interrupted

        if not isinstance(stop, Interrupted):
            raise
        _say_how_to_go_on(options, name)  # training has said after which step
        return int(stop.code)
    except KeyboardInterrupt:
        say(f"{name}: Stopped by Ctrl-C.", sys.stderr)
        _say_how_to_go_on(options, name)
        return 130
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        return 0
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(
            f"{name}: Memory ran out ({error or 'MemoryError'}). Use fewer workers or smaller batches.",
            file=sys.stderr,
        )
        return 2
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        say(f"{name}: {error.strerror or error}{place}.", sys.stderr)
        return 2


def _format_warning(message: Any, category: type[Warning], filename: str, *where: Any) -> str:
    """Our own warnings as a line like our errors; those of other libraries as ever."""
    if category is UserWarning and Path(filename).is_relative_to(Path(__file__).parents[1]):
        return f"tether: {printable(message)}\n"
    return _PYTHONS_OWN(message, category, filename, *where)


def _run(options: argparse.Namespace) -> int | None:
    if options.check:
        options.check(options)
    if not options.joins:
        return options.command(options)
    from tether._distributed import joined

    with joined() as device:
        return options.command(options, device)


def _say_how_to_go_on(options: argparse.Namespace, name: str) -> None:
    if getattr(options, "resume", None):
        command = f"tether {options.name_of_command} --resume {quoted(options.resume)}"
        say(f"{name}: To go on: {command}", sys.stderr)
    elif options.name_of_command in ("compare", "demo"):
        say(f"{name}: To go on, give the same command again; what is finished is kept.", sys.stderr)


def _set_threads(options: argparse.Namespace) -> None:
    """As many as asked for, by option or OMP_NUM_THREADS; else one per core that is ours.

    torch reads OMP_NUM_THREADS when it is imported, which not every command needs.
    """
    if options.threads is None and "OMP_NUM_THREADS" in os.environ:
        return
    ours = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = options.threads or ours or 1
    os.environ["OMP_NUM_THREADS"] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
