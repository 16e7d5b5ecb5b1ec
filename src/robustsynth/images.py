"""Images between tensors in [0, 1] and files: pictures, grids, animations."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from robustsynth.errors import UserError
from robustsynth.files import written_beside
from robustsynth.pictures import plain_picture

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")


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


def save_png(path: Path | str, image: np.ndarray) -> None:
    """Write uint8 (H, W, C) as a PNG file, whole or not at all."""
    with written_beside(path) as temporary:
        to_picture(image).save(temporary, format="PNG")


def load_picture(path: Path | str, *, channels: int = 3, size: int | None = None) -> np.ndarray:
    """One picture as uint8 (H, W, C): turned as its EXIF data say, alpha on white, 16 bits scaled to 8.

    Args:
        path: any file that Pillow reads.
        channels: 3 or 1.
        size: the central square is resized to this side; None leaves the picture as it is.

    Raises:
        UserError: no such file, or not a whole picture.
    """
    path = Path(path)
    try:
        with Image.open(path) as opened:
            return plain_picture(opened, channels=channels, size=size)
    except FileNotFoundError:
        raise UserError(f"expected a picture, but there is no file {path}") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"expected a picture in {path}, but it cannot be read ({error}); replace it") from None


def picture_files(folder: Path | str) -> list[Path]:
    """The picture files directly in `folder`, by name.

    Raises:
        UserError: no such folder, or no pictures in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"expected a folder of pictures, but there is no folder {folder}")
    found = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    if not found:
        raise UserError(f"expected pictures ({', '.join(SUFFIXES)}) in {folder}, found none")
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
    """Write uint8 frames (H, W, C) as an endless animation that takes `seconds`, its last frame held longer."""
    pictures = [to_picture(frame) for frame in frames]
    if not pictures:
        raise UserError("expected at least one frame for an animation, got none")
    each = max(20, round(1000 * seconds / len(pictures)))
    with written_beside(path) as temporary:
        pictures[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=[each] * (len(pictures) - 1) + [1500],
            loop=0,
        )
