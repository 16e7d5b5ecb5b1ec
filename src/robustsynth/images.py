"""Reading and writing images: any file, Pillow image, NumPy array or tensor in, PNG out.

Images that are read become upright, opaque, grey or RGB, with eight bits a channel. Notes say what was changed.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from robustsynth.errors import UserError
from robustsynth.files import written_beside
from robustsynth.loop import check_images

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".avif", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Endings of the files that count as images in a folder."""

LARGEST = 64_000_000
"""Pixels of the largest image that is decoded, as many as full-frame cameras have. It takes about a gigabyte."""

_TURNS = ("FLIP_LEFT_RIGHT", "ROTATE_180", "FLIP_TOP_BOTTOM", "TRANSPOSE", "ROTATE_270", "TRANSVERSE", "ROTATE_90")
"""What turns an image upright, for the EXIF orientations 2 to 8."""

_OPENING = threading.Lock()


@dataclass(frozen=True, eq=False)
class LoadedImage:
    """An image that was read.

    Attributes:
        name: of its file, or "the image given".
        pixels: uint8 (H, W, C).
        notes: what was changed, in words, such as "turned upright".
        alpha: uint8 (H, W), upright and not resized, 255 where the image is opaque; None if it has no transparency.
    """

    name: str
    pixels: np.ndarray
    notes: tuple[str, ...] = ()
    alpha: np.ndarray | None = None

    @property
    def tensor(self) -> Tensor:
        """The pixels as (C, H, W), float32 in [0, 1]."""
        return as_tensor([self.pixels])[0]


def read_image(source: Path | str | Image.Image, *, channels: int = 3, size: int | None = None) -> LoadedImage:
    """Decode one image, or the first frame of an animation.

    It is turned as its EXIF data say, laid on white where it is transparent, and scaled from 16 bits to 8. A missing
    file, what is not a whole image, and more than `LARGEST` pixels are a `UserError`.

    Args:
        source: a file of any kind that Pillow reads, or a Pillow image.
        channels: 3 or 1.
        size: side to which the central square is resized; None leaves the size as it is.

    Example:
        >>> image = read_image(Image.new("LA", (6, 4)), size=2)
        >>> image.pixels.shape, image.notes[:2]
        ((2, 2, 3), ('transparent parts laid on white', 'grey as RGB'))
    """
    with _opened(source) as image:
        # Pillow drops bits of some files as it decodes them, and then no longer knows how many there were.
        deep = image.mode.startswith("I") or any(";16" in str(tile) for tile in getattr(image, "tile", None) or [])
        upright = _upright(image)
        alpha = np.asarray(_rgba(upright).getchannel("A")) if upright.has_transparency_data else None
        count, grey = _frames(image), is_grey(image)
        shorter = min(upright.size)
        said = {
            f"first of {count} {'pages' if image.format == 'TIFF' else 'frames'}": count > 1,
            "turned upright": _turn(image) is not None,
            "16 bits scaled to 8": deep,
            "transparent parts laid on white": alpha is not None and bool(alpha.min() < 255),
            "grey as RGB": grey and channels == 3,
            "colours as grey": not grey and channels == 1,
            f"{image.mode} as RGB": image.mode in ("CMYK", "LAB", "HSV") and channels == 3,
            "cut to its central square": size is not None and image.width != image.height,
            f"resized from {shorter}×{shorter} to {size}×{size}": size is not None and shorter != size,
        }
        notes = tuple(note for note, holds in said.items() if holds)
        return LoadedImage(str(_name_of(source)), _pixels(upright, channels, size), notes, alpha)


def load_image(source: Path | str | Image.Image, *, channels: int = 3, size: int | None = None) -> Tensor:
    """One image as (C, H, W), float32 in [0, 1]. Arguments and errors are those of `read_image`.

    Example:
        >>> load_image(Image.new("RGB", (4, 2), (255, 0, 0))).shape
        torch.Size([3, 2, 4])
    """
    return read_image(source, channels=channels, size=size).tensor


