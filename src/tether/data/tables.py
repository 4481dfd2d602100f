"""Tables on disk, row by row: CSV, TSV and Parquet."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tether.errors import TetherError

Rows = Iterator[tuple[int, list[Any]]]


def read_table(path: Path) -> tuple[list[str], Rows]:
    """The column names, and every row with its number in the file; a row has as many cells as there are
    columns.

    Raises:
        TetherError: the file cannot be read or is damaged, a row has another number of cells (when it is
            reached), or it is Parquet and pyarrow is not installed.
    """
    return _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_text(path)


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
