"""``comit dicom --send``: into a real Orthanc, and into servers that misbehave."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import resultfiles as rf
from click.testing import CliRunner
from orthanc import PASSWORD, USER, Orthanc, free_port, orthanc
from pydicom import dcmread

from comit.bench.faults import dicoms
from comit.cli import main
from comit.console import Console
from comit.errors import Stopped, UsageError
from comit.send.address import Credentials, parse
from comit.send.send import Sending

pytest.importorskip("highdicom")

QUIET = Console(quiet=True)
SECRET = "planted-token"  # noqa: S105


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch):
    for name in [n for n in os.environ if n.startswith("COMIT_SEND_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Iterator[Orthanc]:
    with orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        yield server


@pytest.fixture
def pacs(archive, tmp_path, monkeypatch) -> Orthanc:
    """An empty one, with the credentials in the environment."""
    for study in archive.ask("/studies"):
        request = "/tools/bulk-delete"
        archive.raw(request, json.dumps({"Resources": [study]}).encode())
    password = tmp_path / "password"
    password.write_text(PASSWORD + "\n")
    monkeypatch.setenv("COMIT_SEND_USER", USER)
    monkeypatch.setenv("COMIT_SEND_PASSWORD_FILE", str(password))
    return archive


def films(folder: Path, count: int = 3) -> list[str]:
    """Radiographs and their results; the words of the command up to --out."""
    pictures = folder / "films"
    pictures.mkdir()
    rows = []
    for n in range(count):
        uid = f"1.2.3.4.{n}"
        data = dicoms.make(dicoms.picture(300, 260), SOPInstanceUID=uid)
        (pictures / f"{n}.dcm").write_bytes(data)
        rows.append(rf.ok(f"row{n}", f"{n}.dcm", sop_instance_uid=uid, unhealthy=n / 100))
    results = rf.write(folder / "r.parquet", rows)
    return ["dicom", str(results), "--images", str(pictures), "--out", str(folder / "out")]


def run(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(main, words)
    assert done.exit_code == code, done.output
    said = done.output
    assert not any(w in said for w in (SECRET, PASSWORD, "Planted", "PLANTED"))
    return said


def table(folder: Path) -> list[dict]:
    return pq.read_table(folder / "out" / "sent.parquet").to_pylist()


def address(pacs: Orthanc, way: str) -> str:
    return pacs.web if way == "stow" else f"dimse://ORTHANC@127.0.0.1:{pacs.dimse}"


WAYS = ("stow", "dimse")


@pytest.mark.parametrize("way", WAYS)
def test_objects_arrive_equal_are_found_by_query_and_never_twice(pacs, tmp_path, way):
    words, to = films(tmp_path), ["--send", address(pacs, way)]
    said = run(*words, "--to", "seg", *to)
    assert "would send 3 objects of 1 studies" in said and pacs.ask("/instances") == []
    assert "3 confirmed" in run(*words, "--to", "seg", *to, "--send-now")
    assert "6 confirmed" in run(*words, "--to", "sr", *to)  # agreed to, and both kinds are there
    made = {str(dcmread(f).SOPInstanceUID): f for f in (tmp_path / "out").glob("*.dcm")}
    assert len(made) == 6
    for modality in ("SEG", "SR"):
        assert len(pacs.ask(f"/dicom-web/instances?Modality={modality}")) == 3
    for instance in pacs.ask("/instances"):
        stored = dcmread(io.BytesIO(pacs.raw(f"/instances/{instance}/file")))
        assert stored == dcmread(made.pop(str(stored.SOPInstanceUID)))
    assert made == {}
    before = table(tmp_path)
    assert {(r["state"], r["tries"]) for r in before} == {("confirmed", 1)}
    run(*words, "--to", "seg", *to)
    assert table(tmp_path) == before and len(pacs.ask("/instances")) == 6


@pytest.mark.parametrize("way", WAYS)
def test_a_lost_outbox_sends_again_and_nothing_is_there_twice(pacs, tmp_path, way):
    words = [*films(tmp_path), "--to", "sr", "--send", address(pacs, way), "--send-now"]
    run(*words)
    shutil.rmtree(tmp_path / "out")
    assert "3 confirmed" in run(*words)
    assert len(pacs.ask("/instances")) == 3


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_is_resumed(pacs, tmp_path, way):
    words = [*films(tmp_path, 12), "--to", "sr", "--send", address(pacs, way), "--send-now"]
    running = subprocess.Popen([sys.executable, "-m", "comit", *words], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while len(pacs.ask("/instances")) < 3:
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    assert len(pacs.ask("/instances")) < 12, "it was killed too late to show anything"
    assert "12 confirmed" in run(*words)
    assert len(pacs.ask("/instances")) == 12
    assert sum(r["tries"] for r in table(tmp_path)) <= 13  # one of which it did not know


def test_dimse_is_read_back_by_dicomweb_where_that_is_given(pacs, tmp_path):
    words = [*films(tmp_path), "--to", "sr", "--send", address(pacs, "dimse"), "--send-now"]
    assert "3 confirmed" in run(*words, "--read-back", pacs.web)


def test_a_wrong_password_stops_the_run_and_is_not_said(pacs, tmp_path, monkeypatch):
    monkeypatch.delenv("COMIT_SEND_PASSWORD_FILE")
    monkeypatch.setenv("COMIT_SEND_PASSWORD", SECRET)
    words = [*films(tmp_path), "--to", "sr", "--send", pacs.web, "--send-now"]
    done = CliRunner().invoke(main, words)
    assert isinstance(done.exception, Stopped) or done.exit_code == 4
    said = done.output + str(done.exception)
    assert "HTTP 401" in said and "resume" in said and SECRET not in said
    assert {r["state"] for r in table(tmp_path)} == {"made"}
    kept = [f.read_bytes() for f in (tmp_path / "out" / "outbox").rglob("*") if f.is_file()]
    assert kept and not any(SECRET.encode() in k or b"Planted" in k for k in kept)


def test_every_line_of_the_page_runs(pacs, tmp_path):
    pytest.importorskip("duckdb")
    page = Path(__file__).parent.parent / "docs" / "how-to" / "send-to-pacs.md"
    script = "".join(re.findall(r"^```sh\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S))
    for old, new in (
        ("dicomweb+https://pacs.example/dicom-web", pacs.web),
        ("pacs.example:4242", f"127.0.0.1:{pacs.dimse}"),
        ("the password", PASSWORD),
    ):
        assert old in script
        script = script.replace(old, new)
    films(tmp_path)
    (tmp_path / "films").rename(tmp_path / "xrays")
    (tmp_path / "r.parquet").rename(tmp_path / "results.parquet")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "confirmed" in done.stdout and "not sent" in done.stderr
    assert len(pacs.ask("/instances")) == 6
    assert PASSWORD not in done.stdout + done.stderr


class Server(ThreadingHTTPServer):
    """A DICOMweb server that does what it is told: ``faults`` come first, then ``mood``."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.stored: dict[str, bytes] = {}
        self.faults: list[str] = []
        self.mood = "stores"
        self.posts = 0
        self.seen: list[str | None] = []
        self.address = f"dicomweb+http://127.0.0.1:{self.server_address[1]}/dicom-web"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server = self.server
        server.posts += 1
        server.seen.append(self.headers.get("Authorization"))
        content = body.split(b"\r\n\r\n", 1)[1].rsplit(b"\r\n--", 1)[0]
        uid = str(dcmread(io.BytesIO(content)).SOPInstanceUID)
        fault = server.faults.pop(0) if server.faults else server.mood
        failed = {"00081198": {"vr": "SQ", "Value": [_item(uid, 0xA900)]}}
        if fault == "busy":
            self.answer(503, b"Planted^Patient", Retry_After="7")
        elif fault == "reset":
            self.close_connection = True
        elif fault == "stored, then reset":
            server.stored[uid] = content
            self.close_connection = True
        elif fault == "refuses":
            self.answer(409, json.dumps(failed).encode())
        elif fault == "redirects":
            self.answer(307, Location="http://127.0.0.1:1/")
        elif fault == "lies":
            self.answer(200, b"{}")
        else:
            assert fault == "stores"
            server.stored[uid] = content
            self.answer(200, b"{}")

    def do_GET(self) -> None:
        found = [{"00080018": {"vr": "UI", "Value": [u]}} for u in self.server.stored]
        self.answer(200, json.dumps(found).encode()) if found else self.answer(204)


