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
    values = pixels.astype(np.int16)
    if np.ptp(values, axis=2).max() <= SAME_COLOUR:
        return _brighter(values.mean(axis=2))
    background = _background(values)
    if background is None:
        return None
    # A quarter of the way to the mark that differs most: JPEG smears colours beyond their rim.
    distance = np.abs(values - background).max(axis=2)
    return distance > max(SAME_COLOUR, distance.max() / 4)


def _brighter(tones: np.ndarray) -> np.ndarray | None:
    darkest, brightest = tones.min(), tones.max()
    if darkest == brightest:
        return np.zeros(tones.shape, dtype=bool)
    bright = tones > (darkest + brightest) / 2
    # A quarter of the range on either side: soft brushes and JPEG are no tones of their own.
    between = np.where(bright, brightest - tones, tones - darkest) > (brightest - darkest) / 4
    return bright if between.mean() <= 1 - FLAT_SHARE else None


def _background(values: np.ndarray) -> np.ndarray | None:
    """The commonest colour, if few flat colours make up the picture."""
    left = values.reshape(-1, 3)
    enough = (1 - FLAT_SHARE) * len(left)
    commonest = None
    for _ in range(FLAT_COLOURS):
        cells, counts = np.unique(left // 8, axis=0, return_counts=True)
        in_cell = (left // 8 == cells[counts.argmax()]).all(axis=1)
        colour = np.median(left[in_cell], axis=0)
        commonest = colour if commonest is None else commonest
        left = left[np.abs(left - colour).max(axis=1) > SAME_COLOUR]
        if len(left) <= enough:
            return commonest
    return None
