"""The networks that can be built by name. A new one is one entry here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from robustsynth.errors import UnknownNameError, UserError
from robustsynth.models.networks.mobilenet import MobileNetV2
from robustsynth.models.networks.plain import VGG, SmallCNN
from robustsynth.models.networks.preact_resnet import PreActResNet, SiluPreActResNet, SiluWideResNet, WideResNet
from robustsynth.models.networks.resnet import BasicBlock, Bottleneck, ResNet

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3)),
    "wide-resnet50-2": partial(ResNet, Bottleneck, (3, 4, 6, 3), widening=2),
    "wide-resnet50-4": partial(ResNet, Bottleneck, (3, 4, 6, 3), widening=4),
    "resnext50-32x4d": partial(ResNet, Bottleneck, (3, 4, 6, 3), widening=2, grouped=True),
    "resnet18-even": partial(ResNet, BasicBlock, (2, 2, 2, 2), even=True),
    "resnet50-even": partial(ResNet, Bottleneck, (3, 4, 6, 3), even=True),
    "preact-resnet18": partial(PreActResNet, (2, 2, 2, 2)),
    "preact-resnet18-plain": partial(PreActResNet, (2, 2, 2, 2), last_norm=False),
    "preact-resnet18-early": partial(PreActResNet, (2, 2, 2, 2), last_norm=False, early_shortcut=True),
    "preact-resnet18-silu": partial(SiluPreActResNet, (2, 2, 2, 2)),
    "wide-resnet28-10": partial(WideResNet, 28, 10),
    "wide-resnet34-10": partial(WideResNet, 34, 10),
    "wide-resnet28-4": partial(WideResNet, 28, 4),
    "wide-resnet34-20": partial(WideResNet, 34, 20),
    "wide-resnet28-10-silu": partial(SiluWideResNet, 28, 10),
    "wide-resnet34-10-silu": partial(SiluWideResNet, 34, 10),
    "wide-resnet70-16-silu": partial(SiluWideResNet, 70, 16),
    "vgg11-bn": partial(VGG, (1, 1, 2, 2, 2)),
    "vgg13-bn": partial(VGG, (2, 2, 2, 2, 2)),
    "vgg16-bn": partial(VGG, (2, 2, 3, 3, 3)),
    "vgg19-bn": partial(VGG, (2, 2, 4, 4, 4)),
    "mobilenet-v2": MobileNetV2,
    "small-cnn": SmallCNN,
}

ONE_SIZE = ("small-cnn",)
"""Those that take images of the side that they are made for alone."""

STANDARD_WIDTHS = {
    **{"small-cnn": 32, "mobilenet-v2": 32},
    **dict.fromkeys(("wide-resnet28-4", "wide-resnet28-10", "wide-resnet34-10", "wide-resnet34-20"), 16),
    **dict.fromkeys(("wide-resnet28-10-silu", "wide-resnet34-10-silu", "wide-resnet70-16-silu"), 16),
}
"""Base widths that are not 64. The base width is that of the first convolution; all others are in proportion to it."""


def standard_width(architecture: str) -> int:
    """The base width that an architecture has where none is given."""
    return STANDARD_WIDTHS.get(architecture, 64)


def build_network(
    architecture: str, *, classes: int, width: int | None = None, channels: int = 3, image_size: int = 32
) -> nn.Module:
    """A freshly initialised network.

    Args:
        architecture: a name in `ARCHITECTURES`.
        classes: number of logits, 2 or more.
        width: base width; the architecture's standard one where None.
        channels: channels of the images, 1 or 3.
        image_size: side of the images in pixels.

    Raises:
        UnknownNameError: no such architecture.
        UserError: a count or a size that makes no network.

    Example:
        >>> sum(p.numel() for p in build_network("resnet18", classes=10).parameters())
        11173962
    """
    if architecture not in ARCHITECTURES:
        raise UnknownNameError("architecture", architecture, ARCHITECTURES)
    if classes < 2:
        raise UserError(f"expected at least 2 classes, got {classes}")
    for name, value in (("width", width), ("channels", channels), ("image_size", image_size)):
        if value is not None and value < 1:
            raise UserError(f"expected a positive {name}, got {value}")
    build = ARCHITECTURES[architecture]
    width = standard_width(architecture) if width is None else width
    return build(classes=classes, width=width, channels=channels, image_size=image_size)