def _item(uid: str, reason: int) -> dict:
    return {
        "00081155": {"vr": "UI", "Value": [uid]},
        "00081197": {"vr": "US", "Value": [reason]},
    }


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


@contextmanager
def sending(folder: Path, to: str, count: int = 3):
    """An outbox with objects; what is yielded sends them and gives states and pauses."""
    from comit.look.dicom import export

    films(folder, count)
    way = Sending(to, None, folder / "out")
    pauses: list[float] = []
    try:
        export(folder / "r.parquet", folder / "films", folder / "out", "sr", QUIET, way.add)

        def send(retry_refused: bool = False):
            return dict(way.run(True, retry_refused, QUIET, pauses.append).states), pauses

        yield send
    finally:
        way.close()


def test_busy_servers_and_resets_are_tried_again(server, tmp_path):
    server.faults = ["busy", "reset", "reset", "stores", "stored, then reset"]
    with sending(tmp_path, server.address) as send:
        states, pauses = send()
    assert states == {"confirmed": 3} and len(server.stored) == 3
    assert 7.0 in pauses and all(0 < p <= 60 for p in pauses)


def test_success_with_nothing_stored_is_noticed(server, tmp_path):
    server.faults = ["stores", "lies", "lies"]
    with sending(tmp_path, server.address) as send:
        assert send()[0] == {"confirmed": 2, "refused": 1}
        (lost,) = [r for r in table(tmp_path) if r["state"] == "refused"]
        assert (lost["status"], lost["row_id"]) == ("not_stored", "row1")
        assert send()[0] == {"confirmed": 2, "refused": 1} and server.posts == 4
        assert send(retry_refused=True)[0] == {"confirmed": 3}


