"""Where to fill or paint: masks from picture files, rectangles, and random patches.

A mask is a float tensor (N, 1, H, W) or (1, H, W) of 0 and 1, 1 where to fill or paint.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from robustsynth.errors import UserError
from robustsynth.images import load_picture
from robustsynth.pictures import open_picture

CERTAIN = 48
"""Levels of 255 within which a pixel counts as of one of the two tones of a mask; between them lie only soft edges."""

SOFT_SHARE = 0.1
"""Share of a mask's pixels that may lie between its two tones."""


def check_mask(mask: Tensor, images: Tensor) -> Tensor:
    """A mask as float (N, 1, H, W) for images (N, C, H, W).

    Args:
        mask: (N, 1, H, W), (1, 1, H, W) or (1, H, W) of 0 and 1: float, integer or bool.
        images: that it is for.

    Raises:
        UserError: another shape or other values, or a mask that covers an image wholly or not at all.

    Example:
        >>> hole = torch.zeros(1, 4, 4)
        >>> hole[:, 1:3, 1:3] = 1
        >>> check_mask(hole, torch.rand(2, 3, 4, 4)).shape
        torch.Size([2, 1, 4, 4])
    """
    count, size = len(images), tuple(images.shape[2:])
    given = torch.as_tensor(mask).detach().cpu()
    shaped = given[None] if given.ndim == 3 else given
    if shaped.ndim != 4 or shaped.shape[1] != 1 or len(shaped) not in (1, count) or tuple(shaped.shape[2:]) != size:
        raise UserError(
            f"expected a mask ({count}, 1, {size[0]}, {size[1]}) or (1, {size[0]}, {size[1]}), of the images' size, "
            f"got {tuple(given.shape)}; resize one to the other"
        )
    shaped = shaped.float()
    if not bool(((shaped == 0) | (shaped == 1)).all()):
        raise UserError("expected a mask of 0 and 1 alone, got other values; use (mask > 0.5).float()")
    covered = shaped.flatten(1).mean(1)
    if bool((covered == 0).any()):
        raise UserError("expected a mask with something to fill or paint, got one that covers nothing; invert it?")
    if bool((covered == 1).any()):
        raise UserError("expected a mask that leaves something known, got one that covers everything; invert it?")
    return shaped.expand(count, 1, *size)


def load_mask(path: Path | str, size: tuple[int, int], *, invert: bool = False) -> Tensor:
    """The mask (1, H, W) that a picture file shows.

    Where the file has transparent parts, these are the mask, as one erases with an editor. Otherwise it must be of two
    tones, such as white on black, with no more than soft edges between them: the brighter one is the mask. A photograph
    with a scribble on it is refused, because what is scribble and what is photograph cannot be told.

    Args:
        path: any picture file.
        size: (H, W) that it must have.
        invert: take the other part.

    Raises:
        UserError: no picture, another size, or neither transparent nor of two tones.
    """
    alpha = _alpha(path)
    shown = load_picture(path, channels=3) if alpha is None else alpha
    if shown.shape[:2] != tuple(size):
        raise UserError(
            f"expected a mask of the picture's size, {size[1]}×{size[0]}, got {shown.shape[1]}×{shown.shape[0]} in "
            f"{path}; resize it, or draw it on a copy of the picture"
        )
    chosen = alpha < 128 if alpha is not None else _brighter_tone(shown, path)
    return torch.from_numpy(chosen != invert).float()[None]


def mask_from_alpha(path: Path | str) -> Tensor:
    """The transparent part (1, H, W) of a picture, to be filled.

    Raises:
        UserError: nothing in it is transparent.
    """
    alpha = _alpha(path)
    if alpha is None:
        raise UserError(
            f"expected a mask, or transparent parts to fill in {path}, found neither; give --mask or erase a part"
        )
    return torch.from_numpy(alpha < 128).float()[None]


def rectangle_mask(rectangle: str | Sequence[int], size: tuple[int, int]) -> Tensor:
    """A rectangle's mask (1, H, W).

    Args:
        rectangle: left, top, width and height in pixels, as numbers or as text ``"10,20,64,48"``.
        size: (H, W) of the picture.

    Raises:
        UserError: not four whole numbers, an empty rectangle, or one that leaves the picture.

    Example:
        >>> rectangle_mask("1,0,2,1", (2, 4)).tolist()
        [[[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]
    """
    text = rectangle if isinstance(rectangle, str) else ",".join(map(str, rectangle))
    if not re.fullmatch(r"\s*-?\d+\s*(,\s*-?\d+\s*){3}", text):
        raise UserError(f"expected a rectangle as LEFT,TOP,WIDTH,HEIGHT in whole pixels, got {text!r}")
    left, top, width, height = (int(part) for part in text.split(","))
    if width < 1 or height < 1 or left < 0 or top < 0 or left + width > size[1] or top + height > size[0]:
        raise UserError(
            f"expected a rectangle LEFT,TOP,WIDTH,HEIGHT within the picture of {size[1]}×{size[0]} pixels, got {text}"
        )
    mask = torch.zeros(1, *size)
    mask[:, top : top + height, left : left + width] = 1
    return mask


def random_patch_masks(
    generators: Sequence[torch.Generator], size: tuple[int, int], side: int, border: int = 0
) -> Tensor:
    """Square patches at random places, (N, 1, H, W).

    Args:
        generators: one a picture.
        size: (H, W).
        side: of the patch, in pixels.
        border: pixels between a patch and the picture's edges at least.

    Raises:
        UserError: a patch that does not fit.

    Example:
        >>> random_patch_masks([torch.Generator().manual_seed(0)], (8, 8), 3, 2).sum().item()
        9.0
    """
    rooms = [length - side - 2 * border for length in size]
    if side < 1 or border < 0 or min(rooms) < 0:
        raise UserError(
            f"expected a patch that fits into {size[1]}×{size[0]} pixels with {border} around it, got a side of {side}"
        )
    masks = torch.zeros(len(generators), 1, *size)
    for mask, generator in zip(masks, generators, strict=True):
        top, left = (border + int(torch.randint(0, room + 1, (1,), generator=generator)) for room in rooms)
        mask[:, top : top + side, left : left + side] = 1
    return masks


def _alpha(path: Path | str) -> np.ndarray | None:
    """The alpha channel (H, W), upright; None where the whole picture is opaque, or it is no picture."""
    try:
        with open_picture(path) as picture:
            if not picture.has_transparency_data:
                return None
            upright = ImageOps.exif_transpose(picture)
            alpha = np.asarray(upright.convert("RGBA").getchannel("A"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        # What is wrong with it is said by whoever reads its colours.
        return None
    return alpha if alpha.min() < 128 else None


def _brighter_tone(picture: np.ndarray, path: Path | str) -> np.ndarray:
    grey = picture.astype(np.float32).mean(2)
    low, high = np.percentile(grey, [0.1, 99.9])
    between = (grey > low + CERTAIN) & (grey < high - CERTAIN)
    if high - low < 2 * CERTAIN or between.mean() > SOFT_SHARE:
        raise UserError(
            f"expected a mask of two tones, such as white on black, or with transparent parts, in {path}; got a picture "
            "in which the two cannot be told apart. Draw the mask on a layer of its own"
        )
    return grey > (low + high) / 2
