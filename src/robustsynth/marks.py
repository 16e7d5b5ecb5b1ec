"""Which pixels of a drawn picture are marked: the brighter of two tones, or what is not of the background's colour."""

from __future__ import annotations

import numpy as np

SAME_COLOUR = 20
"""Colours no channel of which differs by more (of 255) are the same: JPEG never keeps a flat colour exactly."""

FLAT_COLOURS = 6
"""So many flat colours a drawing may have, background included."""

FLAT_SHARE = 0.95
"""At least so much of a drawing is of its flat colours: the rest are soft edges. Photographs have less."""


def marked_pixels(pixels: np.ndarray) -> np.ndarray | None:
    """Of two greys, such as black and white, the brighter is marked; among colours, all but the commonest.

    Args:
        pixels: uint8 (H, W, 3).

    Returns:
        bool (H, W), nowhere true if there is one colour only; None for a picture of many tones or colours, such as a
        photograph, in which marks cannot be told from the rest.

    Example:
        >>> drawn = np.full((2, 2, 3), 255, dtype=np.uint8)
        >>> drawn[0, 1] = 255, 0, 0
        >>> marked_pixels(drawn).tolist()
        [[False, True], [False, False]]
    """
    # By colour rather than by pixel: drawings have few, and photographs fewer than pixels.
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    packed = red << 16 | green << 8 | blue
    counts = np.bincount(packed.ravel(), minlength=1 << 24)
    present = counts.nonzero()[0]
    colours = np.stack([present >> 16, present >> 8 & 255, present & 255])
    marked = _marked_colours(colours, counts[present])
    if marked is None:
        return None
    table = np.zeros(1 << 24, dtype=bool)
    table[present] = marked
    return table[packed]


def _marked_colours(colours: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
    """Which of the colours (3, K) of a picture, which so many pixels have, are marks."""
    if np.ptp(colours, axis=0).max() <= SAME_COLOUR:
        return _brighter(colours.mean(axis=0), counts)
    background = _background(colours, counts)
    if background is None:
        return None
    # A quarter of the way to the mark that differs most: JPEG smears colours beyond their rim.
    distance = np.abs(colours - background[:, None]).max(axis=0)
    return distance > max(SAME_COLOUR, distance.max() / 4)


def _brighter(tones: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
    darkest, brightest = tones.min(), tones.max()
    if darkest == brightest:
        return np.zeros(tones.shape, dtype=bool)
    bright = tones > (darkest + brightest) / 2
    # A quarter of the range on either side: soft brushes and JPEG are no tones of their own.
    between = np.where(bright, brightest - tones, tones - darkest) > (brightest - darkest) / 4
    return bright if counts[between].sum() <= (1 - FLAT_SHARE) * counts.sum() else None


def _background(colours: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
    """The commonest colour, if few flat colours make up the picture."""
    enough = (1 - FLAT_SHARE) * counts.sum()
    commonest = None
    for _ in range(FLAT_COLOURS):
        # 32 cells a channel, numbered.
        cells = (colours[0] // 8 * 32 + colours[1] // 8) * 32 + colours[2] // 8
        common = cells == np.bincount(cells, weights=counts).argmax()
        colour = np.array([_median(values, counts[common]) for values in colours[:, common]])
        commonest = colour if commonest is None else commonest
        left = np.abs(colours - colour[:, None]).max(axis=0) > SAME_COLOUR
        colours, counts = colours[:, left], counts[left]
        if counts.sum() <= enough:
            return commonest
    return None


def _median(values: np.ndarray, counts: np.ndarray) -> float:
    """The median of values that occur so many times each."""
    order = values.argsort(kind="stable")
    reached = counts[order].cumsum()
    half = reached[-1] / 2
    low, high = (values[order[np.searchsorted(reached, half, side=side)]] for side in ("left", "right"))
    return float(low + high) / 2
