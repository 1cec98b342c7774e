"""COMiT-Net, the network of the paper's section 2 and figure 3.

    X-ray (N, 1, 224, 224)
      |  encoder: VGG16 with batch norm, 5 blocks, each ends in a 2x2 max pooling
      |           that remembers where its maximum was
      +--> lungs decoder    (t1) -> (N, 2, 224, 224) logits  [not lung, lung]
      +--> disease decoder  (t2) -> (N, 2, 224, 224) logits  [not disease, disease]
      +--> global average pooling -> (N, 512) embedding
             +--> health branch   (t3) -> (N, 2) logits, softmax  [healthy, unhealthy]
             +--> disease branch  (t4) -> (N, 2) logits, sigmoid  [COVID, other disease]
             +--> gate (ours)          -> (N, 2) logits, softmax  [anything else, frontal chest]

Malhotra et al., "Multi-Task Driven Explainable Diagnosis of COVID-19 using Chest X-ray Images".
SegNet's unpooling: Badrinarayanan et al., arXiv 1511.00561. VGG16: arXiv 1409.1556.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# Channels of the five VGG16 blocks; the number of entries is the number of convolutions (2.1).
BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


@dataclass(frozen=True)
class NetworkConfig:
    """What defines the network besides its weights; stored beside them."""

    width: float = 1.0  # every channel count times this; 1.0 is the paper's network
    mean: float = 0.5  # of the preprocessed training images, which lie in [0, 1]
    std: float = 0.25


class Outputs(NamedTuple):
    """What the network says before softmax and sigmoid (logits)."""

    lung: Tensor  # (N, 2, H, W)  [not lung, lung]
    disease: Tensor  # (N, 2, H, W)  [not disease, disease]
    health: Tensor  # (N, 2)  [healthy, unhealthy]
    findings: Tensor  # (N, 2)  [COVID, other disease]
    gate: Tensor  # (N, 2)  [anything else, upright frontal chest radiograph]

    def scores(self) -> Tensor:
        """(N, 4) float32 in [0, 1]: unhealthy (eq. 4), COVID, other disease (eq. 6), chest."""
        return as_scores(self.health, self.findings, self.gate)

    def masks(self) -> Tensor:
        """(N, 2, H, W) float32 in [0, 1]: probability of lung and of disease (eq. 1)."""
        return torch.stack(
            [torch.softmax(x.float(), dim=1)[:, 1] for x in (self.lung, self.disease)], dim=1
        )


def as_scores(health: Tensor, findings: Tensor, gate: Tensor) -> Tensor:
    """Logits of the two branches and the gate, (N, 2) each, to (N, 4) float32 in [0, 1]."""
    unhealthy, chest = (torch.softmax(x.float(), dim=1)[:, 1:] for x in (health, gate))
    return torch.cat([unhealthy, torch.sigmoid(findings.float()), chest], dim=1)


def pool_positions(x: Tensor, pooled: Tensor) -> Tensor:
    """Where each 2x2 window of ``x`` (N, C, H, W) has its maximum ``pooled`` (N, C, H/2, W/2).

    (N, C, H, W) of the type of ``x``: in each window one 1 and three 0. On a tie the first in
    row-major order wins, as in ``max_pool2d``: after ReLU most windows are four zeros, so the
    rule decides where much of the decoder's input goes. Both decoders share it.
    """
    corners: list[Tensor] = []
    taken: Tensor | None = None
    for row in (0, 1):
        for column in (0, 1):
            here = x[..., row::2, column::2] >= pooled
            corners.append(here if taken is None else here & ~taken)
            taken = here if taken is None else taken | here
    stacked = torch.stack([c.to(x.dtype) for c in corners], dim=2)  # (N, C, 4, H/2, W/2)
    return F.pixel_shuffle(stacked.reshape(-1, 4 * x.shape[1], *pooled.shape[2:]), 2)


def unpool(x: Tensor, positions: Tensor) -> Tensor:
    """(N, C, h, w) to (N, C, 2h, 2w): each value at its remembered position, zeros elsewhere.

    Equal to ``max_unpool2d`` for finite values, and made of a nearest-neighbour resize and a
    product, which every ONNX runtime has; MaxUnpool is missing from TensorRT.
    """
    return F.interpolate(x, scale_factor=2.0, mode="nearest") * positions


def conv_bn_relu(inputs: int, outputs: int) -> nn.Sequential:
    """One layer of encoder and decoders: 3x3 convolution, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)
    )


