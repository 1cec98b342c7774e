"""The columns of results, explained in ``docs/reference/results.md``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from comit import parquet
from comit.errors import UsageError
from comit.reasons import Caution

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

SCHEMA_VERSION = "3"
THRESHOLDS = ("unhealthy", "covid", "chest")  # what the metadata has thresholds for
STAGING = ".comit"  # in a folder of results: lock, key, and a run that is under way

IDENTITY = ("row_id", "path")  # from the work list
CHEST = "score_chest"  # by which the gate decides
SCORES = ("score_unhealthy", "score_covid", "score_other")  # of a chest radiograph
FINDINGS = (  # what screening adds, in the order of the file: the fields of Row
    "status",
    "reason",
    "warnings",
    "view",
    "rows",
    "cols",
    "voi",
    *SCORES,
    CHEST,
    "flag_unhealthy",
    "flag_covid",
    "sop_instance_uid",
    "series_instance_uid",
    "study_instance_uid",
    "file_size",
    "file_mtime",
    "file_crc32",
    "lung_rle",
    "disease_rle",
    "lung_fraction",
    "disease_fraction",
)
RUN = ("run_id", "screened_at", "comit_model")  # the same for all rows of a run
COLUMNS = (*IDENTITY, *FINDINGS, *RUN)
UIDS = ("sop_instance_uid", "series_instance_uid", "study_instance_uid")
EARLIEST, LATEST = -62_135_596_800_000_000, 253_402_300_799_000_000  # microseconds since 1970
LONGEST = 64  # characters: a DICOM UID (PS3.5 9.1), a code's meaning, a hash


def column(kind: str, least: int | None = None, most: int | None = None) -> Any:
    """A field that is a column of this kind (:func:`schema`), null unless it is given.

    A whole number from ``least`` to ``most`` is what the column takes of a file; of ``text`` it
    takes at most :data:`LONGEST` printable characters.
    """
    return field(default=None, metadata={"kind": kind, "least": least, "most": most})


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What a file says of itself: one record from the decoder to the row.

    A new one is a field here, its place in :data:`FINDINGS`, and a line where it is read
    (:mod:`comit.image.dicom`). A value that its column cannot hold is left out, and
    ``value_left_out`` warns of it: whatever a file says, its row can be written.
    """

    warnings: tuple[str, ...] = field(default=(), metadata={"kind": "texts"})
    view: str | None = column("text")  # DICOM ViewPosition
    rows: int | None = column("int32", 0, 2**31 - 1)  # of the image: DICOM Rows
    cols: int | None = column("int32", 0, 2**31 - 1)  # DICOM Columns
    voi: str | None = column("text")  # window, lut or none: what the tones were made with
    sop_instance_uid: str | None = column("text")
    series_instance_uid: str | None = column("text")
    study_instance_uid: str | None = column("text")
    file_size: int | None = column("int64", 0, 2**63 - 1)  # bytes that were read
    file_mtime: int | None = column("time", EARLIEST, LATEST)  # of its last change
    file_crc32: int | None = column("uint32", 0, 2**32 - 1)  # of the bytes that were read

    def __post_init__(self) -> None:
        unfit = [f.name for f in fields(self) if not fits(f, getattr(self, f.name))]
        for name in unfit:
            object.__setattr__(self, name, None)
        if unfit:
            found = dict.fromkeys([*self.warnings, str(Caution.VALUE_LEFT_OUT)])
            object.__setattr__(self, "warnings", tuple(found))

    def values(self) -> dict[str, Any]:
        """The fields by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def warned(self, *more: str) -> Self:
        """The same with more warnings; those that it has stay once."""
        return replace(self, warnings=tuple(dict.fromkeys([*self.warnings, *map(str, more)])))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row(Facts):
    """What screening found for one item, beside the facts; the fields are :data:`FINDINGS`."""

    status: str = field(metadata={"kind": "string"})  # ok, skipped, failed
    reason: str | None = column("string")  # a code of comit.reasons
    score_unhealthy: float | None = column("float32")  # in [0, 1]
    score_covid: float | None = column("float32")
    score_other: float | None = column("float32")
    score_chest: float | None = column("float32")  # of a frontal chest; null without a gate
    flag_unhealthy: bool | None = column("bool")  # score at or above the operating point
    flag_covid: bool | None = column("bool")
    lung_rle: dict[str, object] | None = column("rle")
    disease_rle: dict[str, object] | None = column("rle")
    lung_fraction: float | None = column("float32")  # lung pixels / all pixels
    disease_fraction: float | None = column("float32")  # disease pixels in lungs / lung pixels


def fits(of: Field[Any], value: Any) -> bool:
    """Whether a field of :class:`Facts` can hold a value that a file gave; null fits all."""
    if value is None:
        return True
    if (least := of.metadata.get("least")) is not None:
        return isinstance(value, int) and least <= value <= of.metadata["most"]
    if of.metadata["kind"] == "text":
        return isinstance(value, str) and len(value) <= LONGEST and value.isprintable()
    return True


def schema() -> pa.Schema:
    """Arrow schema of :data:`COLUMNS`."""
    import pyarrow as pa

    kinds = {
        "text": pa.string(),
        "string": pa.string(),
        "texts": pa.list_(pa.string()),
        "int32": pa.int32(),
        "uint32": pa.uint32(),
        "int64": pa.int64(),
        "float32": pa.float32(),
        "bool": pa.bool_(),
        "time": pa.timestamp("us", tz="UTC"),
        "rle": pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())]),
    }
    types = {f.name: kinds[f.metadata["kind"]] for f in fields(Row)}
    types["screened_at"] = kinds["time"]
    required = ("row_id", "status", *RUN)
    return pa.schema(
        [pa.field(c, types.get(c, pa.string()), nullable=c not in required) for c in COLUMNS]
    )


def model_of(metadata: Mapping[str, str]) -> str:
    """The column ``comit_model`` by a file's metadata: the name, and how the sha256 begins."""
    name, digest = (metadata.get(f"comit_{key}", "") for key in ("model", "model_sha256"))
    return f"{name}@{digest[:12]}"


