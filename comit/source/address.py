"""Addresses of pictures that are no files: ``s3://bucket/prefix/``, https, dicomweb+https, ...

Objects are read by obstore, which is imported when the first address is met. Texts of its errors
name addresses and quote servers: none of them is shown.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from threading import Lock
from typing import TYPE_CHECKING, Any, NamedTuple

from comit.errors import ItemError, MissingExtra, UsageError
from comit.reasons import Fail
from comit.source.base import microseconds
from comit.source.dicomweb import DicomWeb, Server

if TYPE_CHECKING:
    from obstore.store import ObjectStore

LISTED = ("s3", "gs", "az")  # whose objects can be listed
DICOMWEB = ("dicomweb+https", "dicomweb+http")
SCHEMES = (*LISTED, "https", "http", *DICOMWEB)
REQUESTS = 32  # in flight: at 50 ms each, 640 objects a second
REFUSALS = 20  # objects one after the other that a store refuses: it refuses all
_BEGINS = re.compile(rb"([A-Za-z][A-Za-z0-9+.-]*)://")


def is_address(text: bytes | str) -> bool:
    """Whether a path is an address, of whatever scheme."""
    return _BEGINS.match(os.fsencode(text)) is not None


@dataclass(frozen=True)
class Address:
    """One object, or the prefix of some; raises UsageError for what comit cannot read."""

    scheme: str
    bucket: str  # of a web server its name, with the port
    key: str  # without a slash before it

    @staticmethod
    def of(text: str) -> Address:
        """Takes an address apart; where it is refused, the message does not repeat it."""
        scheme, _, rest = text.partition("://")
        scheme, (bucket, _, key) = scheme.lower(), rest.partition("/")
        if scheme not in SCHEMES:
            raise UsageError(
                f"comit reads no {scheme}:// addresses; it reads files and "
                f"{', '.join(f'{s}://' for s in SCHEMES)}"
            )
        if scheme in DICOMWEB:
            Server.of(text)
            return Address(scheme, bucket, key)
        if "@" in bucket or (scheme not in LISTED and re.search("[?#]", key)):
            raise UsageError(
                f"an address of {scheme}:// with a password or a query is not taken, because "
                "results would keep it: give credentials by the environment"
            )
        if not bucket or (scheme not in LISTED and not key):
            form = "BUCKET/PREFIX/" if scheme in LISTED else "HOST/FILE"
            raise UsageError(f"an address of {scheme}:// is {scheme}://{form}")
        return Address(scheme, bucket, key.lstrip("/"))

    @property
    def place(self) -> str:
        """Scheme and bucket: what a message may name."""
        return f"{self.scheme}://{self.bucket}"

    def __str__(self) -> str:
        return f"{self.place}/{self.key}"


class Found(NamedTuple):
    """What a store says of an object."""

    key: str
    size: int | None
    mtime: int | None  # microseconds since 1970


class Stores:
    """The stores of addresses, each opened once; any thread may use them.

    ``endpoint`` is the address of a server that speaks S3, if not Amazon's; ``timeout`` bounds the
    seconds of one request. Credentials are those of the environment: for S3 boto3's chain where
    boto3 is installed (environment, profiles, roles), GOOGLE_APPLICATION_CREDENTIALS, AZURE_...
    """

    def __init__(self, endpoint: str | None = None, timeout: float = 60.0) -> None:
        self._endpoint, self._timeout = endpoint, timeout
        self._open: dict[str, ObjectStore] = {}
        self._lock = Lock()
        self.dicomweb = DicomWeb(timeout)

    def list(self, address: Address) -> Iterator[Found]:
        """All objects below a prefix, in the order of their keys; raises UsageError."""
        store = self._of(address)
        import obstore

        try:
            for page in obstore.list(store, address.key.rstrip("/") or None):
                for meta in page:
                    yield _found(meta)
        except Exception as error:
            raise _unlisted(address, error) from None

    def look(self, address: Address) -> Found:
        """One object; raises ItemError ``not_found``, ``denied`` or ``unreachable``.

        Of an instance of a PACS nothing is asked: it never changes.
        """
        if address.scheme in DICOMWEB:
            return Found(address.key, None, None)
        store = self._of(address)
        import obstore

        with _refusals():
            return _found(obstore.head(store, address.key))

    def read(self, address: Address) -> tuple[Found, Iterator[memoryview]]:
        """What there is of an object, and its bytes in pieces; both raise ItemError."""
        if address.scheme in DICOMWEB:
            pieces = self.dicomweb.read(str(address).removeprefix("dicomweb+"))
            return Found(address.key, None, None), pieces
        store = self._of(address)
        import obstore

        with _refusals():
            result = obstore.get(store, address.key)
            return _found(result.meta), _pieces(result)

    def _of(self, address: Address) -> ObjectStore:
        with self._lock:
            if address.place not in self._open:
                self._open[address.place] = self._opened(address)
            return self._open[address.place]

    def _opened(self, address: Address) -> ObjectStore:
        try:
            from obstore.store import from_url
        except ModuleNotFoundError:
            raise MissingExtra(f"reading {address.scheme}:// addresses", "store") from None
        options: dict[str, Any] = {}
        endpoint = self._endpoint
        for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
            endpoint = endpoint or os.environ.get(name)
        endpoint = endpoint if address.scheme == "s3" else None
        if endpoint:
            options["endpoint"] = endpoint
        if address.scheme == "s3" and (provider := _boto3_chain()):
            options["credential_provider"] = provider
        plain = (endpoint or address.place).startswith("http://")
        return from_url(
            address.place,
            client_options={
                "timeout": timedelta(seconds=self._timeout),
                "connect_timeout": timedelta(seconds=min(self._timeout, 10)),
                "allow_http": plain,
            },
            # Few: who asks tries again, as long as an item may take.
            retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=self._timeout)},
            **options,
        )


def _boto3_chain() -> Any:
    """Amazon's chain of credentials; None without boto3, or where the chain has none."""
    with suppress(ModuleNotFoundError):
        import boto3
        from obstore.auth.boto3 import Boto3CredentialProvider

        session = boto3.Session()
        if session.get_credentials() is not None:
            return Boto3CredentialProvider(session)
    return None


