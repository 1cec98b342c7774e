"""X-rays in object stores: the rows of folders, with a real S3 server on loopback."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from stores import FAULTS, Proxy, s3_server

pytest.importorskip("obstore", reason="obstore is not installed: pip install 'comit[store]'")
pytest.importorskip("moto", reason="the S3 server of moto is not installed")
pytest.importorskip("flask", reason="the S3 server of moto is not installed")

import boto3

from comit.cli import main
from comit.errors import MissingExtra, Stopped, UsageError
from comit.options import Options
from comit.results import RUN
from comit.screening import screen
from comit.source import address, inputs
from comit.source.address import Address, is_address

SECRET = "SECRETSECRETSECRETSECRET"  # noqa: S105
MOVED = {"row_id", "path", "file_mtime", *RUN}  # what another place changes

pytestmark = pytest.mark.usefixtures("null_engine")


@pytest.fixture(scope="session")
def server() -> Iterator[int]:
    with s3_server() as port:
        yield port


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "tester")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture
def bucket(server: int, request: pytest.FixtureRequest):
    """A bucket of the test's own."""
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{server}")
    name = f"b{abs(hash(request.node.nodeid)) % 10**12}-archive"
    client.create_bucket(Bucket=name)
    yield Bucket(client, name)
    client.close()


class Bucket:
    def __init__(self, client, name: str) -> None:
        self.client, self.name = client, name

    def put(self, key: str, data: bytes) -> None:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)

    def upload(self, folder: Path, prefix: str = "") -> None:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(prefix + path.relative_to(folder).as_posix(), path.read_bytes())


@pytest.fixture
def run(server: int, tmp_path: Path):
    """Screens an address, by default straight from the server."""

    def run(source: str | Path, out: str = "results", endpoint: str | None = None, **options):
        endpoint = endpoint or f"http://127.0.0.1:{server}"
        return screen(source, tmp_path / out, Options(endpoint=endpoint, workers=1, **options))

    return run


def rows(results: Path) -> dict[str, dict]:
    return {row["path"]: row for row in pq.read_table(results).to_pylist()}


def content(row: dict) -> dict:
    return {k: v for k, v in row.items() if k not in MOVED}


def same_but_for_place(a: dict[str, dict], b: dict[str, dict]) -> bool:
    return {k: content(v) for k, v in a.items()} == {k: content(v) for k, v in b.items()}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("s3://b/a/c.png", Address("s3", "b", "a/c.png")),
        ("S3://b", Address("s3", "b", "")),
        ("gs://b/x/", Address("gs", "b", "x/")),
        ("https://host:8080/x/y.dcm", Address("https", "host:8080", "x/y.dcm")),
        ("ftp://host/x", "reads no ftp://"),
        ("s3:///x", "is s3://BUCKET/PREFIX/"),
        ("https://host/", "is https://HOST/FILE"),
        ("https://user:word@host/x", "with a password or a query"),
        ("https://host/x?X-Amz-Signature=abc", "with a password or a query"),
    ],
)
def test_addresses_are_taken_apart_or_refused_without_being_repeated(text, found) -> None:
    assert is_address(text) and is_address(text.encode())
    if isinstance(found, Address):
        assert Address.of(text) == found
        return
    with pytest.raises(UsageError, match=found) as refused:
        Address.of(text)
    assert "word" not in str(refused.value).replace("password", "") and "abc" not in str(refused)


@pytest.mark.parametrize("name", ["a/b.png", "/s3/x", "s3:/x", "C:\\x.png", "x://", "://x"])
def test_files_are_no_addresses(name) -> None:
    assert not is_address(name) or name == "x://"


def test_objects_have_the_rows_of_files(pictures, bucket, run, tmp_path) -> None:
    (pictures / "sub" / "deep").mkdir(parents=True)
    shutil.copy(pictures / "0.png", pictures / "sub" / "deep" / "é ü.png")
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (pictures / "notes.txt").write_text("none")
    bucket.upload(pictures, "xrays/2026/")
    bucket.put("xrays/2027/other.png", b"no neighbour of ours")
    run(pictures, "folder")
    report = run(f"s3://{bucket.name}/xrays/2026/")
    here, there = rows(tmp_path / "folder"), rows(tmp_path / "results")
    assert same_but_for_place(here, there) and len(there) == 12
    assert {k: v["row_id"] for k, v in here.items()} == {k: v["row_id"] for k, v in there.items()}
    assert report.status["ok"] == 10 and report.settings["root"].startswith("s3://")


