"""What ``--send`` names, and the credentials that files and the environment hold."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

from comit.errors import UsageError

if TYPE_CHECKING:
    import ssl

WEB = ("dicomweb+http", "dicomweb+https")
DIMSE = ("dimse", "dimse+tls")
FORMS = (
    "dicomweb+https://host/dicom-web, dicomweb+http://..., dimse://AET@host:port or dimse+tls://"
)


@dataclass(frozen=True)
class Address:
    """A destination without its credentials; ``str`` may be shown and recorded."""

    scheme: str
    host: str
    port: int
    path: str = ""  # of DICOMweb, without a slash at its end
    aet: str = ""  # the called AE title of DIMSE

    @property
    def web(self) -> bool:
        """Whether DICOMweb is spoken there."""
        return self.scheme in WEB

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in ("dicomweb+https", "dimse+tls")

    @property
    def named_host(self) -> str:
        """The host as an address spells it."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def __str__(self) -> str:
        before = f"{self.aet}@" if self.aet else ""
        return f"{self.scheme}://{before}{self.named_host}:{self.port}{self.path}"


def parse(text: str) -> Address:
    """Raises UsageError, which quotes nothing that may be a password."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError(f"--send has no address that can be read; give {FORMS}") from None
    if parts.scheme not in (*WEB, *DIMSE) or not host or re.search(r"[\s\x00-\x1f]", text):
        raise UsageError(f"--send takes {FORMS}")
    if parts.query or parts.fragment:
        raise UsageError("the address of --send has no ? and no #")
    if parts.password is not None or (parts.username is not None and parts.scheme in WEB):
        raise UsageError(
            "the address of --send holds a user or a password, which a list of processes shows; "
            "give them in COMIT_SEND_USER and COMIT_SEND_PASSWORD_FILE"
        )
    return _web(parts, host, port) if parts.scheme in WEB else _dimse(parts, host, port)


def _web(parts: SplitResult, host: str, port: int | None) -> Address:
    default = 443 if parts.scheme == "dicomweb+https" else 80
    return Address(parts.scheme, host, port or default, parts.path.rstrip("/"))


def _dimse(parts: SplitResult, host: str, port: int | None) -> Address:
    if not port or parts.path.strip("/") or not is_aet(parts.username or ""):
        raise UsageError("--send takes dimse://AET@host:port, with an AE title of 1 to 16 letters")
    return Address(parts.scheme, host, port, aet=parts.username or "")


def is_aet(text: str) -> bool:
    """Whether a text is an AE title that needs no escapes in an address."""
    return bool(re.fullmatch(r"[A-Za-z0-9_.\-]{1,16}", text))


@dataclass(frozen=True)
class Credentials:
    """What ``COMIT_SEND_...`` of the environment say; a representation shows none of it."""

    user: str | None = None
    password: str | None = None
    password_file: str | None = None
    token_file: str | None = None
    cert: str | None = None
    key: str | None = None
    ca: str | None = None
    calling_aet: str | None = None

    def __repr__(self) -> str:
        return "Credentials(...)"

    @classmethod
    def of_environment(cls) -> Credentials:
        """Raises UsageError where they contradict one another."""
        names = [field.name for field in fields(cls)]
        found = cls(**{n: os.environ.get(f"COMIT_SEND_{n.upper()}") or None for n in names})
        if found.user and found.token_file:
            raise UsageError("COMIT_SEND_USER and COMIT_SEND_TOKEN_FILE are both set; unset one")
        if found.user and ":" in found.user:
            raise UsageError("COMIT_SEND_USER has a colon, which basic authentication forbids")
        if not is_aet(found.calling_aet or "COMIT"):
            raise UsageError("COMIT_SEND_CALLING_AET is no AE title of 1 to 16 letters")
        return found

    def authorization(self) -> str | None:
        """The header of this request; files are read anew, for tokens change during a night."""
        from base64 import b64encode

        if self.token_file:
            return f"Bearer {_secret('COMIT_SEND_TOKEN_FILE', self.token_file)}"
        if not self.user:
            return None
        if self.password_file:
            password = _secret("COMIT_SEND_PASSWORD_FILE", self.password_file)
        else:
            password = self.password or ""
        return "Basic " + b64encode(f"{self.user}:{password}".encode()).decode()

    def context(self) -> ssl.SSLContext:
        """For TLS: the peer is always verified. Raises UsageError."""
        import ssl

        try:
            context = ssl.create_default_context(cafile=self.ca)
            if self.cert:
                context.load_cert_chain(self.cert, self.key)
        except (OSError, ValueError):
            raise UsageError(
                "the certificates of COMIT_SEND_CA, COMIT_SEND_CERT and COMIT_SEND_KEY cannot be "
                "read: give PEM files that this user may read"
            ) from None
        return context


def _secret(name: str, path: str) -> str:
    """The first line of a file; raises UsageError, which quotes none of it."""
    try:
        text = Path(path).read_text("utf-8").strip()
    except (OSError, ValueError):
        raise UsageError(f"the file that {name} names cannot be read") from None
    if not text or not text.isprintable():
        raise UsageError(f"the file that {name} names does not hold one line of text")
    return text
