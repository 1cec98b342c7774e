"""Real X-rays, real DICOM files, the bundled model: what a user gets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pycocotools import mask

from comit.card import BUNDLED, read_card
from comit.console import Console
from comit.engine import load_engine
from comit.model.data import load, read_manifest
from comit.model.metrics import area_under_roc, per_image
from comit.options import Options
from comit.screening import screen

pytestmark = pytest.mark.real
EVERY = 27  # X-rays of cxr/images that go through each engine; the whole set is in bench/results


def run(source: Path, out: Path, **options):
    report = screen(source, out, Options(**options), console=Console(quiet=True))
    return report, {r["path"]: r for r in pq.read_table(out).to_pylist()}


def scores(row) -> np.ndarray:
    return np.array([row["score_unhealthy"], row["score_covid"], row["score_other"]])


@pytest.fixture(scope="module")
def some(shared, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("some")
    for path in sorted((shared / "cxr" / "images").iterdir())[::EVERY]:
        os.link(path, folder / path.name) if _same_disk(path, folder) else (
            folder / path.name
        ).write_bytes(path.read_bytes())
    return folder


def _same_disk(a: Path, b: Path) -> bool:
    return a.stat().st_dev == b.stat().st_dev


@pytest.fixture(scope="module")
def reference(some, tmp_path_factory):
    """Rows of PyTorch in fp32."""
    out = tmp_path_factory.mktemp("reference") / "r.parquet"
    return run(some, out, engine="torch", precision="fp32")[1]


def test_every_x_ray_is_scored_and_its_masks_decode(reference):
    for row in reference.values():
        assert row["status"] == "ok" and row["warnings"] == ["unverified_view"]
        lung = mask.decode(row["lung_rle"])
        assert lung.shape == (224, 224)
        assert lung.mean() == pytest.approx(row["lung_fraction"])
        assert 0.1 < row["lung_fraction"] < 0.9


ENGINES = [("openvino", "fp32"), ("onnxruntime", "fp32"), ("openvino", "bf16")]


@pytest.mark.parametrize(("engine", "precision"), ENGINES)
def test_an_engine_agrees_with_pytorch(engine, precision, some, reference, tmp_path):
    try:
        report, rows = run(some, tmp_path / "r.parquet", engine=engine, precision=precision)
    except Exception as error:
        if precision == "bf16" and "on this CPU" in str(error):
            pytest.skip("this CPU has no bf16")
        raise
    agree(rows, reference, report.settings["operating point"], *TOLERANCE[precision])


TOLERANCE = {"fp32": (1e-4, 0.999), "fp16": (2e-3, 0.99), "bf16": (0.03, 0.98)}


def agree(rows, reference, point, score_tolerance, least_iou):
    assert rows.keys() == reference.keys()
    inter, union = np.zeros(2), np.zeros(2)
    for path, row in rows.items():
        difference = np.abs(scores(row) - scores(reference[path]))
        assert difference.max() <= score_tolerance, path
        for name in ("unhealthy", "covid"):
            if row[f"flag_{name}"] != reference[path][f"flag_{name}"]:
                assert abs(row[f"score_{name}"] - point[name]) <= score_tolerance
        for i, name in enumerate(("lung_rle", "disease_rle")):
            a, b = (mask.decode(r[name]).astype(bool) for r in (row, reference[path]))
            inter[i] += np.count_nonzero(a & b)
            union[i] += np.count_nonzero(a | b)
    assert (inter / union >= least_iou).all(), inter / union


@pytest.mark.nightly
def test_fp16_exported_from_the_bundled_model_agrees(some, reference, tmp_path, shared):
    from click.testing import CliRunner

    from comit.cli import main

    model = tmp_path / "half.onnx"
    given = ["export", "onnx", "bundled", "--precision", "fp16", "--out", str(model)]
    made = CliRunner().invoke(main, [*given, "--images", str(shared / "originals")])
    assert made.exit_code == 0, made.output
    report, rows = run(some, tmp_path / "r.parquet", model=model, engine="onnxruntime")
    agree(rows, reference, report.settings["operating point"], *TOLERANCE["fp16"])


def test_the_default_engine_gives_a_batch_the_same_bits_in_any_order(some, tmp_path):
    engine = load_engine(BUNDLED)
    rng = np.random.default_rng(0)
    images = rng.random((2 * engine.batch_size + 1, 1, 224, 224), np.float32)
    first = engine.predict(images)
    order = rng.permutation(len(images))
    again = engine.predict(images[order])
    assert np.array_equal(again.scores, first.scores[order])
    assert np.array_equal(again.masks, first.masks[order])


def test_dicom_rows(shared, tmp_path):
    report, rows = run(shared / "dicom", tmp_path / "d.parquet", precision="fp32")
    assert len(rows) == 68
    chest = {p.name: r for q, r in rows.items() if (p := Path(q)).parent.name == "radiographs"}
    skipped = {n: r["reason"] for n, r in chest.items() if r["status"] == "skipped"}
    assert skipped.pop("JPEG2KLossless_1s_1f_u_16_16.dcm") == "not_a_chest"
    assert skipped == dict.fromkeys(
        (
            "NM_Kakadu44_SOTmarkerincons.dcm",
            "RG2_JLSL.dcm",
            "RG2_JLSN.dcm",
            "RG2_JPLL.dcm",
            "RG2_JPLY.dcm",
            "RG2_JPLY_fixed.dcm",
            "RG3_J2KI.dcm",
            "RG3_J2KR.dcm",
        ),
        "anatomy",
    )
    assert {n: r["reason"] for n, r in chest.items() if r["status"] == "failed"} == {
        "966.dcm": "decode"
    }
    assert {r["reason"] for q, r in rows.items() if q.startswith("others")} == {
        "modality",
        "sop_class",
    }
    doubted = {n for n, r in chest.items() if "chest_doubted" in r["warnings"]}
    assert doubted == {"Fake_MONOHR1.dcm"}  # a negative, which its tags call a frontal chest
    # The same picture as JPEG 2000 and JPEG-LS, both lossy.
    assert np.abs(scores(chest["RG1_J2KI.dcm"]) - scores(chest["RG1_JLSN.dcm"])).max() <= 1e-2
    assert report.status == {"ok": 5, "skipped": 62, "failed": 1}


def test_polarity_and_its_trap(shared, tmp_path):
    """MONOCHROME1 with inverted values is the same picture; relabelled alone, its negative."""
    import pydicom

    source = shared / "dicom" / "radiographs"
    (original,) = source.glob("1.2.276*.dcm")
    dataset = pydicom.dcmread(original)
    pixels = dataset.pixel_array
    folder = tmp_path / "in"
    folder.mkdir()
    for name, photometric, values in (
        ("two", "MONOCHROME2", pixels),
        ("one", "MONOCHROME1", 255 - pixels),
        ("relabelled", "MONOCHROME1", pixels),
        ("negative", "MONOCHROME2", 255 - pixels),
    ):
        dataset.PixelData = np.ascontiguousarray(values).tobytes()
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        dataset.PhotometricInterpretation = photometric
        dataset.save_as(folder / f"{name}.dcm")
    (folder / "fake.dcm").write_bytes((source / "Fake_MONOHR1.dcm").read_bytes())
    _, rows = run(folder, tmp_path / "r.parquet", precision="fp32")
    found = {Path(p).stem: scores(r) for p, r in rows.items()}
    assert np.abs(found["one"] - found["two"]).max() <= 1e-4
    assert np.abs(found["relabelled"] - found["negative"]).max() <= 1e-4
    assert np.abs(found["fake"] - found["negative"]).max() <= 1e-4
    assert np.abs(found["fake"] - found["two"]).max() > 1e-2


def test_published_originals_score_like_their_reductions(shared, tmp_path):
    by_name = {
        r["original_name"]: Path(r["path"]).name
        for r in read_manifest(shared / "cxr" / "manifest.parquet")
    }
    _, full = run(shared / "originals", tmp_path / "o.parquet", precision="fp32")
    small = tmp_path / "small"
    small.mkdir()
    for name in full:
        data = (shared / "cxr" / "images" / by_name[name]).read_bytes()
        (small / by_name[name]).write_bytes(data)
    _, reduced = run(small, tmp_path / "s.parquet", precision="fp32")
    assert len(full) == 21
    differences = [np.abs(scores(full[n]) - scores(reduced[by_name[n]])).max() for n in full]
    assert np.mean(np.array(differences) <= 0.05) >= 0.9, sorted(differences)


@pytest.mark.parametrize(
    ("every", "margin"), [(4, 0.1), pytest.param(1, 0.02, marks=pytest.mark.nightly)]
)
def test_the_bundled_model_has_the_figures_of_its_card(shared, tmp_path, every, margin):
    """On val, within one source at a time: what no guess at source, place or brightness reaches."""
    card = read_card(BUNDLED).metrics["val"]
    study, gate = (shared / "cxr" / f"{name}.parquet" for name in ("study", "gate"))
    rows = [
        r
        for r in read_manifest(study)
        if r["split"] == "val" and r["source"] in ("siim", "jsrt", "kermany-children")
    ][::every]
    others = [r for r in pq.read_table(gate).to_pylist() if r["split"] == "val"]
    listed = pa.table({"path": [r["path"] for r in (*rows, *others)]})
    pq.write_table(listed, tmp_path / "val.parquet")
    _, found = run(tmp_path / "val.parquet", tmp_path / "r.parquet", root=shared / "cxr")
    kept = [found[r["path"]]["status"] == "ok" for r in rows]
    assert np.mean(kept) >= 0.98
    assert np.mean([found[r["path"]]["reason"] == "not_a_chest" for r in others]) >= 0.9
    asked = [r for r, ok in zip(rows, kept, strict=True) if ok]
    typical = [
        (r["covid"], found[r["path"]]["score_covid"], found[r["path"]]["disease_fraction"])
        for r in asked
        if r["source"] == "siim" and (r["covid"] or r["healthy"])
    ]
    covid, score, fraction = (np.array(v) for v in zip(*typical, strict=True))
    expected = card["covid_auc_with_healthy_within_siim"]
    assert area_under_roc(covid, score) >= expected - margin
    assert area_under_roc(covid, fraction) >= expected - margin
    drawn = load([r for r in asked if r["lung_mask"]], shared / "cxr")
    lungs = [
        mask.decode(found[r["path"]]["lung_rle"]).astype(bool) for r in asked if r["lung_mask"]
    ]
    ious = per_image(np.stack(lungs), np.zeros_like(lungs), drawn)["lung_iou"]
    assert np.mean(ious) >= 0.85
