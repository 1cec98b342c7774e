"""The networks that the paper compares with, dressed as COMiT-Net so that one loop trains all.

Each is a module from (N, 1, 224, 224) images in [0, 1] to :class:`comit.model.network.Outputs`.
What a network does not answer is zero: its task stays switched off, and its figures are not made.
They come from torchvision and MONAI (extra ``study``), which are imported only here, and late.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import cast

import torch
from torch import Tensor, nn

from comit.errors import MissingExtra
from comit.model.network import COMiTNet, NetworkConfig, Outputs

CLASSIFIERS = ("densenet121", "mobilenet_v2", "resnet18", "vgg19")
HIDDEN = (256, 128)  # of the fully connected head, which the paper does not describe further


class Classifier(nn.Module):
    """A torchvision network on three equal channels, with a fully connected head."""

    def __init__(self, name: str, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        models = torchvision().models
        with torch.random.fork_rng(devices=[]):  # its own head is thrown away
            body = models.get_model(name, weights=None)
        holder, last = _last(body)
        width = last.in_features
        setattr(holder[0], holder[1], nn.Identity())
        self.body = body
        self.head = nn.Sequential(
            nn.Linear(width, HIDDEN[0]),
            nn.ReLU(),
            nn.Linear(HIDDEN[0], HIDDEN[1]),
            nn.ReLU(),
            nn.Linear(HIDDEN[1], 4),
        )

    def forward(self, x: Tensor) -> Outputs:
        """Health and findings; masks are zero logits."""
        scaled = ((x - self.config.mean) / self.config.std).expand(-1, 3, -1, -1)
        logits = self.head(self.body(scaled))
        mask, gate = (logits.new_zeros(()).expand(len(x), 2, *s) for s in (x.shape[2:], ()))
        return Outputs(mask, mask, logits[:, :2], logits[:, 2:], gate)


class Segmenter(nn.Module):
    """MONAI's U-Net with two channels for each of the two masks."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        try:
            from monai.networks.nets.basic_unet import BasicUNet
        except ModuleNotFoundError as error:
            raise MissingExtra("the U-Net", "study") from error
        channels = tuple(max(8, round(c * config.width)) for c in (64, 128, 256, 512, 1024, 64))
        self.net = BasicUNet(
            spatial_dims=2, in_channels=1, out_channels=4, features=channels, norm="batch"
        )

    def forward(self, x: Tensor) -> Outputs:
        """Lungs and disease; scores are zero logits."""
        logits = self.net((x - self.config.mean) / self.config.std)
        nothing = logits.new_zeros(()).expand(len(x), 2)
        return Outputs(logits[:, :2], logits[:, 2:], nothing, nothing, nothing)


class Part(COMiTNet):
    """COMiT-Net without the decoders that ``tasks`` do not name; its weights start the same."""

    def __init__(self, config: NetworkConfig, tasks: tuple[int, ...]) -> None:
        super().__init__(config)
        for task, name in enumerate(("lung_decoder", "disease_decoder"), start=1):
            if task not in tasks:
                setattr(self, name, Silent())


class Silent(nn.Module):
    """Stands for a decoder: zero logits, at no cost."""

    def forward(self, x: Tensor, positions: Sequence[Tensor]) -> Tensor:
        """(N, 2, 32 h, 32 w) for (N, C, h, w)."""
        height, width = (32 * side for side in x.shape[2:])
        return x.new_zeros(()).expand(len(x), 2, height, width)


def builder(name: str, tasks: tuple[int, ...]) -> Callable[[NetworkConfig], COMiTNet]:
    """What :class:`.loop.Trainer` makes its network with; raises MissingExtra when it does."""
    if name in CLASSIFIERS:
        return lambda config: cast(COMiTNet, Classifier(name, config))
    if name == "unet":
        return lambda config: cast(COMiTNet, Segmenter(config))
    return lambda config: Part(config, tasks)


def torchvision() -> ModuleType:
    """torchvision, also beside a torch that its compiled operators do not load with.

    Its classifiers use none of them, but importing it registers fake versions of ``nms`` and
    ``qnms`` and fails where those do not exist; so they are declared first. Raises MissingExtra.
    """
    try:
        import torchvision
    except ModuleNotFoundError as error:
        raise MissingExtra("the classifiers of torchvision", "study") from error
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        for name in [m for m in sys.modules if m.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        declared = torch.library.Library("torchvision", "DEF")  # type: ignore[no-untyped-call]
        for operator in ("nms", "qnms"):
            schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            declared.define(schema)  # type: ignore[no-untyped-call]
        _KEPT.append(declared)  # its operators last as long as it does
        import torchvision
    return cast(ModuleType, torchvision)


_KEPT: list[torch.library.Library] = []


def _last(body: nn.Module) -> tuple[tuple[nn.Module, str], nn.Linear]:
    """The last fully connected layer, with its parent and its name there."""
    return [
        ((parent, name), child)
        for parent in body.modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Linear)
    ][-1]  # every classifier of torchvision ends in one
