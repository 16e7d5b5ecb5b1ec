"""Readers of tables: parquet files as `datasets` writes them, and data sets on the Hugging Face Hub."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustsynth.data.rows import SPLIT_NAMES, Contents, Place, Row, Source, choose_splits, stamps
from robustsynth.data.specs import DATASETS
from robustsynth.errors import UserError
from robustsynth.files import cache_folder

_MOST_CLASSES = 1_000_000
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-(?P<shards>\d{5})")
_BATCH = 32  # rows that are read at a time


@dataclass(frozen=True)
class Columns:
    """Which columns hold the image and the label; `classes` is None where labels are bare integers."""

    image: str
    label: str
    classes: tuple[str, ...] | None


@dataclass(frozen=True)
class Shard:
    """A parquet file, a path or an address: its columns and its labels, an array of pyarrow."""

    file: str
    columns: Columns
    labels: Any


def find_parquet(place: Place, split: str, announce: Callable[[str], object]) -> Source | None:
    """The parquet files of one split: a single one, or those of a folder."""
    if not isinstance(place, Path):
        return None
    inside = sorted(place.iterdir()) if place.is_dir() else [place]
    files = [file for file in inside if file.suffix.lower() == ".parquet" and file.is_file()]
    if not files:
        return None
    by_split: dict[str, list[Path]] = {}
    for file in files:
        shard = _SHARD.fullmatch(file.stem)
        # One file with a name of its own is like a folder without split folders: all of it is "train".
        alone = "train" if place == file and file.stem not in SPLIT_NAMES else file.stem
        by_split.setdefault(shard["split"] if shard else alone, []).append(file)
    chosen = choose_splits(list(by_split), split, where=str(place))
    wanted = [file for name in chosen for file in by_split[name]]
    for file in wanted:
        shard = _SHARD.fullmatch(file.stem)
        if shard and place.is_dir() and len(by_split[shard["split"]]) != int(shard["shards"]):
            raise UserError(
                f"{place}: expected {int(shard['shards'])} files for split {shard['split']!r}, as {file.name} says, "
                f"got {len(by_split[shard['split']])}. Fetch the missing ones."
            )
    # All files, not just this split's: bare integer labels are counted over all of them.
    identity = ["parquet", str(place.resolve()), list(chosen), stamps(files, files[0].parent)]
    paths, every = list(map(str, wanted)), list(map(str, files))
    return Source(place.resolve().name, identity, lambda: _opened(paths, every), shards=lambda: paths)


def _opened(wanted: list[str], every: list[str]) -> Contents:
    shards = read_shards(wanted)
    columns, counts = shards[0].columns, [len(shard.labels) for shard in shards]
    classes = columns.classes or number_names(
        label for file in every for shard in read_shards([file]) for label in shard.labels.to_pylist()
    )

    def rows() -> Iterator[Row]:
        for file, count in zip(wanted, counts, strict=True):
            yield from parquet_rows(file, columns, 0, count)

    return Contents(classes, sum(counts), rows)


def read_shards(files: Sequence[str]) -> list[Shard]:
    """The columns and labels of one or more parquet files, paths or addresses, which must be alike."""
    with ThreadPoolExecutor(16) as pool:
        shards = list(pool.map(_read_shard, files))
    first = shards[0]
    for shard in shards:
        if shard.columns != first.columns:
            raise UserError(
                f"{shard.file}: expected the columns and classes of {first.file} ({first.columns}), got "
                f"{shard.columns}. Keep different data sets in different folders."
            )
    return shards


def _read_shard(file: str) -> Shard:
    import datasets

    try:
        with _parquet_file(file) as table:
            columns = image_columns(datasets.Features.from_arrow_schema(table.schema_arrow), where=file)
            return Shard(file, columns, table.read(columns=[columns.label])[columns.label])
    except UserError:
        raise
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise UserError(
            f"{file}: expected a parquet file, got one that cannot be read ({_reason(error)}). Fetch it again."
        ) from error


@contextlib.contextmanager
def _parquet_file(file: str) -> Iterator[Any]:
    import pyarrow.parquet
    from datasets.utils.file_utils import xopen

    # `xopen` tries again where a connection fails, for minutes; but it takes some signs in a path for an address's.
    with (
        Path(file).open("rb") if Path(file).exists() else xopen(file, "rb") as opened,
        pyarrow.parquet.ParquetFile(opened) as table,
    ):
        yield table


def parquet_rows(file: str, columns: Columns, start: int, stop: int) -> Iterator[Row]:
    """Rows `start` to `stop` of a parquet file, with the images still encoded; groups of rows before are not read."""

    def batches() -> Iterator[Any]:
        with _parquet_file(file) as table:
            groups, before = list(range(table.num_row_groups)), start
            while groups and before >= table.metadata.row_group(groups[0]).num_rows:
                before -= table.metadata.row_group(groups.pop(0)).num_rows
            # In one thread: a process that decodes may have been forked from one that had several.
            names = [columns.image, columns.label]
            for batch in table.iter_batches(_BATCH, row_groups=groups, columns=names, use_threads=False):
                yield batch.slice(min(before, len(batch)))
                before = max(0, before - len(batch))

    return itertools.islice(encoded_rows(batches(), columns, where=file, first=start), stop - start)


def encoded_rows(tables: Iterable[Any], columns: Columns, *, where: str, first: int = 0) -> Iterator[Row]:
    """The rows of pyarrow's tables, one after the other, with the images still encoded; numbered from `first` on."""
    number = first
    try:
        for table in tables:
            for cell, label in zip(table[columns.image].to_pylist(), table[columns.label].to_pylist(), strict=True):
                cell = cell or {}
                content = cell.get("bytes") or (Path(cell["path"]) if cell.get("path") else None)
                yield Row(f"{where}, row {number}", content, label)
                number += 1
    except (OSError, ValueError) as error:
        raise UserError(
            f"{where}, row {number}: expected a row, got damaged data ({_reason(error)}). Fetch it again."
        ) from error


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]  # pyarrow's errors have several lines


