"""The classifier: eight plain convolutions, and the worst place of the part decides. Built to be quantised.

Defects are small and may lie anywhere, so each class is scored at every place and the highest place counts (max
pooling over logits); a second, coarser head sees the whole part (a missing print is no local mark). ReLU only,
stride instead of pooling, no residual adds: what onnxruntime and TensorRT both run well as INT8.
"""

from __future__ import annotations

import torch
from torch import nn

# (channels out, stride) of each 3x3 convolution; the local head sits after _LOCAL of them.
_LAYERS = ((16, 2), (16, 1), (32, 2), (32, 1), (64, 2), (64, 1), (64, 2), (64, 1))
_LOCAL = 6


def _block(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False), nn.BatchNorm2d(channels_out), nn.ReLU()
    )


class PartNet(nn.Module):
    """image (N, channels, H, W) float32, normalised -> logits (N, classes), class 0 = good."""

    def __init__(self, classes: int, channels: int = 1) -> None:
        super().__init__()
        blocks, last = [], channels
        for channels_out, stride in _LAYERS:
            blocks.append(_block(last, channels_out, stride))
            last = channels_out
        self.near = nn.Sequential(*blocks[:_LOCAL])
        self.far = nn.Sequential(*blocks[_LOCAL:])
        self.near_head = nn.Conv2d(_LAYERS[_LOCAL - 1][0], classes - 1, 1)
        self.far_head = nn.Conv2d(_LAYERS[-1][0], classes, 1)
        self.worst = nn.AdaptiveMaxPool2d(1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        near = self.near(image)
        local = self.worst(self.near_head(near)).flatten(1)
        whole = self.worst(self.far_head(self.far(near))).flatten(1)
        return torch.cat([whole[:, :1], whole[:, 1:] + local], 1)
