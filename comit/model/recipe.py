"""What a training run is to do: its recipe."""

from __future__ import annotations

from dataclasses import dataclass

from comit.errors import UsageError
from comit.model.augment import Augmentation
from comit.model.loss import LossConfig


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
