"""Instances of a PACS by DICOMweb (PS3.18): QIDO-RS lists them, WADO-RS gives each as it is stored.

An address is that of the server with filters of QIDO-RS behind it::

    dicomweb+https://pacs.example/dicom-web?Modality=DX&StudyDate=20261101-

Credentials come from the environment, see :data:`VARIABLES`. Texts of errors, which name addresses
and quote servers, are not shown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from comit.errors import ItemError, MissingExtra, UsageError
from comit.identifiers import Identifiers
from comit.reasons import Fail
from comit.source.base import Item

if TYPE_CHECKING:
    from urllib3 import BaseHTTPResponse, PoolManager

VARIABLES = {
    "COMIT_DICOMWEB_USER": "user name, with COMIT_DICOMWEB_PASSWORD_FILE",
    "COMIT_DICOMWEB_PASSWORD_FILE": "file that holds the user's password",
    "COMIT_DICOMWEB_TOKEN_FILE": "file that holds a bearer token; it is read for each request",
    "COMIT_DICOMWEB_CERTIFICATE": "file of a client certificate with its key, PEM",
    "COMIT_DICOMWEB_CA": "file of the authorities that the server's certificate is from, PEM",
}
PAGE = 500  # instances asked for at once; servers may give fewer
PIECE = 2**20  # bytes
# Without the transfer syntax servers transcode: more bytes, more time, other pixels.
AS_STORED = 'multipart/related; type="application/dicom"; transfer-syntax=*'
STUDY, SERIES, INSTANCE = "0020000D", "0020000E", "00080018"


@dataclass(frozen=True)
class Server:
    """Where a DICOMweb service is, and which of its instances are meant."""

    base: str  # https://host/dicom-web
    filters: str  # as in the address, without the question mark

    @staticmethod
    def of(text: str) -> Server:
        """Takes an address apart; where it is refused, the message does not repeat it."""
        parts = urlsplit(text.removeprefix("dicomweb+"))
        if parts.username is not None or parts.password is not None:
            raise UsageError(
                "a DICOMweb address with a password is not taken, because results would keep it: "
                "use COMIT_DICOMWEB_USER and COMIT_DICOMWEB_PASSWORD_FILE"
            )
        if not parts.hostname or parts.fragment:
            raise UsageError("a DICOMweb address is dicomweb+https://HOST/PATH?FILTERS")
        names = {unquote(f).partition("=")[0].lower() for f in parts.query.split("&")}
        if taken := sorted(names & {"limit", "offset", "includefield", "fuzzymatching"}):
            raise UsageError(f"comit sets {taken[0]} itself; leave it out of the address")
        return Server(f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}", parts.query)

    @property
    def place(self) -> str:
        """The server: what a message may name."""
        parts = urlsplit(self.base)
        return f"{parts.scheme}://{parts.netloc}"


def items(server: Server, client: DicomWeb, names: Identifiers) -> Iterator[Item]:
    """Yields an item for each instance that a server lists; raises UsageError where there is none.

    An instance is known by its SOPInstanceUID: it never changes, so a later night leaves it alone.
    """
    found = False
    for path, uid in client.instances(server):
        found = True
        raw = path.encode()
        file = f"dicomweb+{server.base}/{path}".encode()
        yield Item(names.row_id(uid.encode()), names.path(raw), file, names.text(raw))
    if not found:
        raise UsageError(f"{server.place} has no instances that fit the address")


class DicomWeb:
    """One client for all servers; any thread may use it. ``timeout`` bounds what is waited for."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._pool: PoolManager | None = None

    def instances(self, server: Server) -> Iterator[tuple[str, str]]:
        """Path (``studies/.../instances/UID``) and SOPInstanceUID of each; raises UsageError.

        Pages are asked for until one holds nothing new: servers may give fewer than were asked
        for, ignore the offset, or answer 204 where there are none.
        """
        seen: set[str] = set()
        while True:
            query = f"limit={PAGE}&offset={len(seen)}"
            query = f"{server.filters}&{query}" if server.filters else query
            new = 0
            for found in self._page(server, f"{server.base}/instances?{query}"):
                study, series, uid = (_text(found, tag) for tag in (STUDY, SERIES, INSTANCE))
                if uid and study and series and uid not in seen:
                    seen.add(uid)
                    new += 1
                    yield f"studies/{study}/series/{series}/instances/{uid}", uid
            if not new:
                return

    def read(self, url: str) -> Iterator[memoryview]:
        """The bytes of the instance at an address of http or https, in pieces; raises ItemError."""
        with _refusals():
            response = self._get(url, AS_STORED)
        try:
            _check(response)
            yield from _first_part(response)
        finally:
            response.release_conn()
            response.close()

    def _page(self, server: Server, url: str) -> list[dict[str, Any]]:
        reason: Fail | None = None
        for tried in range(4):
            try:
                with _refusals():
                    response = self._get(url, "application/dicom+json")
                    try:
                        _check(response)
                        if response.status == 204:
                            return []
                        found = response.json()
                    finally:
                        response.release_conn()
                if isinstance(found, list):
                    return [f for f in found if isinstance(f, dict)]
                reason = Fail.UNREACHABLE  # a page of a proxy, say: the end of the list is not that
            except ItemError as error:
                reason = Fail(str(error.reason))  # type: ignore[call-arg]
                if reason is not Fail.UNREACHABLE:
                    break
                time.sleep(0.5 * 2**tried)
        what = {
            Fail.DENIED: "refuses the credentials; set the variables COMIT_DICOMWEB_...",
            Fail.NOT_FOUND: "has no DICOMweb service at that path; check the address",
        }.get(reason or Fail.UNREACHABLE, "does not answer; check the address and the network")
        raise UsageError(f"{server.place} {what}")

    def _get(self, url: str, accept: str) -> BaseHTTPResponse:
        if self._pool is None:
            self._pool = self._opened()
        headers = {"Accept": accept, "Accept-Encoding": "identity", **_authorization()}
        return self._pool.request("GET", url, headers=headers, preload_content=False)

    def _opened(self) -> PoolManager:
        try:
            import urllib3
        except ModuleNotFoundError:
            raise MissingExtra("reading dicomweb+ addresses", "dicomweb") from None
        given: dict[str, Any] = {
            "cert_file": os.environ.get("COMIT_DICOMWEB_CERTIFICATE"),
            "ca_certs": os.environ.get("COMIT_DICOMWEB_CA"),
        }
        return urllib3.PoolManager(
            maxsize=32,
            timeout=urllib3.Timeout(connect=min(10.0, self._timeout), read=self._timeout),
            retries=False,  # who asks tries again, as long as an item may take
            **{k: v for k, v in given.items() if v},
        )


