"""X-rays in a PACS: a real Orthanc on loopback, and servers that answer as some do."""

from __future__ import annotations

import json
import re
import shlex
import threading
import urllib.error
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from orthanc import PASSWORD, USER, Orthanc, orthanc
from stores import FAULTS, Proxy

pytest.importorskip("urllib3", reason="urllib3 is not installed: pip install 'comit[dicomweb]'")

from comit.bench.faults import dicoms
from comit.cli import main
from comit.errors import Stopped, UsageError
from comit.identifiers import Identifiers
from comit.options import Options
from comit.results import RUN
from comit.screening import screen
from comit.source.dicomweb import DicomWeb, Server, items

MOVED = {"row_id", "path", "file_mtime", *RUN}  # what another place changes
pytestmark = pytest.mark.usefixtures("null_engine")


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An Orthanc that holds 12 drawn radiographs, of which one is a hand."""
    with orthanc(tmp_path_factory.mktemp("orthanc")) as server:
        for i in range(12):
            ds = dicoms.dataset()
            ds.SOPInstanceUID = f"1.2.3.4.{i + 1}"
            ds.StudyInstanceUID, ds.SeriesInstanceUID = f"1.2.3.{i // 3}", f"1.2.3.{i // 3}.1"
            ds.PatientID, ds.PatientName = f"CANARYBIRD{i}", f"CANARYBIRD^{i}"
            ds.StudyDate = f"202611{i + 10}"
            if i == 3:
                ds.BodyPartExamined = "HAND"
            server.raw("/instances", dicoms.write(ds))
        yield server


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "password").write_text(PASSWORD + "\n")
    monkeypatch.setenv("COMIT_DICOMWEB_USER", USER)
    monkeypatch.setenv("COMIT_DICOMWEB_PASSWORD_FILE", str(tmp_path / "password"))


@pytest.fixture
def run(tmp_path: Path):
    def run(source: str | Path, out: str = "results", **options):
        return screen(source, tmp_path / out, Options(workers=1, **options))

    return run


def by_uid(results: Path) -> dict[str, dict]:
    rows = pq.read_table(results).to_pylist()
    return {r["sop_instance_uid"]: {k: v for k, v in r.items() if k not in MOVED} for r in rows}


def test_instances_have_the_rows_of_their_files(pacs, run, tmp_path) -> None:
    files = tmp_path / "files"
    files.mkdir()
    for identity in pacs.ask("/instances"):
        (files / identity).write_bytes(pacs.raw(f"/instances/{identity}/file"))
    run(files, "folder")
    report = run(pacs.web)
    assert report.status == {"ok": 11, "skipped": 1, "failed": 0}
    assert by_uid(tmp_path / "results") == by_uid(tmp_path / "folder")
    paths = pq.read_table(tmp_path / "results")["path"].to_pylist()
    assert all(p.startswith("studies/1.2.3.") and "/instances/1.2.3.4." in p for p in paths)


def test_filters_are_the_servers_and_a_night_fetches_only_what_is_new(pacs, run) -> None:
    with Proxy(pacs.http) as proxy:
        web = f"dicomweb+{proxy.url}/dicom-web"
        assert run(f"{web}?StudyDate=20261110-20261114").rows == 5
        fetched = proxy.asked["get"]
        assert run(f"{web}?StudyDate=20261110-20261114").rows == 0
        assert proxy.asked["get"] - fetched <= 2  # pages of the list alone
    with pytest.raises(UsageError, match="no instances that fit"):
        run(f"{pacs.web}?StudyDate=19000101", "none")
    with pytest.raises(UsageError, match="another input"):
        run(f"{pacs.web}?StudyDate=20261110-20261115")


def test_refusals_say_what_to_do_and_repeat_no_address(pacs, run, monkeypatch, tmp_path) -> None:
    with pytest.raises(UsageError, match="has no DICOMweb service at that path"):
        run(pacs.web + "/no/CANARYBIRD", "none")
    with pytest.raises(UsageError, match="comit sets limit itself"):
        run(pacs.web + "?limit=3", "none")
    with pytest.raises(UsageError, match="with a password is not taken"):
        run(pacs.web.replace("://", f"://{USER}:{PASSWORD}@"), "none")
    with pytest.raises(UsageError, match="--pattern is for folders"):
        run(pacs.web, "none", pattern="*.dcm")
    (tmp_path / "password").write_text("wrong")
    with pytest.raises(UsageError, match="refuses the credentials") as refused:
        run(pacs.web + "?PatientID=CANARYBIRD3", "none")
    assert "CANARYBIRD" not in str(refused.value) and "wrong" not in str(refused.value)
    monkeypatch.setenv("COMIT_DICOMWEB_PASSWORD_FILE", str(tmp_path / "no-such-file"))
    with pytest.raises(UsageError, match=r"credentials file .* cannot be read"):
        run(pacs.web, "none")


@pytest.mark.parametrize("share", [0.3])
def test_faults_are_tried_again(share, pacs, run, tmp_path) -> None:
    run(pacs.web, "usual")
    with Proxy(pacs.http, share=share) as proxy:
        proxy.faults = tuple(f for f in FAULTS if f != "slow")
        with suppress(UsageError):  # a page may fail four times, one in a hundred
            assert run(f"dicomweb+{proxy.url}/dicom-web").status["failed"] == 0
            assert by_uid(tmp_path / "results") == by_uid(tmp_path / "usual")
        assert sum(proxy.asked[fault] for fault in FAULTS) > 0


def test_a_server_that_gives_no_instance_stops_the_run(pacs, run) -> None:
    with Proxy(pacs.http) as proxy:
        proxy.refuse = lambda path: 500 if "/studies/" in path else None
        with pytest.raises(Stopped, match="the same command resumes"):
            run(f"dicomweb+{proxy.url}/dicom-web", timeout=2.0)
        proxy.refuse = lambda path: None
        assert run(f"dicomweb+{proxy.url}/dicom-web").rows == 12


@pytest.mark.parametrize("mode", ["none", "hashed"])
def test_neither_uids_nor_filters_nor_credentials_leave(mode, pacs, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    key = tmp_path / "key"
    key.write_text("0123456789abcdef" * 2)
    key.chmod(0o600)
    command = ["screen", f"{pacs.web}?PatientID=CANARYBIRD*", "--out", str(tmp_path / "out" / "r")]
    command += ["--workers", "1", "--identifiers", mode, "--log-format", "json"]
    command += ["--key", str(key)] * (mode == "hashed")
    command += ["--report", str(tmp_path / "out" / "report.json")]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    texts = [done.output, *(p.read_bytes().decode("latin-1") for p in files)]
    texts += [str(pq.read_table(p).to_pylist()) for p in files if p.suffix == ".parquet"]
    for secret in ("CANARYBIRD", PASSWORD, "1.2.3.4."):
        assert not any(secret in text for text in texts), secret


def test_the_how_to_page_does_what_it_says(pacs, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "how-to" / "pacs.md").read_text()
    (snippet,) = re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S)
    *exports, line = snippet.replace(":8042", f":{pacs.http}").splitlines()
    for export in exports:
        monkeypatch.setenv(*export.removeprefix("export ").split("="))
    done = CliRunner().invoke(main, [*shlex.split(line)[1:], "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert pq.read_table("results").num_rows == 12


# Servers as they are


@contextmanager
def fake(answer) -> Iterator[str]:
    """A server whose answers to QIDO-RS are ``answer(limit, offset)``: a list, or a status."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            query = {k: v[0] for k, v in parse_qs(urlsplit(self.path).query).items()}
            found = answer(int(query["limit"]), int(query["offset"]))
            body = b"" if isinstance(found, int) else json.dumps(found).encode()
            self.send_response(found if isinstance(found, int) else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"dicomweb+http://127.0.0.1:{server.server_address[1]}/rs"
        server.shutdown()


def instance(i: int) -> dict:
    tags = {"0020000D": "1.2", "0020000E": "1.2.3", "00080018": f"1.2.3.{i}"}
    return {tag: {"vr": "UI", "Value": [value]} for tag, value in tags.items()}


def listed(url: str) -> list[str]:
    return [i.path for i in items(Server.of(url), DicomWeb(5.0), Identifiers())]


def some(start: int, end: int, most: int) -> list[dict]:
    return [instance(i) for i in range(start, min(end, most))]


PAGES = {  # how servers page, and how many instances there are
    "whole pages": (lambda limit, offset: some(offset, offset + limit, 1203), 1203),
    "pages of 100": (lambda limit, offset: some(offset, offset + 100, 250), 250),
    "204 at the end": (lambda limit, offset: some(0, 7, 7) if offset < 7 else 204, 7),
    "no offset": (lambda limit, offset: some(0, 40, 40), 40),
    "overlapping pages": (lambda limit, offset: some(max(0, offset - 5), offset + 20, 60), 60),
    "no dictionaries": (
        lambda limit, offset: [instance(1), None, {}, {"00080018": {}}, instance(2)],
        2,
    ),
    "a UID that is none": (
        lambda limit, offset: [instance(1), {**instance(2), "00080018": {"Value": ["../x"]}}],
        1,
    ),
}


@pytest.mark.parametrize("kind", PAGES)
def test_every_instance_is_listed_once(kind) -> None:
    answer, count = PAGES[kind]
    with fake(answer) as url:
        found = listed(url)
    assert len(found) == len(set(found)) == count


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda limit, offset: 204, "has no instances"),
        (lambda limit, offset: {"not": "a list"}, "does not answer"),
        (lambda limit, offset: [instance(1)] if not offset else {}, "does not answer"),
        (lambda limit, offset: 401, "refuses the credentials"),
    ],
)
def test_a_list_that_is_none_is_said(answer, said) -> None:
    with fake(answer) as url, pytest.raises(UsageError, match=said):
        listed(url)


