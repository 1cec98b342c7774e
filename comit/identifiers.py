"""What of paths and UIDs results may hold: nothing, a keyed hash, or the text itself.

    plain   paths and UIDs as they are
    hashed  HMAC-SHA256 (RFC 2104) under a key that only the user holds; one value always gives one
            hash, so rows can be joined and, by who has the key and the archive, found again
    none    null; ``row_id`` is a hash under a key that comit draws and keeps beside the results
            only as long as it needs it to know an item again

An unkeyed hash would hide nothing: paths and UIDs can be guessed and hashed.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from comit.errors import UsageError
from comit.results import UIDS, Row

Mode = Literal["none", "hashed", "plain"]
KEY_BYTES = 16  # the shortest key that is not guessed


class Identifiers:
    """Turns identifiers into what results show, the same way every night."""

    def __init__(self, mode: Mode = "plain", key: bytes = b"") -> None:
        self.mode, self._key = mode, key

    def row_id(self, name: bytes, occurrence: int = 0) -> str:
        """32 hex digits of a path's bytes; later occurrences of one path in a manifest differ."""
        seed = name if not occurrence else name + b"\0%d" % occurrence
        if self.mode == "plain":
            return hashlib.blake2b(seed, digest_size=16).hexdigest()
        return self._hash(seed)[:32]

    def given(self, identity: str) -> str:
        """The ``row_id`` of a row to which the manifest gives an ``id``."""
        return identity if self.mode == "plain" else self._hash(identity.encode())[:32]

    def path(self, name: bytes) -> str | None:
        """A path as results show it; bytes that are not UTF-8 appear as ``\\xNN``."""
        return None if self.mode == "none" else self.text(name)

    def text(self, value: bytes) -> str:
        """What is compared and not shown: as it is, or a hash with ``none`` too."""
        if self.mode == "plain":
            return value.decode("utf-8", "backslashreplace")
        return self._hash(value)

    def uid(self, uid: str | None) -> str | None:
        """A DICOM UID. With ``none`` a hash too: duplicates are told by it before it is dropped."""
        return uid and self.text(uid.encode())

    def row(self, row: Row) -> Row:
        """A row with the UIDs that results may have."""
        if self.mode == "plain":
            return row
        hidden: dict[str, Any] = {name: self.uid(getattr(row, name)) for name in UIDS}
        return replace(row, **hidden)

    def described(self) -> str:
        """Mode and key as a setting: equal where two runs give equal identifiers."""
        return self.mode if self.mode == "plain" else f"{self.mode} {self._hash(b'comit')[:16]}"

    def _hash(self, value: bytes) -> str:
        return hmac.new(self._key, value, hashlib.sha256).hexdigest()


def names(text: str) -> tuple[bytes, bytes]:
    r"""The names that a text of :meth:`Identifiers.text` may stand for: as it is, or with ``\xNN``.

    Which of them there is, the file system knows.
    """
    plain = text.encode("utf-8", "surrogateescape")
    return plain, re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), plain)


def read_key(path: Path) -> bytes:
    """The key in a file, without the white space at its end.

    Raises UsageError where it cannot be read, is short, or others may read it.
    """
    try:
        key, mode = path.read_bytes().rstrip(), path.stat().st_mode
    except OSError as error:
        raise UsageError(f"the key {path} cannot be read: {error.strerror}") from error
    if len(key) < KEY_BYTES:
        raise UsageError(
            f"the key {path} is too short; make one: (umask 077; openssl rand -hex 32 > {path})"
        )
    if mode & 0o077:
        raise UsageError(f"the key {path} can be read by others; run: chmod 600 {path}")
    return key
