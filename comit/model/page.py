"""One page about a model: tables in Markdown, pictures beside it, everything as JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from comit.card import CLASSES
from comit.console import Console
from comit.errors import MissingExtra, UsageError
from comit.machine import machine
from comit.masks import FOREGROUND
from comit.model.calibrate import labels_of
from comit.model.curves import canvas
from comit.model.data import UNKNOWN, Cohort, filled, load, read_manifest
from comit.model.evaluation import EvaluationConfig, evaluation, questions, with_fraction
from comit.model.gradcam import Task, gradcam
from comit.model.inference import on_device, pick_device, predict
from comit.model.metrics import Predictions, per_image
from comit.model.network import COMiTNet
from comit.model.opened import Opened, open_network
from comit.model.runs import replace_file
from comit.model.stability import CHANGES, stability

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, DATA = "evaluation.md", "evaluation.json"
EXAMPLES = 6  # pictures of a kind


def evaluate(
    model: str,
    manifest: Path,
    out: Path,
    *,
    split: str = "test",
    config: EvaluationConfig | None = None,
    pictures: bool = True,
    changes: bool = False,
    device: str = "auto",
    workers: int = 2,
    console: Console | None = None,
) -> dict[str, Any]:
    """Writes ``evaluation.md``, ``evaluation.json`` and pictures into the folder ``out``.

    ``model`` is as in :func:`.opened.open_network`, computed in float32 by PyTorch. ``manifest``
    also holds a split ``train``, from which the no-model baselines are made. The pictures show
    X-rays of the manifest: they are as confidential as those. ``changes`` adds what borders, crops
    and the like do to the answers (:mod:`.stability`); it takes twelve times the network's time.
    Returns what the JSON holds.
    Raises UsageError, and MissingExtra without matplotlib unless ``pictures`` is off.
    """
    console, config = console or Console(), config or EvaluationConfig()
    if pictures:
        try:
            import matplotlib.figure  # noqa: F401
        except ModuleNotFoundError as error:
            raise MissingExtra("the pictures of comit evaluate", "study") from error
    opened = open_network(model)
    chosen = pick_device(device)
    rows = read_manifest(manifest)
    cohorts = {}
    for name in dict.fromkeys(("train", split)):
        members = [r for r in rows if r["split"] == name]
        if not members:
            raise UsageError(f"{manifest} has no rows with split {name!r}")
        with console.progress(f"reading {name}", len(members)) as step:
            cohorts[name] = load(members, manifest.parent, workers, step)
    cohort, network = cohorts[split], on_device(opened.network, chosen)
    with console.stage("running the network"):
        predictions = predict(network, cohort.images, chosen)
    found: dict[str, Any] = {
        "model": {"name": opened.card.name, "sha256": opened.card.sha256, "path": model},
        "manifest_sha256": hashlib.sha256(manifest.read_bytes()).hexdigest(),
        "split": split,
        "resamples": config.resamples,
        "seed": config.seed,
        "machine": machine() | {"scikit-learn": version("scikit-learn")},
    }
    boxes = lung_boxes(rows, split, cohort)
    with console.stage(f"drawing {config.resamples:,} samples of patients"):
        found |= evaluation(predictions, cohort, cohorts["train"], opened.card, config, boxes)
    if changes:
        with console.progress("changing the pictures", len(CHANGES)) as step:
            found["changes"] = stability(
                lambda images: predict(network, images, chosen),
                cohort.images,
                opened.card,
                progress=step,
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be made a folder") from error
    with console.stage("drawing pictures"):
        drawn = draw(found, predictions, cohort, network, config.seed, out) if pictures else {}
    replace_file(out / DATA, lambda p: p.write_text(json.dumps(found, indent=1) + "\n"))
    text = "\n".join(page(found, opened, drawn)) + "\n"
    replace_file(out / PAGE, lambda p: p.write_text(text, "utf-8", "backslashreplace"))
    console.line(f"{out / PAGE}: {found['images']} images of {found['patients']} patients")
    return found


def lung_boxes(
    rows: Sequence[dict[str, Any]], split: str, cohort: Cohort
) -> list[NDArray[np.bool_] | None]:
    """(224, 224) masks of the column ``radiologist_lung_boxes``; None where an image has none."""
    boxes = [r.get("radiologist_lung_boxes") for r in rows if r["split"] == split]
    shapes = cohort.shape.tolist()
    return [None if not b else filled(b, tuple(s)) for b, s in zip(boxes, shapes, strict=True)]


def page(found: dict[str, Any], opened: Opened, pictures: dict[str, str]) -> list[str]:
    """Lines of Markdown; ``pictures`` maps a file's name to its caption."""
    lines = [
        f"# {found['model']['name']} on the split {found['split']}",
        "",
        f"{opened.card.intended_use} {found['images']} images of {found['patients']} patients. "
        f"Intervals: 95 %, {found['resamples']} resamples of patients, seed {found['seed']}. "
        '"No model" answers with the name of the image\'s source, and with one mask a source. '
        'A figure that it reaches shows nothing. "Picture statistics" is a logistic regression '
        "on twelve numbers of the whole picture (brightness, contrast, sharpness, size), fitted "
        'within each source: "above those" is what the network adds, paired by patient.',
        "",
        "## COVID-19 against other diseases, within one source",
        "",
        "Across sources a score can tell data sets apart instead of diseases. These cannot.",
        "",
        *_question_table(found, lambda name: name.startswith("covid against")),
        "",
        "## The paper's figures",
        "",
        "Theirs is on their test set, ours on this one: they do not compare, they stand side by "
        "side. Theirs are across sources. Precision and F1 are ours at the card's threshold.",
        "",
        "| figure | the paper | ours | no model |",
        "| --- | --- | --- | --- |",
        *(
            f"| {row['figure']} | {row['paper']:.3f} ({row['where']}) | "
            + (_cells(row["ours"]) if row["ours"] else "not measured: no such images | ")
            + " |"
            for row in found["paper"]
        ),
        "",
        "## Every question, by source and view",
        "",
        *_question_table(found, lambda name: not name.startswith("covid against")),
        "",
        "## At the card's thresholds",
        "",
        "After each interval what no model gives, its score cut at the same specificity on these "
        "very images; within one source it flags nobody. None: of no images."
        + "".join(
            f" {name[0].upper()}{name[1:]}: the card has no threshold for it."
            for name, asked in found["questions"].items()
            if name.endswith("sources mixed") and not asked["at"]
        ),
        "",
        "| question | specificity aimed at | specificity | recall | precision | F1 | accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {percent} % | "
            + " | ".join(
                f"{_value(at[k])}; {_number(at[k]['no_model'])}"
                for k in ("specificity", "recall", "precision", "f1", "accuracy")
            )
            + " |"
            for name, asked in found["questions"].items()
            for percent, at in asked["at"].items()
        ),
        "",
        "## Masks",
        "",
        "At probability 0.5, means over the images that are annotated. Whole lungs: all of the "
        "lungs called diseased, as annotated or, where they are not, as the model sees them.",
        "",
        "| figure | images | ours | no model | whole lungs |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {name} | {figure['images']} | {_cells(figure)} | "
            + (_number(figure["whole_lung"]) if "whole_lung" in figure else "")
            + " |"
            for name, figure in found["masks"].items()
        ),
        "",
        "## Calibration",
        "",
        "Brier's score, the mean squared distance of a share from 0 or 1; less is better.",
        "",
        "| score | raw | no model | calibrated |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {_cells(kinds['raw']['brier'])} | "
            + (_value(kinds["calibrated"]["brier"]) if "calibrated" in kinds else "not calibrated")
            + " |"
            for name, kinds in found["calibration"].items()
        ),
    ]
    if "changes" in found:
        lines += _change_table(found["changes"])
    for name, caption in pictures.items():
        lines += ["", f"![{caption}]({name})", "", caption]
    versions = {"python": found["machine"]["python"]} | found["machine"]["packages"]
    lines += [
        "",
        f"Model sha256 {found['model']['sha256'] or 'of a run, not exported'}, manifest sha256 "
        f"{found['manifest_sha256']}, comit {found['machine']['comit']} at "
        f"{found['machine']['commit']}, {found['machine']['cpu']}, "
        + ", ".join(f"{k} {v}" for k, v in versions.items()),
    ]
    return lines