def data_files(folder: Path) -> list[Path]:
    """The files of a folder of results, oldest first: what is hidden is not among them."""
    return sorted(f for f in folder.glob("*.parquet") if is_data_name(f.name))


def is_data_name(name: str) -> bool:
    """Whether a file of that name in a folder of results holds rows."""
    return name.endswith(".parquet") and name[0] not in "._"


def read(path: Path | str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a results file, or of a folder of them: ``columns``, or all there are.

    Of a folder, those are the files ``*.parquet`` that are not hidden. A column of ours that the
    results lack is null throughout, so those of other settings can be read alike. The file may be
    anybody's: our columns come with the types of :func:`schema`, and a score or a fraction that is
    no finite number is null. Raises UsageError where the results are not comit's, a column is of
    another kind, two rows have one ``row_id``, or there is no column of a name asked for.
    """
    import pyarrow as pa

    files, wanted, kinds = _opened(path, columns)
    names = list(dict.fromkeys([*wanted, "row_id"]))
    parts = []
    for file in files:
        with _readable(path):
            part = parquet.table(file, [n for n in names if n in kinds])
        parts.append(_typed(path, part, names, kinds))
    table = pa.concat_tables(parts)
    if table["row_id"].null_count:
        raise UsageError(f"{path} has rows without a row_id")
    if len(table["row_id"].unique()) != len(table):
        raise UsageError(f"{path} has two rows of one row_id")
    return table.select(wanted)


def batches(
    path: Path | str,
    columns: Sequence[str],
    size: int = 4096,
    rows: NDArray[np.int64] | None = None,
) -> Iterator[pa.Table]:
    """What :func:`read` gives, at most ``size`` rows at a time, in its order.

    ``rows`` are the numbers of those to give, ascending; row groups without any are not read.
    Memory holds a row group, whatever the number of rows, so no ``row_id`` is compared.
    """
    import numpy as np
    import pyarrow as pa

    files, wanted, kinds = _opened(path, columns)
    start = 0
    for file in files:
        with _readable(path), parquet.opened(file) as opened:
            names = [n for n in wanted if n in kinds]  # those that it lacks are passed over
            for group in range(opened.num_row_groups):
                end = start + opened.metadata.row_group(group).num_rows
                if rows is not None and not np.diff(np.searchsorted(rows, [start, end])):
                    start = end
                    continue
                for batch in opened.iter_batches(size, [group], names, use_threads=False):
                    table = pa.Table.from_batches([batch])
                    end = start + len(table)
                    if rows is not None:
                        first, last = np.searchsorted(rows, [start, end])
                        table = _taken(table, rows[first:last] - start)
                    start = end
                    yield _typed(path, table, wanted, kinds)


def _taken(table: pa.Table, rows: NDArray[np.int64]) -> pa.Table:
    """Rows of a table by their ascending numbers; not copied where none is left out."""
    return table if len(rows) == len(table) else table.take(rows)


def _opened(
    path: Path | str, columns: Sequence[str] | None
) -> tuple[list[Path], list[str], dict[str, pa.DataType]]:
    """The files of results, the columns asked for, and those of the first file by their types."""
    if not Path(path).exists():
        raise UsageError(f"{path} does not exist; comit screen INPUT --out {path} makes results")
    with _readable(path):
        files = [Path(path)]
        if files[0].is_dir():
            files = data_files(files[0])
        if not files:
            raise UsageError(f"{path} is a folder without results of comit")
        kinds = {f.name: f.type for f in parquet.schema(files[0])}
    if not {"row_id", "status"} <= set(kinds):
        raise UsageError(f"{path} is not a results file of comit: no row_id and status")
    wanted = list(columns or [*COLUMNS, *(n for n in kinds if n not in COLUMNS)])
    if unknown := [n for n in wanted if n not in kinds and n not in COLUMNS]:
        raise UsageError(f"{path} has no column {unknown[0]!r}")
    return files, wanted, kinds


@contextmanager
def _readable(path: Path | str) -> Iterator[None]:
    """Turns what Arrow says of a damaged file into UsageError."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        raise UsageError(f"{path} cannot be read as Parquet") from error


def _typed(
    path: Path | str, table: pa.Table, wanted: Sequence[str], kinds: dict[str, pa.DataType]
) -> pa.Table:
    """The columns ``wanted``, ours in the types of :func:`schema`, null where the table lacks one.

    ``kinds`` are the types of the first file's columns, which others have in all files.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    with _readable(path):
        table.validate(full=True)  # offsets and text: what is read next believes them
    fields = kinds | {f.name: f.type for f in schema()}
    columns = []
    for name in wanted:
        if table.column_names.count(name) > 1:
            raise UsageError(f"{path} has two columns {name!r}")
        if name not in table.column_names:
            columns.append(pa.chunked_array([pa.nulls(len(table), fields[name])]))
            continue
        try:
            column = table[name].cast(fields[name])
        except pa.ArrowException as error:
            raise UsageError(
                f"{path}: column {name!r} is {table[name].type} and cannot be read as "
                f"{fields[name]}, as comit writes it"
            ) from error
        if name in COLUMNS and pa.types.is_floating(column.type):
            column = pc.if_else(pc.is_finite(column), column, pa.scalar(None, column.type))
        columns.append(column)
    return pa.table(columns, names=list(wanted), metadata=table.schema.metadata)


def provenance(table: pa.Table) -> dict[str, Any]:
    """Where the numbers come from: the file's metadata without the prefix ``comit_``.

    ``thresholds`` is a dict of numbers, or None. Of a folder it is what its first file says. Raises
    UsageError where the thresholds are none.
    """
    import json
    import math

    raw = {
        k.decode(errors="replace"): v.decode(errors="replace")
        for k, v in (table.schema.metadata or {}).items()
    }
    found: dict[str, Any] = {
        k.removeprefix("comit_"): v for k, v in raw.items() if k.startswith("comit_")
    }
    try:
        said = json.loads(found.get("thresholds", "null"))
        thresholds = None if said is None else {k: v for k, v in said.items() if k in THRESHOLDS}
        if not all(math.isfinite(v) for v in (thresholds or {}).values()):
            raise ValueError("not a number")
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            "the results' metadata comit_thresholds is damaged: it must be JSON with a number for "
            "each score, as comit writes it"
        ) from error
    found["thresholds"] = thresholds
    return found
