"""The module that leaves PyTorch: what is around COMiT-Net in the exported file.

    images (N, 1, 224, 224) in [0, 1] --network--> scores (N, 4) float32 in [0, 1]
                                               --> masks (N, 2, 224, 224) uint8, probability * 255

Mean and deviation are applied inside, so a file cannot be run with those of another model.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from comit.model.network import COMiTNet, Outputs, fold_batch_norm
from comit.rounding import round_kernels, to_float16


class Graph(nn.Module):
    """COMiT-Net to its published outputs, in ``dtype`` (float32 or float16).

    In float16 all convolutions are float16, for engines that take precision from the file. Float32
    are the average pooling, whose sum over 49 cells would overflow where features average above
    65,504 / 49 = 1,336, and what follows it: the branches (under 0.1 % of the arithmetic, and
    where rounding shows most in a score), softmax, sigmoid and the outputs.
    """

    @torch.no_grad()
    def __init__(self, network: COMiTNet, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        if dtype == torch.float16:  # folded, a layer rounds once; its norm's four weights never
            fold_batch_norm(self.network.eval())
            for layer in self.network.modules():
                if isinstance(layer, nn.Conv2d):
                    rounded = round_kernels(layer.weight.numpy(), to_float16)
                    layer.weight.copy_(torch.from_numpy(rounded))
        self.network.to(dtype)
        for name in ("health_branch", "findings_branch", "gate_branch"):
            setattr(self.network, name, copy.deepcopy(getattr(network, name)))
        self.network.portable_unpooling = True
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 1, 224, 224) of ``dtype`` to (N, 4) float32 and (N, 2, 224, 224) uint8."""
        net = self.network
        features, positions = net.encode(images)
        outputs = Outputs(
            net.lung_decoder(features, positions),
            net.disease_decoder(features, positions),
            *net.branches(net.embed(features.float())),
        )
        # The second of two softmax channels is the sigmoid of their difference (eq. 1 and 4).
        unhealthy, chest = (
            x[:, 1:].float() - x[:, :1].float() for x in (outputs.health, outputs.gate)
        )
        scores = torch.sigmoid(torch.cat([unhealthy, outputs.findings.float(), chest], dim=1))
        margins = torch.cat(
            [x[:, 1:].float() - x[:, :1].float() for x in (outputs.lung, outputs.disease)], dim=1
        )
        masks = torch.round(torch.sigmoid(margins) * 255).to(torch.uint8)
        return scores, masks