def _authorization() -> dict[str, str]:
    """The header of the credentials that the environment names; raises UsageError."""
    if name := os.environ.get("COMIT_DICOMWEB_TOKEN_FILE"):
        return {"Authorization": f"Bearer {_secret(name)}"}
    if user := os.environ.get("COMIT_DICOMWEB_USER"):
        from urllib3 import make_headers

        password = _secret(os.environ.get("COMIT_DICOMWEB_PASSWORD_FILE", ""))
        return {"Authorization": make_headers(basic_auth=f"{user}:{password}")["authorization"]}
    return {}


def _secret(name: str) -> str:
    try:
        return Path(name).read_text().strip()
    except OSError as error:
        raise UsageError(
            f"the credentials file {name!r} cannot be read: {error.strerror}"
        ) from None


def _text(found: dict[str, Any], tag: str) -> str:
    values = (found.get(tag) or {}).get("Value") or [""]
    text = str(values[0])
    return text if text and all(c in "0123456789." for c in text) else ""


def _check(response: BaseHTTPResponse) -> None:
    """Raises ItemError for an answer that is no success."""
    if response.status in (401, 403, 407):
        raise ItemError(Fail.DENIED)
    if response.status in (404, 410):
        raise ItemError(Fail.NOT_FOUND)
    if not 200 <= response.status < 300:
        raise ItemError(Fail.UNREACHABLE)


@contextmanager
def _refusals() -> Iterator[None]:
    """What goes wrong on the way is a reason; the text of the error is dropped."""
    try:
        yield
    except (ItemError, UsageError, MemoryError):
        raise
    except Exception:
        raise ItemError(Fail.UNREACHABLE) from None


def _first_part(response: BaseHTTPResponse) -> Iterator[memoryview]:
    """The body of the first part of a multipart answer (RFC 2046 5.1), or all of another answer.

    Raises ItemError ``unreachable`` where it ends before its boundary: the instance was cut.
    """
    kind = response.headers.get("Content-Type", "")
    boundary = next(
        (
            p.split("=", 1)[1].strip(' "')
            for p in kind.split(";")
            if p.strip().startswith("boundary=")
        ),
        None,
    )
    if not kind.lower().startswith("multipart/") or boundary is None:
        with _refusals():
            for piece in response.stream(PIECE):
                yield memoryview(piece)
        return
    held, inside = b"", False
    end = b"\r\n--" + boundary.encode()
    with _refusals():
        for piece in response.stream(PIECE):
            held += piece
            if not inside:
                head = held.find(b"\r\n\r\n")
                if head < 0:
                    if len(held) > 2**16:
                        raise ItemError(Fail.UNREACHABLE)
                    continue
                held, inside = held[head + 4 :], True
            if (stop := held.find(end)) >= 0:
                yield memoryview(held[:stop])
                return
            safe = max(0, len(held) - len(end))
            if safe:
                yield memoryview(held[:safe])
                held = held[safe:]
    raise ItemError(Fail.UNREACHABLE)