def as_images(images: Any, *, channels: int = 3, any_values: bool = False) -> Tensor | list[Tensor]:
    """Images of any form as one batch (N, C, H, W), float32 in [0, 1]; a list of (C, H, W) if there are several sizes.

    Floating tensors keep their type and device. What cannot be read and what is no image are a `UserError`.

    Args:
        images: a file (str or Path); a Pillow image; a NumPy array (H, W), (H, W, C) or (N, H, W, C), uint8 or float in
            [0, 1]; a tensor (C, H, W) or (N, C, H, W), uint8 or float in [0, 1]; or a list of these.
        channels: 3 or 1. Files, Pillow images and arrays are converted; a tensor must have as many.
        any_values: whether floats may have any value, where not all are used.

    Example:
        >>> as_images(np.zeros((4, 6), np.uint8)).shape
        torch.Size([1, 3, 4, 6])
        >>> [image.shape[1] for image in as_images([torch.rand(3, 4, 4), Image.new("L", (8, 8))])]
        [4, 8]
    """
    if isinstance(images, Path | str | Image.Image):
        return load_image(images, channels=channels)[None]
    if isinstance(images, np.ndarray):
        return _of_array(images, channels, any_values)
    if isinstance(images, Tensor):
        return _of_tensor(images, channels, any_values)
    if isinstance(images, list | tuple):
        each = [image for one in images for image in as_images(one, channels=channels, any_values=any_values)]
        if not each:
            raise UserError("expected one or more images, got an empty list")
        return torch.stack(each) if len({image.shape for image in each}) == 1 else each
    raise UserError(
        "expected images as files, Pillow images, NumPy arrays, tensors or a list of these, "
        f"got {type(images).__name__}"
    )


def _of_array(array: np.ndarray, channels: int, any_values: bool) -> Tensor:
    shaped = array[..., None] if array.ndim == 2 else array
    shaped = shaped[None] if shaped.ndim == 3 else shaped
    if shaped.ndim != 4 or shaped.shape[3] not in (1, 3, 4):
        moved = shaped.ndim == 4 and shaped.shape[1] in (1, 3)
        remedy = "move the channels to the end" if moved else "a tensor has the channels first, an array last"
        raise UserError(f"expected an array (H, W), (H, W, C) or (N, H, W, C), got {array.shape}; {remedy}")
    if array.dtype == np.uint8:
        return torch.stack([load_image(to_pil(image), channels=channels) for image in shaped])
    if array.dtype.kind != "f":
        raise UserError(f"expected an array of uint8, or of floats in [0, 1], got {array.dtype}; scale it to either")
    if shaped.shape[3] == 1:
        shaped = shaped.repeat(channels, 3)
    floats = torch.from_numpy(np.ascontiguousarray(shaped.transpose(0, 3, 1, 2), dtype=np.float32))
    return _of_tensor(floats, channels, any_values)


def _of_tensor(tensor: Tensor, channels: int, any_values: bool) -> Tensor:
    images = tensor[None] if tensor.ndim == 3 else tensor
    if images.ndim != 4 or images.shape[1] != channels:
        what = "channels first" if images.ndim == 4 and images.shape[3] == channels else f"{channels} channels"
        raise UserError(
            f"expected images ({channels}, H, W) or (N, {channels}, H, W), got {tuple(tensor.shape)}; give {what}"
        )
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise UserError(f"expected a tensor of uint8, or of floats in [0, 1], got {images.dtype}; scale it to either")
    if not any_values:
        check_images(images)
    return images