def draw(
    found: dict[str, Any],
    predictions: Predictions,
    cohort: Cohort,
    network: COMiTNet,
    seed: int,
    out: Path,
) -> dict[str, str]:
    """Pictures of ROC curves, calibration, embeddings, Grad-CAM and masks; name -> caption."""
    made = {
        "roc.png": (_roc(predictions, cohort), "ROC curves; within one source drawn solid."),
        "calibration.png": (
            _reliability(found["calibration"]),
            "Share of positives against the mean score of a bin; the diagonal is calibrated.",
        ),
        "embeddings.png": (
            _embeddings(network, cohort, predictions, seed),
            "t-SNE of the embeddings (the paper's figure 11): by label, by source, by score.",
        ),
        "gradcam.png": (
            _gradcam(network, cohort, predictions),
            "Grad-CAM (the paper's figure 12) of images with the highest scores.",
        ),
        "masks.png": (
            _examples(cohort, predictions),
            "Disease masks that agree least with the annotation (drawn in green): where it fails.",
        ),
    }
    kept = {}
    for name, (figure, caption) in made.items():
        if figure is not None:
            figure.savefig(out / name, dpi=120)
            kept[name] = caption
    return kept


def embed(network: COMiTNet, images: NDArray[np.float16]) -> NDArray[np.float32]:
    """(N, 224, 224) images in [0, 1] to the (N, C) embeddings that both branches read."""
    device = next(network.parameters()).device
    found = []
    with torch.inference_mode():
        network.eval()
        for i in range(0, len(images), 16):
            x = torch.from_numpy(images[i : i + 16].astype(np.float32))[:, None].to(device)
            found.append(network.embed(network.encode(x)[0]).cpu().numpy())
    return np.concatenate(found)


