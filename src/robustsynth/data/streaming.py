"""Data sets that are not decoded beforehand: read from parquet shards through `datasets` while a run goes on.

    path or name ─ open_stream ─ ImageStream ─ lane_rows ─ encoded rows, shuffled ─ decoded by `LaneBatches` in workers

An epoch's order is a pure function of the seed and the epoch: the shards are shuffled, what they hold is cut into
`lanes` of equal length, and each lane is shuffled a block at a time. So a run goes on in mid-epoch by seeking: shards
before the place are skipped unread, at most one shard and one block a lane are read again, and none of it is decoded.
The buffer of `datasets`' own shuffle is lost when a stream's state is restored, which would not be the same run.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from robustsynth.data.decode import decode, read_header, usual_size
from robustsynth.data.loading import ImageData
from robustsynth.data.sources import Row
from robustsynth.data.specs import DATASETS, DatasetSpec, recognised, statistics
from robustsynth.data.splits import choose_splits
from robustsynth.data.tables import Columns, files_of_split, number_names, picture_columns, streamed, table_rows
from robustsynth.errors import UserError
from robustsynth.randomness import generator

SHARDS, BLOCKS = 11, 12
"""Keys of the random streams of an epoch's order of shards, and of a block's rows."""

BUFFER = 2048
"""Rows, still encoded, that a process shuffles within, over all lanes of a run."""


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of a parquet file, which is a path or an address that `datasets` reads."""

    file: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class Undecoded:
    """Stands for images that nobody has decoded: their `shape` (N, H, W, C)."""

    shape: tuple[int, int, int, int]

    def __len__(self) -> int:
        return self.shape[0]


@dataclass(frozen=True, eq=False)
class ImageStream:
    """Labelled pictures in shards.

    Attributes:
        pieces: the files, whole, in the order of their names.
        labels: int64 (N,), of all rows, file after file.
        columns: which hold the picture and the label.
        image_size: side that pictures are decoded to.
        channels: 1 or 3.
        classes, name, licence, source, mean, std: as of `ImageData`.
    """

    pieces: tuple[Piece, ...]
    labels: np.ndarray
    columns: Columns
    image_size: int
    channels: int
    classes: tuple[str, ...]
    name: str
    licence: str
    source: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def data(self, places: np.ndarray | None = None, *, image_size: int | None = None) -> ImageData:
        """The images at rising `places`, decoded; all of them, undecoded, where None.

        Files are read up to the last place that is wanted in them, and not at all where there is none.
        """
        if places is None:
            shape = (len(self), self.image_size, self.image_size, self.channels)
            images: Any = Undecoded(shape)
            return self._with(images, self.labels)
        side = image_size or self.image_size
        images = np.empty((len(places), side, side, self.channels), dtype=np.uint8)
        at = first = 0
        for piece in self.pieces:
            wanted = places[(places >= first) & (places < first + len(piece))] - first
            if len(wanted):
                rows = piece_rows(Piece(piece.file, 0, int(wanted[-1]) + 1), self.columns)
                chosen = set(wanted.tolist())
                for number, row in enumerate(rows):
                    if number in chosen:
                        images[at] = decode(row, image_size=side, channels=self.channels)
                        at += 1
            first += len(piece)
        return self._with(images, self.labels[places])

    def _with(self, images: Any, labels: np.ndarray) -> ImageData:
        return ImageData(
            images, labels, self.classes, self.name, self.licence, self.source, tuple(self.mean), tuple(self.std)
        )

    def without(self, count: int) -> tuple[Piece, ...]:
        """The pieces but for the first `count` rows."""
        left: list[Piece] = []
        for piece in self.pieces:
            skipped = min(count, len(piece))
            count -= skipped
            if skipped < len(piece):
                left.append(Piece(piece.file, piece.start + skipped, piece.stop))
        return tuple(left)


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


def piece_rows(piece: Piece, columns: Columns) -> Iterator[Row]:
    """The rows of a piece, encoded. The file is read from its beginning, for `datasets` to find the first."""
    table = streamed(piece.file).skip(piece.start).take(len(piece))
    yield from table_rows(table, columns, lambda index: f"{piece.file}, row {piece.start + index}")


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


