"""Masks: which part of an image to fill or paint.

A mask is a float tensor (N, 1, H, W) or (1, H, W), 1 where to fill or paint and 0 where pixels are kept. It comes from
an image file, from an image's own transparency, from a rectangle, or at random.
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
"""Alpha (of 255) from which a pixel is whole: below, more than 2 % of its colour is missing."""

SAME_COLOUR = 20
"""Colours no channel of which differs by more (of 255) are the same: JPEG never keeps a flat colour exactly."""

FLAT_COLOURS = 6
"""So many flat colours a drawing may have, background included."""

FLAT_SHARE = 0.95
"""At least so much of a drawing is of its flat colours: the rest are soft edges. Photographs have less."""


def load_mask(source: Path | str | Image.Image, size: tuple[int, int] | None = None, *, invert: bool = False) -> Tensor:
    """A mask from an image file of any kind. The first rule that applies decides what is filled:

    1. Some pixels are transparent, others are not: what is **not opaque** is filled, as if erased in an editor.
    2. Black and white, or two greys: the **brighter** is filled.
    3. Marks on one background colour: everything that **differs from the commonest colour** is filled.

    Anything else, such as marks on a copy of the photograph, cannot be told from an image and is refused. The image
    is turned upright by its EXIF tag; of an animation the first frame counts.

    Args:
        source: a file of any kind that Pillow reads, or an image of Pillow's.
        size: (H, W) that the mask must have; a mask is never resized. None for any.
        invert: fill what would be kept, and keep what would be filled.

    Returns:
        (1, H, W), float32 of 0 and 1.

    Raises:
        UserError: no such file, not a whole image, another size, no rule applies, or nothing or everything would
            be filled.

    Example:
        >>> import tempfile
        >>> drawn = Image.new("L", (4, 2))
        >>> drawn.putpixel((1, 0), 255)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     drawn.save(Path(folder, "mask.png"))
        ...     load_mask(Path(folder, "mask.png"), (2, 4)).tolist()
        [[[0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]
    """
    image = read_image(source)
    if size is not None and image.pixels.shape[:2] != tuple(size):
        raise UserError(
            f"expected a mask of the image's size, {_named(size)}, got {_named(image.pixels.shape)} in "
            f"{image.name}; draw it on a copy of the image, or resize it without smoothing"
        )
    erased = _erased(image)
    if erased.any() and not erased.all():
        return _as_mask(erased ^ invert)
    marked = _marked_pixels(image.pixels)
    if marked is None:
        raise UserError(
            f"expected a mask in {image.name}: white on black, marks on one background colour, or transparent "
            "parts; got an image of many colours, in which marks cannot be told from the rest. Save the marks alone on "
            "a plain background, as PNG, or erase the part to fill so that it becomes transparent"
        )
    if marked.all() or not marked.any():
        raise UserError(
            f"expected a mask in {image.name}, got an image of one colour; mark the part to fill in another"
        )
    return _as_mask(marked ^ invert)


def mask_from_alpha(source: Path | str | Image.Image | LoadedImage) -> Tensor:
    """The mask of an image whose own transparent region is to be filled: 1 at every pixel that is not opaque.

    Args:
        source: a file, an image of Pillow's, or one that `read_image` has read.

    Returns:
        (1, H, W), float32 of 0 and 1, as large as the image, upright by its EXIF tag.

    Raises:
        UserError: no such file, not a whole image, or nothing or everything in it is transparent.
    """
    image = source if isinstance(source, LoadedImage) else read_image(source)
    erased = _erased(image)
    if erased.all() or not erased.any():
        what = "wholly transparent" if erased.all() else "nowhere transparent"
        raise UserError(
            f"expected an image with transparent parts to fill, but {image.name} is {what}; erase the part to "
            "fill and save it as PNG or WebP (JPEG has no transparency), or give a mask"
        )
    return _as_mask(erased)


def rectangle_mask(rectangle: str | Sequence[int], size: tuple[int, int]) -> Tensor:
    """A mask that fills one rectangle.

    Args:
        rectangle: left, top, width, height in pixels, as numbers or as ``"left,top,width,height"``.
        size: (H, W) of the image.

    Returns:
        (1, H, W), float32 of 0 and 1.

    Raises:
        UserError: not four whole numbers, or a rectangle that is empty, reaches out of the image or covers it all.

    Example:
        >>> rectangle_mask("1,0,2,1", (2, 4)).tolist()
        [[[0.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]]]
    """
    left, top, width, height = _rectangle(rectangle)
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
    """One square patch at a random place for each generator.

    Args:
        generators: one an image (`robustsynth.randomness.image_generators`).
        size: (H, W) of the images.
        side: pixels of the patch's side; Santurkar et al. 2019 take 60 at 224 (Appendix A.8).
        border: how many pixels it stays away from each edge.

    Returns:
        (N, 1, H, W), float32 of 0 and 1.

    Raises:
        UserError: such a patch does not fit, or covers everything.

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
    """A mask in the shape that images need, or a clear error.

    Args:
        mask: (N, 1, H, W), or (1, H, W) or (1, 1, H, W) for all images; 0 and 1 as float, integer or bool.
        images: (N, C, H, W).

    Returns:
        (N, 1, H, W) of 0 and 1, in the images' dtype and on their device.

    Raises:
        UserError: another shape, other values, or a mask of one of the images that fills nothing or everything.

    Example:
        >>> images = torch.zeros(2, 3, 1, 2)
        >>> check_mask(torch.tensor([[[True, False]]]), images).tolist()
        [[[[1.0, 0.0]]], [[[1.0, 0.0]]]]
    """
    mask = torch.as_tensor(mask)
    count, _, height, width = images.shape
    wanted = f"({count}, 1, {height}, {width}) or (1, {height}, {width})"
    shape = tuple(mask.shape)
    if shape not in ((1, height, width), (1, 1, height, width), (count, 1, height, width)):
        remedy = "add the dimension of channels with mask[:, None]" if shape == (count, height, width) else ""
        remedy = "add the dimension of channels with mask[None]" if shape == (height, width) else remedy
        if not remedy:
            remedy = "make it as large as the images; 1 is where to fill"
        raise UserError(f"expected a mask {wanted} for images {tuple(images.shape)}, got {shape}; {remedy}")
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
    """Where the image is not opaque: bool (H, W)."""
    return np.zeros((1, 1), dtype=bool) if image.alpha is None else image.alpha < OPAQUE


def _named(size: Sequence[int]) -> str:
    return f"{size[1]}×{size[0]} pixels (width×height)"


def _as_mask(chosen: np.ndarray) -> Tensor:
    return torch.from_numpy(chosen.astype(np.float32))[None]


def _rectangle(given: str | Sequence[int]) -> tuple[int, int, int, int]:
    parts = given.split(",") if isinstance(given, str) else list(given)
    try:
        if any(isinstance(part, float) and part != int(part) for part in parts):
            raise ValueError
        left, top, width, height = (int(part) for part in parts)
    except (ValueError, TypeError, OverflowError):
        raise UserError(
            f'expected a rectangle as four whole numbers "left,top,width,height", such as "10,20,60,60", got {given!r}'
        ) from None
    return left, top, width, height


def _marked_pixels(pixels: np.ndarray) -> np.ndarray | None:
    """Which pixels of uint8 (H, W, 3) are marked, as bool (H, W): of two greys, such as black and white, the brighter;
    among colours, all but the commonest; none where there is one colour only.

    None for an image of many tones or colours, such as a photograph, in which marks cannot be told from the rest.
    """
    # By colour rather than by pixel: drawings have few, and photographs fewer than pixels.
    red, green, blue = (pixels[..., channel].astype(np.int32) for channel in range(3))
    packed = red << 16 | green << 8 | blue
    counts = np.bincount(packed.ravel(), minlength=1 << 24)
    present = counts.nonzero()[0]
    colours = np.stack([present >> 16, present >> 8 & 255, present & 255])
    marked = _marked_colours(colours, counts[present])
    if marked is None:
        return None
    table = np.zeros(1 << 24, dtype=bool)
    table[present] = marked
    return table[packed]


def _marked_colours(colours: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
    """Which of the colours (3, K) of an image, which so many pixels have, are marks."""
    if np.ptp(colours, axis=0).max() <= SAME_COLOUR:
        return _brighter(colours.mean(axis=0), counts)
    background = _background(colours, counts)
    if background is None:
        return None
    # A quarter of the way to the mark that differs most: JPEG smears colours beyond their rim.
    distance = np.abs(colours - background[:, None]).max(axis=0)
    return distance > max(SAME_COLOUR, distance.max() / 4)


def _brighter(tones: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
    darkest, brightest = tones.min(), tones.max()
    if darkest == brightest:
        return np.zeros(tones.shape, dtype=bool)
    bright = tones > (darkest + brightest) / 2
    # A quarter of the range on either side: soft brushes and JPEG are no tones of their own.
    between = np.where(bright, brightest - tones, tones - darkest) > (brightest - darkest) / 4
    return bright if counts[between].sum() <= (1 - FLAT_SHARE) * counts.sum() else None


def _background(colours: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
    """The commonest colour, if few flat colours make up the image."""
    enough = (1 - FLAT_SHARE) * counts.sum()
    commonest = None
    for _ in range(FLAT_COLOURS):
        # 32 cells a channel, numbered.
        cells = (colours[0] // 8 * 32 + colours[1] // 8) * 32 + colours[2] // 8
        common = cells == np.bincount(cells, weights=counts).argmax()
        colour = np.array([_median(values, counts[common]) for values in colours[:, common]])
        commonest = colour if commonest is None else commonest
        left = np.abs(colours - colour[:, None]).max(axis=0) > SAME_COLOUR
        colours, counts = colours[:, left], counts[left]
        if counts.sum() <= enough:
            return commonest
    return None


def _median(values: np.ndarray, counts: np.ndarray) -> float:
    """The median of values that occur so many times each."""
    order = values.argsort(kind="stable")
    reached = counts[order].cumsum()
    half = reached[-1] / 2
    low, high = (values[order[np.searchsorted(reached, half, side=side)]] for side in ("left", "right"))
    return float(low + high) / 2
