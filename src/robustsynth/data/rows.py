"""Labelled images: what readers give (`Source`, `Contents`, `Row`), decoding, the result (`ImageData`), and splits."""

from __future__ import annotations

import contextlib
import io
import itertools
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from robustsynth.data.specs import DatasetSpec, recognised
from robustsynth.errors import UserError
from robustsynth.images import fault_of, is_grey, open_image, plain_pixels

Place = Path | str | list[Path]
"""Where data are: a file or folder that exists; a text that is none, such as a name; or several folders."""

SAMPLE = 32
"""Images by whose headers a known data set is recognised."""

_USUAL_SIZES = (224, 128, 64, 32)

VALIDATION_NAMES = ("validation", "val", "valid")
# What people call the images that are not trained on; where one is missing another stands in for it.
EVALUATION_NAMES = ("test", *VALIDATION_NAMES)
SPLIT_NAMES = ("train", *EVALUATION_NAMES)


@dataclass(frozen=True)
class Row:
    """One encoded image: its bytes or its file, its label, and what to call it in a message."""

    where: str
    content: bytes | Path | None
    label: int | None


@dataclass(frozen=True)
class Contents:
    """An opened source: `rows` gives the same `count` rows, in the same order, each time it is called.

    Of a part of a larger data set, `part_of` names all classes, by which a known data set is recognised.
    """

    classes: tuple[str, ...]
    count: int
    rows: Callable[[], Iterator[Row]]
    part_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """What a reader gives: a split of a data set that was found, and not opened yet.

    Args:
        label: what to call it, without any absolute path.
        identity: plain values that change whenever the images may have changed. They name the folder in the cache.
        open: reads names and counts; for the Hub, this is what downloads.
        spec: the known data set that it was asked for as.
        shards: finds its parquet files, paths or addresses, if it consists of such; it can be streamed then.
    """

    label: str
    identity: list[Any]
    open: Callable[[], Contents]
    spec: DatasetSpec | None = None
    shards: Callable[[], list[str]] | None = None


@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images.

    Args:
        images: uint8, shape (N,H,W,C), a memory map that cannot be written to: copy a batch before handing it
            to `torch.from_numpy`.
        labels: int64, shape (N,).
        classes: names in label order.
        name: the known data set's name, otherwise that of the folder, file or Hub data set.
        licence: of the known data set, otherwise "not stated".
        source: where it came from: the name of the folder or file, or the Hub id; never an absolute path.
        mean, std: per channel, in units of [0, 1].
    """

    images: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    name: str
    licence: str
    source: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Undecoded:
    """Stands for images that are not decoded: their `shape` (N, H, W, C)."""

    shape: tuple[int, int, int, int]

    def __len__(self) -> int:
        return self.shape[0]


def stamps(files: Sequence[Path], root: Path) -> list[list[Any]]:
    """Name, size and time of change of each file: enough to notice that a data set has changed."""
    found = [(file.relative_to(root).as_posix(), file.stat()) for file in files]
    return [[name, status.st_size, status.st_mtime_ns] for name, status in found]


def read_header(row: Row) -> tuple[tuple[int, int], int]:
    """An image's (width, height), and its 1 or 3 channels, without decoding it; raises as `decode`."""
    with _opened(row) as image:
        return image.size, 1 if is_grey(image) else 3


def usual_size(sizes: Sequence[tuple[int, int]]) -> int:
    """The side at which to store images of an unknown data set.

    Theirs, if all are squares of one size; otherwise the largest of 224, 128, 64 and 32 that the shorter sides reach
    in the median, and 32 at least.

    Example:
        >>> usual_size([(28, 28), (28, 28)]), usual_size([(500, 375), (320, 240), (100, 80)])
        (28, 224)
    """
    if len(set(sizes)) == 1 and sizes[0][0] == sizes[0][1]:
        return sizes[0][0]
    median = statistics.median(min(size) for size in sizes)
    return next((size for size in _USUAL_SIZES if size <= median), _USUAL_SIZES[-1])


