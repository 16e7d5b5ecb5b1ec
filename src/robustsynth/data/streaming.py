"""Data sets that are decoded while a run goes on, from parquet shards: `ImageStream`, and its `StreamBatches`.

An epoch's order is a pure function of the seed and the epoch: the shards are shuffled, what they hold is cut into
substreams of equal length, and each substream is shuffled a block at a time. So a run resumes in mid-epoch by seeking:
earlier rows are skipped unread, at most a group of rows and a block of each substream are read again, and none of it is
decoded. `datasets`' own shuffle loses its buffer when a stream's state is restored, which would not be the same run.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from robustsynth.data.rows import SAMPLE, Contents, ImageData, Row, Source, Undecoded, decode, plan
from robustsynth.data.specs import described
from robustsynth.data.tables import Columns, number_names, parquet_rows, read_shards
from robustsynth.errors import UserError
from robustsynth.randomness import generator

SHARDS, BLOCKS = 11, 12
"""Keys of the random streams of an epoch's order of shards, and of a block's rows."""

BUFFER = 2048
"""Rows, still encoded, that a process shuffles within, over all substreams of a run."""


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of a parquet file, which is a path or an address that `datasets` reads."""

    file: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class ImageStream(ImageData):
    """Labelled images in shards, the complete files `pieces`. Of `images` there is only the shape to decode to."""

    pieces: tuple[Piece, ...]
    columns: Columns

    @property
    def image_size(self) -> int:
        """Side that images are decoded to."""
        return self.images.shape[1]

    @property
    def channels(self) -> int:
        """1 or 3."""
        return self.images.shape[3]

    def data(self, places: np.ndarray, *, image_size: int | None = None) -> ImageData:
        """The images at rising `places`, decoded. Files without any of them are not read."""
        side, first = image_size or self.image_size, 0
        images = np.empty((len(places), side, side, self.channels), dtype=np.uint8)
        for piece in self.pieces:
            wanted = {p - first: at for at, p in enumerate(places.tolist()) if first <= p < first + len(piece)}
            if wanted:
                for number, row in enumerate(parquet_rows(piece.file, self.columns, 0, max(wanted) + 1)):
                    if number in wanted:
                        images[wanted[number]] = decode(row, image_size=side, channels=self.channels)
            first += len(piece)
        facts = {field.name: getattr(self, field.name) for field in dataclasses.fields(ImageData)}
        return ImageData(**(facts | {"images": images, "labels": self.labels[places]}))

    def without(self, count: int) -> list[Piece]:
        """The pieces but for the first `count` rows."""
        return _cut(self.pieces, count, len(self))


def stream_of(source: Source, *, image_size: int | None = None) -> ImageStream:
    """A source's shards, undecoded: of each the footer and the labels are read, of the first also some images' headers.

    The images are decoded to `image_size`; by default to a known data set's own, else `usual_size` of the first images.

    Raises:
        UserError: it is not kept as parquet files, or labels are missing or out of range.
    """
    if source.shards is None:
        raise UserError(
            f"expected a folder of parquet files or a Hub name to stream from, got {source.label}; leave out --stream, "
            "or write the images in shards: datasets.load_dataset('imagefolder', …), then to_parquet"
        )
    shards = read_shards(source.shards())
    unlabelled = next((shard.file for shard in shards if shard.labels.null_count), None)
    if unlabelled is not None:
        raise UserError(f"{unlabelled}: expected a label for each image, got rows without")
    columns = shards[0].columns
    labels = np.concatenate([shard.labels.to_numpy() for shard in shards]).astype(np.int64)
    classes = columns.classes or number_names(labels.tolist())
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(classes):
        raise UserError(f"{source.label}: expected images with labels from 0 to {len(classes) - 1}, got others or none")
    pieces = tuple(Piece(shard.file, 0, len(shard.labels)) for shard in shards)
    first = next(piece for piece in pieces if len(piece))
    sample = Contents(classes, SAMPLE, lambda: parquet_rows(first.file, columns, 0, min(SAMPLE, len(first))))
    spec, side, channels = plan(sample, source.spec, image_size, None)
    images: Any = Undecoded((len(labels), side, side, channels))
    facts = described(spec, source=source.label, channels=channels)
    return ImageStream(images, labels, classes, **facts, pieces=pieces, columns=columns)


