"""The training run: epochs, validation, checkpoints, and the weights that come out."""

from __future__ import annotations

import csv
import hashlib
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import swa_utils

from comit.console import Console
from comit.errors import ComitError, UsageError
from comit.model.adversary import Adversary, origins
from comit.model.augment import augment
from comit.model.data import Cohort
from comit.model.inference import autocast, on_device, predict
from comit.model.loss import Targets, losses
from comit.model.metrics import evaluate
from comit.model.mix import Partners, mixed
from comit.model.network import COMiTNet, NetworkConfig, load_vgg16
from comit.model.opened import network_of
from comit.model.recipe import TrainConfig
from comit.model.resident import Resident
from comit.model.runs import WEIGHTS, replace_file, write_description
from comit.model.spoil import draw, spoil

CHECKPOINT = "checkpoint.pt"  # everything needed to go on
METRICS = "metrics.csv"  # an epoch a line
TERMS = ("loss_lung", "loss_disease", "loss_health", "loss_findings", "loss_gate")


class Trainer:
    """State of one run."""

    def __init__(
        self,
        train: Cohort,
        val: Cohort,
        out: Path,
        config: TrainConfig,
        device: torch.device,
        init: Path | None,
        console: Console,
        teachers: Sequence[Path] = (),
        build: Callable[[NetworkConfig], COMiTNet] = COMiTNet,
    ) -> None:
        self.train, self.val, self.out, self.config = train, val, out, config
        self.device, self.console = device, console
        self.init = init.name if init is not None else None
        self.teachers = [run.name for run in teachers]
        networks = [on_device(network_of(t), device) for t in teachers]
        self.learned_from = {  # what a run that goes on must find unchanged
            "training images": train.sha256(),
            "validation images": val.sha256(),
            "teachers": [weights_sha256(n) for n in networks],
        }
        self.data = Resident.of(train, device, networks, config)
        self.drawings = draw(config.seed) if config.spoil and 5 in config.tasks else None
        torch.manual_seed(config.seed)
        images = train.images[train.chest == 1].astype(np.float32)
        network = NetworkConfig(
            config.width, round(float(images.mean()), 4), round(float(images.std()), 4)
        )
        model = build(network)
        if init is not None:
            _initialise(model, init)
        self.model = on_device(model, device)
        self.average = swa_utils.AveragedModel(
            self.model,
            multi_avg_fn=averaging(config.ema, config.ema_warmup),
            use_buffers=True,  # batch norm's statistics are averaged as the weights are
        )
        learned = list(self.model.parameters())
        self.adversary: Adversary | None = None
        if config.adversary:
            self.adversary = Adversary(self.model, origins(train), config.adversary).to(device)
            learned += self.adversary.parameters()
        self.partners = Partners(train, config.mix) if config.mix else None
        self.steps = max(1, len(train) // config.batch_size)  # an incomplete last batch is left out
        self.optimizer = torch.optim.AdamW(
            learned, lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = schedule_of(config, self.optimizer, self.steps)
        self.scaler = torch.amp.GradScaler(
            device.type, enabled=device.type == "cuda" and not torch.cuda.is_bf16_supported()
        )
        self.epoch, self.best, self.seconds = 0, -1.0, 0.0

    @property
    def averaged(self) -> COMiTNet:
        """The network with the averaged weights: what is validated and published."""
        return cast(COMiTNet, self.average.module)

    def run(self) -> None:
        """All epochs from the first that is not done."""
        for epoch in range(self.epoch, self.config.epochs):
            self.epoch = epoch
            started = time.monotonic()
            terms = self._epoch()
            if not np.isfinite(terms).all():
                raise ComitError(
                    f"the loss is not finite in epoch {epoch + 1}; start over with a lower --lr"
                )
            figures = {}
            if epoch >= self.config.small_epochs:
                figures = evaluate(predict(self.averaged, self.val.images, self.device), self.val)
            self.seconds += time.monotonic() - started
            self._record(terms, figures)
            if figures and (score := selection_score(figures, self.config.tasks)) > self.best:
                self.best = score
                self._publish(figures)
            self._checkpoint()

    def _epoch(self) -> list[float]:
        """One pass over the training images; mean of the loss terms."""
        config, generator = self.config, torch.Generator()
        generator.manual_seed(config.seed * 1_000_003 + self.epoch)
        torch.manual_seed(config.seed * 1_000_003 + self.epoch)  # of dropout, which rivals have
        order = torch.randperm(len(self.train), generator=generator)
        sums = torch.zeros(
            len(TERMS), device=self.device
        )  # read once an epoch: reading waits for the GPU
        self.model.train()
        label = f"epoch {self.epoch + 1}/{config.epochs}"
        with self.console.progress(label, self.steps) as step:
            for i in range(self.steps):
                chosen = order[i * config.batch_size : (i + 1) * config.batch_size]
                images, targets = self._batch(chosen, generator)
                if self.partners is not None:
                    seed = int(torch.randint(2**62, (), generator=generator))
                    others, share = self.partners.draw(chosen.numpy(), seed)
                    second, their = self._batch(others, generator)
                    images, targets = mixed((images, second), (targets, their), share)
                with autocast(self.device):
                    outputs = self.model(images)
                terms = losses(outputs, targets, config.loss)
                loss = terms.sum()
                if self.adversary is not None:
                    loss = loss + self.adversary.loss(self.data.origin[chosen])
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                self.scaler.step(self.optimizer)
                self.scaler.update()
                self.optimizer.zero_grad(set_to_none=True)
                self.schedule.step()
                self.average.update_parameters(self.model)
                sums += terms.detach()
                step()
        return [float(v) for v in sums.cpu() / self.steps]

    def _batch(self, chosen: Tensor, generator: torch.Generator) -> tuple[Tensor, Targets]:
        """(N, 1, 224, 224) varied images, channels last, and their labels, on the device."""
        batch = self.data.batch(chosen, self.device)
        images, masks = batch.images.float()[:, None], batch.masks.float() / 255
        chest, switches = batch.chest, batch.switches
        if self.drawings is not None:  # before they vary: what is spoilt varies too
            images, spoilt = spoil(images, self.config.spoil, self.drawings, generator)
            chest = torch.where(spoilt, 0, chest)
            others = switches * torch.tensor([0.0] * 5 + [1.0], device=self.device)
            switches = torch.where(spoilt[:, None], others, switches)
        if self.epoch < self.config.small_epochs:  # first: varying them then costs a third
            images, masks = (F.adaptive_avg_pool2d(x, self.config.small) for x in (images, masks))
        images, masks = augment(images, masks, self.config.augmentation, generator)
        targets = Targets(
            lung=masks[:, 0],
            disease=masks[:, 1],
            unhealthy=batch.unhealthy,
            findings=batch.findings,
            chest=chest,
            switches=switches,
            ignore=masks[:, 2],
            taught=batch.taught,
        )
        return images.contiguous(memory_format=torch.channels_last), targets

    def _record(self, terms: list[float], figures: dict[str, float]) -> None:
        """Adds the epoch to ``metrics.csv``; lines of epochs that are being repeated go."""
        names = TERMS
        line: dict[str, Any] = {"epoch": self.epoch + 1, "seconds": round(self.seconds, 1)}
        line |= {k: round(v, 5) for k, v in (*zip(names, terms, strict=True), *figures.items())}
        path = self.out / METRICS
        before: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="") as file:
                before = [r for r in csv.DictReader(file) if int(r["epoch"]) <= self.epoch]

        def write(path: Path) -> None:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(
                    file, list(dict.fromkeys([k for r in (*before, line) for k in r]))
                )
                writer.writeheader()
                writer.writerows([*before, line])

        replace_file(path, write)
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

        state = {k: v.contiguous() for k, v in self.averaged.state_dict().items()}
        replace_file(self.out / WEIGHTS, lambda p: save_file(state, p))
        description = {
            "network": asdict(self.model.config),
            "training": asdict(self.config),
            "epoch": self.epoch + 1,
            "train_images": len(self.train),
            "init": self.init,
            "teachers": self.teachers,
            "val": figures,
        }
        write_description(self.out, description)

    def _checkpoint(self) -> None:
        state = {
            "config": asdict(self.config),
            "learned_from": self.learned_from,
            "init": self.init,
            "teachers": self.teachers,
            "epoch": self.epoch + 1,
            "best": self.best,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        if self.adversary is not None:
            state["adversary"] = self.adversary.state_dict()
        replace_file(self.out / CHECKPOINT, lambda p: torch.save(state, p))

    def restore(self) -> None:
        """Takes up the state of the last finished epoch; raises UsageError where it is not ours."""
        path = self.out / CHECKPOINT
        try:
            state = torch.load(path, map_location=self.device, weights_only=True)
            started = state["config"]
        except (OSError, RuntimeError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise UsageError(f"{path} is not a checkpoint of comit train") from error
        new = asdict(TrainConfig())  # what a checkpoint of an earlier version does not name
        if changed := [k for k, v in asdict(self.config).items() if started.get(k, new[k]) != v]:
            raise UsageError(f"{self.out} was started with another {', '.join(changed)}")
        if state.get("teachers", self.teachers) != self.teachers:
            raise UsageError(f"{self.out} was started with other teachers")
        before = state.get("learned_from", self.learned_from)
        if other := [k for k, v in self.learned_from.items() if before[k] != v]:
            raise UsageError(f"{self.out} was started with other {', '.join(other)}")
        self.init = state["init"]
        self.epoch, self.best, self.seconds = state["epoch"], state["best"], state["seconds"]
        parts = ["model", "average", "optimizer", "schedule", "scaler"]
        for name in [*parts, "adversary"] if self.adversary is not None else parts:
            getattr(self, name).load_state_dict(state[name])


def schedule_of(
    config: TrainConfig, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate over all epochs of ``steps``: one cycle, or constant."""
    if config.one_cycle:
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, config.learning_rate, total_steps=config.epochs * steps
        )
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)


def averaging(decay: float, warmup: bool) -> Callable[[Any, Any, Tensor | int], None]:
    """The update of averaged weights, with :class:`torch.optim.swa_utils.AveragedModel`.

    With ``warmup`` the decay after n steps is at most (1 + n) / (10 + n), so that the random
    start is forgotten in tens of steps and not in 1 / (1 - decay) (Polyak averaging as in
    TensorFlow's ExponentialMovingAverage with ``num_updates``).
    """

    def update(averaged: Any, current: Any, count: Tensor | int) -> None:
        n = int(count)
        now = min(decay, (1 + n) / (10 + n)) if warmup else decay
        swa_utils.get_ema_multi_avg_fn(now)(averaged, current, count)  # type: ignore[no-untyped-call]

    return update


def selection_score(figures: dict[str, float], tasks: Sequence[int] = (1, 2, 3, 4, 5)) -> float:
    """What picks the epoch: mean of lung IoU, disease Dice, gate and mean within-source AUC.

    Of the ``tasks`` that are learned: what a head says that is not trained is noise.
    """
    of = {1: "lung_iou", 2: "disease_dice", 3: "unhealthy_auc_within_", 4: "covid_auc_within_"}
    within = [v for k, v in figures.items() for t in (3, 4) if t in tasks and k.startswith(of[t])]
    of[5] = "gate_auc"
    parts = [figures[of[t]] for t in (1, 2, 5) if t in tasks and of[t] in figures]
    if within:
        parts.append(float(np.mean(within)))
    return float(np.mean(parts)) if parts else 0.0


def weights_sha256(network: torch.nn.Module) -> str:
    """Of the weights and buffers of a network, by name."""
    digest = hashlib.sha256()
    for name, values in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(values.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _initialise(model: COMiTNet, path: Path) -> None:
    """ImageNet weights for the encoder, or all weights of a network; raises UsageError."""
    from safetensors import SafetensorError

    if path.suffix not in (".pth", ".pt", ".safetensors"):
        try:
            model.load_state_dict(network_of(path).state_dict())
        except RuntimeError as error:
            raise UsageError(f"{path} holds a network of another width") from error
        return
    try:
        load_vgg16(model, path)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except (
        OSError,
        KeyError,
        RuntimeError,
        EOFError,
        pickle.UnpicklingError,
        SafetensorError,
    ) as error:
        raise UsageError(f"{path} cannot be read as VGG16 weights (.pth, .safetensors)") from error
