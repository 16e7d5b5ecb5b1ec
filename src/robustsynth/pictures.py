"""Pictures as people save them, made plain: upright, opaque, eight bits, grey or RGB."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps


def plain_picture(picture: Image.Image, *, channels: int, size: int | None = None) -> np.ndarray:
    """A picture of any mode as uint8 (H, W, C).

    It is turned upright by its EXIF tag and laid on white where it is transparent; 16 bits are scaled to 8. A picture
    that has the wanted size already keeps its exact pixels.

    Args:
        picture: as Pillow opened it.
        channels: 3 or 1.
        size: the central square is resized to this side with antialiasing; None leaves the size as it is.

    Raises:
        ValueError: its values have no fixed range.
        OSError: it is damaged; Pillow raises SyntaxError, struct.error and more as well.

    Example:
        >>> plain_picture(Image.new("RGB", (4, 2), (255, 0, 0)), channels=3, size=1).tolist()
        [[[255, 0, 0]]]
    """
    upright = ImageOps.exif_transpose(_eight_bits(picture))
    plain = _opaque(upright).convert("L" if channels == 1 else "RGB")
    if size is not None:
        plain = _square(plain, size)
    return np.array(plain, dtype=np.uint8).reshape(plain.height, plain.width, channels)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits (Pillow's own conversion clips at 255 instead)."""
    if picture.mode == "F":
        raise ValueError("floating-point values, which have no fixed range (save it with 8 or 16 bits)")
    if picture.mode != "I" and not picture.mode.startswith("I;16"):
        return picture
    values = np.asarray(picture).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("grey values beyond 16 bits (save it with 8 or 16 bits)")
    scaled = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    scaled.getexif().update(picture.getexif())
    return scaled


def _opaque(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture
    pixels = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), pixels)


def _square(picture: Image.Image, side: int) -> Image.Image:
    if picture.size == (side, side):
        return picture
    width, height = picture.size
    shorter = min(width, height)
    # Whole pixels: a crop by half a pixel would blur a picture that needs no resizing.
    left, top = (width - shorter) // 2, (height - shorter) // 2
    # Cropped first: `resize(box=…, reducing_gap=…)` would mix in pixels from outside the box.
    square = picture.crop((left, top, left + shorter, top + shorter))
    if shorter == side:
        return square
    return square.resize((side, side), Image.Resampling.BICUBIC, reducing_gap=3.0)
