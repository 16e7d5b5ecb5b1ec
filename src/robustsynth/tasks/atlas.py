"""The picture atlas of a model's units: a row a unit, labelled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from robustsynth.errors import UserError
from robustsynth.images import to_picture, to_uint8
from robustsynth.tasks.features import UnitRow

CELL, GAP, WIDE_GAP, MARGIN = 112, 4, 20, 16
"""Pixels: the least side of a shown picture, between pictures, between groups of them, around everything."""

TITLE, TEXT, SMALL = 22, 15, 12
"""Heights of letters, in pixels."""

LABEL_WIDTH = 190

INK, FAINT = (20, 20, 20), (110, 110, 110)


def draw_atlas(
    rows: Sequence[UnitRow], *, title: str, drawn_as: str = "drawn from noise", data_name: str = "the data"
) -> np.ndarray:
    """One uint8 picture (H, W, 3): for each unit its number, its classes, what was drawn to raise it, its top images.

    Under each picture stands the unit's activation in it.

    Args:
        rows: of a `FeatureAtlas`.
        title: above everything.
        drawn_as: above the drawn pictures.
        data_name: of the data that the top images are from.

    Raises:
        UserError: no rows.

    Example:
        >>> import torch
        >>> row = UnitRow(3, (("cat", 0.5),), torch.zeros(2, 3, 32, 32), (1.0, 2.0), (), (), np.zeros((0, 32, 32, 3)))
        >>> draw_atlas([row], title="two pictures").shape
        (231, 486, 3)
    """
    if not rows:
        raise UserError("expected one or more units to draw, got none")
    shown = [([_enlarged(i) for i in to_uint8(row.images)], [_enlarged(i) for i in row.top_images]) for row in rows]
    side = shown[0][0][0].width
    step = side + GAP
    groups = [max(len(drawn) for drawn, _ in shown), max(len(top) for _, top in shown)]
    lefts = [MARGIN + LABEL_WIDTH, MARGIN + LABEL_WIDTH + groups[0] * step + WIDE_GAP]
    titles = [drawn_as, f"images of {data_name} that raise it most"]
    title_font, font, small = (ImageFont.load_default(size) for size in (TITLE, TEXT, SMALL))
    right = max(
        lefts[1] + groups[1] * step if groups[1] else lefts[0] + groups[0] * step,
        MARGIN + round(title_font.getlength(title)),
        *(left + round(font.getlength(text)) for left, text, n in zip(lefts, titles, groups, strict=True) if n),
    )
    row_height = side + SMALL + 10
    top = MARGIN + TITLE + 12 + TEXT + 8
    sheet = Image.new("RGB", (right + MARGIN, top + row_height * len(rows) + MARGIN - 8), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), title, fill=INK, font=title_font)
    for left, text, count in zip(lefts, titles, groups, strict=True):
        if count:
            draw.text((left, top - TEXT - 8), text, fill=FAINT, font=font)
    for row, groups_shown in zip(rows, shown, strict=True):
        _write_label(draw, row, (MARGIN, top))
        for left, pictures, values in zip(lefts, groups_shown, (row.activations, row.top_activations), strict=True):
            for place, (picture, value) in enumerate(zip(pictures, values, strict=True)):
                sheet.paste(picture, (left + place * step, top))
                draw.text((left + place * step + 1, top + side + 1), f"{value:.1f}", fill=FAINT, font=small)
        top += row_height
    return np.asarray(sheet)


def _write_label(draw: ImageDraw.ImageDraw, row: UnitRow, corner: tuple[int, int]) -> None:
    """The unit's number, and the classes that it feeds with the weights."""
    left, top = corner
    draw.text((left, top), f"unit {row.unit}", fill=INK, font=ImageFont.load_default(TEXT + 2))
    font = ImageFont.load_default(TEXT)
    for line, (name, weight) in enumerate(row.feeds):
        number = f"  {weight:+.2f}"
        shown = _shortened(name, font, LABEL_WIDTH - WIDE_GAP - font.getlength(number))
        place = (left, top + 26 + line * (TEXT + 5))
        draw.text(place, shown, fill=INK if line == 0 else FAINT, font=font)
        draw.text((left + font.getlength(shown), place[1]), number, fill=FAINT, font=font)


def _shortened(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, room: float) -> str:
    """As much of `text` as fits."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(text + "…") > room:
        text = text[:-1]
    return text.rstrip(" ,") + "…"


def _enlarged(image: np.ndarray) -> Image.Image:
    """Small pictures are hard to judge on a screen; each pixel becomes a square of whole pixels."""
    picture = to_picture(np.asarray(image, dtype=np.uint8)).convert("RGB")
    factor = max(1, -(-CELL // picture.width))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