class Decoder(nn.Module):
    """The encoder transposed: unpool, then as many convolutions as the encoder's block has."""

    def __init__(self, blocks: tuple[tuple[int, ...], ...]) -> None:
        super().__init__()
        stages = []
        for i in reversed(range(len(blocks))):
            # The last convolution of a stage leads to the next shallower block's channels.
            channels = [*blocks[i], blocks[i - 1][-1] if i else 2]
            layers: list[nn.Module] = [conv_bn_relu(a, b) for a, b in pairwise(channels)]
            if i == 0:  # softmax follows: no batch norm, no ReLU
                layers[-1] = nn.Conv2d(channels[-2], 2, 3, padding=1)
            stages.append(nn.Sequential(*layers))
        self.stages = nn.ModuleList(stages)

    def forward(self, x: Tensor, positions: Sequence[Tensor]) -> Tensor:
        """(N, C, H/32, W/32) and the encoder's remembered positions to (N, 2, H, W) logits."""
        for stage, where in zip(self.stages, reversed(positions), strict=True):
            indices = not where.is_floating_point()
            x = stage(F.max_unpool2d(x, where, [2, 2]) if indices else unpool(x, where))
        return x


def branch(inputs: int) -> nn.Sequential:
    """Three fully connected layers; ReLU after the first two (2.2)."""
    hidden = max(inputs // 2, 8), max(inputs // 4, 8)
    return nn.Sequential(
        nn.Linear(inputs, hidden[0]),
        nn.ReLU(inplace=True),
        nn.Linear(hidden[0], hidden[1]),
        nn.ReLU(inplace=True),
        nn.Linear(hidden[1], 2),
    )


class COMiTNet(nn.Module):
    """The paper's network, its channels scaled by ``config.width``.

    ``portable_unpooling`` picks how positions travel from the pooling to the decoders: indices
    and ``max_unpool2d`` (fast in PyTorch) or :func:`pool_positions` and :func:`unpool` (for
    export). Both give the same bits.
    """

    def __init__(self, config: NetworkConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or NetworkConfig()
        blocks = tuple(tuple(max(8, round(c * config.width)) for c in block) for block in BLOCKS)
        channels = (1, *(block[-1] for block in blocks))
        self.encoder = nn.ModuleList(
            nn.Sequential(*(conv_bn_relu(a, b) for a, b in pairwise((first, *block))))
            for first, block in zip(channels, blocks, strict=False)
        )
        self.lung_decoder = Decoder(blocks)
        self.disease_decoder = Decoder(blocks)
        self.health_branch = branch(channels[-1])
        self.findings_branch = branch(channels[-1])
        with torch.random.fork_rng(devices=[]):  # a seed gives all that follows as without a gate
            self.gate_branch = branch(channels[-1])
        self.portable_unpooling = False

    def encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """(N, 1, H, W) in [0, 1] to (N, C, H/32, W/32) features and the pooling positions."""
        x = (x - self.config.mean) / self.config.std
        positions: list[Tensor] = []
        for block in self.encoder:
            x = block(x)
            if self.portable_unpooling:
                pooled = F.max_pool2d(x, 2)
                positions.append(pool_positions(x, pooled))
                x = pooled
            else:
                x, indices = F.max_pool2d(x, 2, return_indices=True)
                positions.append(indices)
        return x, positions

    def embed(self, features: Tensor) -> Tensor:
        """(N, C, h, w) features to the (N, C) embedding: global average pooling."""
        return features.mean(dim=(2, 3))

    def score(self, x: Tensor) -> Tensor:
        """(N, 1, H, W) preprocessed images to (N, 4) scores, as :meth:`Outputs.scores`."""
        return as_scores(*self.branches(self.embed(self.encode(x)[0])))

    def branches(self, embedding: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, C) to the logits of health, findings and gate, (N, 2) each."""
        return (
            self.health_branch(embedding),
            self.findings_branch(embedding),
            self.gate_branch(embedding),
        )

    def forward(self, x: Tensor) -> Outputs:
        """(N, 1, H, W) preprocessed images in [0, 1]; H and W are multiples of 32 (224)."""
        features, positions = self.encode(x)
        return Outputs(
            self.lung_decoder(features, positions),
            self.disease_decoder(features, positions),
            *self.branches(self.embed(features)),
        )


def with_gate(network: COMiTNet, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` of ``network``; with an untrained gate if it is from before there was one.

    That gate says 0.5 of every image, and learns: only its last layer is 0.
    """
    if any(name.startswith("gate_branch.") for name in state):
        return dict(state)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)  # the same weights give the same file
        gate = branch(cast(nn.Linear, network.gate_branch[0]).in_features)
    nn.init.zeros_(cast(nn.Linear, gate[-1]).weight)
    nn.init.zeros_(cast(nn.Linear, gate[-1]).bias)
    return {**state, **{f"gate_branch.{k}": v for k, v in gate.state_dict().items()}}


def fold_batch_norm(network: COMiTNet) -> COMiTNet:
    """Convolution and batch norm become one convolution, in place; for evaluation alone."""
    for layers in [m for m in network.modules() if isinstance(m, nn.Sequential)]:
        for i in range(len(layers) - 1):
            conv, norm = layers[i], layers[i + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                layers[i] = fuse_conv_bn_eval(conv, norm)
                layers[i + 1] = nn.Identity()
    return network


def load_vgg16(network: COMiTNet, path: Path) -> None:
    """Starts the encoder from ImageNet weights: a torchvision ``vgg16_bn`` or ``vgg16`` file.

    ``path`` is a local .safetensors or .pth state dict (3.3: "initialized using a pre-trained
    VGG16 model"). The first layer's weights are summed over its three inputs, the same function
    for an X-ray copied into three channels. Raises ValueError where the file does not fit.
    """
    weights = _state_dict(path)
    convolutions = sorted(  # a safetensors file has its keys in the alphabet's order: 10 before 3
        ((k, v) for k, v in weights.items() if k.startswith("features.") and v.ndim == 4),
        key=lambda item: int(item[0].split(".")[1]),
    )
    ours = [m for m in network.encoder.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.encoder.modules() if isinstance(m, nn.BatchNorm2d)]
    if len(convolutions) != len(ours):
        raise ValueError(
            f"{path} holds {len(convolutions)} convolutions under 'features.'; "
            f"VGG16 has {len(ours)}"
        )
    with torch.no_grad():
        for (key, weight), conv, norm in zip(convolutions, ours, norms, strict=True):
            if conv.in_channels == 1:
                weight = weight.sum(dim=1, keepdim=True)
            if weight.shape != conv.weight.shape:
                raise ValueError(
                    f"{key} in {path} is {tuple(weight.shape)}, the network has "
                    f"{tuple(conv.weight.shape)}: ImageNet weights fit width 1.0 alone"
                )
            index = int(key.split(".")[1])
            conv.weight.copy_(weight)
            assert conv.bias is not None
            conv.bias.copy_(weights[f"features.{index}.bias"])
            for name in ("weight", "bias", "running_mean", "running_var"):  # absent in plain vgg16
                if (value := weights.get(f"features.{index + 1}.{name}")) is not None:
                    getattr(norm, name).copy_(value)


def _state_dict(path: Path) -> Mapping[str, Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(loaded, Mapping):
        raise ValueError(f"{path} is not a state dict")
    return loaded
