"""What the gate rejects gets a row with a reason; tags and the view policy overrule it."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from comit.card import Gate, card_path, read_card
from comit.console import Console
from comit.demo import demo
from comit.errors import ModelError, UsageError
from comit.options import Options
from comit.screening import screen
from comit.terminal.summary import information

QUIET = Console(quiet=True)
EMPTY = ("score_unhealthy", "score_covid", "score_other", "flag_unhealthy", "lung_rle")


def gated(model: Path, folder: Path, gate: object) -> Path:
    """A copy of a model whose card has that gate."""
    folder.mkdir(exist_ok=True)
    copy = folder / model.name
    shutil.copy(model, copy)
    card = json.loads(card_path(model).read_text()) | {"gate": gate}
    card_path(copy).write_text(json.dumps(card))
    return copy


def run(source: Path, out: Path, model: Path, **options):
    report = screen(source, out, Options(model=model, precision="fp32", **options), console=QUIET)
    return report, {r["path"]: r for r in pq.read_table(out).to_pylist()}


def between(scores: list[float]) -> float:
    """A threshold in the widest gap, so that no rounding decides."""
    ordered = np.sort(scores)
    at = int(np.argmax(np.diff(ordered)))
    return float(ordered[at : at + 2].mean())


def test_pictures_below_the_threshold_are_skipped_with_their_score(
    tmp_path, tiny_model, pictures
) -> None:
    _, all_kept = run(
        pictures, tmp_path / "a.parquet", gated(tiny_model, tmp_path / "a", {"threshold": 0.0})
    )
    chest = {path: row["score_chest"] for path, row in all_kept.items()}
    assert all(row["status"] == "ok" and 0 <= row["score_chest"] <= 1 for row in all_kept.values())
    cut = between(list(chest.values()))
    model = gated(tiny_model, tmp_path / "b", {"threshold": cut})
    report, rows = run(pictures, tmp_path / "b.parquet", model)
    rejected = {path for path, score in chest.items() if score < cut}
    assert 0 < len(rejected) < len(rows) and report.reasons == {"not_a_chest": len(rejected)}
    for path, row in rows.items():
        assert row["score_chest"] == chest[path]
        if path in rejected:
            assert (row["status"], row["reason"]) == ("skipped", "not_a_chest")
            assert all(row[name] is None for name in EMPTY) and row["rows"] > 0
        else:
            assert row["status"] == "ok" and row["lung_rle"] == all_kept[path]["lung_rle"]
    said = pq.read_schema(tmp_path / "b.parquet").metadata[b"comit_thresholds"]
    assert json.loads(said)["chest"] == cut
    for masks in ("flagged", "none"):  # scores come first there
        again = run(pictures, tmp_path / f"{masks}.parquet", model, masks=masks)[1]
        assert {p for p, r in again.items() if r["reason"] == "not_a_chest"} == rejected


def test_tags_that_verify_a_frontal_chest_are_believed_and_all_takes_all(
    tmp_path, tiny_model
) -> None:
    phantoms = tmp_path / "phantoms"
    demo(phantoms, 5)
    model = gated(tiny_model, tmp_path / "m", {"threshold": 1.0})  # rejects everything
    _, rows = run(phantoms, tmp_path / "r.parquet", model)
    pictures = {p: r for p, r in rows.items() if not p.endswith(".txt")}
    assert {Path(p).suffix for p in pictures} == {".png", ".jpg", ".dcm"}
    for path, row in pictures.items():
        if path.endswith(".dcm"):
            assert row["status"] == "ok" and "chest_doubted" in row["warnings"]
        else:
            assert row["reason"] == "not_a_chest"
    _, taken = run(phantoms, tmp_path / "all.parquet", model, view_policy="all")
    for path in pictures:
        assert taken[path]["status"] == "ok" and "chest_doubted" in taken[path]["warnings"]


def test_another_threshold_is_another_run(tmp_path, tiny_model, pictures, null_engine) -> None:
    out = tmp_path / "results"
    for cut in (0.0, 0.1):
        model = gated(tiny_model, tmp_path / f"m{cut}", {"threshold": cut})
        if cut:
            with pytest.raises(UsageError, match="gate"):
                screen(pictures, out, Options(model=model), console=QUIET)
        else:
            screen(pictures, out, Options(model=model), console=QUIET)


def test_rejected_pictures_are_counted_by_reason_for_monitoring(
    tmp_path, tiny_model, pictures
) -> None:
    model, metrics = gated(tiny_model, tmp_path / "m", {"threshold": 1.0}), tmp_path / "m.prom"
    (pictures / "notes.txt").write_text("no picture")
    run(pictures, tmp_path / "r.parquet", model, metrics_file=metrics)
    lines = metrics.read_text().splitlines()
    assert 'comit_unscored_rows{reason="not_a_chest"} 9.0' in lines
    assert 'comit_unscored_rows{reason="unsupported_format"} 1.0' in lines


def test_a_model_from_before_the_gate_is_learned_from_and_not_screened_with(
    tmp_path, tiny_model, pictures
) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("torch")
    from comit.model.opened import network_of

    content = onnx.load(tiny_model)
    weights = content.graph.initializer
    kept = [w for w in weights if not w.name.startswith("gate")]
    assert len(kept) < len(weights)
    del weights[:]
    weights.extend(kept)
    old = tmp_path / "old.onnx"
    onnx.save(content, old)
    card = json.loads(card_path(tiny_model).read_text())
    card |= {"outputs": ["unhealthy", "covid", "other"], "gate": None}
    card |= {"sha256": hashlib.sha256(old.read_bytes()).hexdigest()}
    card_path(old).write_text(json.dumps(card))
    with pytest.raises(ModelError, match=r"before comit had a gate; export it again"):
        run(pictures, tmp_path / "r.parquet", old)
    was, now = (network_of(path).state_dict() for path in (tiny_model, old))  # --init, --teacher
    same = {name for name in was if np.array_equal(was[name].numpy(), now[name].numpy())}
    assert {name.partition(".")[0] for name in was.keys() - same} == {"gate_branch"}


@pytest.mark.parametrize(
    "gate",
    [
        {"threshold": float("nan")},
        {"threshold": 1.5},
        {"threshold": "high"},
        {"threshold": True},
        {"threshold": 0.5, "kept": {"a": 2}},
        {"threshold": 0.5, "images": {"a": -1}},
        {"threshold": 0.5, "surprise": 1},
        [0.5],
    ],
)
def test_a_card_with_a_gate_that_is_none_is_refused(tmp_path, tiny_model, gate) -> None:
    with pytest.raises(ModelError, match="not a comit model card"):
        read_card(gated(tiny_model, tmp_path / "m", gate))


def test_info_says_what_the_gate_does(tmp_path, tiny_model) -> None:
    gate = Gate(0.4, {"siim": 0.998}, {"hand": 0.97}, {"siim": 559, "hand": 14}, "val")
    model = gated(tiny_model, tmp_path / "m", asdict(gate))
    assert read_card(model).gate == gate
    said = information(model, as_json=False)
    assert "score_chest below 0.400 is not_a_chest (val)" in said
    assert "siim: 99.8% kept of 559" in said and "hand: 97.0% rejected of 14" in said
    assert "gate: not trained" in information(tiny_model, as_json=False)


def test_the_figures_of_info_are_below_each_other() -> None:
    said = information(None, as_json=False).splitlines()
    start = next(i for i, line in enumerate(said) if line.startswith("val split"))
    table = [line for line in said[start + 1 :] if "[" in line and ":" not in line]
    assert len(table) > 10
    assert len({line.index("[") for line in table}) == 1
    assert said[start].index("model") == min(line.index("0.") for line in table)
