"""How a classifier of one image size sees a picture of any size.

A picture stays at its own size; the classifier is shown it through square views, each resized to the size that it was
trained at. Gradients come back the same way, so that every task works on pictures as they are: known pixels stay
exact, and nothing is enlarged again afterwards.
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
"""Aspect ratio up to which a picture is seen whole, squeezed into a square. Classifiers are trained with as much."""

MOST = 600
"""Views that a picture may take: each costs as much as an image of the classifier's size does."""

SMALLEST = 8
"""Pixels that the shorter side of a picture must have."""


@dataclass(frozen=True)
class View:
    """A part of a picture, in its pixels."""

    top: int
    left: int
    height: int
    width: int


def choose_views(size: tuple[int, int], side: int, kind: str | None = None) -> list[View]:
    """The parts of a picture (H, W) that a classifier of `side` × `side` images is shown.

    Args:
        size: (H, W) of the picture.
        side: of the classifier's images.
        kind: ``whole``, the picture squeezed into one square; ``squares``, overlapping squares along its longer
            side; ``tiles``, overlapping squares of `side` pixels; None for whole up to an aspect ratio of 4:3, and
            squares beyond.

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
    rows, columns = _places(height, edge), _places(width, edge)
    if len(rows) * len(columns) > MOST:
        raise UserError(
            f"expected a picture that {MOST} {kind} cover, got one of {width}×{height} pixels that takes "
            f"{len(rows) * len(columns)}; give views=whole, or reduce the picture"
        )
    return [View(top, left, edge, edge) for top in rows for left in columns]


def _places(length: int, edge: int) -> list[int]:
    """Where squares of `edge` begin along `length`: evenly, overlapping by at least a quarter."""
    if length == edge:
        return [0]
    count = 2 + int((length - edge - 1) // (0.75 * edge))
    return [round(i * (length - edge) / (count - 1)) for i in range(count)]


class Viewed:
    """A network seen through views: pictures (N, C, H, W) of any size to its output, averaged over the views.

    Args:
        network: images (N, C, side, side) to (N, K).
        views: of the pictures.
        side: of the network's images.

    Example:
        >>> Viewed(lambda x: x.mean((2, 3)), [View(0, 0, 4, 4)], side=2)(torch.ones(1, 3, 4, 4)).tolist()
        [[1.0, 1.0, 1.0]]
    """

    def __init__(self, network: Callable[[Tensor], Tensor], views: Sequence[View], side: int) -> None:
        self.network, self.views, self.side = network, views, side

    def __call__(self, pictures: Tensor) -> Tensor:
        """(N, C, H, W) to (N, K)."""
        # One shift for all views, decided here: computing a view again must not count as another call.
        network = self.network.once() if isinstance(self.network, Shifted) else self.network
        outputs = []
        for v in self.views:
            part = pictures[:, :, v.top : v.top + v.height, v.left : v.left + v.width]
            shown = resample(part, (self.side, self.side), "bilinear")
            if len(self.views) > 1 and torch.is_grad_enabled():
                # What the backward pass needs of a view is computed again, not kept: there may be hundreds.
                outputs.append(checkpoint(network, shown, use_reentrant=False))
            else:
                outputs.append(network(shown))
        return outputs[0] if len(outputs) == 1 else torch.stack(outputs).mean(0)


class Shifted:
    """A network whose images are moved by some pixels, another way in each call but the same in every run.

    A network samples images on a grid, and steps that always meet the same one engrave it as fine lines. It counts its
    calls, so it is for one run of one batch.

    Args:
        network: images (N, C, H, W) to (N, K).
        shift: pixels to either side at most, and at most half of the image.
        mirror: show every second call's images mirrored, left to right.

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
        """The network with the next call's shift, to be called as often as one likes."""
        call, self.calls = self.calls, self.calls + 1
        turn = self.mirror and call % 2 == 1

        def network(images: Tensor) -> Tensor:
            images = moved(images, *shift_of(call, min(self.shift, images.shape[-1] // 2)))
            return self.network(images.flip(3) if turn else images)

        return network


def shift_of(index: int, most: int) -> tuple[int, int]:
    """The shift of call `index`: up to `most` to either side, evenly spread over any run of calls (Roberts' R2
    sequence).

    Example:
        >>> [shift_of(i, 2) for i in range(3)]
        [(0, 0), (-1, -2), (-2, 1)]
    """
    return (
        round((2 * ((0.5 + 0.7548776662 * index) % 1) - 1) * most),
        round((2 * ((0.5 + 0.5698402910 * index) % 1) - 1) * most),
    )


def moved(images: Tensor, across: int, down: int) -> Tensor:
    """Images (N, C, H, W) shifted right and down by whole pixels, mirrored at their borders."""
    if across == 0 and down == 0:
        return images
    # By slices: the backward pass of reflecting padding is not repeatable on a graphics card.
    return _along(_along(images, across, 3), down, 2)


def _along(images: Tensor, by: int, dim: int) -> Tensor:
    """Moved by whole pixels towards the end of a dimension, mirrored at the border without repeating it."""
    length = images.shape[dim]
    if by > 0:
        return torch.cat([images.narrow(dim, 1, by).flip(dim), images.narrow(dim, 0, length - by)], dim)
    if by < 0:
        kept = images.narrow(dim, -by, length + by)
        return torch.cat([kept, images.narrow(dim, length + by - 1, -by).flip(dim)], dim)
    return images


def size_ratio(size: tuple[int, int], side: int, norm: str) -> float:
    """What an ε meant for `side` × `side` images is multiplied by for a picture (H, W): see `Ball.growth`.

    Example:
        >>> size_ratio((64, 64), 32, "l2"), size_ratio((64, 64), 32, "linf")
        (2.0, 1.0)
    """
    scale = norm_named(norm).scale
    return scale(size[0] * size[1]) / scale(side * side)


def check_size(height: int, width: int) -> None:
    """Raise a `UserError` for pictures too small to show anything, or too large to be held.

    Example:
        >>> check_size(1, 1)
        Traceback (most recent call last):
        robustsynth.errors.UserError: expected images of at least 8×8 pixels, got 1×1; choose a larger one
    """
    if min(height, width) < SMALLEST:
        raise UserError(
            f"expected images of at least {SMALLEST}×{SMALLEST} pixels, got {width}×{height}; choose a larger one"
        )
    if height * width > LARGEST:
        raise UserError(
            f"expected images of at most {LARGEST // 1_000_000} megapixels, got {width}×{height}; reduce it first"
        )
