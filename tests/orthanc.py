"""A real Orthanc on loopback, with its DICOMweb plugin and a user; Debian: orthanc-dicomweb."""

from __future__ import annotations

import base64
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

USER, PASSWORD = "comit", "planted-password"
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Orthanc:
    """A server that runs; ``ask`` is its own REST interface."""

    def __init__(self, folder: Path) -> None:
        self.http, self.dimse = free_port(), free_port()
        self.web = f"dicomweb+http://127.0.0.1:{self.http}/dicom-web"
        self.config = folder / "orthanc.json"
        content = {
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "HttpPort": self.http,
            "DicomPort": self.dimse,
            "DicomAet": "ORTHANC",
            "DicomAlwaysAllowFind": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": True,
            "RegisteredUsers": {USER: PASSWORD},
        }
        self.config.write_text(json.dumps(content))

    def raw(self, path: str, data: bytes | None = None) -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", data)
        token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        request.add_header("Authorization", f"Basic {token}")
        with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310
            return answer.read()

    def ask(self, path: str, data: bytes | None = None) -> Any:
        return json.loads(self.raw(path, data))


@contextmanager
def orthanc(folder: Path) -> Iterator[Orthanc]:
    """Starts a server whose files are in ``folder``; skips where it is not installed."""
    program = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if program is None or not PLUGIN.exists():
        pytest.skip("no Orthanc; Debian has it in orthanc and orthanc-dicomweb")
    server = Orthanc(folder)
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen([program, server.config], stdout=log, stderr=log, cwd=folder)
        try:
            for _ in range(200):
                try:
                    server.ask("/system")
                    break
                except (urllib.error.URLError, ConnectionError):
                    assert running.poll() is None, (folder / "log").read_text()
                    time.sleep(0.1)
            yield server
        finally:
            running.terminate()
            running.wait(20)
