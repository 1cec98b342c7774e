"""Changes on disk that survive a power cut, whole or not at all.

Everything comit commits goes through here: a new file is private, is synced before it gets its
name, and the folder is synced after.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from comit.errors import Stopped

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# What link(2) says where the file system has no hard links: FAT, exFAT, SMB, some FUSE.
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def create(path: Path) -> BinaryIO:
    """A new file that only its owner may read, in place of one that a killed run left."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    return os.fdopen(fd, "w+b")


def finish(file: BinaryIO) -> None:
    """Makes the content of an open file durable."""
    file.flush()
    os.fsync(file.fileno())


def sync(path: Path) -> None:
    """Makes a file, or the names in a folder, durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(temporary: Path, to: Path) -> None:
    """Gives a durable file its name; raises FileExistsError where something has it.

    By link(2), which cannot overwrite. Where the file system has no hard links, by a rename after
    a look: the lock that every writer holds keeps others out between the two.
    """
    try:
        os.link(temporary, to)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if to.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        replace(temporary, to)
        return
    temporary.unlink()
    sync(to.parent)


def replace(temporary: Path, to: Path) -> None:
    """Renames a durable file over ``to``: readers see the old one or the new one."""
    temporary.replace(to)
    sync(to.parent)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes a private JSON file, whole or not at all."""
    temporary = path.with_name(path.name + ".new")
    with create(temporary) as file:
        file.write(json.dumps(content, indent=1).encode())
        finish(file)
    replace(temporary, path)


@contextmanager
def parquet(
    file: BinaryIO, schema: pa.Schema, compression: str = "snappy"
) -> Iterator[pq.ParquetWriter]:
    """A writer whose footer is written only if all went well."""
    import pyarrow.parquet as pq

    writer = pq.ParquetWriter(file, schema, compression=compression, write_page_checksum=True)
    try:
        yield writer
        writer.close()
    except BaseException:
        writer.is_open = False  # else it would write a footer when it is collected
        raise


def as_others_may_read(path: Path) -> None:
    """Gives a private file the permissions that its folder and the user's umask ask for.

    A new file tells them: to ask for the umask is to change it, for every thread of the process.
    """
    probe = path.with_name(path.name + ".mode")
    probe.unlink(missing_ok=True)  # of a killed run
    fd = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        path.chmod(stat.S_IMODE(os.fstat(fd).st_mode))
    finally:
        os.close(fd)
        probe.unlink()


@contextmanager
def stopping(out: Path) -> Iterator[None]:
    """Turns a failing disk into Stopped, with the words to resume."""
    try:
        yield
    except OSError as error:
        raise failed(out, error) from error


def failed(out: Path, error: OSError) -> Stopped:
    """What to say where writing results fails."""
    return Stopped(
        f"writing {out} failed: {error.strerror or 'an error of the disk'}; what was "
        "published is kept. Make room and run the same command to resume"
    )


def nameless() -> BinaryIO:
    """A file without a name: gone when the last process that has it is. On Linux in memory."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("comit"), "w+b")
    return cast(BinaryIO, tempfile.TemporaryFile())