def test_an_address_without_a_slash_is_an_object_or_a_prefix(pictures, bucket, run) -> None:
    bucket.upload(pictures, "xrays/")
    assert run(f"s3://{bucket.name}/xrays/3.png", "one").rows == 1
    assert run(f"s3://{bucket.name}/xrays", "all").rows == 9
    assert run(f"s3://{bucket.name}", "bucket").rows == 9
    with pytest.raises(UsageError, match="holds no objects there"):
        run(f"s3://{bucket.name}/xray", "none")  # a prefix ends between two slashes
    with pytest.raises(UsageError, match="there is no s3://no-such-bucket"):
        run("s3://no-such-bucket/x/", "none")


def test_patterns_and_exclusions_are_those_of_folders(pictures, bucket, run, tmp_path) -> None:
    for name in ("@eaDir/0.png", ".hidden.png", "old/1.png", "old/deep/2.png"):
        (pictures / name).parent.mkdir(exist_ok=True, parents=True)
        shutil.copy(pictures / "0.png", pictures / name)
    bucket.upload(pictures)
    bucket.put("empty-folder/", b"")
    bucket.put("sub/", b"")  # as consoles of stores make it, to show a folder
    bucket.put("sub/x.png", (pictures / "0.png").read_bytes())
    (pictures / "sub").mkdir()
    shutil.copy(pictures / "0.png", pictures / "sub" / "x.png")
    for i, options in enumerate(
        ({"exclude": ("old/",)}, {"pattern": "*.PNG"}, {"include_hidden": True})
    ):
        here = run(pictures, f"f{i}", **options)
        there = run(f"s3://{bucket.name}", f"s{i}", **options)
        assert same_but_for_place(rows(tmp_path / f"f{i}"), rows(tmp_path / f"s{i}"))
        assert here.left_out == there.left_out


def test_a_night_fetches_only_what_is_new_or_has_changed(pictures, bucket, server, run) -> None:
    bucket.upload(pictures)
    with Proxy(server) as proxy:
        assert run(f"s3://{bucket.name}", endpoint=proxy.url).rows == 9
        assert proxy.asked["get"] == 9
        bucket.put("new.png", (pictures / "0.png").read_bytes())
        bucket.put("1.png", (pictures / "2.jpg").read_bytes())
        assert run(f"s3://{bucket.name}", endpoint=proxy.url).rows == 2
        assert proxy.asked == {"get": 11, "list": 2}
        assert run(f"s3://{bucket.name}", endpoint=proxy.url).rows == 0
        assert proxy.asked["get"] == 11


def test_a_manifest_mixes_files_and_objects(pictures, bucket, server, run, tmp_path) -> None:
    bucket.upload(pictures, "x/")
    names = sorted(p.name for p in pictures.iterdir())
    half = [f"s3://{bucket.name}/x/{n}" if i % 2 else n for i, n in enumerate(names)]
    gone = f"s3://{bucket.name}/x/gone.png"
    table = {"path": [*half, gone], "id": [*names, "gone"], "ward": ["7"] * 10}
    pq.write_table(pa.table(table), pictures / "m.parquet")
    with Proxy(server) as proxy:
        run(pictures / "m.parquet", endpoint=proxy.url)
        found = {r["row_id"]: r for r in pq.read_table(tmp_path / "results").to_pylist()}
        assert found.pop("gone")["reason"] == "not_found"
        folder = run(pictures, "folder")
        assert folder.rows == 10  # with the manifest itself
        expected = rows(tmp_path / "folder")
        assert all(
            content(expected[n]) == {k: v for k, v in content(found[n]).items() if k != "ward"}
            for n in names
        )
        assert run(pictures / "m.parquet", endpoint=proxy.url).rows == 0
        bucket.put("x/gone.png", (pictures / "0.png").read_bytes())
        assert run(pictures / "m.parquet", endpoint=proxy.url).status["ok"] == 1
    with pytest.raises(UsageError, match="tells of none of 20 objects"):
        many = pa.table({"path": [f"s3://no-such-bucket/{i}.png" for i in range(30)]})
        pq.write_table(many, pictures / "n.parquet")
        run(pictures / "n.parquet", "none")


def test_a_root_keeps_addresses_out(pictures, bucket, run, tmp_path) -> None:
    bucket.upload(pictures)
    paths = ["0.png", f"s3://{bucket.name}/1.png"]
    pq.write_table(pa.table({"path": paths}), tmp_path / "m.parquet")
    run(tmp_path / "m.parquet", root=pictures)
    found = rows(tmp_path / "results")
    assert [found[p]["status"] for p in paths] == ["ok", "skipped"]
    assert found[paths[1]]["reason"] == "outside_root"


