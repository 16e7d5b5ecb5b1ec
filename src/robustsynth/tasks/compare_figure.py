"""The figure of a comparison: a column for each start image, a row for each model, the start images above them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from robustsynth.images import display_scale, to_picture

WIDTH = 1240
"""Pixels that pictures may take side by side; further classes go below."""

MOST_BANDS = 12
"""Times that the rows may be repeated for further classes; nobody looks at a thousand."""

LARGEST_CELL = 224
GAP, BETWEEN_CLASSES, BELOW_STARTS, BETWEEN_BANDS, MARGIN = 2, 10, 6, 22, 12
NAME, SMALL, LEADING = 16, 12, 3
"""Heights in pixels: of the letters of names, of what is said below them, and between lines."""

WIDEST_LABEL = 190
MISSING = "whitesmoke"

Group = tuple[str, list[int]]
"""A class and its columns."""


@dataclass(frozen=True, eq=False)
class Row:
    """A row of the figure.

    Attributes:
        name: in front of it.
        about: a few words below the name, line by line.
        pictures: uint8 (h, w, C), one for each column; None where it was not drawn.
    """

    name: str
    about: tuple[str, ...]
    pictures: Sequence[np.ndarray | None]


def comparison_figure(rows: Sequence[Row], classes: Sequence[str], note: str = "") -> np.ndarray:
    """One uint8 picture (H, W, 3): the rows, with the class above each group of columns, in bands that fit a page.

    Args:
        rows: the start images first, each with as many pictures as there are columns. Small pictures are enlarged by
            whole pixels, large ones reduced.
        classes: of the columns, those of one class side by side.
        note: at the foot. What the figure leaves out is said behind it.

    Example:
        >>> row = Row("cifar10", ("robust",), [np.zeros((32, 32, 3), np.uint8)] * 3)
        >>> comparison_figure([row, row], ["cat", "cat", "ship"]).shape[1] > 3 * 96
        True
    """
    sides = [max(picture.shape[:2]) for row in rows for picture in row.pictures if picture is not None]
    side = max(sides, default=32)
    cell = min(LARGEST_CELL, side * display_scale(side))
    groups = [(name, [i for i, each in enumerate(classes) if each == name]) for name in dict.fromkeys(classes)]
    bands = _bands(groups, cell)
    shown = [group for band in bands for group in band]
    if len(shown) < len(groups):
        note += f" Shown: {len(shown)} of {len(groups)} classes."
    if len(shown[0][1]) < len(groups[0][1]):
        note += f" Shown: {len(shown[0][1])} of {len(groups[0][1])} start images of each class."
    labels = [_label(row, cell) for row in rows]
    label_width = max(round(_font(size).getlength(line)) for label in labels for line, size in label) + MARGIN
    width = label_width + max(_band_width(band, cell) for band in bands)
    titles = [[_wrapped(name, NAME, _band_width([(name, places)], cell)) for name, places in band] for band in bands]
    foot = _wrapped(note, SMALL, width) if note else []
    heights = [max(map(len, each)) * (NAME + LEADING) + LEADING + _top_of(len(rows), cell) for each in titles]
    height = sum(heights) + BETWEEN_BANDS * (len(bands) - 1)
    sheet = Image.new(
        "RGB", (width + 2 * MARGIN, height + 2 * MARGIN + LEADING + len(foot) * (SMALL + LEADING)), "white"
    )
    draw = ImageDraw.Draw(sheet)
    top = MARGIN
    for band, lines, high in zip(bands, titles, heights, strict=True):
        first = top + high - _top_of(len(rows), cell)
        for place, label in enumerate(labels):
            _draw_label(draw, label, first + _top_of(place, cell), cell)
        left = MARGIN + label_width
        for group, title in zip(band, lines, strict=True):
            _draw_title(draw, title, left + _band_width([group], cell) / 2, first)
            for place, row in enumerate(rows):
                for column, index in enumerate(group[1]):
                    spot = (left + column * (cell + GAP), first + _top_of(place, cell))
                    _paste(sheet, row.pictures[index], spot, cell)
            left += _band_width([group], cell) + BETWEEN_CLASSES
        top += high + BETWEEN_BANDS
    for place, line in enumerate(foot):
        at = (MARGIN, MARGIN + height + 2 * LEADING + place * (SMALL + LEADING))
        draw.text(at, line, fill="dimgray", font=_font(SMALL))
    return np.asarray(sheet)


def _bands(groups: Sequence[Group], cell: int) -> list[list[Group]]:
    """Whole classes side by side, as many as fit, and as evenly as they can be; of one that is too wide, what fits."""
    columns = max(1, WIDTH // (cell + GAP))
    groups = [(name, places[:columns]) for name, places in groups]
    widest = max(_band_width([group], cell) for group in groups) + BETWEEN_CLASSES
    fitting = max(1, (WIDTH + BETWEEN_CLASSES) // widest)
    groups = groups[: fitting * MOST_BANDS]
    each = -(-len(groups) // -(-len(groups) // fitting))
    return [groups[start : start + each] for start in range(0, len(groups), each)]


def _band_width(band: Sequence[Group], cell: int) -> int:
    columns = sum(len(places) for _, places in band)
    return columns * (cell + GAP) - GAP * len(band) + BETWEEN_CLASSES * (len(band) - 1)


def _top_of(place: int, cell: int) -> int:
    """Of a row, below the top of the first, which stands a little apart from the others."""
    return place * (cell + GAP) + (BELOW_STARTS if place else 0)


def _label(row: Row, cell: int) -> list[tuple[str, int]]:
    """The lines in front of a row and their sizes, as many as its height holds."""
    lines = [(line, NAME) for line in _wrapped(row.name, NAME, WIDEST_LABEL)]
    lines += [(line, SMALL) for about in row.about for line in _wrapped(about, SMALL, WIDEST_LABEL)]
    while sum(size + LEADING for _, size in lines) > cell and len(lines) > 1:
        lines.pop()
    return lines


def _draw_label(draw: ImageDraw.ImageDraw, label: Sequence[tuple[str, int]], top: int, cell: int) -> None:
    y = top + (cell - sum(size + LEADING for _, size in label)) / 2
    for line, size in label:
        draw.text((MARGIN, y), line, fill="black" if size == NAME else "dimgray", font=_font(size))
        y += size + LEADING


def _draw_title(draw: ImageDraw.ImageDraw, lines: Sequence[str], middle: float, bottom: int) -> None:
    """A class's name on top of its pictures, however many lines others take."""
    for depth, line in enumerate(lines):
        y = bottom - LEADING - (len(lines) - depth) * (NAME + LEADING)
        draw.text((middle, y), line, fill="black", font=_font(NAME), anchor="ma")


def _paste(sheet: Image.Image, picture: np.ndarray | None, spot: tuple[int, int], cell: int) -> None:
    if picture is None:
        sheet.paste(Image.new("RGB", (cell, cell), MISSING), spot)
        return
    image = to_picture(picture).convert("RGB")
    scale = cell / max(image.size)
    if scale >= 1:
        size = (image.width * int(scale), image.height * int(scale))
        image = image.resize(size, Image.Resampling.NEAREST)
    else:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    sheet.paste(image, (spot[0] + (cell - image.width) // 2, spot[1] + (cell - image.height) // 2))


def _wrapped(text: str, size: int, width: float) -> list[str]:
    """Lines of words that fit; a word that does not fit alone is broken after a hyphen, or where it has to be."""
    font = _font(size)
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        if lines[-1]:
            lines.append("")
        while font.getlength(word) > width and len(word) > 1:
            fits = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
            fits = word.rfind("-", 1, fits) + 1 or fits
            lines[-1], word = word[:fits], word[fits:]
            lines.append("")
        lines[-1] = word
    return lines


@functools.cache
def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)