def image_columns(features: Mapping[str, Any], *, where: str) -> Columns:
    """Find the image's and the label's column by their types, since their names differ between data sets.

    Of several, the one called ``image`` or ``label`` is taken; failing that, the label with most classes (the
    fine ones of CIFAR-100).

    Example:
        >>> import datasets
        >>> features = {"img": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
        >>> image_columns(features, where="pets")
        Columns(image='img', label='kind', classes=('cat', 'dog'))
    """
    import datasets

    def is_image(feature: Any) -> bool:
        # The second form is what an Image becomes when other programs rewrite the file without its type.
        return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})

    listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items()) or "none"
    images = [name for name, feature in features.items() if is_image(feature)]
    named = {name: f.names for name, f in features.items() if isinstance(f, datasets.ClassLabel) and f.names}
    values = {name: f.dtype for name, f in features.items() if isinstance(f, datasets.Value)}
    numbers = [name for name, kind in values.items() if re.fullmatch(r"u?int\d+", kind)]
    image = "image" if "image" in images else images[0] if len(images) == 1 else None
    label = next((name for name in ("label", "labels") if name in named or name in numbers), None)
    if label is None and named:
        label = max(named, key=lambda name: len(named[name]))
    elif label is None and len(numbers) == 1:
        label = numbers[0]
    if image is None or label is None:
        missing = "image (type Image)" if image is None else "label (type ClassLabel, or an integer)"
        raise UserError(
            f"{where}: expected one column with the {missing}, got these columns: {listed}. "
            "Rename the columns that are meant to 'image' and 'label', or write the table with `datasets`."
        )
    return Columns(image, label, tuple(named[label]) if label in named else None)


def number_names(labels: Iterable[int | None]) -> tuple[str, ...]:
    """Names for bare integer labels: every number from 0 to the largest."""
    largest = max((label for label in labels if label is not None), default=-1)
    if largest >= _MOST_CLASSES:
        raise UserError(
            f"expected labels that number the classes from 0 on, at most {_MOST_CLASSES - 1}, got {largest}. "
            "Number the classes 0, 1, 2 and so on, or write the table with `datasets`."
        )
    return tuple(map(str, range(1 + largest)))


def find_on_hub(place: Place, split: str, announce: Callable[[str], object]) -> Source | None:
    """A data set of the Hub, by its name in `DATASETS` or its ``owner/name``.

    Nothing is asked of the Hub until the source is opened, so that what has been decoded before loads without a
    network; a data set that changes on the Hub is therefore not noticed.
    """
    spec = next((spec for spec in DATASETS.values() if place in (spec.name, spec.hub_id)), None)
    if not isinstance(place, str) or not (spec or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", place)):
        return None
    hub_id, options = (spec.hub_id, dict(spec.hub_options)) if spec else (place, {})
    wanted = spec.splits.get(split, split) if spec else split
    where = f"{hub_id} on the Hugging Face Hub"

    def asked(what: str, ask: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        announce(what)
        try:
            return dict(ask())
        # No network, no such data set, no access, a loading script: `datasets` raises a dozen types, with one remedy.
        except Exception as error:
            raise UserError(
                f"expected to load {hub_id!r} from the Hugging Face Hub, got {type(error).__name__}: {_reason(error)}. "
                "No local file or folder of that name exists. Check the name and the network, or give a folder of "
                "parquet files or of class folders."
            ) from error

    def open_hub() -> Contents:
        import datasets

        cache = str(cache_folder("datasets"))
        tables = asked(
            f"downloading {hub_id} from the Hugging Face Hub",
            lambda: datasets.load_dataset(hub_id, **options, cache_dir=cache),
        )
        chosen = choose_splits(list(tables), wanted, where=where)
        columns = image_columns(tables[chosen[0]].features, where=hub_id)
        classes = columns.classes or number_names(
            label for table in tables.values() for label in table.unique(columns.label)
        )

        def rows() -> Iterator[Row]:
            for name in chosen:
                table = tables[name].select_columns([columns.image, columns.label]).with_format("arrow")
                yield from encoded_rows(table.iter(_BATCH), columns, where=f"{hub_id}, split {name}")

        return Contents(classes, sum(len(tables[name]) for name in chosen), rows)

    def shards() -> list[str]:
        import datasets

        files = asked(
            f"asking the Hugging Face Hub for {hub_id}",
            lambda: datasets.load_dataset_builder(hub_id, **options).config.data_files or {},
        )
        found = [str(file) for name in choose_splits(list(files), wanted, where=where) for file in files[name]]
        if not found or not all(file.endswith(".parquet") for file in found):
            raise UserError(f"expected {where} to be kept as parquet files, got others; leave out --stream")
        return found

    return Source(hub_id, ["hub", hub_id, options, wanted], open_hub, spec, shards)