def _roc(predictions: Predictions, cohort: Cohort) -> Figure:
    from sklearn.metrics import roc_curve

    figure, axes = canvas(1, side=5.5)
    axis, labels, scores = axes[0, 0], labels_of(cohort), with_fraction(predictions)
    for question in questions(cohort):
        if question.name.endswith((", PA", ", AP")):
            continue
        false, true, _ = roc_curve(
            labels[question.chosen, question.label], scores[question.chosen, question.score]
        )
        axis.plot(false, true, "-" if "within" in question.name else ":", label=question.name)
    axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
    axis.set(xlabel="1 - specificity", ylabel="sensitivity")
    axis.legend(fontsize=6, loc="lower right")
    return figure


def _reliability(calibration: dict[str, Any]) -> Figure | None:
    if not calibration:
        return None
    figure, axes = canvas(len(calibration))
    for axis, (name, kinds) in zip(axes[0], calibration.items(), strict=True):
        for kind, curve in kinds.items():
            axis.plot(curve["mean"], curve["share"], "o-", markersize=3, label=kind)
        axis.plot([0, 1], [0, 1], color="0.8", linewidth=1)
        axis.set(title=name, xlabel="mean score", ylabel="share of positives")
        axis.legend(fontsize=7)
    return figure


def _embeddings(
    network: COMiTNet, cohort: Cohort, predictions: Predictions, seed: int
) -> Figure | None:
    from sklearn.manifold import TSNE

    if len(cohort) < 4:
        return None
    perplexity = min(30.0, (len(cohort) - 1) / 3)
    places = TSNE(random_state=seed, perplexity=perplexity, init="pca").fit_transform(
        embed(network, cohort.images)
    )
    labels = labels_of(cohort)
    kinds = np.full(len(cohort), "no label", dtype="<U16")
    for column, (value, word) in enumerate(((0, "healthy"), (1, "COVID"), (1, "other disease"))):
        kinds[labels[:, column] == value] = word
    figure, axes = canvas(3)
    for axis, groups, title in (
        (axes[0, 0], kinds, "label"),
        (axes[0, 1], cohort.source, "source"),
    ):
        for name in sorted(set(groups.tolist())):
            here = groups == name
            axis.scatter(*places[here].T, s=6, label=name or "unnamed")
        axis.set_title(title)
        axis.legend(fontsize=6)
    shown = axes[0, 2].scatter(*places.T, s=6, c=predictions.scores[:, 1], vmin=0, vmax=1)
    axes[0, 2].set_title("COVID score")
    figure.colorbar(shown, ax=axes[0, 2])
    for axis in axes[0]:
        axis.set(xticks=[], yticks=[])
    return figure


