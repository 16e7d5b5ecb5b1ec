"""Figures of what a task was given and what it made, a row a picture."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from robustsynth.errors import UserError
from robustsynth.images import to_picture

MOST_ROWS = 64
"""Rows shown; nobody looks at a figure of a thousand."""

CELL, GAP, TEXT = 224, 6, 15
"""Pixels: the longer side of a shown picture, between pictures, and the height of letters."""


def figure(rows: Sequence[Sequence[np.ndarray]], titles: Sequence[str], captions: Sequence[str] = ()) -> np.ndarray:
    """One uint8 picture (H, W, 3): titled columns, a row for each picture, a caption under each row.

    Args:
        rows: of uint8 pictures (h, w, C) of any sizes, as many in each row as there are titles. Small ones are
            enlarged by whole pixels, large ones reduced.
        titles: of the columns.
        captions: of the rows.

    Raises:
        UserError: nothing to show, or rows of different lengths.

    Example:
        >>> figure([[np.zeros((8, 8, 3), np.uint8)] * 2], ["source", "result"], ["cat"]).shape
        (284, 466, 3)
    """
    if not rows or any(len(row) != len(titles) for row in rows):
        raise UserError(
            f"expected rows of {len(titles)} pictures, as many as there are titles, got {[len(r) for r in rows]}"
        )
    font = ImageFont.load_default(TEXT)
    shown = [[Image.fromarray(fitted(picture)) for picture in row] for row in rows[:MOST_ROWS]]
    line = TEXT + GAP
    # Titles may be wider than small pictures are.
    widths = [
        max(round(font.getlength(title)), *(row[column].width for row in shown)) for column, title in enumerate(titles)
    ]
    heights = [max(cell.height for cell in row) for row in shown]
    caption = line if captions else 0
    size = (sum(widths) + GAP * (len(widths) + 1), 2 * GAP + line + sum(heights) + (GAP + caption) * len(shown))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    lefts = [GAP + sum(widths[:column]) + GAP * column for column in range(len(widths))]
    for left, title in zip(lefts, titles, strict=True):
        draw.text((left, GAP), title, fill="black", font=font)
    top = GAP + line
    for place, (row, height) in enumerate(zip(shown, heights, strict=True)):
        for left, cell in zip(lefts, row, strict=True):
            sheet.paste(cell, (left, top))
        if captions:
            draw.text((GAP, top + height + 1), captions[place], fill="dimgray", font=font)
        top += height + GAP + caption
    return np.asarray(sheet)


def fitted(picture: np.ndarray) -> np.ndarray:
    """As large as a cell: small ones by whole factors, so that their pixels are seen as they are; (h, w, 3) uint8.

    Example:
        >>> fitted(np.zeros((4000, 3000, 3), np.uint8)).shape
        (224, 168, 3)
    """
    longer = max(picture.shape[:2])
    image = to_picture(picture).convert("RGB")
    if longer <= CELL:
        size, method = (image.width * (CELL // longer), image.height * (CELL // longer)), Image.Resampling.NEAREST
    else:
        size = (max(1, round(image.width * CELL / longer)), max(1, round(image.height * CELL / longer)))
        method = Image.Resampling.LANCZOS
    return np.asarray(image.resize(size, method))