def image_files(folder: Path | str) -> list[Path]:
    """The image files directly in `folder`, by name. No such folder, or no images in it, is a `UserError`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"expected a folder of images, but there is no folder {folder}")
    files = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    found = sorted(p for p in files if p.suffix.lower() in SUFFIXES)
    if not found:
        others = Counter(p.suffix.lower() or "no ending" for p in files).most_common(3)
        but = " but " + ", ".join(f"{count} of {end}" for end, count in others) if others else ""
        raise UserError(f"expected images ({', '.join(SUFFIXES)}) in {folder}, found none{but}")
    return found


def to_uint8(images: Tensor) -> np.ndarray:
    """(N, C, H, W) in [0, 1] to uint8 (N, H, W, C), rounded to nearest."""
    scaled = (images.detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return scaled.permute(0, 2, 3, 1).cpu().numpy()


def as_tensor(images: Sequence[np.ndarray]) -> Tensor:
    """uint8 images (H, W, C) of one size as a float32 tensor (N, C, H, W) in [0, 1]."""
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255


def to_pil(image: np.ndarray) -> Image.Image:
    """uint8 (H, W, C) with one, three or four channels as a Pillow image."""
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def save_png(path: Path | str, image: np.ndarray, *, text: Mapping[str, str] | None = None) -> None:
    """Write an image, uint8 (H, W, C) with one or three channels, as a PNG file. Missing folders are made.

    `text` are text chunks of the file by keyword, which `png_text` reads.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_png(Path(folder, "a.png"), np.zeros((2, 2, 3), np.uint8), text={"class": "Käfer", "seed": "0"})
        ...     png_text(Path(folder, "a.png"))
        {'class': 'Käfer', 'seed': '0'}
    """
    chunks = PngInfo()
    for keyword, value in (text or {}).items():
        chunks.add_text(keyword, value)
    with written_beside(path) as temporary:
        to_pil(image).save(temporary, format="PNG", pnginfo=chunks)


def png_text(path: Path | str) -> dict[str, str]:
    """The text chunks of a PNG file by keyword; empty for a file of another format. No image is a `UserError`."""
    with _opened(path) as image:
        return {keyword: str(value) for keyword, value in getattr(image, "text", {}).items()}


# Opening, and what goes wrong


@contextlib.contextmanager
def _opened(source: Path | str | Image.Image) -> Iterator[Image.Image]:
    """An opened image. Whatever goes wrong inside becomes a `UserError` that names it."""
    name = _name_of(source)
    if name.is_dir():
        raise UserError(f"expected an image, but {name} is a folder; give a file in it")
    try:
        if isinstance(source, Image.Image):
            _check_size(source)
            yield source
        else:
            with open_image(name) as image:
                yield image
    except FileNotFoundError:
        raise UserError(f"expected an image, but there is no file {name}") from None
    except (UserError, MemoryError):
        raise
    except Exception as error:
        # Pillow raises OSError, ValueError, SyntaxError, struct.error and more for damaged files.
        reason, remedy = fault_of(error, name)
        raise UserError(f"expected an image in {name}, but it cannot be read ({reason}); {remedy}") from error


def _name_of(source: Path | str | Image.Image) -> Path:
    given = (getattr(source, "filename", "") or "the image given") if isinstance(source, Image.Image) else source
    return Path(given)


def open_image(file: Path | str | IO[bytes]) -> Image.Image:
    """Open an image as Pillow does, which reads its header but not its pixels.

    Raises:
        Exception: too large, damaged or not an image. Pillow raises many kinds, which `fault_of` puts into words.
    """
    with _OPENING:
        # Pillow's own check warns of large images, or refuses them without saying their size.
        usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(file)
        finally:
            Image.MAX_IMAGE_PIXELS = usual
    try:
        _check_size(image)
    except TooLargeError:
        image.close()
        raise
    return image


class TooLargeError(ValueError):
    """An image of more than `LARGEST` pixels."""


def _check_size(image: Image.Image) -> None:
    pixels = image.width * image.height
    if pixels > LARGEST:
        raise TooLargeError(
            f"{image.width}×{image.height} = {pixels / 1e6:.0f} million pixels, "
            f"above the limit of {LARGEST / 1e6:.0f} million"
        )


_NO_IMAGES = (
    (rb"....ftyp(hei|hev|mif1|msf1)", "an HEIC image, which Pillow does not read", "save it as JPEG or PNG"),
    (rb"version https://git-lfs", "a Git LFS pointer in place of an image", "fetch it with `git lfs pull`"),
    (rb"%PDF", "a PDF document", "save its page as PNG"),
    (rb".*<svg[\s>]", "an SVG drawing", "export it as PNG"),
    (rb"\s*(<!doctype html|<html)", "a web page", "download the image itself"),
)


def fault_of(error: Exception, content: Path | bytes) -> tuple[str, str]:
    """Why an image could not be read, and the remedy, given what was raised and the file or the bytes.

    Example:
        >>> fault_of(OSError("cannot identify image file"), b"")
        ('an empty file', 'fetch it again')
    """
    if isinstance(error, TooLargeError):
        return str(error), "scale it down first"
    head = content[:1024] if isinstance(content, bytes) else b"?"
    if isinstance(content, Path):
        with contextlib.suppress(OSError), content.open("rb") as opened:
            head = opened.read(1024)
    if not head:
        return "an empty file", "fetch it again"
    if isinstance(error, Image.UnidentifiedImageError):
        # Pillow's own text for bytes that it does not know only names a buffer in memory.
        for start, reason, remedy in _NO_IMAGES:
            if re.match(start, head, re.DOTALL | re.IGNORECASE):
                return reason, remedy
        return "no format that Pillow knows", "save it as PNG or JPEG"
    if re.search("truncated|end of file", str(error), re.IGNORECASE):
        return "a truncated file", "fetch it again"
    if isinstance(error, ValueError):
        return str(error), "replace it"
    if isinstance(error, OSError) and error.errno:
        return error.strerror or type(error).__name__, "see that it can be read"
    return f"a damaged file: {error}", "fetch it again"


# Conversion to 8 bits, grey or RGB


def is_grey(image: Image.Image) -> bool:
    """Whether an image's mode has grey values alone."""
    return Image.getmodebase(image.mode) == "L"


