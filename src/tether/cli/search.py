"""`tether search MODEL FOLDER TEXT`: pictures of a folder that fit a text."""

import argparse
from collections.abc import Callable
from pathlib import Path


def add_command(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the command to a parser, by its function that adds one."""
    command = add("search", search, "find pictures in a folder by a text, with any model or adapter")
    command.add_argument("model", help="anything tether.load takes: builtin, a folder, hf:org/name …")
    command.add_argument("folder", type=Path, help="pictures, at any depth")
    command.add_argument("text", help='what to look for, such as "a red apple"')
    command.add_argument("-k", type=int, default=5, help="pictures to find (%(default)s)")
    command.add_argument("--adapter", type=Path, help="folder of an adapter of this model")
    command.add_argument(
        "--alpha",
        metavar="ALPHA",
        help="its ensemble weight, from 0 to 1, or {image: a, text: b} (default: the one it was saved with)",
    )
    command.add_argument(
        "--cache",
        type=Path,
        help="folder for the features of the pictures (default: tether/pictures in ~/.cache)",
    )


def search(options: argparse.Namespace) -> int:
    """Print a line for each picture found: its similarity and its path."""
    import torch

    from tether.adapters.files import apply, load_adapter
    from tether.cli.commands import _progress
    from tether.config import build, override
    from tether.errors import TetherError
    from tether.evaluation.picture_index import search
    from tether.models import load

    if options.alpha and not options.adapter:
        raise TetherError("--alpha belongs to an adapter; name it: --adapter FOLDER.")
    model = load(options.model, device="cuda" if torch.cuda.is_available() else "cpu")
    if options.adapter:
        adapter = load_adapter(options.adapter)
        alpha = adapter.alpha
        if options.alpha:
            given = override({}, [f"alpha={options.alpha}"])["alpha"]
            alpha = build(float | dict[str, float], given, "--alpha")
        apply(model, adapter).merge(alpha)
    found = search(model, options.folder, options.text, options.k, cache=options.cache, progress=_progress())
    for match in found:
        print(f"{match.score:.3f}  {match.image}")
    return 0