@pytest.mark.parametrize(
    "faults", [FAULTS, *(pytest.param((f,), marks=pytest.mark.nightly) for f in FAULTS)]
)
def test_a_fault_is_tried_again_until_the_row_is_there(
    faults, pictures, bucket, server, run, tmp_path
) -> None:
    bucket.upload(pictures)
    run(f"s3://{bucket.name}", "usual")
    with Proxy(server, share=0.5) as proxy:
        proxy.faults = faults
        report = run(f"s3://{bucket.name}", endpoint=proxy.url)
        assert sum(proxy.asked[fault] for fault in faults) > 0
    usual, found = rows(tmp_path / "usual"), rows(tmp_path / "results")
    assert same_but_for_place(usual, found) and report.status["ok"] == 9


def test_repeated_requests_are_reported(pictures, bucket, server, run) -> None:
    bucket.upload(pictures)
    with Proxy(server, share=0.7) as proxy:
        proxy.faults = ("cut", "long")
        notes = run(f"s3://{bucket.name}", endpoint=proxy.url).notes
    assert any("requests to stores, repeated" in note for note in notes)


@pytest.mark.parametrize("status", [403, 500])
def test_a_store_that_refuses_everything_stops_the_run_which_resumes(
    status, pictures, bucket, server, run, tmp_path
) -> None:
    for i in range(30):
        shutil.copy(pictures / "0.png", pictures / f"copy{i}.png")
    bucket.upload(pictures)
    (tmp_path / "results").mkdir()
    with Proxy(server) as proxy:
        # They are listed, and not given.
        proxy.refuse = lambda path: None if "list-type" in path else status
        with pytest.raises(Stopped, match="the same command resumes") as stopped:
            run(f"s3://{bucket.name}", endpoint=proxy.url, timeout=2.0)
        assert stopped.value.exit_code == 4
        assert not list((tmp_path / "results").glob("*.parquet"))
        proxy.refuse = lambda path: None
        assert run(f"s3://{bucket.name}", endpoint=proxy.url).status["ok"] == 39


def test_one_object_that_is_denied_costs_itself(pictures, bucket, server, run, tmp_path) -> None:
    bucket.upload(pictures)
    with Proxy(server) as proxy:
        proxy.refuse = lambda path: 403 if "/3.png" in path else None
        report = run(f"s3://{bucket.name}", endpoint=proxy.url)
    assert report.status == {"ok": 8, "skipped": 0, "failed": 1}
    assert rows(tmp_path / "results")["3.png"]["reason"] == "denied"


def test_a_store_that_refuses_is_told_from_one_beside_it_that_does_not(
    pictures, bucket, server, run, tmp_path
) -> None:
    bucket.upload(pictures)
    other = f"{bucket.name}-other"
    bucket.client.create_bucket(Bucket=other)
    for i in range(40):
        data = (pictures / f"{3 * (i % 3)}.png").read_bytes()
        for name in (bucket.name, other):
            bucket.client.put_object(Bucket=name, Key=f"n{i}.png", Body=data)
    paths = [f"s3://{name}/n{i}.png" for i in range(40) for name in (bucket.name, other)]
    pq.write_table(pa.table({"path": paths}), tmp_path / "m.parquet")
    with Proxy(server) as proxy:
        proxy.refuse = lambda path: 403 if path.startswith(f"/{other}/") else None
        with pytest.raises(Stopped, match=f"objects of s3://{other} may not be read"):
            run(tmp_path / "m.parquet", endpoint=proxy.url)


def test_the_only_new_object_of_a_night_that_is_denied_is_a_row(
    pictures, bucket, server, run, tmp_path
) -> None:
    bucket.upload(pictures)
    with Proxy(server) as proxy:
        run(f"s3://{bucket.name}", endpoint=proxy.url)
        bucket.put("new.png", (pictures / "0.png").read_bytes())
        proxy.refuse = lambda path: 403 if "/new.png" in path else None
        assert run(f"s3://{bucket.name}", endpoint=proxy.url).status["failed"] == 1
    assert rows(tmp_path / "results")["new.png"]["reason"] == "denied"


def test_an_object_of_a_web_server_is_one_row(pictures, run, tmp_path) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=pictures)) as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{web.server_address[1]}/4.png"
        assert run(url).status["ok"] == 1
        with pytest.raises(UsageError, match="cannot be read: the store has no such object"):
            run(url + "x", "other")
        web.shutdown()
    assert list(rows(tmp_path / "results")) == ["4.png"]


