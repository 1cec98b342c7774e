"""The columns of results, explained in ``docs/results.md``."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA_VERSION = "2"

IDENTITY = ("row_id", "path")  # from the work list
FINDINGS = (  # what screening adds, in the order of the file
    "status",
    "reason",
    "warnings",
    "view",
    "rows",
    "cols",
    "voi",
    "score_unhealthy",
    "score_covid",
    "score_other",
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
RUN = ("run_id", "screened_at")  # the same for all rows of a run
COLUMNS = (*IDENTITY, *FINDINGS, *RUN)
UIDS = ("sop_instance_uid", "series_instance_uid", "study_instance_uid")


class Row(NamedTuple):
    """What screening found for one item; the fields are :data:`FINDINGS`."""

    status: str  # ok, skipped, failed
    reason: str | None = None  # a code of comit.reasons
    warnings: tuple[str, ...] = ()
    view: str | None = None  # DICOM ViewPosition
    rows: int | None = None  # of the image
    cols: int | None = None
    voi: str | None = None  # window, lut or none
    score_unhealthy: float | None = None  # in [0, 1]
    score_covid: float | None = None
    score_other: float | None = None
    flag_unhealthy: bool | None = None  # score at or above the operating point
    flag_covid: bool | None = None
    sop_instance_uid: str | None = None
    series_instance_uid: str | None = None
    study_instance_uid: str | None = None
    file_size: int | None = None  # bytes that were read
    file_mtime: int | None = None  # microseconds since 1970, of its last change
    file_crc32: int | None = None  # of the bytes that were read
    lung_rle: dict[str, object] | None = None
    disease_rle: dict[str, object] | None = None
    lung_fraction: float | None = None  # lung pixels / all pixels
    disease_fraction: float | None = None  # disease pixels inside lungs / lung pixels


def schema() -> pa.Schema:
    """Arrow schema of :data:`COLUMNS`."""
    import pyarrow as pa

    rle = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
    kinds = {
        "warnings": pa.list_(pa.string()),
        **dict.fromkeys(("rows", "cols"), pa.int32()),
        **dict.fromkeys(("score_unhealthy", "score_covid", "score_other"), pa.float32()),
        **dict.fromkeys(("lung_fraction", "disease_fraction"), pa.float32()),
        "file_size": pa.int64(),
        **dict.fromkeys(("file_mtime", "screened_at"), pa.timestamp("us", tz="UTC")),
        "file_crc32": pa.uint32(),
        **dict.fromkeys(("flag_unhealthy", "flag_covid"), pa.bool_()),
        **dict.fromkeys(("lung_rle", "disease_rle"), rle),
    }
    required = ("row_id", "status", *RUN)
    return pa.schema(
        [pa.field(c, kinds.get(c, pa.string()), nullable=c not in required) for c in COLUMNS]
    )
