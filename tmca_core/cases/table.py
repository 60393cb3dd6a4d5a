"""Rows of a CSV or Parquet table with exact line numbers; every damage to the table as a whole is one clear error."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tmca_core.errors import ManifestError

MAX_TABLE_BYTES = 1 << 30  # of text, also after Parquet's own decompression


@dataclass(frozen=True)
class Row:
    """One record.

    Attributes:
        number: 1-based; the header is 1, so the first record is 2, as a spreadsheet shows it. A quoted field that
            spans lines is still one record.
        values: column → text; absent values are "".
        fault: why the record does not fit the header, or "".
    """

    number: int
    values: Mapping[str, str]
    fault: str = ""


@dataclass(frozen=True)
class Table:
    """A header and its records; blank lines are counted in the numbering and left out."""

    columns: Sequence[str]
    rows: Sequence[Row]


def read_table(path: Path) -> Table:
    """Read a CSV (UTF-8, comma; a byte-order mark is fine) or a Parquet file.

    Raises:
        ManifestError: the file is missing, of another kind or encoding, too large, empty, or its header is unusable.
    """
    try:
        size = path.stat().st_size
        if size > MAX_TABLE_BYTES:
            raise ManifestError(
                f"{path} has {size:,} bytes, more than a table of reports can need ({MAX_TABLE_BYTES:,}). Split it by site."
            )
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"cannot read the manifest {path}: {error.strerror or error}.") from None
    if data.startswith(b"PAR1"):
        return _parquet(path)
    if path.suffix.lower() == ".parquet":
        raise ManifestError(f"{path} is named Parquet but does not begin like one: it is truncated or something else.")
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise ManifestError(f"{path} is a spreadsheet. Save it as 'CSV UTF-8 (comma delimited)'.")
    return _csv(path, _decoded(path, data))


def _decoded(path: Path, data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ManifestError(f"{path}, row 1: the table is UTF-16. Save it as 'CSV UTF-8'.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The records before the offending byte say which row and column it is in.
        at = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        before = list(csv.reader(io.StringIO(data[:at].decode("utf-8-sig") + "x", newline="")))
        row, place = len(before), len(before[-1]) - 1
        column = before[0][place].strip() if row > 1 and place < len(before[0]) else str(place + 1)
        raise ManifestError(
            f"{path}, row {row}, column '{column}': byte {at} (0x{data[at]:02x}) is not UTF-8; the table is probably "
            "Windows-1252 or Latin-1. Save it as 'CSV UTF-8', or: iconv -f WINDOWS-1252 -t UTF-8."
        ) from None


def _csv(path: Path, text: str) -> Table:
    records: list[tuple[int, list[str]]] = []
    number = 0
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    while True:
        number += 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise ManifestError(
                f"{path}, row {number}: not well-formed CSV ({error}). Quotes inside a field are doubled; every opened quote is closed."
            ) from None
        if record is None:
            break
        if record:
            records.append((number, record))
    if not records:
        raise ManifestError(f"{path} is empty: it has no header.")
    columns = _header(path, records[0][1])
    rows = []
    for number, record in records[1:]:
        fault = ""
        if len(record) != len(columns):
            fault = f"has {len(record)} fields, the header {len(columns)}. Put fields with commas in double quotes."
        rows.append(Row(number, dict(zip(columns, record, strict=False)), fault))
    return Table(columns, rows)


def _header(path: Path, names: Sequence[str]) -> list[str]:
    columns = [name.strip() for name in names]
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t"):
        mark = ";" if ";" in columns[0] else "tab"
        raise ManifestError(f"{path}, row 1: the columns are separated by '{mark}'. Save the table with commas.")
    for name in columns:
        if columns.count(name) > 1:
            raise ManifestError(f"{path}, row 1: column '{name}' stands {columns.count(name)} times. Rename or remove all but one.")
    return columns


def _parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        with parquet.ParquetFile(path) as file:
            meta = file.metadata
            size = sum(meta.row_group(i).total_byte_size for i in range(meta.num_row_groups))
            if size > MAX_TABLE_BYTES:
                raise ManifestError(f"{path} unpacks to {size:,} bytes, more than a table of reports can need ({MAX_TABLE_BYTES:,}).")
            columns = _header(path, file.schema_arrow.names)
            records = file.read().to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise ManifestError(f"cannot read the Parquet manifest {path}: {error}. It is damaged or truncated; write it again.") from None
    names = file.schema_arrow.names
    rows = [Row(i, {c: _text(record[n]) for c, n in zip(columns, names, strict=True)}) for i, record in enumerate(records, start=2)]
    return Table(columns, rows)


def _text(value: Any) -> str:
    """A cell as text. Whole floats lose their '.0': an integer column with gaps becomes float in many tools."""
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return str(value)
