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


def is_utf8(text: str) -> bool:
    """Whether a text can be written; Python keeps the bytes of a file's name that are not UTF-8 as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; for a CPU, torch has no type of its own for that."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error))
    )
