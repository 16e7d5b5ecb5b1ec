"""Pictures in tables: parquet files as `datasets` writes them, and what `datasets` gives for the Hub."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from robustsynth.data.sources import Contents, Row, Source, stamps
from robustsynth.data.splits import SPLIT_NAMES, choose_splits
from robustsynth.errors import UserError
from robustsynth.files import cache_folder

_MOST_CLASSES = 1_000_000
_SHARD = re.compile(r"(?P<split>.+)-\d{5}-of-(?P<shards>\d{5})")


@dataclass(frozen=True)
class Columns:
    """Which columns hold the picture and the label; `classes` is None where labels are bare integers."""

    image: str
    label: str
    classes: tuple[str, ...] | None


def find_parquet(files: list[Path], split: str, *, root: Path) -> Source:
    """The parquet files of one split. `root` is the folder, or the file itself where a single one was given.

    Raises:
        UserError: no such split, or a shard is missing.
    """
    wanted, chosen = files_of_split(files, split, root=root)
    folder = root if root.is_dir() else root.parent
    # All files, not just this split's: bare integer labels are counted over all of them.
    identity = ["parquet", str(root.resolve()), list(chosen), stamps(files, folder)]
    return Source(root.resolve().name, identity, lambda: _opened(wanted, files))


def files_of_split(files: list[Path], split: str, *, root: Path) -> tuple[list[Path], tuple[str, ...]]:
    """Those of `files` that hold one split, and what they call it.

    Raises:
        UserError: no such split, or a shard is missing.
    """
    shards = [_SHARD.fullmatch(file.stem) for file in files]
    by_split: dict[str, list[Path]] = {}
    for file, shard in zip(files, shards, strict=True):
        # One file with a name of its own is like a folder without split folders: all of it is "train".
        alone = "train" if root == file and file.stem not in SPLIT_NAMES else file.stem
        by_split.setdefault(shard["split"] if shard else alone, []).append(file)
    chosen = choose_splits(list(by_split), split, where=str(root))
    if root.is_dir():
        for file, shard in zip(files, shards, strict=True):
            if shard and shard["split"] in chosen and len(by_split[shard["split"]]) != int(shard["shards"]):
                raise UserError(
                    f"{root}: expected {int(shard['shards'])} files for split {shard['split']!r}, as "
                    f"{file.name} says, got {len(by_split[shard['split']])}. Fetch the missing ones."
                )
    return [file for name in chosen for file in by_split[name]], chosen


def _opened(wanted: list[Path], every: list[Path]) -> Contents:
    import pyarrow.parquet

    counts, columns = {}, {}
    for file in wanted:
        try:
            with pyarrow.parquet.ParquetFile(file) as opened:
                counts[file] = opened.metadata.num_rows
            features = _streamed(file).features
        except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
            raise UserError(
                f"{file}: expected a parquet file, got one that cannot be read ({error}). Fetch it again."
            ) from error
        columns[file] = picture_columns(features or {}, where=str(file))
    first = columns[wanted[0]]
    for file in wanted:
        if columns[file] != first:
            raise UserError(
                f"{file}: expected the columns and classes of {wanted[0].name} ({first}), got "
                f"{columns[file]}. Keep different data sets in different folders."
            )
    classes = first.classes
    if classes is None:
        labels = (pyarrow.parquet.read_table(file, columns=[first.label])[first.label] for file in every)
        classes = number_names(value for column in labels for value in column.to_pylist())

    def rows() -> Iterator[Row]:
        for file in wanted:
            yield from table_rows(_streamed(file), first, lambda index, file=file: f"{file}, row {index}")

    return Contents(classes, sum(counts.values()), rows)


def _streamed(file: Path) -> Any:
    return streamed(str(file.resolve()))


def streamed(file: str) -> Any:
    """The rows of one file, a path or an address, read as they are asked for: nothing is copied into another cache.

    This is what ``load_dataset("parquet", streaming=True)`` uses inside. That function itself reports each
    call to the Hub: local data would wait for the network, and tell it.
    """
    from datasets.io.parquet import ParquetDatasetReader

    return ParquetDatasetReader(glob.escape(file), cache_dir=str(cache_folder("datasets")), streaming=True).read()


def picture_columns(features: Mapping[str, Any], *, where: str) -> Columns:
    """Find the picture's and the label's column by their types, since their names differ between data sets.

    Of several, the one called ``image`` or ``label`` is taken; failing that, the label with most classes (the
    fine ones of CIFAR-100).

    Raises:
        UserError: there is no such column, or no telling which.

    Example:
        >>> import datasets
        >>> features = {"img": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
        >>> picture_columns(features, where="pets")
        Columns(image='img', label='kind', classes=('cat', 'dog'))
    """
    import datasets

    listed = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items()) or "none"
    images = [name for name, feature in features.items() if _is_image(feature)]
    named = {name: f.names for name, f in features.items() if isinstance(f, datasets.ClassLabel) and f.names}
    numbers = [
        name
        for name, feature in features.items()
        if isinstance(feature, datasets.Value) and re.fullmatch(r"u?int\d+", feature.dtype)
    ]
    image = "image" if "image" in images else images[0] if len(images) == 1 else None
    label = next((name for name in ("label", "labels") if name in named or name in numbers), None)
    if label is None and named:
        label = max(named, key=lambda name: len(named[name]))
    elif label is None and len(numbers) == 1:
        label = numbers[0]
    if image is None or label is None:
        missing = "picture (type Image)" if image is None else "label (type ClassLabel, or an integer)"
        raise UserError(
            f"{where}: expected one column with the {missing}, got these columns: {listed}. "
            "Rename the right ones to 'image' and 'label', or write the table with `datasets`."
        )
    return Columns(image, label, tuple(named[label]) if label in named else None)


def _is_image(feature: Any) -> bool:
    import datasets

    # The second form is what an Image becomes when other programs rewrite the file without its type.
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and set(feature) == {"bytes", "path"})


def number_names(labels: Iterable[int | None]) -> tuple[str, ...]:
    """Names for bare integer labels: every number from 0 to the largest.

    Raises:
        UserError: a number that is no count of classes, such as a key of another table.

    Example:
        >>> number_names([2, 0, None])
        ('0', '1', '2')
    """
    largest = max((label for label in labels if label is not None), default=-1)
    if largest >= _MOST_CLASSES:
        raise UserError(
            f"expected labels that number the classes from 0 on, at most {_MOST_CLASSES - 1}, got {largest}. "
            "Number the classes 0, 1, 2 and so on, or write the table with `datasets`."
        )
    return tuple(map(str, range(1 + largest)))


def _each(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of a table, all of them: iterated over in a `DataLoader`'s worker a stream would give only its share."""
    import datasets

    if not isinstance(table, datasets.IterableDataset):
        yield from table
        return
    for row in table.iter(batch_size=1):
        yield {name: values[0] for name, values in row.items()}


def table_rows(table: Any, columns: Columns, where: Callable[[int], str]) -> Iterator[Row]:
    """The rows of a `datasets` table, with the pictures still encoded.

    Raises:
        UserError: the table itself is damaged.
    """
    import datasets

    table = table.select_columns([columns.image, columns.label])
    if isinstance(table.features[columns.image], datasets.Image):
        table = table.cast_column(columns.image, datasets.Image(decode=False))
    index = -1
    try:
        for index, row in enumerate(_each(table)):
            cell = row[columns.image] or {}
            content = cell.get("bytes") or (Path(cell["path"]) if cell.get("path") else None)
            yield Row(where(index), content, row[columns.label])
    except (OSError, ValueError) as error:
        raise UserError(f"{where(index + 1)}: expected a row, got damaged data ({error}). Fetch it again.") from error
