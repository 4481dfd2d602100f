"""The one exception users are meant to read."""

_LISTED = 20


class TetherError(ValueError):
    """Something the user gave or has does not fit; the message says what was expected, found, and what to do."""


def without_traceback(error: TetherError) -> TetherError:
    """The error as it was raised in a DataLoader's worker, where torch puts the whole traceback before its text."""
    return TetherError(str(error).rpartition(f"{TetherError.__module__}.TetherError: ")[2].strip())


def near_misses(name: str, known: list[str] | tuple[str, ...], count: int = 3) -> str:
    """A clause such as `; did you mean 'a' or 'b'?` with the known words nearest to `name`; if none is near, known
    ones, at most `_LISTED`.
    """
    import difflib

    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(word) for word in close) + "?"
    more = f" and {len(known) - _LISTED} more" if len(known) > _LISTED else ""
    return f"; known: {', '.join(map(repr, list(known)[:_LISTED]))}{more}" if known else ""
