from __future__ import annotations

import hashlib
import hmac
import json
import threading

import pyarrow.parquet as pq
import pytest

from comit.bench.faults.dicoms import make
from comit.console import Console
from comit.errors import Stopped, UsageError
from comit.identifiers import Identifiers, read_key
from comit.options import Options
from comit.screening import screen

KEY = b"0123456789abcdef"
QUIET = Console(quiet=True)
pytestmark = pytest.mark.usefixtures("null_engine")


def hashed(value: bytes) -> str:
    """As the documentation tells users to."""
    return hmac.new(KEY, value, hashlib.sha256).hexdigest()


@pytest.fixture
def key(tmp_path):
    path = tmp_path / "comit.key"
    path.write_bytes(KEY + b"\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def archive(tmp_path):
    root = tmp_path / "archive"
    root.mkdir()
    for i in range(4):
        (root / f"Doe-{i}.dcm").write_bytes(make(SOPInstanceUID=f"1.2.{i}"))
    return root


def run(archive, out, tiny_model, **options):
    options = {"model": tiny_model, **options}
    report = screen(archive, out, Options(**options), console=QUIET)
    return report, pq.read_table(out).to_pylist()


def test_hashes_can_be_found_again_with_the_key(tmp_path, archive, tiny_model, key):
    _, plain = run(archive, tmp_path / "p.parquet", tiny_model)
    report, rows = run(archive, tmp_path / "h.parquet", tiny_model, identifiers="hashed", key=key)
    for shown, hidden in zip(plain, rows, strict=True):
        assert hidden["path"] == hashed(shown["path"].encode())
        assert hidden["row_id"] == hidden["path"][:32]
        for uid in ("sop_instance_uid", "series_instance_uid", "study_instance_uid"):
            assert hidden[uid] == hashed(shown[uid].encode())
        assert hidden["score_covid"] == shown["score_covid"]
    written = json.dumps([report.settings, str(pq.read_schema(tmp_path / "h.parquet").metadata)])
    assert "archive" not in written and "Doe" not in written


def test_without_identifiers_rows_cannot_be_traced(tmp_path, archive, tiny_model):
    _, first = run(archive, tmp_path / "a.parquet", tiny_model, identifiers="none")
    _, second = run(archive, tmp_path / "b.parquet", tiny_model, identifiers="none")
    for row in (*first, *second):
        assert row["path"] is row["sop_instance_uid"] is row["study_instance_uid"] is None
    assert {r["row_id"] for r in first}.isdisjoint(r["row_id"] for r in second)
    assert [r["score_covid"] for r in first] == [r["score_covid"] for r in second]


def test_without_identifiers_a_folder_still_knows_what_it_has(tmp_path, archive, tiny_model):
    folder = tmp_path / "results"
    run(archive, folder, tiny_model, identifiers="none")
    report, rows = run(archive, folder, tiny_model, identifiers="none")
    assert (report.rows, report.unchanged, len(rows)) == (0, 4, 4)
    assert (folder / ".comit" / "key").stat().st_mode & 0o077 == 0
    (folder / ".comit" / "key").unlink()
    with pytest.raises(UsageError, match=r"key of .* is gone"):
        run(archive, folder, tiny_model, identifiers="none")


def test_duplicates_are_told_whatever_identifiers_are(tmp_path, archive, tiny_model, key):
    (archive / "Doe-4.dcm").write_bytes(make(SOPInstanceUID="1.2.0", Rows=90))
    for options in ({}, {"identifiers": "none"}, {"identifiers": "hashed", "key": key}):
        report, _ = run(archive, tmp_path / "r.parquet", tiny_model, **options)
        assert report.warnings["duplicate_uid"] == 2


def test_a_night_with_another_key_is_refused(tmp_path, archive, tiny_model, key):
    folder = tmp_path / "results"
    run(archive, folder, tiny_model, identifiers="hashed", key=key)
    key.write_bytes(b"another key of 16")
    with pytest.raises(UsageError, match="another kind of identifiers or key; run"):
        run(archive, folder, tiny_model, identifiers="hashed", key=key)


@pytest.mark.parametrize("mode", ["hashed", "none"])
def test_a_hidden_run_is_resumed_from_what_is_there(tmp_path, archive, tiny_model, key, mode):
    out, stop = tmp_path / "r.parquet", threading.Event()
    hidden = {"identifiers": mode, "key": key if mode == "hashed" else None}
    stop.set()
    with pytest.raises(Stopped):
        screen(
            archive,
            out,
            Options(model=tiny_model, **hidden),
            console=QUIET,
            stop=stop,
        )
    staging = tmp_path / ".r.parquet.comit"
    assert not (staging / "paths.parquet").exists()
    (archive / "Doe-1.dcm").unlink()
    (archive / "Doe-9.dcm").write_bytes(make())
    _, rows = run(archive, out, tiny_model, **hidden)
    assert [r["reason"] for r in rows] == [None, "vanished", None, None]


def test_a_key_must_be_secret_and_long(tmp_path, key):
    assert read_key(key) == KEY
    key.chmod(0o640)
    with pytest.raises(UsageError, match="can be read by others; run: chmod 600"):
        read_key(key)
    key.chmod(0o600)
    key.write_bytes(b"short")
    with pytest.raises(UsageError, match=r"too short; make one: .*openssl rand"):
        read_key(key)
    with pytest.raises(UsageError, match="cannot be read"):
        read_key(tmp_path / "nowhere")


def test_a_key_goes_with_hashed_identifiers_only(tmp_path, archive, tiny_model, key):
    with pytest.raises(UsageError, match="hashed identifiers need a key"):
        run(archive, tmp_path / "r.parquet", tiny_model, identifiers="hashed")
    for options in ({"key": key}, {"identifiers": "none", "key": key}):
        with pytest.raises(UsageError, match="a key is for hashed identifiers"):
            run(archive, tmp_path / "r.parquet", tiny_model, **options)


def test_names_in_any_encoding_are_hashed_by_their_bytes():
    assert Identifiers("hashed", KEY).path(b"\xff.png") == hashed(b"\xff.png")
    assert Identifiers().path(b"\xff.png") == "\\xff.png"
    assert Identifiers("none", KEY).path(b"a") is None


@pytest.mark.parametrize("mode", ["hashed", "none"])
def test_a_resumed_list_takes_no_other_file_for_an_id(tmp_path, archive, tiny_model, key, mode):
    manifest, out, stop = archive / "m.csv", tmp_path / "r.parquet", threading.Event()
    hidden = {"identifiers": mode, "key": key if mode == "hashed" else None}
    manifest.write_text("id,path\n1,Doe-0.dcm\n2,Doe-1.dcm\n")
    stop.set()
    with pytest.raises(Stopped):
        chosen = Options(model=tiny_model, **hidden)
        screen(manifest, out, chosen, console=QUIET, stop=stop)
    manifest.write_text("id,path\n1,Doe-2.dcm\n2,Doe-1.dcm\n")
    _, rows = run(manifest, out, tiny_model, **hidden)
    assert [r["reason"] for r in rows] == ["vanished", None]
