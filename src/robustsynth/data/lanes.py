"""An epoch of a stream: its shards cut into lanes, read a block at a time, shuffled, decoded in workers.

    ImageStream ─ lane_pieces ─ lane_rows ─ encoded rows, shuffled ─ decoded by `LaneBatches`

An epoch's order is a pure function of the seed and the epoch: the shards are shuffled, what they hold is cut into
`lanes` of equal length, and each lane is shuffled a block at a time. So a run goes on in mid-epoch by seeking: shards
before the place are skipped unread, at most one shard and one block a lane are read again, and none of it is decoded.
The buffer of `datasets`' own shuffle is lost when a stream's state is restored, which would not be the same run.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from robustsynth.data.decode import decode
from robustsynth.data.sources import Row
from robustsynth.data.streaming import ImageStream, Piece, piece_rows
from robustsynth.data.tables import Columns
from robustsynth.errors import UserError
from robustsynth.randomness import generator

SHARDS, BLOCKS = 11, 12
"""Keys of the random streams of an epoch's order of shards, and of a block's rows."""

BUFFER = 2048
"""Rows, still encoded, that a process shuffles within, over all lanes of a run."""


def lane_pieces(pieces: Sequence[Piece], *, seed: int, epoch: int, lanes: int, lane: int) -> list[Piece]:
    """What lane `lane` of `lanes` reads in an epoch: its run of the shuffled shards, as long as every other's.

    Example:
        >>> lane_pieces([Piece("a", 0, 5), Piece("b", 0, 5)], seed=0, epoch=0, lanes=2, lane=1)
        [Piece(file='a', start=0, stop=5)]
    """
    order = torch.randperm(len(pieces), generator=generator(seed, SHARDS, epoch)).tolist()
    length = sum(map(len, pieces)) // lanes
    return _cut([pieces[i] for i in order], lane * length, (lane + 1) * length)


def _cut(pieces: Sequence[Piece], start: int, stop: int) -> list[Piece]:
    """Rows `start` to `stop` of pieces laid end to end."""
    found, first = [], 0
    for piece in pieces:
        low, high = max(start - first, 0), min(stop - first, len(piece))
        if low < high:
            found.append(Piece(piece.file, piece.start + low, piece.start + high))
        first += len(piece)
    return found


def lane_rows(
    pieces: Sequence[Piece], columns: Columns, *, block: int, key: Sequence[int], first: int
) -> Iterator[Row]:
    """A lane's rows from number `first` on, shuffled within blocks of `block` by generators of `key` and the block."""
    number = first // block
    left = _cut(pieces, number * block, sum(map(len, pieces)))
    rows = itertools.chain.from_iterable(piece_rows(piece, columns) for piece in left)
    skipped = first - number * block
    while held := list(itertools.islice(rows, block)):
        order = torch.randperm(len(held), generator=generator(*key, number)).tolist()
        yield from (held[i] for i in order[skipped:])
        number, skipped = number + 1, 0


@dataclass(frozen=True)
class Failed:
    """Stands for a batch that could not be read; raised by a decoder, an error would come with its traceback's text."""

    reason: str


class LaneBatches(IterableDataset["tuple[np.ndarray, np.ndarray] | Failed"]):
    """The rows of some lanes, decoded, a step at a time: images (parts, lanes, each, H, W, C) and labels.

    What cannot be read ends them with a `Failed`.

    A `torch.utils.data.DataLoader` splits the lanes among its workers; worker after worker, what they give for a step
    is to be put together along the lanes.

    Args:
        stream: its columns, sides and classes.
        pieces: what is trained on.
        seed: of the run.
        epoch: number of the epoch.
        first: steps of it that are done.
        lanes: how many there are in all.
        mine: those wanted.
        each: rows of each lane in each part of a batch.
        parts: parts of a batch.
    """

    def __init__(
        self,
        stream: ImageStream,
        pieces: Sequence[Piece],
        *,
        seed: int,
        epoch: int,
        first: int,
        lanes: int,
        mine: Sequence[int],
        each: int,
        parts: int,
    ) -> None:
        self.columns, self.size, self.channels = stream.columns, stream.image_size, stream.channels
        self.classes = len(stream.classes)
        self.pieces, self.seed, self.epoch, self.first = tuple(pieces), seed, epoch, first
        self.lanes, self.mine, self.each, self.parts = lanes, list(mine), each, parts

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
        taken = self.parts * self.each
        rows = [self._rows(lane, self.first * taken) for lane in mine]
        for _ in range(self.first, sum(map(len, self.pieces)) // (taken * self.lanes)):
            images = np.empty((self.parts, len(mine), self.each, self.size, self.size, self.channels), dtype=np.uint8)
            labels = np.empty(images.shape[:3], dtype=np.int64)
            for place in np.ndindex(labels.shape):
                row = next(rows[place[1]])
                images[place] = decode(row, image_size=self.size, channels=self.channels)
                labels[place] = row.label
            yield images, labels

    def _rows(self, lane: int, first: int) -> Iterator[Row]:
        pieces = lane_pieces(self.pieces, seed=self.seed, epoch=self.epoch, lanes=self.lanes, lane=lane)
        block = max(1, BUFFER // self.lanes)
        return lane_rows(pieces, self.columns, block=block, key=(self.seed, BLOCKS, self.epoch, lane), first=first)