def open_stream(
    path_or_name: str | Path,
    split: str = "train",
    *,
    image_size: int | None = None,
    announce: Callable[[str], object] = print,
) -> ImageStream:
    """Find the shards of a folder of parquet files, of one such file, or of a data set on the Hub; read no picture.

    Of each shard the footer and the column of labels are read.

    Args:
        path_or_name: as for `load_data`.
        split: likewise.
        image_size: side to decode to; by default a known data set's own, else as `usual_size` has it by the first.
        announce: told before the Hub is asked.

    Raises:
        UserError: no parquet files, or not this split, or labels out of range.
    """
    spec = DATASETS.get(str(path_or_name))
    path = Path(path_or_name).expanduser()
    if path.exists():
        found = [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix.lower() == ".parquet")
        if not found or found[0].suffix.lower() != ".parquet":
            raise UserError(
                f"expected a folder of parquet files or a Hub name to stream from, got {path}; leave out --stream, or "
                "write the pictures in shards: datasets.load_dataset('imagefolder', …), then to_parquet"
            )
        files, label = [str(p) for p in files_of_split(found, split, root=path)[0]], path.resolve().name
    else:
        announce(f"asking the Hugging Face Hub for {path_or_name}")
        files, label = _on_hub(spec, str(path_or_name), split), spec.hub_id if spec else str(path_or_name)
    with ThreadPoolExecutor(16) as pool:
        read = list(pool.map(_footer, files))
    columns = read[0][0]
    differing = next((file for file, each in zip(files, read, strict=True) if each[0] != columns), None)
    if differing is not None:
        raise UserError(f"{differing}: expected the columns and classes of {files[0]}, got others")
    labels = np.concatenate([each[1] for each in read])
    classes = columns.classes or number_names(labels.tolist())
    if len(labels) == 0 or labels.min() < 0 or labels.max() >= len(classes):
        raise UserError(f"{label}: expected pictures with labels from 0 to {len(classes) - 1}, got others or none")
    pieces = tuple(Piece(file, 0, len(each[1])) for file, each in zip(files, read, strict=True))
    first = next(piece for piece in pieces if len(piece))
    headers = [read_header(row) for row in piece_rows(Piece(first.file, 0, min(32, len(first))), columns)]
    channels, sizes = max(header.channels for header in headers), [header.size for header in headers]
    spec = spec or recognised(classes, channels=channels, sizes=sizes)
    side = image_size or (spec.image_size if spec else usual_size(sizes))
    channels = spec.channels if spec else channels
    mean, std = statistics(spec, channels)
    name, licence = (spec.name, spec.licence) if spec else (label.rsplit("/")[-1], "not stated")
    return ImageStream(pieces, labels, columns, side, channels, classes, name, licence, label, mean, std)


def _footer(file: str) -> tuple[Columns, np.ndarray]:
    """A shard's columns and labels."""
    import datasets
    import fsspec
    import pyarrow.parquet

    try:
        with fsspec.open(file, "rb") as opened, pyarrow.parquet.ParquetFile(opened) as shard:
            columns = picture_columns(datasets.Features.from_arrow_schema(shard.schema_arrow), where=file)
            labels = shard.read(columns=[columns.label])[columns.label].to_numpy()
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{file}: expected a parquet file, got one that cannot be read ({error})") from error
    if not np.issubdtype(labels.dtype, np.integer):  # Missing ones make it floats.
        raise UserError(f"{file}: expected a label for each picture, got rows without")
    return columns, labels.astype(np.int64)


def _on_hub(spec: DatasetSpec | None, name: str, split: str) -> list[str]:
    """The addresses of a split's parquet files."""
    import datasets

    hub_id, options = (spec.hub_id, dict(spec.hub_options)) if spec else (name, {})
    try:
        files: dict[str, list[str]] = dict(datasets.load_dataset_builder(hub_id, **options).config.data_files or {})
    except Exception as error:  # As when a whole data set is loaded: a dozen types, one remedy.
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"expected to find {name!r} on the Hugging Face Hub, got {type(error).__name__}: {reason}. "
            "Check the name and the network, or give a folder of parquet files"
        ) from error
    wanted = spec.splits.get(split, split) if spec else split
    chosen = [str(f) for n in choose_splits(list(files), wanted, where=f"{name} on the Hub") for f in files[n]]
    if not chosen or not all(file.endswith(".parquet") for file in chosen):
        raise UserError(f"expected {name!r} to be kept as parquet files on the Hub, got others; leave out --stream")
    return chosen