def test_one_refusal_costs_one_object_and_the_exit_code_says_so(server, tmp_path):
    server.faults = ["stores", "refuses"]
    words = [*films(tmp_path), "--to", "sr", "--send", server.address, "--send-now"]
    said = run(*words, code=3)
    assert "2 confirmed, 0 accepted and not confirmed, 1 refused, 0 not sent" in said
    assert [r["status"] for r in table(tmp_path) if r["state"] == "refused"] == ["409/0xa900"]


@pytest.mark.parametrize("mood", ["refuses", "redirects", "busy", "reset"])
def test_a_destination_that_takes_nothing_stops_early_and_is_resumed(server, tmp_path, mood):
    server.mood = mood
    with sending(tmp_path, server.address, 12) as send:
        with pytest.raises(Stopped, match="run the same command to resume") as stopped:
            send()
        assert "Planted" not in str(stopped.value)
        assert {r["state"] for r in table(tmp_path)} == {"made"}
        assert server.posts <= 20
        server.mood = "stores"
        assert send()[0] == {"confirmed": 12}


def test_what_a_killed_run_had_sent_is_asked_for_and_not_sent_again(server, tmp_path):
    with sending(tmp_path, server.address, 1) as send:
        send()
        (entry,) = (tmp_path / "out" / "outbox").glob("*/*.json")
    said = json.loads(entry.read_text())
    entry.write_text(json.dumps(said | {"state": "made", "status": ""}))
    way = Sending(server.address, None, tmp_path / "out")
    try:
        assert way.run(False, False, QUIET).states == {"confirmed": 1}
    finally:
        way.close()
    assert server.posts == 1


def test_a_token_is_read_anew_for_each_request(server, tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text(SECRET)
    monkeypatch.setenv("COMIT_SEND_TOKEN_FILE", str(token))
    words = [*films(tmp_path, 1), "--to", "sr", "--send", server.address, "--send-now"]
    run(*words)
    assert server.seen == [f"Bearer {SECRET}"]
    token.write_text("two\nlines " + SECRET)
    done = CliRunner().invoke(main, [*words[:-3], "--send", server.address + "/b", "--send-now"])
    said = done.output + str(done.exception)
    assert "COMIT_SEND_TOKEN_FILE" in said and SECRET not in said


def test_dimse_without_c_find_is_accepted_and_not_confirmed(tmp_path):
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    kept, statuses = [], [0xA700, 0xC000, 0x0000]

    def store(event):
        kept.append(str(event.request.AffectedSOPInstanceUID))
        return statuses.pop(0) if statuses else 0x0000

    ae = AE("STORE")
    ae.supported_contexts = AllStoragePresentationContexts
    port = free_port()
    scp = ae.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)])
    try:
        with sending(tmp_path, f"dimse://STORE@127.0.0.1:{port}") as send:
            assert send()[0] == {"sent": 2, "refused": 1}
            assert len(kept) == 4  # the first was out of resources once
            assert send()[0] == {"sent": 2, "refused": 1} and len(kept) == 4
    finally:
        scp.shutdown()
    assert {r["status"] for r in table(tmp_path)} == {"0x0000", "0xc000"}


