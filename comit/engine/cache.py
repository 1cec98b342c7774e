"""Files that are made once on a machine and used again: compiled kernels and engines.

They hold code that a GPU runs. So they are the user's alone, are published whole, and are read
only where nobody but the user could have written them and their sha256 is the one noted.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

CACHE = Path.home() / ".cache" / "comit"


def publish(path: Path, content: bytes) -> None:
    """Writes ``path`` (mode 0600) and ``path``.sha256, each as a whole; makes its folders (0700).

    A cache that cannot be written is no error: the file is made again the next time.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, content)
        replace_file(_note(path), hashlib.sha256(content).hexdigest().encode())
    except OSError:
        return


def read(path: Path) -> bytes | None:
    """The content where it is what was published; None where it is absent, altered or another's.

    Another user's file, or one that others may write, is not read.
    """
    try:
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            if about.st_uid != os.getuid() or about.st_mode & 0o022:
                return None
            content = file.read()
        noted = _note(path).read_text("ascii").strip()
    except (OSError, ValueError):
        return None
    return content if hashlib.sha256(content).hexdigest() == noted else None


def _note(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def replace_file(path: Path, content: bytes) -> None:
    """Writes a file as a whole, mode 0600; raises OSError with the old one untouched."""
    number, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)  # mode 0600
    try:
        with os.fdopen(number, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
