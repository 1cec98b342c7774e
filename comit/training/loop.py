"""The training run: epochs, validation, checkpoints, and the weights that come out."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from comit.console import Console
from comit.errors import UsageError
from comit.model.loss import LossConfig, Targets, losses
from comit.model.network import COMiTNet, NetworkConfig, load_vgg16
from comit.training.augment import Augmentation, augment
from comit.training.data import Cohort, load, read_manifest
from comit.training.metrics import Predictions, baselines, evaluate

CHECKPOINT = "checkpoint.pt"  # everything needed to go on
WEIGHTS = "weights.safetensors"  # the averaged weights of the best epoch
CONFIG = "run.json"


@dataclass(frozen=True)
class TrainConfig:
    """One training run. ``TrainConfig.paper()`` is section 3.3."""

    width: float = 0.25
    epochs: int = 60
    batch_size: int = 16
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    one_cycle: bool = True  # rise and fall of the learning rate; else constant
    ema: float = 0.995  # decay of the averaged weights; 0 keeps the last ones
    loss: LossConfig = LossConfig()
    augmentation: Augmentation = Augmentation()
    seed: int = 0

    @staticmethod
    def paper() -> TrainConfig:
        """Adam at 5e-5, batch 16, 30 epochs, equal weights, rotation and shift (3.1, 3.3)."""
        return TrainConfig(
            width=1.0,
            epochs=30,
            learning_rate=5e-5,
            weight_decay=0.0,
            one_cycle=False,
            ema=0.0,
            loss=LossConfig(disease_weight=1.0),
            augmentation=Augmentation(10.0, 10.0, 0.0, 0.0, 0.0, 0.0, 0.0),
        )


def train(
    manifest: Path,
    out: Path,
    config: TrainConfig,
    *,
    device: str = "auto",
    init: Path | None = None,
    resume: bool = False,
    workers: int = 2,
    console: Console | None = None,
) -> dict[str, float]:
    """Trains on the ``train`` split, chooses the epoch by ``val``; returns its val figures.

    Writes ``out/weights.safetensors``, ``run.json`` (configuration, figures and baselines),
    ``metrics.csv`` (an epoch a line) and ``checkpoint.pt``. With ``resume`` it goes on from the
    last finished epoch and gives the weights of a run that was not interrupted: every random
    number derives from the seed and the epoch. Raises UsageError.
    """
    console = console or Console()
    checkpoint_path = out / CHECKPOINT
    if resume and not checkpoint_path.exists():
        raise UsageError(f"{out} holds no checkpoint to resume; run without --resume")
    if not resume and checkpoint_path.exists():
        raise UsageError(f"{out} already holds a run; add --resume, or choose another --out")
    rows = read_manifest(manifest)
    splits = {s: [r for r in rows if r["split"] == s] for s in ("train", "val")}
    for name, members in splits.items():
        if not members:
            raise UsageError(f"{manifest} has no rows with split {name!r}")
    cohorts = {}
    for name, members in splits.items():
        with console.progress(f"reading {name}", len(members)) as step:
            cohorts[name] = load(members, manifest.parent, workers, step)
    out.mkdir(parents=True, exist_ok=True)
    return Trainer(cohorts["train"], cohorts["val"], out, config, device, init, console).run(resume)


class Trainer:
    """State of one run."""

    def __init__(
        self,
        train: Cohort,
        val: Cohort,
        out: Path,
        config: TrainConfig,
        device: str,
        init: Path | None,
        console: Console,
    ) -> None:
        self.train, self.val, self.out, self.config = train, val, out, config
        self.console = console
        self.device = pick_device(device)
        torch.manual_seed(config.seed)
        images = train.images.astype(np.float32)
        network = NetworkConfig(
            config.width, round(float(images.mean()), 4), round(float(images.std()), 4)
        )
        self.model = COMiTNet(network)
        if init is not None:
            load_vgg16(self.model, init)
        self.model.to(self.device, memory_format=torch.channels_last)
        self.average = torch.optim.swa_utils.AveragedModel(
            self.model,
            multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(config.ema),
            use_buffers=True,
        )
        self.steps = max(1, len(train) // config.batch_size)  # an incomplete last batch is left out
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, config.learning_rate, total_steps=config.epochs * self.steps
        )
        self.scaler = torch.amp.GradScaler(
            self.device.type,
            enabled=self.device.type == "cuda" and not torch.cuda.is_bf16_supported(),
        )
        self.epoch, self.best, self.seconds = 0, -1.0, 0.0

    def run(self, resume: bool) -> dict[str, float]:
        """All epochs from the first that is not done; returns the best epoch's val figures."""
        if resume:
            self._restore()
        figures: dict[str, float] = {}
        for epoch in range(self.epoch, self.config.epochs):
            self.epoch = epoch
            started = time.monotonic()
            terms = self._epoch()
            figures = evaluate(predict(self.average.module, self.val.images, self.device), self.val)
            self.seconds += time.monotonic() - started
            self._record(terms, figures)
            if (score := selection_score(figures)) > self.best:
                self.best = score
                self._publish(figures)
            self._checkpoint()
        best: dict[str, float] = json.loads((self.out / CONFIG).read_text())["val"]
        return best

    def _epoch(self) -> list[float]:
        """One pass over the training images; mean of the four loss terms."""
        config, generator = self.config, torch.Generator()
        generator.manual_seed(config.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.train), generator=generator).numpy()
        sums = torch.zeros(4)
        self.model.train()
        label = f"epoch {self.epoch + 1}/{config.epochs}"
        with self.console.progress(label, self.steps) as step:
            for i in range(self.steps):
                chosen = order[i * config.batch_size : (i + 1) * config.batch_size]
                images, targets = self._batch(chosen, generator)
                with autocast(self.device):
                    outputs = self.model(images)
                terms = losses(outputs, targets, config.loss)
                self.scaler.scale(terms.sum()).backward()
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.optimizer.zero_grad(set_to_none=True)
                if config.one_cycle:
                    self.schedule.step()
                self.average.update_parameters(self.model)
                sums += terms.detach().cpu()
                step()
        return [float(v) for v in sums / self.steps]

    def _batch(self, chosen: Any, generator: torch.Generator) -> tuple[Tensor, Targets]:
        data, device = self.train, self.device
        images = torch.from_numpy(data.images[chosen]).to(device).float()[:, None]
        masks = torch.from_numpy(np.stack([data.lung[chosen], data.disease[chosen]], axis=1))
        images, moved = augment(
            images, masks.to(device).float(), self.config.augmentation, generator
        )
        targets = Targets(
            lung=moved[:, 0],
            disease=moved[:, 1],
            unhealthy=torch.from_numpy(data.unhealthy[chosen]).to(device).long().clamp(min=0),
            findings=torch.from_numpy(data.findings[chosen]).to(device).float().clamp(min=0),
            switches=torch.from_numpy(data.switches()[chosen]).to(device),
        )
        return images.contiguous(memory_format=torch.channels_last), targets

    def _record(self, terms: list[float], figures: dict[str, float]) -> None:
        names = ("loss_lung", "loss_disease", "loss_health", "loss_findings")
        line = {"epoch": self.epoch + 1, "seconds": round(self.seconds, 1)}
        line |= {k: round(v, 5) for k, v in (*zip(names, terms, strict=True), *figures.items())}
        path = self.out / "metrics.csv"
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(line))
            if new:
                writer.writeheader()
            writer.writerow(line)
        self.console.line(
            f"epoch {self.epoch + 1}: "
            + " ".join(
                f"{n.removeprefix('loss_')} {v:.3f}" for n, v in zip(names, terms, strict=True)
            )
            + " | val "
            + " ".join(f"{k} {v:.3f}" for k, v in figures.items() if not k.endswith("_images"))
        )

    def _publish(self, figures: dict[str, float]) -> None:
        """Weights first, then the file that describes them."""
        from safetensors.torch import save_file

        state = {k: v.contiguous() for k, v in self.average.module.state_dict().items()}
        _replace(self.out / WEIGHTS, lambda p: save_file(state, p))
        description = {
            "network": asdict(self.model.config),
            "training": asdict(self.config),
            "epoch": self.epoch + 1,
            "val": figures,
            "val_baselines": baselines(self.train, self.val),
            "train_images": len(self.train),
        }
        _replace(
            self.out / CONFIG, lambda p: p.write_text(json.dumps(description, indent=1) + "\n")
        )

    def _checkpoint(self) -> None:
        state = {
            "config": asdict(self.config),
            "epoch": self.epoch + 1,
            "best": self.best,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        _replace(self.out / CHECKPOINT, lambda p: torch.save(state, p))

    def _restore(self) -> None:
        state = torch.load(self.out / CHECKPOINT, map_location=self.device, weights_only=True)
        if state["config"] != asdict(self.config):
            changed = [k for k, v in asdict(self.config).items() if state["config"].get(k) != v]
            raise UsageError(f"{self.out} was started with another {', '.join(changed)}")
        self.epoch, self.best, self.seconds = state["epoch"], state["best"], state["seconds"]
        for name in ("model", "average", "optimizer", "schedule", "scaler"):
            getattr(self, name).load_state_dict(state[name])


def selection_score(figures: dict[str, float]) -> float:
    """What picks the epoch: mean of lung IoU, disease Dice and the mean within-source AUC."""
    within = [v for k, v in figures.items() if "_auc_within_" in k]
    parts = [figures["lung_iou"], figures["disease_dice"], float(np.mean(within or [np.nan]))]
    known = [p for p in parts if not np.isnan(p)]
    return float(np.mean(known)) if known else 0.0


def predict(model: COMiTNet, images: np.ndarray[Any, Any], device: torch.device) -> Predictions:
    """(N, 224, 224) images in [0, 1] to scores and masks, in fp32."""
    model.eval()
    scores, masks = [], []
    with torch.inference_mode():
        for batch in _chunks(images, 16):
            x = torch.from_numpy(batch.astype(np.float32))[:, None].to(device)
            outputs = model(x.contiguous(memory_format=torch.channels_last))
            scores.append(outputs.scores().cpu().numpy())
            masks.append((outputs.masks() * 255).round().to(torch.uint8).cpu().numpy())
    return Predictions(np.concatenate(scores), np.concatenate(masks))


def pick_device(name: str) -> torch.device:
    """``auto`` is the first GPU there is, else the CPU."""
    return torch.device(
        "cuda"
        if name == "auto" and torch.cuda.is_available()
        else "cpu"
        if name == "auto"
        else name
    )


def autocast(device: torch.device) -> Any:
    """Mixed precision where the machine computes it faster: bf16, or fp16 on an older GPU."""
    if device.type == "cuda":
        return torch.autocast(
            "cuda", torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        )
    if torch.cpu._is_avx512_bf16_supported():
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


def _chunks(array: np.ndarray[Any, Any], size: int) -> Iterator[np.ndarray[Any, Any]]:
    for i in range(0, len(array), size):
        yield array[i : i + size]


def _replace(path: Path, write: Any) -> None:
    """Writes beside ``path`` and renames over it: a kill leaves the old file or the new one."""
    temporary = path.with_suffix(path.suffix + ".new")
    write(temporary)
    temporary.replace(path)


def load_run(run: Path) -> COMiTNet:
    """The trained network of a run folder, in evaluation mode; raises UsageError."""
    from safetensors.torch import load_file

    try:
        described = json.loads((run / CONFIG).read_text())
        model = COMiTNet(replace(NetworkConfig(), **described["network"]))
        model.load_state_dict(load_file(run / WEIGHTS))
    except (OSError, KeyError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{run} is not a finished training run: {CONFIG} or {WEIGHTS} is missing or damaged"
        ) from error
    return model.eval()