def _found(meta: Any) -> Found:
    changed: datetime = meta["last_modified"]
    return Found(meta["path"], meta["size"], microseconds(int(changed.timestamp() * 1e6) * 1000))


def _pieces(result: Any) -> Iterator[memoryview]:
    with _refusals():
        for piece in result.stream(min_chunk_size=2**20):
            yield memoryview(piece)


@contextmanager
def _refusals() -> Iterator[None]:
    """What a store answers, as a reason; the text of its error is dropped."""
    try:
        yield
    except (ItemError, UsageError, MemoryError):
        raise
    except Exception as error:
        raise ItemError(_reason(error)) from None


def _reason(error: Exception) -> Fail:
    from obstore.exceptions import (
        InvalidPathError,
        NotFoundError,
        PermissionDeniedError,
        UnauthenticatedError,
    )

    if isinstance(error, FileNotFoundError | NotFoundError | InvalidPathError):
        return Fail.NOT_FOUND
    if isinstance(error, PermissionError | PermissionDeniedError | UnauthenticatedError):
        return Fail.DENIED
    return Fail.UNREACHABLE


def _unlisted(address: Address, error: Exception) -> Exception:
    """Why a store gave no list; what is ours passes."""
    if isinstance(error, UsageError):
        return error
    reason = _reason(error)
    if reason is Fail.DENIED:
        return UsageError(
            f"{address.place} may not be listed with these credentials; check the environment "
            "(for S3: AWS_ACCESS_KEY_ID, AWS_PROFILE, AWS_REGION)"
        )
    if reason is Fail.NOT_FOUND or "NoSuchBucket" in str(error):
        return UsageError(f"there is no {address.place}; check the name, the region and --endpoint")
    return UsageError(
        f"{address.place} does not answer; check the network, the region and --endpoint"
    )
