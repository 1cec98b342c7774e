"""Parquet files under any name that the system allows; Arrow itself opens names in UTF-8 alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq


def source(path: Path) -> pa.NativeFile:
    """A file to read for whatever Arrow reads; raises OSError."""
    import pyarrow as pa

    return pa.OSFile(os.fsencode(path))


def opened(path: Path) -> pq.ParquetFile:
    """A file that is read with its checksums verified, where it has some.

    Read by this and without threads, what a run reads of row groups does not stay with the
    process, as what ``read_table`` and Arrow's threads allocate does. Raises OSError and
    ArrowException.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(source(path), page_checksum_verification=True)


def schema(path: Path) -> pa.Schema:
    """The columns of a file, with its key-value metadata."""
    return opened(path).schema_arrow


def rows(path: Path) -> int:
    """How many rows a file has."""
    return int(opened(path).metadata.num_rows)


def table(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Columns of a whole file, or all of them."""
    return opened(path).read(None if columns is None else [*columns], use_threads=False)
