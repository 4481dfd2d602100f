"""Tables on disk, row by row: CSV, TSV and Parquet; and what their columns and cells mean."""

import csv
import difflib
import io
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tether.errors import TetherError, near_misses

Rows = Iterator[tuple[int, list[Any]]]


def read_table(path: Path) -> tuple[list[str], Rows]:
    """The column names, and every row with its number in the file; a row has as many cells as there are columns.

    Raises:
        TetherError: the file cannot be read or is damaged, its fields are divided by something else, a row has
            another number of cells (when it is reached), or it is Parquet and pyarrow is not installed.
    """
    return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text(path)


def resolve_columns(
    path: Path, found: Sequence[str], ours: Sequence[str], renamed: Mapping[str, str], needed: Collection[str]
) -> dict[str, int]:
    """Position of each of our columns that the table has.

    Args:
        found: the table's column names.
        ours: the names we give columns; a column "captions" is taken for "caption" where there is none.
        renamed: our name → the table's, where it differs.
        needed: of ours, those that must be there.

    Raises:
        TetherError: a column that occurs twice, that is needed and missing, or that looks like a misspelt one.
    """
    if twice := [name for name, count in Counter(found).items() if count > 1]:
        raise TetherError(f"{path} has two columns called {twice[0]!r}.")
    wanted = {name: renamed.get(name, name) for name in ours}
    if "caption" in ours and "caption" not in {*renamed, *found} and "captions" in found:
        wanted["caption"] = "captions"
    for name, theirs in wanted.items():
        if theirs not in found and (name in needed or name in renamed):
            raise TetherError(
                f"{path} has no column {theirs!r}{near_misses(theirs, tuple(found))} It has "
                f"{', '.join(map(repr, found)) or 'none'}; rename with columns={{{name!r}: ...}}."
            )
    absent = [theirs for theirs in wanted.values() if theirs not in found]
    for extra in set(found) - set(wanted.values()):
        if close := difflib.get_close_matches(extra.lower(), absent, n=1, cutoff=0.8):
            raise TetherError(
                f"{path} has a column {extra!r}, which looks like a misspelt {close[0]!r}. Rename it, "
                f"here or with columns={{{close[0]!r}: {extra!r}}}."
            )
    return {name: list(found).index(theirs) for name, theirs in wanted.items() if theirs in found}


def texts_of(value: Any, separator: str) -> tuple[str, ...]:
    """The texts of a cell: a list's, or those that `separator` divides; stripped, without empty ones."""
    if value is None:
        return ()
    texts = value.split(separator) if isinstance(value, str) else value
    return tuple(text.strip() for text in texts if text and text.strip())


def split_of(value: Any, place: str) -> str:
    """The split that a cell names: "train", "validation" (also val, valid) or "test".

    Raises:
        TetherError: it names none of these.
    """
    split = str(value or "").strip().lower()
    split = {"val": "validation", "valid": "validation"}.get(split, split)
    if split not in (known := ("train", "validation", "test")):
        raise TetherError(f"{place}: the split is {split!r}{near_misses(split, known)}")
    return split


def _read_text(path: Path) -> tuple[list[str], Rows]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise TetherError(f"Cannot read {path} as UTF-8 text: {error}.") from error
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)

    def rows() -> Rows:
        try:
            for record in reader:
                if not record:
                    continue
                if len(record) != len(header):
                    raise TetherError(
                        f"{path}, row {reader.line_num}: {len(record)} fields, but the header has "
                        f"{len(header)}; a field with a comma, a quote or a line break needs quotes around "
                        "it."
                    )
                yield reader.line_num, record
        except csv.Error as error:
            raise TetherError(f"{path}, row {reader.line_num}: {error}.") from error

    header = [name.strip() for name in next(reader, [])]
    if len(header) == 1 and (found := [mark for mark in ",;\t|" if mark in header[0]]):
        raise TetherError(
            f"{path} has a single column, {header[0]!r}: its fields seem to be divided by {found[0]!r}, and those of "
            f"a {path.suffix} file are by {delimiter!r}. Save it with {delimiter!r} between the fields."
        )
    return header, rows()


def _read_parquet(path: Path) -> tuple[list[str], Rows]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise TetherError("Parquet tables need the package pyarrow: pip install '.[parquet]'.") from error
    try:
        table = pyarrow.parquet.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise TetherError(f"Cannot read {path} as Parquet: {error}.") from error
    columns = [column.to_pylist() for column in table.columns]
    return table.column_names, (
        (number, list(record)) for number, record in enumerate(zip(*columns, strict=True), 1)
    )