@pytest.mark.filterwarnings(  # pynetdicom leaves it to the collector
    "ignore:.*unclosed <socket:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_an_association_that_nobody_takes_stops_the_run(tmp_path):
    with (
        sending(tmp_path, f"dimse://NOBODY@127.0.0.1:{free_port()}") as send,
        pytest.raises(Stopped, match="run the same command to resume"),
    ):
        send()


@pytest.fixture
def certificate(tmp_path, monkeypatch) -> ssl.SSLContext:
    """A server's that asks for a client's; both have the same, and the environment names it."""
    tool = shutil.which("openssl")
    if tool is None:
        pytest.skip("no openssl")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    words = (
        "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -addext subjectAltName=IP:127.0.0.1"
    )
    files = ["-keyout", key, "-out", cert]
    subprocess.run([tool, *words.split(), *files], check=True, capture_output=True)
    for name, path in (("CA", cert), ("CERT", cert), ("KEY", key)):
        monkeypatch.setenv(f"COMIT_SEND_{name}", str(path))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(cert))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(cert, key)
    return context


def test_dicomweb_by_tls_with_a_client_certificate(server, certificate, tmp_path, monkeypatch):
    server.socket = certificate.wrap_socket(server.socket, server_side=True)
    secure = server.address.replace("+http:", "+https:")
    with sending(tmp_path, secure) as send:
        assert send()[0] == {"confirmed": 3}
    monkeypatch.delenv("COMIT_SEND_CA")  # then nobody vouches for the server
    way = Sending(secure + "/other", None, tmp_path / "out")
    try:
        way.add(*_object(tmp_path / "out"))
        assert way.run(True, False, QUIET, lambda seconds: None).states == {"made": 1}
    finally:
        way.close()
    assert {r["status"] for r in table(tmp_path)} == {"200", "SSLCertVerificationError"}


def _object(out: Path) -> tuple[Path, bytes, str]:
    made = min(out.glob("*.dcm"))
    return made, made.read_bytes(), "row0"


def test_dimse_by_tls_with_a_client_certificate(certificate, tmp_path):
    from pynetdicom import AE, AllStoragePresentationContexts, evt

    ae = AE("STORE")
    ae.supported_contexts = AllStoragePresentationContexts
    port = free_port()
    store = [(evt.EVT_C_STORE, lambda event: 0x0000)]
    scp = ae.start_server(
        ("127.0.0.1", port), block=False, ssl_context=certificate, evt_handlers=store
    )
    try:
        with sending(tmp_path, f"dimse+tls://STORE@127.0.0.1:{port}") as send:
            assert send()[0] == {"sent": 3}
    finally:
        scp.shutdown()


def test_two_runs_do_not_send_at_once(server, tmp_path):
    way = Sending(server.address, None, tmp_path)
    try:
        with pytest.raises(UsageError, match="another run"):
            Sending(server.address, None, tmp_path)
    finally:
        way.close()


@pytest.mark.parametrize(
    "text",
    [
        f"dicomweb+https://user:{SECRET}@host/dicom-web",
        f"dicomweb+https://host/dicom-web?token={SECRET}",
        f"dimse://AET:{SECRET}@host:104",
        f"dimse://host:104/{SECRET}",
        f"dimse://TOO-LONG-AN-AE-TITLE@host:{SECRET}",
        f"ftp://{SECRET}",
        f"dicomweb+https://[{SECRET}",
    ],
)
def test_an_address_with_secrets_or_none_is_refused_and_not_quoted(text):
    with pytest.raises(UsageError) as refused:
        parse(text)
    assert SECRET not in str(refused.value)


def test_addresses_are_shown_as_they_are_given():
    for text in ("dicomweb+https://host:8443/a/b", "dimse+tls://A@[::1]:11112"):
        assert str(parse(text)) == text
    assert str(parse("dicomweb+https://host/a/")) == "dicomweb+https://host:443/a"


def test_credentials_are_not_shown(monkeypatch):
    monkeypatch.setenv("COMIT_SEND_USER", "u")
    monkeypatch.setenv("COMIT_SEND_PASSWORD", SECRET)
    found = Credentials.of_environment()
    assert SECRET not in repr(found) + str(found)
    assert found.authorization() == "Basic dTpwbGFudGVkLXRva2Vu"
