"""One file an instance with its state: what a killed run resumes from.

``made``       not sent, or not known to be
``sent``       the destination accepted it; it was not read back
``confirmed``  it was found there
``refused``    the destination does not take it, or says that it does and stores nothing

An entry is written before and after what it tells of. Nothing of the patient is in it.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

from comit import durable
from comit.errors import UsageError
from comit.send.address import Address

FOLDER = "outbox"
TABLE = "sent.parquet"
STATES = ("made", "sent", "confirmed", "refused")


@dataclass
class Entry:
    """An instance on its way to a destination."""

    sop_instance_uid: str
    sop_class_uid: str
    series_instance_uid: str
    study_instance_uid: str
    transfer_syntax_uid: str
    row_id: str
    file: str  # its name in the folder of the objects
    size: int  # bytes
    sha256: str
    state: str = "made"
    status: str = ""  # what the destination said last: an HTTP or DIMSE status, or one of our words
    tries: int = 0  # how often it was sent, or begun to be
    changed_at: str = ""

    @classmethod
    def of(cls, to: Path, content: bytes, row_id: str) -> Entry:
        """That of an object that was just made."""
        from pydicom import dcmread

        ds = dcmread(BytesIO(content), stop_before_pixels=True)
        return cls(
            sop_instance_uid=str(ds.SOPInstanceUID),
            sop_class_uid=str(ds.SOPClassUID),
            series_instance_uid=str(ds.SeriesInstanceUID),
            study_instance_uid=str(ds.StudyInstanceUID),
            transfer_syntax_uid=str(ds.file_meta.TransferSyntaxUID),
            row_id=row_id,
            file=to.name,
            size=len(content),
            sha256=sha256(content).hexdigest(),
        )


class Outbox:
    """The entries of one destination, below the folder ``out`` of the objects."""

    def __init__(self, out: Path, address: Address) -> None:
        self.out, self.address = out, address
        self.folder = out / FOLDER / sha256(str(address).encode()).hexdigest()[:16]
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.entries = {e.sop_instance_uid: e for e in _entries(self.folder)}

    @property
    def known(self) -> bool:
        """Whether the user has agreed to send to this destination."""
        return (self.folder / "destination").exists()

    def agree(self) -> None:
        """Notes that the user has."""
        durable.write_json(self.folder / "destination", {"address": str(self.address)})

    def add(self, to: Path, content: bytes, row_id: str) -> None:
        """An object that was made; one that the outbox knows keeps its state."""
        entry = Entry.of(to, content, row_id)
        if entry.sop_instance_uid not in self.entries:
            self.change(entry)

    def change(self, entry: Entry, **values: Any) -> None:
        """Makes a change of an entry durable."""
        for name, value in values.items():
            setattr(entry, name, value)
        entry.changed_at = datetime.now(UTC).isoformat(timespec="milliseconds")
        durable.write_json(self.folder / f"{entry.sop_instance_uid}.json", asdict(entry))
        self.entries[entry.sop_instance_uid] = entry

    def open(self) -> list[Entry]:
        """What is still to be sent or read back, in the order of their files."""
        waiting = [e for e in self.entries.values() if e.state in ("made", "sent")]
        return sorted(waiting, key=lambda e: (e.file, e.sop_instance_uid))

    def content(self, entry: Entry) -> bytes | None:
        """The bytes of an object; None where its file is gone or holds another object by now."""
        try:
            content = (self.out / entry.file).read_bytes()
        except FileNotFoundError:
            return None
        return content if sha256(content).hexdigest() == entry.sha256 else None

    def retry_refused(self) -> None:
        """Gives what was refused another chance."""
        for entry in [e for e in self.entries.values() if e.state == "refused"]:
            self.change(entry, state="made")

    def states(self) -> Counter[str]:
        """How many entries are in each state."""
        return Counter(e.state for e in self.entries.values())


def _entries(folder: Path) -> Iterable[Entry]:
    for path in sorted(folder.glob("*.json")):
        try:
            entry = Entry(**json.loads(path.read_text("utf-8")))
            if entry.state not in STATES or Path(entry.file).name != entry.file:
                raise ValueError(entry.state)
        except (ValueError, TypeError):
            raise UsageError(
                f"{path} is no entry of an outbox; remove it, and its object is sent again"
            ) from None
        yield entry


def write_table(out: Path) -> Path:
    """Writes every entry of every destination below ``out`` as one table, ``sent.parquet``."""
    import pyarrow as pa

    rows: list[dict[str, Any]] = []
    for note in sorted((out / FOLDER).glob("*/destination")):
        address = json.loads(note.read_text("utf-8"))["address"]
        rows += [{"destination": address} | asdict(e) for e in _entries(note.parent)]
    numbers = {"size": pa.int64(), "tries": pa.int32()}
    names = ["destination", *Entry.__dataclass_fields__]
    schema = pa.schema([pa.field(n, numbers.get(n, pa.string()), nullable=False) for n in names])
    temporary = out / f".{TABLE}.new"
    with durable.create(temporary) as file:
        with durable.parquet(file, schema) as writer:
            writer.write_table(pa.Table.from_pylist(rows, schema))
        durable.finish(file)
    durable.replace(temporary, out / TABLE)
    return out / TABLE
