"""The training run: epochs, validation, checkpoints, and the weights that come out."""

from __future__ import annotations

import csv
import hashlib
import pickle
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.optim import swa_utils

from comit.console import Console
from comit.errors import ComitError, UsageError
from comit.model.loss import LossConfig, Targets, losses
from comit.model.network import COMiTNet, NetworkConfig, load_vgg16
from comit.training.adversary import Adversary, origins
from comit.training.augment import Augmentation, augment
from comit.training.curves import CURVES, draw_curves
from comit.training.data import Cohort, load, read_gate, read_manifest
from comit.training.metrics import Predictions, evaluate
from comit.training.mix import Partners, mixed
from comit.training.opened import network_of
from comit.training.runs import WEIGHTS, replace_file, write_description
from comit.training.spoil import draw, spoil

CHECKPOINT = "checkpoint.pt"  # everything needed to go on
METRICS = "metrics.csv"  # an epoch a line
TERMS = ("loss_lung", "loss_disease", "loss_health", "loss_findings", "loss_gate")
SWITCHES = {1: [0], 2: [1], 3: [2], 4: [3, 4], 5: [5]}  # of a task: columns of the switches


@dataclass(frozen=True)
class TrainConfig:
    """One training run. ``TrainConfig.paper()`` is section 3.3."""

    width: float = 0.25  # channel factor; 1.0 is the paper's network
    epochs: int = 60
    batch_size: int = 16
    learning_rate: float = 1e-3  # the highest one where ``one_cycle`` varies it
    weight_decay: float = 0.05  # AdamW's; 0 is Adam
    one_cycle: bool = True  # rise and fall of the learning rate; else constant
    ema: float = 0.995  # decay per step of the averaged weights; 0 keeps the last ones
    loss: LossConfig = LossConfig()
    augmentation: Augmentation = Augmentation()
    seed: int = 0
    ema_warmup: bool = False  # decay (1 + n) / (10 + n) after n steps while that is below ``ema``
    balance: float = 0.0  # how far labels weigh the same within and across sources; 1 is wholly
    small: int = 224  # side of the images in the first ``small_epochs``; a multiple of 32
    soften: float = 0.0  # share of the teachers' scores in the class labels
    smooth: float = 0.0  # how far a text report's healthy/unhealthy label moves towards one half
    tasks: tuple[int, ...] = (1, 2, 3, 4, 5)  # of the paper's t1 to t4 and the gate
    spoil: float = 0.0  # share of the images made into what the gate rejects, see :mod:`.spoil`
    small_epochs: int = 0  # no figures on val in these: the weights are on their way
    adversary: float = 0.0  # how much the encoder unlearns the source, see :mod:`.adversary`
    mix: float = 0.0  # both parameters of the Beta distribution of :mod:`.mix`; 0 mixes nothing

    def __post_init__(self) -> None:
        """Raises UsageError for what cannot be trained as asked."""
        if self.small_epochs >= self.epochs:
            raise UsageError(
                f"{self.small_epochs} of {self.epochs} epochs would see small images, and the last "
                "must not: give fewer --small-epochs"
            )
        if self.mix and self.adversary:
            raise UsageError("a mixed image has no one source to unlearn: --mix or --adversary")

    @staticmethod
    def strong() -> TrainConfig:
        """The schedule and variation of the runs that the bundled model came from.

        Those also had teachers: bench/results/2026-11-22-study.md. Without, it was not compared
        with the default at an equal budget.
        """
        return TrainConfig(
            epochs=44,
            ema_warmup=True,
            balance=0.5,
            small=128,
            small_epochs=28,
            augmentation=Augmentation.strong(),
            loss=LossConfig(disease_weight=2.0, overlap=0.5),
            smooth=0.2,
            spoil=0.1,
        )

    @staticmethod
    def paper() -> TrainConfig:
        """Adam at 5e-5, batch 16, 30 epochs, losses as printed and weighted equally (3.3).

        One difference: the paper adds five fixed copies of each COVID image (turned by 10 degrees
        either way, moved by 10 px in x, y and both, 3.1); here every image is turned and moved at
        random within that range. ImageNet weights are given apart, to ``train(init=...)``.
        """
        return TrainConfig(
            width=1.0,
            epochs=30,
            learning_rate=5e-5,
            weight_decay=0.0,
            one_cycle=False,
            ema=0.0,
            loss=LossConfig(mean=False, disease_weight=1.0),
            augmentation=Augmentation.paper(),
        )