def plan(
    contents: Contents, spec: DatasetSpec | None, image_size: int | None, channels: int | None
) -> tuple[DatasetSpec | None, int, int]:
    """Which known data set this is, if any, and the side and channels to store its images with, where none are given.

    The first images decide; of an unknown data set all of them. `spec` is the known data set that was asked for.
    """
    sizes, native = _shapes(itertools.islice(contents.rows(), SAMPLE))
    spec = spec or recognised(contents.part_of or contents.classes, channels=native, sizes=sizes)
    if spec is not None:
        return spec, image_size or spec.image_size, channels or spec.channels
    if image_size is None or channels is None:
        sizes, native = _shapes(contents.rows())
    return None, image_size or usual_size(sizes), channels or native


def _shapes(rows: Iterable[Row]) -> tuple[list[tuple[int, int]], int]:
    """The sizes of the images that can be opened, and their channels; the others are reported when they are decoded."""
    found, errors = list[tuple[tuple[int, int], int]](), list[UserError]()
    for row in rows:
        try:
            found.append(read_header(row))
        except UserError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return [size for size, _ in found], max(channels for _, channels in found)


def decode(row: Row, *, image_size: int, channels: int) -> np.ndarray:
    """Decode an image to a uint8 array of shape (image_size, image_size, channels).

    It is turned upright by its EXIF tag, laid on white where it is transparent, and its central square is
    resized to `image_size` with antialiasing; an image that has this size already keeps its exact pixels.

    Raises:
        UserError: the image is missing, damaged, or has no fixed range of values.

    Example:
        >>> buffer = io.BytesIO()
        >>> Image.new("RGB", (4, 2), (255, 0, 0)).save(buffer, "PNG")
        >>> decode(Row("red.png", buffer.getvalue(), 0), image_size=1, channels=3).tolist()
        [[[255, 0, 0]]]
    """
    with _opened(row) as opened:
        return plain_pixels(opened, channels=channels, size=image_size)


@contextlib.contextmanager
def _opened(row: Row) -> Iterator[Image.Image]:
    """A row's image; what goes wrong with it is a `UserError`."""
    try:
        if row.content is None:
            raise ValueError("nothing: the cell is empty")
        with open_image(io.BytesIO(row.content) if isinstance(row.content, bytes) else row.content) as image:
            yield image
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises OSError, ValueError, SyntaxError, struct.error and more.
        reason = str(error) if row.content is None else fault_of(error, row.content)[0]
        raise UserError(
            f"{row.where}: expected an image that can be decoded, got {reason}. Replace it or take it out of the data."
        ) from error


def choose_splits(available: Sequence[str], wanted: str, *, where: str) -> tuple[str, ...]:
    """The splits among `available` that answer to `wanted`, which may be ``"all"``.

    Raises:
        UserError: there is none.

    Example:
        >>> choose_splits(["train", "val"], "test", where="pets")
        ('val',)
        >>> choose_splits(["test", "train"], "all", where="pets")
        ('train', 'test')
    """
    ordered = sorted(available, key=lambda name: (name != "train", name))
    if wanted == "all" and ordered:
        return tuple(ordered)
    stand_ins = VALIDATION_NAMES if wanted == "test" else (*VALIDATION_NAMES, "test")
    for name in (wanted, *(stand_ins if wanted in EVALUATION_NAMES else ())):
        if name in available:
            return (name,)
    listed = ", ".join(map(repr, ordered)) or "none"
    raise UserError(f"{where} has no split {wanted!r}; it has: {listed}. Ask for one of these, or for 'all'.")


def hold_out(count_total: int, held: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Split ``range(count_total)`` at random into `held` indices held out and the others kept.

    The shuffle is `torch.randperm` with a generator of its own, so that a seed means the same split for ever.

    They are int64 arrays of shapes (held,) and (count_total - held,). A `UserError` refuses a `held` out of range.

    Example:
        >>> held, kept = hold_out(5, 2)
        >>> len(held), sorted([*held.tolist(), *kept.tolist()])
        (2, [0, 1, 2, 3, 4])
    """
    if not 0 <= held <= count_total:
        raise UserError(f"expected between 0 and {count_total} images to hold out, got {held}.")
    import torch

    order = torch.randperm(count_total, generator=torch.Generator().manual_seed(seed)).numpy()
    return order[:held].copy(), order[held:].copy()
