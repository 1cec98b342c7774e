"""DICOMweb (PS3.18): STOW-RS, and QIDO-RS to read back.

Redirects are not followed: they would take the credentials along.
"""

from __future__ import annotations

import http.client
import json
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from hashlib import sha256
from typing import Any

from comit import __version__
from comit.errors import Stopped
from comit.send.address import Address, Credentials
from comit.send.outbox import Entry
from comit.send.peer import Answer, Busy

IDLE = 60.0  # seconds without a byte
LONGEST = 16 << 20  # bytes of an answer that are read
BUSY = {408, 425, 429, 500, 502, 503, 504}
DUPLICATES = {0x0111, 45070}  # duplicate SOP instance; the number is Azure's "it exists"
FAILED, REASON, UID = "00081198", "00081197", "00081155"
JSON = "application/dicom+json"


class Web:
    """A DICOMweb server."""

    def __init__(self, address: Address, credentials: Credentials) -> None:
        self._address, self._credentials = address, credentials
        self._context = credentials.context() if address.tls else None
        self._connection: http.client.HTTPConnection | None = None

    def send(self, entry: Entry, content: bytes) -> Answer:
        """Stores one instance."""
        boundary = "comit-" + sha256(content).hexdigest()[:32]
        head = f"--{boundary}\r\nContent-Type: application/dicom\r\n\r\n".encode()
        body = head + content + f"\r\n--{boundary}--\r\n".encode()
        kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
        status, answer = self._ask("POST", "/studies", body, {"Content-Type": kind})
        said = _json(answer)
        reason = _failed(said, entry.sop_instance_uid)
        if reason in DUPLICATES:
            return Answer(True, f"{status}/{reason:#06x}")
        if reason is not None:
            return Answer(False, f"{status}/{reason:#06x}")
        return Answer(status in (200, 202), str(status))

    def there(self, entry: Entry) -> bool | None:
        """Whether a query finds the instance; None where it cannot be asked."""
        path = (
            f"/studies/{entry.study_instance_uid}/series/{entry.series_instance_uid}"
            f"/instances?SOPInstanceUID={entry.sop_instance_uid}"
        )
        status, answer = self._ask("GET", path)
        if status in (204, 404):
            return False
        said = _json(answer)
        if status not in (200, 206) or not isinstance(said, list):
            return None
        found = (_value(item, "00080018") for item in said if isinstance(item, dict))
        return entry.sop_instance_uid in found  # servers ignore queries that they do not know

    def close(self) -> None:
        """Closes the connection."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _ask(
        self, method: str, path: str, body: bytes | None = None, more: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Status and body of an answer. Raises Busy, and Stopped where we are not let in."""
        headers = {"Accept": JSON, "User-Agent": f"comit/{__version__}", **(more or {})}
        if authorization := self._credentials.authorization():
            headers["Authorization"] = authorization
        try:
            if self._connection is None:
                self._connection = self._open()
            self._connection.request(method, self._address.path + path, body, headers)
            answer = self._connection.getresponse()
            content = answer.read(LONGEST)
            if not answer.isclosed():
                self.close()
        except (OSError, http.client.HTTPException, ValueError) as error:  # its text may tell
            self.close()
            raise Busy(type(error).__name__) from None
        if answer.status in BUSY:
            self.close()
            raise Busy(str(answer.status), _after(answer.headers.get("Retry-After")))
        if answer.status in (401, 403, 407):
            raise Stopped(
                f"{self._address} does not let comit in (HTTP {answer.status}); check the user, "
                "token or certificate in COMIT_SEND_..., and run the same command to resume"
            )
        return answer.status, content

    def _open(self) -> http.client.HTTPConnection:
        host, port = self._address.host, self._address.port
        if self._context is not None:
            return http.client.HTTPSConnection(host, port, timeout=IDLE, context=self._context)
        return http.client.HTTPConnection(host, port, timeout=IDLE)


def _json(content: bytes) -> Any:
    """What an answer says; None where it is no JSON (an empty one, XML, a proxy's page)."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _value(item: dict[str, Any], tag: str) -> Any:
    """The first value of an element of DICOM JSON."""
    element = item.get(tag)
    values = element.get("Value") if isinstance(element, dict) else None
    return values[0] if isinstance(values, list) and values else None


def _failed(said: Any, uid: str) -> int | None:
    """Why an instance was not stored, by FailedSOPSequence; None where it is not in there."""
    element = said.get(FAILED) if isinstance(said, dict) else None
    items = element.get("Value") if isinstance(element, dict) else None
    for item in items if isinstance(items, list) else ():
        if isinstance(item, dict) and _value(item, UID) in (uid, None):
            reason = _value(item, REASON)
            return reason if isinstance(reason, int) and 0 <= reason <= 0xFFFF else 0x0110
    return None


def _after(text: str | None) -> float | None:
    """Seconds that Retry-After asks for."""
    if not text:
        return None
    try:
        if text.strip().isdigit():
            return float(text)
        return max(0.0, (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
