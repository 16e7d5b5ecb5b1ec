"""Data sets that are not decoded beforehand: parquet shards, which `datasets` reads while a run goes on.

path or name ─ open_stream ─ ImageStream ─ an epoch's batches (`robustsynth.data.lanes`)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from robustsynth.data.decode import decode, read_header, usual_size
from robustsynth.data.loading import ImageData
from robustsynth.data.sources import Row
from robustsynth.data.specs import DATASETS, DatasetSpec, recognised, statistics
from robustsynth.data.splits import choose_splits
from robustsynth.data.tables import Columns, files_of_split, number_names, picture_columns, streamed, table_rows
from robustsynth.errors import UserError


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


def piece_rows(piece: Piece, columns: Columns) -> Iterator[Row]:
    """The rows of a piece, encoded. The file is read from its beginning, for `datasets` to find the first."""
    table = streamed(piece.file).skip(piece.start).take(len(piece))
    yield from table_rows(table, columns, lambda index: f"{piece.file}, row {piece.start + index}")


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