def plain_pixels(image: Image.Image, *, channels: int, size: int | None = None) -> np.ndarray:
    """The pixels uint8 (H, W, C) that `read_image` gives, with its `channels` and `size`; errors as of `open_image`.

    Example:
        >>> plain_pixels(Image.new("RGB", (4, 2), (255, 0, 0)), channels=3, size=1).tolist()
        [[[255, 0, 0]]]
    """
    return _pixels(_upright(image), channels, size)


def _pixels(upright: Image.Image, channels: int, size: int | None) -> np.ndarray:
    if upright.has_transparency_data:
        upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), _rgba(upright))
    plain = upright.convert("L" if channels == 1 else "RGB")
    if size is not None:
        shorter = min(plain.size)
        # By whole pixels: a crop by half a pixel would blur an image that needs no resizing.
        left, top = ((length - shorter) // 2 for length in plain.size)
        # Cropped first: `resize(box=…, reducing_gap=…)` would mix in pixels from outside the box.
        plain = plain.crop((left, top, left + shorter, top + shorter))
        if shorter != size:
            plain = plain.resize((size, size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return np.array(plain, dtype=np.uint8).reshape(plain.height, plain.width, channels)


def _upright(image: Image.Image) -> Image.Image:
    """Decoded, turned upright, with 16-bit grey scaled to 8 bits (Pillow's own conversion clips at 255 instead)."""
    image.load()
    turn = _turn(image)
    if image.mode == "F":
        raise ValueError("floating-point values, which have no fixed range (save it with 8 or 16 bits)")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("grey values beyond 16 bits (save it with 8 or 16 bits)")
        clear = image.info.get("transparency")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        if isinstance(clear, int):  # the one value that stands for "nothing here"
            image.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return image if turn is None else image.transpose(turn)


def _turn(image: Image.Image) -> Image.Transpose | None:
    # Some cameras and editors write EXIF data that cannot be parsed.
    with contextlib.suppress(Exception):
        orientation = image.getexif().get(0x0112, 1)
        return Image.Transpose[_TURNS[orientation - 2]] if orientation >= 2 else None
    return None


def _frames(image: Image.Image) -> int:
    # Counting reads the later frames, which may be damaged. An MPO file is a photograph and its own previews.
    with contextlib.suppress(Exception):
        return 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    return 1


def _rgba(image: Image.Image) -> Image.Image:
    return (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
