"""Masks: which part of an image to fill or paint.

A mask is a float tensor (N, 1, H, W) or (1, H, W), 1 where to fill or paint and 0 where pixels are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from robustsynth.errors import UserError
from robustsynth.images import LoadedImage, read_image

OPAQUE = 250
"""The least alpha (of 255) of an opaque pixel."""

SAME_COLOUR = 20
"""Colours that differ by no more in any channel (of 255) count as one, because JPEG changes flat colours a little."""

FLAT_COLOURS, FLAT_SHARE = 6, 0.95
"""A drawing has at most so many flat colours, background included, and they cover at least this share of it. The rest
are soft edges. Photographs have more colours."""


def load_mask(
    source: Path | str | Image.Image | LoadedImage, size: tuple[int, int] | None = None, *, invert: bool = False
) -> Tensor:
    """A mask (1, H, W), float32 of 0 and 1, from an image. The first rule that applies decides what is filled:

    1. Some pixels are transparent, others are not: what is **not opaque** is filled, as if erased in an editor.
    2. Black and white, or two greys: the **brighter** is filled.
    3. Marks on one background colour: everything that **differs from the commonest colour** is filled.

    Anything else is a `UserError`, such as marks on a copy of the photograph, or nothing or everything to fill.

    Args:
        source: as for `robustsynth.images.read_image`, or an image that it has read.
        size: (H, W) that the mask must have; a mask is never resized. None for any.
        invert: fill what would be kept, and keep what would be filled.

    Example:
        >>> drawn = Image.new("L", (4, 2))
        >>> drawn.putpixel((1, 0), 255)
        >>> load_mask(drawn, (2, 4)).tolist()
        [[[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]
    """
    image = source if isinstance(source, LoadedImage) else read_image(source)
    if size is not None and image.pixels.shape[:2] != tuple(size):
        raise UserError(
            f"expected a mask of the image's size, {_named(size)}, got {_named(image.pixels.shape)} in "
            f"{image.name}; draw it on a copy of the image, or resize it without smoothing"
        )
    erased = _erased(image)
    if erased.any() and not erased.all():
        return torch.from_numpy((erased ^ invert).astype(np.float32))[None]
    marked = _marked_pixels(image.pixels)
    if marked is None:
        raise UserError(
            f"expected a mask in {image.name}: white on black, marks on one background colour, or transparent "
            "parts; got an image of many colours, in which marks cannot be distinguished from the rest. Save the marks "
            "alone on a plain background, as PNG, or erase the part to fill so that it becomes transparent"
        )
    if marked.all() or not marked.any():
        raise UserError(
            f"expected a mask in {image.name}, got an image of one colour; mark the part to fill in another"
        )
    return torch.from_numpy((marked ^ invert).astype(np.float32))[None]


def mask_from_alpha(source: Path | str | Image.Image | LoadedImage) -> Tensor:
    """The mask of an image's own transparent region: (1, H, W) float32, 1 at every pixel that is not opaque.

    `source` is as for `load_mask`. Nothing or everything transparent is a `UserError`.
    """
    image = source if isinstance(source, LoadedImage) else read_image(source)
    erased = _erased(image)
    if erased.all() or not erased.any():
        what = "wholly transparent" if erased.all() else "nowhere transparent"
        raise UserError(
            f"expected an image with transparent parts to fill, but {image.name} is {what}; erase the part to "
            "fill and save it as PNG or WebP (JPEG has no transparency), or give a mask"
        )
    return torch.from_numpy(erased.astype(np.float32))[None]


def rectangle_mask(rectangle: str | Sequence[int], size: tuple[int, int]) -> Tensor:
    """A mask (1, H, W), float32, that fills one rectangle of an image of `size` (H, W).

    The rectangle is left, top, width, height in pixels, as numbers or as ``"left,top,width,height"``. One that is
    empty, reaches out of the image or covers it all is a `UserError`.

    Example:
        >>> rectangle_mask("1,0,2,1", (2, 4)).tolist()
        [[[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]
    """
    parts = rectangle.split(",") if isinstance(rectangle, str) else list(rectangle)
    try:
        if any(isinstance(part, float) and part != int(part) for part in parts):
            raise ValueError
        left, top, width, height = (int(part) for part in parts)
    except (ValueError, TypeError, OverflowError):
        raise UserError(
            f'expected a rectangle as four whole numbers "left,top,width,height", such as "10,20,60,60", '
            f"got {rectangle!r}"
        ) from None
    if width < 1 or height < 1:
        raise UserError(f"expected a rectangle of at least 1×1 pixels, got {width}×{height} (width×height)")
    if left < 0 or top < 0 or left + width > size[1] or top + height > size[0]:
        raise UserError(
            f"expected a rectangle within the image's {_named(size)}, got columns {left} to {left + width} and rows "
            f"{top} to {top + height}; it is given as left,top,width,height"
        )
    if (height, width) == tuple(size):
        raise UserError(f"expected a rectangle that leaves pixels to go by, got all {_named(size)} of the image")
    mask = torch.zeros(1, *size)
    mask[:, top : top + height, left : left + width] = 1
    return mask


def random_patch_masks(
    generators: Sequence[torch.Generator], *, size: tuple[int, int], side: int, border: int = 0
) -> Tensor:
    """Masks (N, 1, H, W), float32, of one square patch at a random place for each generator.

    A patch that does not fit, or covers everything, is a `UserError`.

    Args:
        generators: one an image (`robustsynth.randomness.image_generators`).
        size: (H, W) of the images.
        side: pixels of the patch's side. Santurkar et al. 2019 take 60 at 224 (Appendix A.8).
        border: pixels between the patch and each edge, at least.

    Example:
        >>> from robustsynth.randomness import image_generators
        >>> masks = random_patch_masks(image_generators(0, range(3)), size=(32, 32), side=8, border=4)
        >>> masks.shape, masks.sum((1, 2, 3)).tolist()
        (torch.Size([3, 1, 32, 32]), [64.0, 64.0, 64.0])
    """
    height, width = size
    room = (height - 2 * border - side, width - 2 * border - side)
    if side < 1 or border < 0 or min(room) < 0 or side >= max(size):
        raise UserError(
            f"expected a patch that leaves {border} pixels at each edge of {_named(size)} and does not cover it all, "
            f"got one of {side}×{side}; choose a smaller side or border"
        )
    masks = torch.zeros(len(generators), 1, height, width)
    for mask, random in zip(masks, generators, strict=True):
        top, left = (border + int(torch.randint(free + 1, (1,), generator=random)) for free in room)
        mask[:, top : top + side, left : left + side] = 1
    return masks


def check_mask(mask: Tensor, images: Tensor) -> Tensor:
    """A mask (N, 1, H, W) of 0 and 1 for images (N, C, H, W), in their dtype and on their device.

    `mask` is (N, 1, H, W), or (1, H, W) or (1, 1, H, W) for all images; 0 and 1 as float, integer or bool. Another
    shape, other values, or a mask that fills nothing or everything of an image is a `UserError`.

    Example:
        >>> images = torch.zeros(2, 3, 1, 2)
        >>> check_mask(torch.tensor([[[True, False]]]), images).tolist()
        [[[[1.0, 0.0]]], [[[1.0, 0.0]]]]
    """
    mask = torch.as_tensor(mask)
    count, _, height, width = images.shape
    shape = tuple(mask.shape)
    if shape not in ((1, height, width), (1, 1, height, width), (count, 1, height, width)):
        lacking = {(count, height, width): "mask[:, None]", (height, width): "mask[None]"}.get(shape)
        remedy = f"add the dimension of channels with {lacking}" if lacking else "make it as large as the images"
        raise UserError(
            f"expected a mask ({count}, 1, {height}, {width}) or (1, {height}, {width}) for images "
            f"{tuple(images.shape)}, got {shape}; {remedy}"
        )
    filled = mask == 1
    if not bool((filled | (mask == 0)).all()):
        low, high = float(mask.float().min()), float(mask.float().max())
        raise UserError(f"expected a mask of 0 and 1, got values from {low:g} to {high:g}; use (mask > 0.5).float()")
    share = filled.reshape(-1, height * width).float().mean(dim=1)
    for index, part in enumerate(share.tolist()):
        if part in (0.0, 1.0):
            what = "everything, which leaves no pixels to go by" if part else "nothing (1 is where to fill)"
            which = f"mask {index}" if len(share) > 1 else "the mask"
            raise UserError(f"expected a mask that covers a part of the image, but {which} covers {what}")
    return filled.to(images).reshape(-1, 1, height, width).expand(count, -1, -1, -1).contiguous()


def _erased(image: LoadedImage) -> np.ndarray:
    """Which pixels are not opaque, as bool (H, W)."""
    return np.zeros(image.pixels.shape[:2], dtype=bool) if image.alpha is None else image.alpha < OPAQUE


def _named(size: Sequence[int]) -> str:
    return f"{size[1]}×{size[0]} pixels (width×height)"


def _marked_pixels(pixels: np.ndarray) -> np.ndarray | None:
    """Which pixels of uint8 (H, W, 3) are marked, by rules 2 and 3 of `load_mask`; None if neither applies."""
    # By colour rather than by pixel: drawings have few, and photographs fewer than pixels.
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    packed = red << 16 | green << 8 | blue
    counts = np.bincount(packed.ravel(), minlength=1 << 24)
    present = counts.nonzero()[0]
    colours = np.stack([present >> 16, present >> 8 & 255, present & 255])
    if np.ptp(colours, axis=0).max() <= SAME_COLOUR:
        marked = _brighter(colours.mean(axis=0), counts[present])
    else:
        marked = _unlike_background(colours, counts[present])
    if marked is None:
        return None
    table = np.zeros(1 << 24, dtype=bool)
    table[present] = marked
    return table[packed]


def _brighter(tones: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
    darkest, brightest = tones.min(), tones.max()
    if darkest == brightest:
        return np.zeros(tones.shape, dtype=bool)
    bright = tones > (darkest + brightest) / 2
    # Soft brushes and JPEG give a quarter of the range on either side.
    between = np.where(bright, brightest - tones, tones - darkest) > (brightest - darkest) / 4
    return bright if counts[between].sum() <= (1 - FLAT_SHARE) * counts.sum() else None


def _unlike_background(colours: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
    """Which of the colours (3, K) differ from the commonest, if the image consists of few flat colours."""
    enough = (1 - FLAT_SHARE) * counts.sum()
    distances = []
    left, left_counts = colours, counts
    for _ in range(FLAT_COLOURS):
        # 32 cells a channel, numbered.
        cells = (left[0] // 8 * 32 + left[1] // 8) * 32 + left[2] // 8
        common = cells == np.bincount(cells, weights=left_counts).argmax()
        reached = [np.bincount(values, left_counts[common]).cumsum() for values in left[:, common]]
        medians = [np.searchsorted(r, r[-1] / 2, side) for r in reached for side in ("left", "right")]
        colour = np.reshape(medians, (3, 2)).mean(axis=1, keepdims=True)
        distances.append(np.abs(colours - colour).max(axis=0))
        others = np.abs(left - colour).max(axis=0) > SAME_COLOUR
        left, left_counts = left[:, others], left_counts[others]
        if left_counts.sum() <= enough:
            # A quarter of the way to the mark that differs most, because JPEG blurs colours beyond their edge.
            return distances[0] > max(SAME_COLOUR, distances[0].max() / 4)
    return None