def train(
    manifest: Path,
    out: Path,
    config: TrainConfig | None = None,
    *,
    device: str = "auto",
    init: Path | None = None,
    teachers: Sequence[Path] = (),
    gate: Path | None = None,
    resume: bool = False,
    test: bool = False,
    workers: int = 2,
    console: Console | None = None,
) -> dict[str, Any]:
    """Trains on ``train``, chooses the epoch by ``val``; with ``test`` also reports on that.

    Recipes are to be compared on val alone, so test is not even read unless it is asked for,
    which ``resume`` also does for a run that is finished.

    Writes ``out/weights.safetensors``, ``run.json``, ``metrics.csv`` (an epoch a line; drawn in
    ``curves.png``) and ``checkpoint.pt``; returns what ``run.json`` holds
    (:mod:`comit.training.report`). ``init`` is a local VGG16 file for the encoder, or a network to
    go on from with another recipe, as :func:`.opened.network_of` takes it: an earlier run, an
    .onnx file of comit's, or "bundled". ``teachers`` are such networks: masks that an image lacks
    are taken from them, so that every image trains both decoders, and a share ``config.soften`` of
    the class labels. ``gate`` is a manifest of pictures that are no frontal chest radiograph
    (:func:`.data.read_gate`); without one, and with ``config.spoil`` 0, the gate is not trained.
    With ``resume`` it goes on from the last finished epoch and gives, on a CPU
    bit for bit, the weights of a run
    that was not interrupted: every random number derives from the seed and the epoch. (The number
    of threads has to be the same too: it decides the order of sums.)

    On an NVIDIA GPU it computes in bf16 (fp16 before Ampere), fp32 parts in TF32, and holds the
    images there if they fit; that path has not been run on a GPU yet.

    Raises UsageError, before anything is written: manifest, device, ``init`` or ``out`` unfit.
    """
    from comit.training.report import write_report

    console = console or Console()
    chosen = pick_device(device)
    checkpoint = out / CHECKPOINT
    if resume and not checkpoint.exists():
        raise UsageError(f"{out} holds no checkpoint to resume; run without --resume")
    if not resume and checkpoint.exists():
        raise UsageError(f"{out} already holds a run; add --resume, or choose another --out")
    rows = splits(read_manifest(manifest), manifest)
    for row in read_gate(gate) if gate is not None else ():
        rows.setdefault(row["split"], []).append(row)
    if not test:
        rows.pop("test", None)
    cohorts = load_splits(rows, manifest, workers, console)
    trainer = Trainer(
        cohorts["train"],
        cohorts["val"],
        out,
        config or TrainConfig(),
        chosen,
        init,
        console,
        teachers,
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be made a folder for the run") from error
    if resume:
        trainer.restore()
    trainer.run()
    try:
        draw_curves(out / METRICS, out / CURVES)
    except ModuleNotFoundError:
        console.line(f"no {CURVES}: matplotlib is not installed")
    return write_report(out, cohorts, chosen, console)


class Resident(NamedTuple):
    """A cohort as tensors, on the device where it fits there, else in host memory."""

    images: Tensor  # (N, 224, 224) float16
    masks: Tensor  # (N, 3, 224, 224) uint8: lung, disease, ignore; probability times 255
    unhealthy: Tensor  # (N,) float32 in [0, 1]; 0 where unknown, as its switch says
    findings: Tensor  # (N, 2) float32 in [0, 1]; 0 where unknown
    chest: Tensor  # (N,) float32 in {0, 1}
    switches: Tensor  # (N, 6) float32
    taught: Tensor  # (N, 2) bool: the mask is the teachers'
    origin: Tensor  # (N,) int64: see :func:`.adversary.origins`

    @staticmethod
    def of(
        cohort: Cohort,
        device: torch.device,
        teachers: Sequence[COMiTNet] = (),
        config: TrainConfig | None = None,
    ) -> Resident:
        """250 kB an image; at most half of the GPU's free memory is taken.

        With ``teachers``, a mask that a chest lacks is the mean of theirs, and each class label
        moves towards the mean of their scores by the share ``config.soften``. ``config.balance``
        weighs the labels, see :func:`label_weights`; ``config.smooth`` moves a healthy/unhealthy
        label read from a report's text towards one half. A task that is not in ``config.tasks``
        is switched off for all, as is the gate where nothing is to be rejected.
        """
        config = config or TrainConfig()
        masks = np.stack([cohort.lung, cohort.disease, cohort.ignore], axis=1) * np.uint8(255)
        switches = cohort.switches()
        taught = np.zeros((len(cohort), 2), np.bool_)
        labels = np.column_stack([cohort.unhealthy, cohort.findings]).clip(0).astype(np.float32)
        if teachers:
            taught = (switches[:, :2] == 0) & (cohort.chest == 1)[:, None]
            said = teach(teachers, cohort.images, device)
            masks[:, :2][taught] = said.masks[taught]
            switches[:, :2][taught] = 1
            labels = (1 - config.soften) * labels + config.soften * said.scores[:, :3]
        doubted = np.char.startswith(cohort.basis, "text")
        labels[doubted, 0] += config.smooth * (0.5 - labels[doubted, 0])
        switches *= label_weights(cohort, config.balance)
        if not config.spoil and cohort.chest.all():
            switches[:, SWITCHES[5]] = 0
        for task, columns in SWITCHES.items():
            if task not in config.tasks:
                switches[:, columns] = 0
        host = Resident(
            images=torch.from_numpy(cohort.images),
            masks=torch.from_numpy(masks),
            unhealthy=torch.from_numpy(labels[:, 0].astype(np.float32)),
            findings=torch.from_numpy(labels[:, 1:].astype(np.float32)),
            chest=torch.from_numpy(cohort.chest.astype(np.float32)),
            switches=torch.from_numpy(switches),
            taught=torch.from_numpy(taught),
            origin=torch.from_numpy(origins(cohort)),
        )
        if device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(device)
            if sum(t.nbytes for t in host) < free // 2:
                return Resident(*(t.to(device) for t in host))
        return host

    def batch(self, chosen: Tensor, device: torch.device) -> Resident:
        """The images with the indices ``chosen``, on ``device``."""
        return Resident(*(t[chosen.to(t.device)].to(device) for t in self))


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


def label_weights(cohort: Cohort, balance: float) -> NDArray[np.float32]:
    """(N, 6): weights of each image's terms of equation 8; the gate's are 1.

    A group is a source with a label (healthy or not, COVID or not, other disease or not; disease
    drawn or known to be empty; lungs drawn). An image weighs as the power ``-balance`` of its
    group's size, with a mean of 1: at 1 all groups of a task weigh the same, so a source's name is
    worth nothing as an answer where both labels occur in it (Idrissi et al., "Simple data
    balancing achieves competitive worst-group-accuracy", 2022), and a few outlines count beside
    many boxes.
    """
    weights = np.ones((len(cohort), 6), np.float32)
    drawn = (cohort.disease > 0).any(axis=(1, 2))
    labels = [np.zeros(len(cohort)), drawn, cohort.unhealthy, *cohort.findings.T]
    for task, label in enumerate(labels):
        known = cohort.switches()[:, task] > 0
        groups = list(zip(cohort.source.tolist(), label.tolist(), strict=True))
        sizes = Counter(g for g, k in zip(groups, known, strict=True) if k)
        raw = np.array(
            [sizes[g] ** -balance if k else 0 for g, k in zip(groups, known, strict=True)]
        )
        if known.any():
            weights[known, task] = (raw / raw[known].mean())[known]
    return weights


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


def predict(model: COMiTNet, images: NDArray[np.float16], device: torch.device) -> Predictions:
    """(N, 224, 224) images in [0, 1] to scores and masks, in fp32 (convolutions TF32 on CUDA)."""
    model.eval()
    scores, masks = [], []
    with torch.inference_mode():
        for i in range(0, len(images), 16):
            x = torch.from_numpy(images[i : i + 16].astype(np.float32))[:, None].to(device)
            outputs = model(x.contiguous(memory_format=torch.channels_last))
            scores.append(outputs.scores().cpu().numpy())
            masks.append((outputs.masks() * 255).round().to(torch.uint8).cpu().numpy())
    return Predictions(np.concatenate(scores), np.concatenate(masks))


def teach(
    teachers: Sequence[COMiTNet], images: NDArray[np.float16], device: torch.device
) -> Predictions:
    """The teachers' mean scores and masks of (N, 224, 224) images, each also seen mirrored."""
    scores = np.zeros((len(images), 4), np.float32)
    masks = np.zeros((len(images), 2, *images.shape[1:]), np.float32)
    for teacher in teachers:
        for mirror in (1, -1):
            with autocast(device):  # as they were trained: a label is never exact to 0.01
                said = predict(teacher, np.ascontiguousarray(images[..., ::mirror]), device)
            scores += said.scores
            masks += said.masks[..., ::mirror]
    shares = np.float32(2 * len(teachers))
    return Predictions(scores / shares, np.rint(masks / shares).astype(np.uint8))


def pick_device(name: str) -> torch.device:
    """``auto`` is the first GPU there is, else the CPU; raises UsageError for a missing GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"{name!r} is no device; use auto, cpu, cuda or cuda:1") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"{name!r}: comit trains on cpu or cuda")
    if device.type == "cuda":
        if (device.index or 0) >= torch.cuda.device_count():
            raise UsageError(f"this PyTorch finds no GPU for {name!r}; use --device cpu")
        torch.set_float32_matmul_precision("high")  # TF32 for what is left in fp32
    return device


def on_device(model: COMiTNet, device: torch.device) -> COMiTNet:
    """Moves the network, its weights channels last: the layout in which convolutions are fast."""
    return model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Mixed precision where the machine computes it faster: bf16, or fp16 on an older GPU."""
    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported()
        return torch.autocast("cuda", torch.bfloat16 if bf16 else torch.float16)
    if torch.cpu._is_avx512_bf16_supported():  # without it bf16 is emulated, and slower
        return torch.autocast("cpu", torch.bfloat16)
    return nullcontext()


def splits(rows: list[dict[str, Any]], manifest: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by split, ``test`` only where there are any; raises UsageError for one that lacks."""
    found = {s: [r for r in rows if r["split"] == s] for s in ("train", "val", "test")}
    for name in ("train", "val"):
        if not found[name]:
            raise UsageError(f"{manifest} has no rows with split {name!r}")
    if not any(r["healthy"] for r in found["val"]) or all(
        r["covid"] is not False for r in found["val"]
    ):
        raise UsageError(
            f"{manifest}: split 'val' needs healthy images and images without COVID; "
            "the thresholds on the scores come from them"
        )
    return {k: v for k, v in found.items() if v}


def load_splits(
    rows: dict[str, list[dict[str, Any]]], manifest: Path, workers: int, console: Console
) -> dict[str, Cohort]:
    """Reads the images of each split, showing progress; raises UsageError."""
    cohorts = {}
    for name, members in rows.items():
        with console.progress(f"reading {name}", len(members)) as step:
            cohorts[name] = load(members, manifest.parent, workers, step)
    return cohorts


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
