"""One encoded picture to one uint8 array: upright, grey or RGB, square, of the right size."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from robustsynth.data.sources import Row
from robustsynth.errors import UserError

_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_USUAL_SIZES = (224, 128, 64, 32)


@dataclass(frozen=True)
class Header:
    """What the first bytes of a picture say: its (width, height), and 1 or 3 channels."""

    size: tuple[int, int]
    channels: int


def read_header(row: Row) -> Header:
    """Size and channels without decoding the picture.

    Raises:
        UserError: it is missing or no picture.
    """
    try:
        with _opened(row) as picture:
            grey = picture.mode in _GREY_MODES or picture.mode.startswith("I;16")
            return Header(picture.size, 1 if grey else 3)
    except Exception as error:
        raise _unreadable(row, error) from error


def usual_size(sizes: Sequence[tuple[int, int]]) -> int:
    """The side at which to store pictures that nothing is known about.

    Theirs, if all are squares of one size; otherwise the largest of 224, 128, 64 and 32 that the shorter
    sides reach in the median, and 32 for those that are smaller still.

    Example:
        >>> usual_size([(28, 28), (28, 28)]), usual_size([(500, 375), (320, 240), (100, 80)])
        (28, 224)
    """
    if len(set(sizes)) == 1 and sizes[0][0] == sizes[0][1]:
        return sizes[0][0]
    median = statistics.median(min(size) for size in sizes)
    return next((size for size in _USUAL_SIZES if size <= median), _USUAL_SIZES[-1])


def decode(row: Row, *, image_size: int, channels: int) -> np.ndarray:
    """Decode a picture to a uint8 array of shape (image_size, image_size, channels).

    It is turned upright by its EXIF tag, laid on white where it is transparent, and its central square is
    resized to `image_size` with antialiasing; a picture that has this size already keeps its exact pixels.

    Raises:
        UserError: the picture is missing, damaged, or has no fixed range of values.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (4, 2), (255, 0, 0)).save(buffer, "PNG")
        >>> decode(Row("red.png", buffer.getvalue(), 0), image_size=1, channels=3).tolist()
        [[[255, 0, 0]]]
    """
    try:
        with _opened(row) as opened:
            upright = ImageOps.exif_transpose(_eight_bits(opened))
            picture = _square(_opaque(upright).convert("L" if channels == 1 else "RGB"), image_size)
    except Exception as error:
        raise _unreadable(row, error) from error
    return np.asarray(picture, dtype=np.uint8).reshape(image_size, image_size, channels)


def _opened(row: Row) -> Image.Image:
    if row.content is None:
        raise ValueError("nothing: the cell is empty")
    return Image.open(io.BytesIO(row.content) if isinstance(row.content, bytes) else row.content)


def _unreadable(row: Row, error: Exception) -> Exception:
    # Pillow raises OSError, ValueError, SyntaxError, struct.error and more for damaged files.
    if isinstance(error, MemoryError):
        return error
    # Its own text for bytes that it does not know only names a buffer in memory.
    reason = "no format that Pillow knows" if isinstance(error, Image.UnidentifiedImageError) else str(error)
    return UserError(
        f"{row.where}: expected a picture that can be decoded, got {reason}. Replace it or take it out of the data."
    )


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