def _gradcam(network: COMiTNet, cohort: Cohort, predictions: Predictions) -> Figure:
    tasks: tuple[Task, Task] = ("unhealthy", "covid")
    count = min(EXAMPLES, len(cohort))
    figure, axes = canvas(count, len(tasks), side=2.2)
    for row, task in zip(axes, tasks, strict=True):
        column = CLASSES.index(task)
        chosen = np.argsort(-predictions.scores[:, column], kind="stable")[:count]
        images = cohort.images[chosen].astype(np.float32)
        maps = gradcam(network, torch.from_numpy(images)[:, None], task)
        label = labels_of(cohort)[chosen, column]
        words = {1: "yes", 0: "no", UNKNOWN: "unknown"}
        for axis, image, heat, truth in zip(row, images, maps, label, strict=True):
            axis.imshow(image, cmap="gray", vmin=0, vmax=1)
            axis.imshow(heat, cmap="jet", alpha=0.35, vmin=0, vmax=1)
            axis.set_title(f"{task}: {words[int(truth)]}", fontsize=7)
            axis.set_axis_off()
    return figure


def _examples(cohort: Cohort, predictions: Predictions) -> Figure | None:
    masks = predictions.masks >= FOREGROUND
    dice = per_image(masks[:, 0], masks[:, 1], cohort)["disease_dice"]
    order = np.argsort(dice)[: np.count_nonzero(~np.isnan(dice))][:EXAMPLES]
    if not len(order):
        return None
    figure, axes = canvas(len(order), side=2.2)
    for axis, i in zip(axes[0], order, strict=True):
        axis.imshow(cohort.images[i].astype(np.float32), cmap="gray", vmin=0, vmax=1)
        for mask, colour in ((masks[i, 1], "red"), (cohort.disease[i] > 0, "lime")):
            if mask.any():
                axis.contour(mask, [0.5], colors=colour, linewidths=0.8)
        axis.set_title(f"Dice {dice[i]:.2f}", fontsize=7)
        axis.set_axis_off()
    return figure


def _change_table(changes: dict[str, Any]) -> list[str]:
    kinds = list(next(iter(changes.values()))["flags"])
    heads = [f"{kind} {way}" for kind in kinds for way in ("flagged", "raised", "dropped")]
    heads += ["change of a score, mean", "99 %", "lung IoU", "gate"]
    lines = [
        "",
        "## The same pictures, changed",
        "",
        "Each change is made to the preprocessed picture and says nothing of the patient. Flagged: "
        "images flagged in either version, at 90 % specificity. Raised and dropped: the share of "
        "those whose flag the change sets or takes away. Change of a score: the largest of the "
        "three. Gate: the share of images that pass in one version alone.",
        "",
        f"| change | {' | '.join(heads)} |",
        f"|{' --- |' * (len(heads) + 1)}",
    ]
    for name, said in changes.items():
        cells = []
        for flag in said["flags"].values():
            cells += [str(flag["flagged"]), _number(flag["raised"]), _number(flag["dropped"])]
        cells += [_number(said["score"][k]) for k in ("mean", "p99")]
        cells += [_number(said[k]) if k in said else "" for k in ("lung_iou", "gate")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _question_table(found: dict[str, Any], wanted: Any) -> list[str]:
    columns = ("auc", "sensitivity_at_90", "sensitivity_at_99", "equal_error_rate", "accuracy")
    lines = [
        "| question | yes | no | AUC | AUC, no model | AUC, picture statistics | above those | "
        "sensitivity at 90 % specificity | at 99 % | equal error rate | accuracy at 0.5 |",
        f"|{' --- |' * 11}",
    ]
    for name, asked in found["questions"].items():
        if wanted(name):
            figures = asked["figures"]
            cells = [_value(figures[columns[0]]), _number(figures[columns[0]]["no_model"])]
            cells += [_number(asked["statistics"]["auc"]), _value(asked["statistics"]["over"])]
            cells += [_value(figures[k]) for k in columns[1:]]
            lines.append(
                f"| {name} | {asked['positives']} | {asked['negatives']} | {' | '.join(cells)} |"
            )
    return lines


def _cells(figure: dict[str, Any]) -> str:
    return f"{_value(figure)} | {_number(figure['no_model'])}"


def _value(figure: dict[str, Any]) -> str:
    if figure["low"] is None:
        return _number(figure["value"])
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
