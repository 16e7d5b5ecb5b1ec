"""Images between tensors in [0, 1] and files: pictures, grids, animations."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from robustsynth.errors import UserError
from robustsynth.files import written_beside
from robustsynth.pictures import fault_of, open_picture, picture_notes, plain_picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

HOLD = 1.5
"""Seconds for which an animation's last frame is shown."""


def to_uint8(images: Tensor) -> np.ndarray:
    """(N, C, H, W) in [0, 1] to uint8 (N, H, W, C), rounded to nearest.

    Example:
        >>> to_uint8(torch.tensor([[[[0.0, 0.5, 1.0]]]])).ravel().tolist()
        [0, 128, 255]
    """
    scaled = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


def to_picture(image: np.ndarray) -> Image.Image:
    """uint8 (H, W, C) with one or three channels as a Pillow image."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def save_png(path: Path | str, image: np.ndarray, *, text: Mapping[str, str] | None = None) -> None:
    """Write uint8 (H, W, C) as a PNG file, whole or not at all, with `text` by keyword in its text chunks."""
    information = PngInfo()
    for keyword, value in (text or {}).items():
        information.add_itxt(keyword, value)
    with written_beside(path) as temporary:
        to_picture(image).save(temporary, format="PNG", pnginfo=information)


def load_picture(path: Path | str, *, channels: int = 3, size: int | None = None) -> np.ndarray:
    """One picture as uint8 (H, W, C): turned as its EXIF data say, alpha on white, 16 bits scaled to 8.

    Of an animation this is the first frame.

    Args:
        path: any file that Pillow reads.
        channels: 3 or 1.
        size: the central square is resized to this side; None leaves the picture as it is.

    Raises:
        UserError: no such file, not a whole picture, or one of more than `robustsynth.pictures.LARGEST` pixels.
    """
    with _opened(path) as picture:
        return plain_picture(picture, channels=channels, size=size)


def load_picture_with_notes(
    path: Path | str, *, channels: int = 3, size: int | None = None
) -> tuple[np.ndarray, list[str]]:
    """The same as `load_picture`, and what had to be changed of the picture, for people to be told.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("LA", (4, 4)).save(Path(folder) / "clear.png")
        ...     picture, notes = load_picture_with_notes(Path(folder) / "clear.png")
        >>> picture.shape, notes
        ((4, 4, 3), ['transparent parts laid on white', 'grey as RGB'])
    """
    with _opened(path) as picture:
        notes = picture_notes(picture, channels=channels, size=size)
        return plain_picture(picture, channels=channels, size=size), notes


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[Image.Image]:
    """A picture, and a `UserError` that names it for whatever goes wrong with it."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"expected a picture, but {path} is a folder; give a file in it")
    try:
        with open_picture(path) as picture:
            yield picture
    except FileNotFoundError:
        raise UserError(f"expected a picture, but there is no file {path}") from None
    except MemoryError:
        raise
    except Exception as error:
        # Pillow raises OSError, ValueError, SyntaxError, struct.error and more for damaged files.
        fault = fault_of(error, path)
        raise UserError(
            f"expected a picture in {path}, but it cannot be read ({fault.reason}); {fault.remedy}"
        ) from error


def picture_files(folder: Path | str) -> list[Path]:
    """The picture files directly in `folder`, by name.

    Raises:
        UserError: no such folder, or no pictures in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"expected a folder of pictures, but there is no folder {folder}")
    files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    found = sorted(p for p in files if p.suffix.lower() in SUFFIXES)
    if not found:
        others = Counter(p.suffix.lower() or "no ending" for p in files).most_common(3)
        there = ", ".join(f"{count} of {end}" for end, count in others)
        raise UserError(
            f"expected pictures ({', '.join(SUFFIXES)}) in {folder}, found none" + (f" but {there}" if there else "")
        )
    return found


def as_tensor(pictures: Sequence[np.ndarray]) -> Tensor:
    """uint8 pictures (H, W, C) of one size as a float32 tensor (N, C, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def grid(images: np.ndarray, *, columns: int, enlarge: int = 1, border: int = 2) -> np.ndarray:
    """One uint8 picture (H, W, C) of many (N, h, w, C), row by row, on white.

    Args:
        images: uint8 (N, h, w, C).
        columns: pictures a row.
        enlarge: each pixel becomes a square of so many; small pictures are hard to judge on a screen.
        border: pixels between pictures.

    Example:
        >>> grid(np.zeros((3, 4, 4, 1), dtype=np.uint8), columns=2, enlarge=2, border=1).shape
        (19, 19, 1)
    """
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    height, width = height * enlarge + border, width * enlarge + border
    sheet = np.full((rows * height + border, columns * width + border, channels), 255, dtype=np.uint8)
    for position, image in enumerate(images):
        top, left = border + position // columns * height, border + position % columns * width
        tile = image.repeat(enlarge, 0).repeat(enlarge, 1)
        sheet[top : top + tile.shape[0], left : left + tile.shape[1]] = tile
    return sheet


def display_scale(side: int) -> int:
    """How many times to enlarge pictures of `side` pixels so that people can judge them."""
    return max(1, 96 // side)


def save_gif(path: Path | str, frames: Iterable[np.ndarray], *, seconds: float = 4.0) -> None:
    """Write uint8 frames (H, W, C) as an endless animation that takes `seconds`, its last frame held longer.

    Each frame has a palette of its own, and its other colours are dithered.
    """
    pictures = [_with_palette(frame) for frame in frames]
    if not pictures:
        raise UserError("expected at least one frame for an animation, got none")
    # The format counts in hundredths of a second; ends are rounded, so that the errors do not add up.
    ends = [round(100 * seconds * (i + 1) / len(pictures)) for i in range(len(pictures))]
    durations = [10 * max(2, end - before) for before, end in zip([0, *ends], ends, strict=False)]
    with written_beside(path) as temporary:
        pictures[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=[*durations[:-1], round(1000 * HOLD)],
            loop=0,
        )


def _with_palette(frame: np.ndarray) -> Image.Image:
    """At most 256 colours, a byte a pixel. An octree's palette, dithered, is as near to photographs as slower ones."""
    picture = to_picture(frame)
    if picture.mode == "L":
        return picture
    palette = picture.quantize(255, method=Image.Quantize.FASTOCTREE)
    colours = (palette.getpalette() or [])[: 3 * 255]
    palette.putpalette([*colours, *[255] * (3 * 256 - len(colours))])
    indices = np.array(picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG))
    # The nearest colour is looked up roughly: the paper around pictures would turn grey.
    indices[(frame == 255).all(axis=2)] = 255
    dithered = Image.fromarray(indices)
    dithered.putpalette(palette.getpalette() or [])
    return dithered
