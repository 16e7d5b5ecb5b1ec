"""Pictures as people save them, made plain: upright, opaque, eight bits, grey or RGB. And what is wrong with others."""

from __future__ import annotations

import contextlib
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

LARGEST = 64_000_000
"""Pixels of the largest picture that is decoded, enough for the largest full-frame cameras; about a gigabyte while it
is made plain."""

_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What brings a picture upright, by its EXIF orientation."""

_OPENING = threading.Lock()


class TooLargeError(ValueError):
    """A picture of more than `LARGEST` pixels."""

    def __init__(self, width: int, height: int) -> None:
        pixels, limit = width * height / 1e6, LARGEST / 1e6
        super().__init__(f"{width}×{height} = {pixels:.0f} million pixels, above the limit of {limit:.0f} million")


def open_picture(file: Path | str | IO[bytes]) -> Image.Image:
    """Open a picture as Pillow does: its header is read, its pixels are not yet.

    Raises:
        TooLargeError: more than `LARGEST` pixels.
        OSError: missing, or not a picture; Pillow raises SyntaxError, struct.error and more as well, all of which
            `fault_of` puts into words.
    """
    with _OPENING:
        # Pillow's own check warns of large pictures, or refuses them without saying their size.
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            picture = Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    if picture.width * picture.height > LARGEST:
        picture.close()
        raise TooLargeError(*picture.size)
    return picture


@dataclass(frozen=True)
class Fault:
    """Why a file is no usable picture, and what to do about it."""

    reason: str
    remedy: str = "replace it"


_NOT_PICTURES = (
    (rb"....ftyp(hei|hev|mif1|msf1)", Fault("an HEIC picture, which Pillow does not read", "save it as JPEG or PNG")),
    (rb"version https://git-lfs", Fault("a Git LFS pointer in place of a picture", "fetch it with `git lfs pull`")),
    (rb"%PDF", Fault("a PDF document", "save its page as PNG")),
    (rb".*<svg[\s>]", Fault("an SVG drawing", "export it as PNG")),
    (rb"\s*(<!doctype html|<html)", Fault("a web page", "download the picture itself")),
)


def fault_of(error: Exception, content: Path | bytes) -> Fault:
    """What `error`, met while a picture was opened or made plain, means to people.

    Args:
        error: as it was raised.
        content: the file or the bytes.

    Example:
        >>> fault_of(OSError("cannot identify image file"), b"").reason
        'an empty file'
    """
    if isinstance(error, TooLargeError):
        return Fault(str(error), "scale it down first")
    head = content[:1024] if isinstance(content, bytes) else b"?"
    if isinstance(content, Path):
        with contextlib.suppress(OSError), content.open("rb") as opened:
            head = opened.read(1024)
    if not head:
        return Fault("an empty file", "fetch it again")
    if isinstance(error, Image.UnidentifiedImageError):
        # Pillow's own text for bytes that it does not know only names a buffer in memory.
        known = (fault for start, fault in _NOT_PICTURES if re.match(start, head, re.DOTALL | re.IGNORECASE))
        return next(known, Fault("no format that Pillow knows", "save it as PNG or JPEG"))
    if re.search("truncated|end of file", str(error), re.IGNORECASE):
        return Fault("a truncated file", "fetch it again")
    if isinstance(error, ValueError):
        return Fault(str(error))
    if isinstance(error, OSError) and error.errno:
        return Fault(error.strerror or type(error).__name__, "see that it can be read")
    return Fault(f"a damaged file: {error}", "fetch it again")


def is_grey(picture: Image.Image) -> bool:
    """Whether the picture's mode holds grey values and no colours."""
    return picture.mode in _GREY_MODES or picture.mode.startswith("I;16")


def plain_picture(picture: Image.Image, *, channels: int, size: int | None = None) -> np.ndarray:
    """A picture of any mode as uint8 (H, W, C).

    It is turned upright by its EXIF tag and laid on white where it is transparent; 16 bits are scaled to 8; of an
    animation the first frame is taken. A picture that has the wanted size already keeps its exact pixels.

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
    picture.load()
    upright = _upright(_eight_bits(picture), _turn(picture))
    plain = _opaque(upright).convert("L" if channels == 1 else "RGB")
    if size is not None:
        plain = _square(plain, size)
    return np.array(plain, dtype=np.uint8).reshape(plain.height, plain.width, channels)


def picture_notes(picture: Image.Image, *, channels: int, size: int | None = None) -> list[str]:
    """What `plain_picture` changes of this picture, in words; an empty list if nothing.

    Asked before it is decoded: afterwards Pillow no longer knows how many bits the file has.

    Example:
        >>> picture_notes(Image.new("LA", (6, 4)), channels=3, size=2)
        ['transparent parts laid on white', 'grey as RGB', 'cut to its central square', 'resized from 4×4 to 2×2']
    """
    deep = _is_deep(picture)
    picture.load()
    count, turn, grey, shorter = _frames(picture), _turn(picture), is_grey(picture), min(picture.size)
    said = {
        f"first of {count} {'pages' if picture.format == 'TIFF' else 'frames'}": count > 1,
        "turned upright": turn is not None,
        "16 bits scaled to 8": deep,
        "transparent parts laid on white": _is_transparent(_eight_bits(picture)),
        "grey as RGB": grey and channels == 3,
        "colours as grey": not grey and channels == 1,
        f"{picture.mode} as RGB": picture.mode in ("CMYK", "LAB", "HSV") and channels == 3,
        "cut to its central square": size is not None and picture.width != picture.height,
        f"resized from {shorter}×{shorter} to {size}×{size}": size is not None and shorter != size,
    }
    return [note for note, holds in said.items() if holds]


def _frames(picture: Image.Image) -> int:
    if picture.format == "MPO":  # a photograph and its own previews
        return 1
    try:
        return getattr(picture, "n_frames", 1)
    except Exception:
        # Counting reads the later frames, which may be damaged; nobody needs them.
        return 1


def _turn(picture: Image.Image) -> Image.Transpose | None:
    try:
        return _TURNS.get(picture.getexif().get(_ORIENTATION, 1))
    except Exception:
        # Cameras and editors write EXIF data that no reader parses; the picture itself is none the worse.
        return None


def _upright(picture: Image.Image, turn: Image.Transpose | None) -> Image.Image:
    return picture if turn is None else picture.transpose(turn)


def _is_deep(picture: Image.Image) -> bool:
    """Whether the file has 16 bits a channel, some of which Pillow itself drops as it decodes."""
    tiles = getattr(picture, "tile", None) or []
    return picture.mode == "I" or picture.mode.startswith("I;16") or any(";16" in str(tile) for tile in tiles)


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
    clear = picture.info.get("transparency")
    if isinstance(clear, int):  # the one value that stands for "nothing here"
        scaled.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return scaled


def _is_transparent(picture: Image.Image) -> bool:
    return picture.has_transparency_data and _rgba(picture).getchannel("A").getextrema()[0] < 255  # pyright: ignore[reportOperatorIssue]


def _opaque(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture
    pixels = _rgba(picture)
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), pixels)


def _rgba(picture: Image.Image) -> Image.Image:
    return (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")


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