def substream(pieces: Sequence[Piece], *, seed: int, epoch: int, count: int, number: int) -> list[Piece]:
    """What substream `number` of `count` reads in an epoch: a part of the shuffled shards, as long as every other's."""
    order = torch.randperm(len(pieces), generator=generator(seed, SHARDS, epoch)).tolist()
    length = sum(map(len, pieces)) // count
    return _cut([pieces[i] for i in order], number * length, (number + 1) * length)


def _cut(pieces: Sequence[Piece], start: int, stop: int) -> list[Piece]:
    """Rows `start` to `stop` of pieces laid end to end."""
    found, first = [], 0
    for piece in pieces:
        low, high = max(start - first, 0), min(stop - first, len(piece))
        if low < high:
            found.append(Piece(piece.file, piece.start + low, piece.start + high))
        first += len(piece)
    return found


def shuffled_rows(
    pieces: Sequence[Piece], columns: Columns, *, block: int, key: Sequence[int], first: int
) -> Iterator[Row]:
    """The rows of pieces from number `first` on, shuffled within blocks of `block` by a generator of `key` for each."""
    number = first // block
    left = _cut(pieces, number * block, sum(map(len, pieces)))
    parts = (parquet_rows(piece.file, columns, piece.start, piece.stop) for piece in left)
    rows = itertools.chain.from_iterable(parts)
    skipped = first - number * block
    while held := list(itertools.islice(rows, block)):
        order = torch.randperm(len(held), generator=generator(*key, number)).tolist()
        yield from (held[i] for i in order[skipped:])
        number, skipped = number + 1, 0


@dataclass(frozen=True)
class Failed:
    """A batch that could not be read; an error that a decoder raised would have its traceback in the message."""

    reason: str


@dataclass(eq=False)
class StreamBatches(IterableDataset["tuple[np.ndarray, np.ndarray] | Failed"]):
    """The decoded rows of some substreams, a step at a time: images (parts, substreams, each, H, W, C) and labels.

    What cannot be read ends them with a `Failed`. A `torch.utils.data.DataLoader` splits the substreams among its
    workers; worker after worker, what they give for a step is to be put together along the substreams.

    Of `substreams` in all, those of the numbers `mine` are read; `each` rows of one are in each of the `parts` of a
    batch. `first` steps of the epoch are done.
    """

    stream: ImageStream
    pieces: Sequence[Piece]
    seed: int
    epoch: int
    first: int
    substreams: int
    mine: Sequence[int]
    each: int
    parts: int

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray] | Failed]:
        try:
            yield from self._batches()
        except UserError as error:
            yield Failed(str(error))
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            yield Failed(f"expected to read the shards of the stream, got {type(error).__name__}: {reason}")

    def _batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        worker = get_worker_info()
        mine = self.mine if worker is None else np.array_split(self.mine, worker.num_workers)[worker.id].tolist()
        rows = [self._rows(number) for number in mine]
        side, channels = self.stream.image_size, self.stream.channels
        for _ in range(self.first, sum(map(len, self.pieces)) // (self.parts * self.each * self.substreams)):
            images = np.empty((self.parts, len(mine), self.each, side, side, channels), dtype=np.uint8)
            labels = np.empty(images.shape[:3], dtype=np.int64)
            for place in np.ndindex(labels.shape):
                row = next(rows[place[1]])
                images[place] = decode(row, image_size=side, channels=channels)
                labels[place] = row.label
            yield images, labels

    def _rows(self, number: int) -> Iterator[Row]:
        pieces = substream(self.pieces, seed=self.seed, epoch=self.epoch, count=self.substreams, number=number)
        block, key = max(1, BUFFER // self.substreams), (self.seed, BLOCKS, self.epoch, number)
        return shuffled_rows(
            pieces, self.stream.columns, block=block, key=key, first=self.first * self.parts * self.each
        )
