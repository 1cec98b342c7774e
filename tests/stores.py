"""An S3 server on loopback, and a proxy before it that fails as networks do."""

from __future__ import annotations

import http.client
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

FAULTS = ("503", "429", "reset", "cut", "long", "slow")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def s3_server() -> Iterator[int]:
    """The port of a server of moto's, in a process of its own."""
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(600):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            yield port
        finally:
            process.kill()


class Proxy:
    """Forwards to a port; ``share`` of the requests for objects end in one of FAULTS.

    ``delay`` seconds are waited before each answer. ``asked`` counts requests by what they are:
    list, head, get, and by fault.
    """

    def __init__(self, port: int, share: float = 0.0, delay: float = 0.0, seed: int = 0) -> None:
        proxy = self
        self.share, self.delay = share, delay
        self.faults: tuple[str, ...] = FAULTS
        self.refuse: Callable[[str], int | None] = lambda path: None  # a status for some
        self.asked: Counter[str] = Counter()
        self._chance, self._lock = random.Random(seed), threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout: ClassVar[float] = 30

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                proxy.forward(self, port)

            def do_HEAD(self) -> None:
                proxy.forward(self, port)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def __enter__(self) -> Proxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def forward(self, handler: BaseHTTPRequestHandler, port: int) -> None:
        kind = "list" if "list-type" in handler.path else handler.command.lower()
        with self._lock:
            self.asked[kind] += 1
            failing = kind != "list" and self._chance.random() < self.share
            fault = self._chance.choice(self.faults) if failing else None
            if fault:
                self.asked[fault] += 1
        time.sleep(self.delay)
        status = self.refuse(handler.path) or {"503": 503, "429": 429}.get(fault or "")
        if status:
            handler.send_response(status)
            handler.send_header("Retry-After", "1")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if fault == "reset":
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            handler.close_connection = True
            handler.connection.close()
            return
        inner = http.client.HTTPConnection("127.0.0.1", port)
        headers = {k: v for k, v in handler.headers.items() if k.lower() != "connection"}
        inner.request(handler.command, handler.path, headers=headers)
        answer = inner.getresponse()
        body = answer.read()
        inner.close()
        handler.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("content-length", "connection", "transfer-encoding"):
                handler.send_header(name, value)
        length = answer.getheader("content-length") or str(len(body))
        if fault == "long":  # promises more than comes
            length = str(int(length) + 100)
        handler.send_header("Content-Length", length)
        handler.end_headers()
        if fault in ("cut", "long"):
            handler.close_connection = True
            body = body[: len(body) // 2] if fault == "cut" else body
        if fault == "slow":
            time.sleep(1)
        if handler.command != "HEAD":
            handler.wfile.write(body)
