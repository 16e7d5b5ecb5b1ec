"""One encoded picture to one uint8 array: upright, grey or RGB, square, of the right size."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from robustsynth.data.sources import Row
from robustsynth.errors import UserError
from robustsynth.images import fault_of, is_grey, open_image, plain_pixels

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
            return Header(picture.size, 1 if is_grey(picture) else 3)
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
            return plain_pixels(opened, channels=channels, size=image_size)
    except Exception as error:
        raise _unreadable(row, error) from error


def _opened(row: Row) -> Image.Image:
    if row.content is None:
        raise ValueError("nothing: the cell is empty")
    return open_image(io.BytesIO(row.content) if isinstance(row.content, bytes) else row.content)


def _unreadable(row: Row, error: Exception) -> Exception:
    # Pillow raises OSError, ValueError, SyntaxError, struct.error and more for damaged files.
    if isinstance(error, MemoryError):
        return error
    reason = str(error) if row.content is None else fault_of(error, row.content).reason
    return UserError(
        f"{row.where}: expected a picture that can be decoded, got {reason}. Replace it or take it out of the data."
    )
