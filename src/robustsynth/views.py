"""Views: how a classifier of one image size is shown an image of any size.

The classifier is shown square parts of it, each resized to its own size; gradients flow back through the resizing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from robustsynth.constraints import norm_named
from robustsynth.errors import UserError
from robustsynth.images import LARGEST
from robustsynth.resampling import resample

VIEWS = ("whole", "squares", "tiles")

WIDEST = 4 / 3
"""Aspect ratio up to which an image is squeezed into one square. Training images are squeezed as much."""

MOST = 600
"""Views of an image, at most. Each costs as much as an image of the classifier's size."""

SMALLEST = 8
"""The least pixels of the shorter side of an image."""


@dataclass(frozen=True)
class View:
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def choose_views(size: tuple[int, int], side: int, kind: str | None = None) -> list[View]:
    """The parts of an image of `size` (H, W) that a classifier of images of `side` × `side` pixels is shown.

    Args:
        size: of the image.
        side: of the classifier's images.
        kind: ``whole``, the image squeezed into one square; ``squares``, overlapping squares along its longer side;
            ``tiles``, overlapping squares of `side` pixels; None for whole up to an aspect ratio of 4:3, else squares.

    Example:
        >>> choose_views((96, 240), 128)
        [View(top=0, left=0, height=96, width=96), View(top=0, left=72, height=96, width=96), \
View(top=0, left=144, height=96, width=96)]
    """
    height, width = size
    if kind is None:
        kind = "whole" if max(size) <= WIDEST * min(size) else "squares"
    if kind not in VIEWS:
        raise UserError(f"expected views of {', '.join(VIEWS)}, got {kind!r}")
    if kind == "whole":
        return [View(0, 0, height, width)]
    edge = min(height, width) if kind == "squares" else min(height, width, side)
    views = [View(top, left, edge, edge) for top in _places(height, edge) for left in _places(width, edge)]
    if len(views) > MOST:
        raise UserError(
            f"expected an image that {MOST} {kind} cover, got one of {width}×{height} pixels that takes {len(views)}; "
            "give views=whole, or reduce the image"
        )
    return views


def _places(length: int, edge: int) -> list[int]:
    """Where squares of `edge` begin along `length`: evenly, overlapping by at least a quarter."""
    if length == edge:
        return [0]
    count = 2 + int((length - edge - 1) // (0.75 * edge))
    return [round(i * (length - edge) / (count - 1)) for i in range(count)]


@dataclass(frozen=True, eq=False)
class Viewed:
    """A network of images of any size (N, C, H, W), whose outputs (N, K) are averages over views.

    `network` maps images (N, C, side, side) to (N, K).

    Example:
        >>> Viewed(lambda x: x.mean((2, 3)), [View(0, 0, 4, 4)], side=2)(torch.ones(1, 3, 4, 4)).tolist()
        [[1.0, 1.0, 1.0]]
    """

    network: Callable[[Tensor], Tensor]
    views: Sequence[View]
    side: int

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K)."""
        # One shift for all views, chosen here: computing a view again must not count as another call.
        network = self.network.once() if isinstance(self.network, Shifted) else self.network
        outputs = []
        for v in self.views:
            part = images[:, :, v.top : v.top + v.height, v.left : v.left + v.width]
            shown = resample(part, (self.side, self.side), "bilinear")
            if len(self.views) > 1 and torch.is_grad_enabled():
                # The backward pass computes activations again, because there may be too many views to keep them.
                outputs.append(checkpoint(network, shown, use_reentrant=False))
            else:
                outputs.append(network(shown))
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)


class Shifted:
    """A network whose images are moved by a few pixels, differently in each call but equally in each run.

    A network samples images on a grid; without shifts, many steps draw that grid into the image as fine lines. Calls
    are counted, so that an object is for one run of one batch.

    Args:
        network: images (N, C, H, W) to (N, K).
        shift: pixels to either side at most, and at most half of the image.
        mirror: mirror the images of every second call, left to right.

    Example:
        >>> seen = Shifted(lambda x: x[:, 0, 0], shift=2)
        >>> [seen(torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)).tolist() for call in range(2)]
        [[[0.0, 1.0, 2.0, 3.0]], [[1.0, 2.0, 3.0, 2.0]]]
    """

    def __init__(self, network: Callable[[Tensor], Tensor], shift: int, mirror: bool = False) -> None:
        self.network, self.shift, self.mirror, self.calls = network, shift, mirror, 0

    def __call__(self, images: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K)."""
        return self.once()(images)

    def once(self) -> Callable[[Tensor], Tensor]:
        """The network with the shift of the next call, for any number of uses."""
        call, self.calls = self.calls, self.calls + 1
        turn = self.mirror and call % 2 == 1

        def network(images: Tensor) -> Tensor:
            images = moved(images, *shift_of(call, min(self.shift, images.shape[-1] // 2)))
            return self.network(images.flip(3) if turn else images)

        return network


def shift_of(index: int, most: int) -> tuple[int, int]:
    """The shift of call `index`, up to `most` pixels to either side, spread evenly over calls (Roberts' R2 sequence).

    Example:
        >>> [shift_of(i, 2) for i in range(3)]
        [(0, 0), (-1, -2), (-2, 1)]
    """
    across, down = (round((2 * ((0.5 + ratio * index) % 1) - 1) * most) for ratio in (0.7548776662, 0.5698402910))
    return across, down


def moved(images: Tensor, across: int, down: int) -> Tensor:
    """Images (N, C, H, W) shifted right and down by whole pixels, mirrored at the border without repeating it."""
    # By slices, because the backward pass of reflecting padding is not repeatable on a graphics card.
    for by, dim in ((across, 3), (down, 2)):
        rest = images.shape[dim] - abs(by)
        if by > 0:
            images = torch.cat([images.narrow(dim, 1, by).flip(dim), images.narrow(dim, 0, rest)], dim)
        elif by < 0:
            images = torch.cat([images.narrow(dim, -by, rest), images.narrow(dim, rest - 1, -by).flip(dim)], dim)
    return images


def size_ratio(size: tuple[int, int], side: int, norm: str) -> float:
    """The factor between the radius ε for an image of `size` (H, W) and for one of `side` × `side` pixels.

    Example:
        >>> size_ratio((64, 64), 32, "l2"), size_ratio((64, 64), 32, "linf")
        (2.0, 1.0)
    """
    scale = norm_named(norm).scale
    return scale(size[0] * size[1]) / scale(side * side)


def check_size(height: int, width: int) -> None:
    """Raise a `UserError` for images that are too small or too large.

    Example:
        >>> check_size(1, 1)
        Traceback (most recent call last):
        robustsynth.errors.UserError: expected images of at least 8×8 pixels, got 1×1; choose a larger one
    """
    got = f"got {width}×{height}"
    if min(height, width) < SMALLEST:
        raise UserError(f"expected images of at least {SMALLEST}×{SMALLEST} pixels, {got}; choose a larger one")
    if height * width > LARGEST:
        raise UserError(f"expected images of at most {LARGEST // 1_000_000} megapixels, {got}; reduce it first")
