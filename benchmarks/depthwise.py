"""The gradient of depthwise convolutions on a processor, in float32, in bfloat16, and as `DepthwiseConv2d` takes it.

    python benchmarks/depthwise.py [--batch-size 128] [--rounds 5]

The layers are MobileNetV2's on CIFAR-10 that have another side or stride, forward and backward, in turns; each one's
best time counts. Strided ones in bfloat16 are what `robustsynth.models.layers` is there for.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import nn

from robustsynth.models.execution import machine_name, processor_kind
from robustsynth.models.layers import DepthwiseConv2d

LAYERS = ((192, 32, 1), (144, 32, 2), (192, 16, 2), (576, 8, 2))
"""Channels, side and stride."""


def seconds(layer: nn.Conv2d, images: torch.Tensor) -> float:
    """Of a forward and a backward pass, to images and weights."""
    started = time.perf_counter()
    made = layer(images)
    torch.autograd.grad(made.sum(), (images, layer.weight))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"{machine_name()} ({processor_kind()}), torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"batches of {options.batch_size}, channels-last, milliseconds forward and backward\n")
    print("| channels, side, stride | float32 | bfloat16 | DepthwiseConv2d, bfloat16 |")
    print("|---|---|---|---|")
    for channels, side, stride in LAYERS:
        whole = torch.randn(options.batch_size, channels, side, side).to(memory_format=torch.channels_last)
        plain = nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False)
        ours = DepthwiseConv2d(channels, kernel=3, stride=stride)
        cases = [(plain, whole)] + [(layer.to(torch.bfloat16), whole.bfloat16()) for layer in (_copy(plain), ours)]
        cases = [(layer, images.clone().requires_grad_(True)) for layer, images in cases]
        best = [float("inf")] * len(cases)
        for _ in range(options.rounds + 1):
            for index, case in enumerate(cases):
                best[index] = min(best[index], seconds(*case))
        print(f"| {channels}, {side}, {stride} | " + " | ".join(f"{1000 * value:.1f}" for value in best) + " |")


def _copy(layer: nn.Conv2d) -> nn.Conv2d:
    made = nn.Conv2d(layer.in_channels, layer.out_channels, 3, layer.stride, 1, groups=layer.groups, bias=False)
    made.load_state_dict(layer.state_dict())
    return made


if __name__ == "__main__":
    main()