@pytest.mark.real
def test_real_objects_have_the_rows_of_their_files(shared, run, tmp_path) -> None:
    """All that Orthanc takes of 68 files; it holds one object a SOPInstanceUID."""
    folder = shared / "dicom"
    with orthanc(tmp_path) as server:
        refused = []
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            try:
                server.raw("/instances", path.read_bytes())
            except urllib.error.HTTPError:
                refused.append(path.name)
        held = {
            server.ask(f"/instances/{i}/simplified-tags")["SOPInstanceUID"]
            for i in server.ask("/instances")
        }
        run(server.web, timeout=120.0)
    run(folder, "folder", timeout=120.0)
    there = by_uid(tmp_path / "results")
    rows = [r for r in pq.read_table(tmp_path / "folder").to_pylist() if r["sop_instance_uid"]]
    # Several files of one UID: whichever came last, or first, is the one that is held.
    here = [(r["sop_instance_uid"], {k: v for k, v in r.items() if k not in MOVED}) for r in rows]
    known = {uid for uid, _ in here}
    print(f"refused: {refused}; held: {len(held)}")
    assert len(there) == len(pq.read_table(tmp_path / "results")) and {*there} <= held | {None}
    compared = 0
    for uid in known & {*there}:
        same = [row for u, row in here if u == uid]
        for row in (*same, there[uid]):  # copies are told of only where both lie in one input
            row["warnings"] = [
                w for w in row["warnings"] or () if w not in ("duplicate_uid", "identical_copy")
            ]
        assert there[uid] in same, uid
        compared += 1
    assert compared >= 30