@pytest.mark.parametrize("mode", ["none", "hashed"])
def test_neither_keys_nor_credentials_leave(mode, pictures, bucket, server, tmp_path) -> None:
    bucket.upload(pictures, "CANARYBIRD/ward/")
    bucket.put("CANARYBIRD/ward/gone", b"")
    key = tmp_path / "key"
    key.write_text("0123456789abcdef" * 2)
    key.chmod(0o600)
    with Proxy(server, share=0.3) as proxy:
        proxy.faults = ("cut", "503")
        command = ["screen", f"s3://{bucket.name}/CANARYBIRD/", "--out", str(tmp_path / "r" / "x")]
        (tmp_path / "r").mkdir()
        command += ["--endpoint", proxy.url, "--workers", "1", "--identifiers", mode]
        command += ["--key", str(key)] * (mode == "hashed")
        command += ["--report", str(tmp_path / "r" / "report.json"), "--log-format", "json"]
        done = CliRunner().invoke(main, command)
        assert done.exit_code == 3, done.output  # the empty object
        wrong = CliRunner().invoke(
            main, [*command[:1], f"s3://{bucket.name}/CANARYBIRD/no/", *command[2:]]
        )
        assert wrong.exit_code == 2
    said = done.output + wrong.output
    texts = [p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()]
    tables = [str(pq.read_table(p).to_pylist()) for p in (tmp_path / "r").rglob("*.parquet")]
    for secret in ("CANARYBIRD", SECRET):
        assert secret not in said
        assert not any(secret.encode() in text for text in texts)
        assert not any(secret in table for table in tables)
    assert json.loads((tmp_path / "r" / "report.json").read_text())["rows"] == 10


def test_the_how_to_page_does_what_it_says(pictures, server, tmp_path, monkeypatch) -> None:
    client = boto3.client("s3", endpoint_url=f"http://127.0.0.1:{server}")
    client.create_bucket(Bucket="archive")
    Bucket(client, "archive").upload(pictures, "xrays/")
    Bucket(client, "archive").put("xrays/0001.png", (pictures / "0.png").read_bytes())
    client.close()
    (tmp_path / "copies").mkdir()
    shutil.copy(pictures / "0.png", tmp_path / "copies" / "0002.png")
    page = (Path(__file__).parent.parent / "docs" / "how-to" / "object-stores.md").read_text()
    lines = page.partition("`objects.csv`:\n\n")[2].split("\n\n")[0].splitlines()
    (tmp_path / "objects.csv").write_text("\n".join(line.strip() for line in lines) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server}")
    said = []
    for snippet in re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S):
        for line in snippet.replace(":9000", f":{server}").splitlines():
            if line.startswith("export "):
                monkeypatch.setenv(*line.removeprefix("export ").split("="))
            else:
                said.append(CliRunner().invoke(main, [*shlex.split(line)[1:], "--workers", "1"]))
    assert [done.exit_code for done in said] == [0, 0, 0], [done.output for done in said]
    assert pq.read_table("results").num_rows == 10 and pq.read_table("mixed.parquet").num_rows == 2


def test_inputs_that_do_not_go_together_are_refused(pictures) -> None:
    with pytest.raises(UsageError, match="an address is screened alone"):
        inputs.Input.of([pictures, "s3://b/x"])
    with pytest.raises(UsageError, match="begins with https://"):
        Options(endpoint="127.0.0.1:9000")


def test_what_is_missing_is_named(monkeypatch, tmp_path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    monkeypatch.setitem(__import__("sys").modules, "obstore.store", None)
    with pytest.raises(MissingExtra, match=r"comit\[store\]"):
        list(address.Stores().list(Address("s3", "b", "")))


@pytest.mark.real
def test_real_objects_have_the_rows_of_files(shared, bucket, run, tmp_path) -> None:
    """All 68 DICOM files, from a folder, from S3 and from a manifest of both."""
    folder = shared / "dicom"
    bucket.upload(folder, "dicom/")
    run(folder, "folder", timeout=120.0)
    run(f"s3://{bucket.name}/dicom/", "s3", timeout=120.0)
    here, there = rows(tmp_path / "folder"), rows(tmp_path / "s3")
    assert len(here) == 68 and same_but_for_place(here, there)
    paths = [
        f"s3://{bucket.name}/dicom/{p}" if i % 2 else str(folder / p) for i, p in enumerate(here)
    ]
    pq.write_table(pa.table({"path": paths, "id": [*here]}), tmp_path / "m.parquet")
    run(tmp_path / "m.parquet", "mixed", timeout=120.0)
    mixed = {r["row_id"]: r for r in pq.read_table(tmp_path / "mixed").to_pylist()}
    assert same_but_for_place(here, mixed)
