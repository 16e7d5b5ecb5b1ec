"""Reader of data sets on the Hugging Face Hub, through `datasets`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

from robustsynth.data.rows import Contents, Place, Row, Source
from robustsynth.data.specs import DATASETS, DatasetSpec
from robustsynth.data.splits import choose_splits
from robustsynth.data.tables import BATCH, encoded_rows, image_columns, number_names
from robustsynth.errors import UserError
from robustsynth.files import cache_folder


def find_on_hub(place: Place, split: str, announce: Callable[[str], object]) -> Source | None:
    """A data set of the Hub, by its name in `DATASETS` or its ``owner/name``.

    Nothing is asked of the Hub until the source is opened, so that what has been decoded before loads without a
    network; a data set that changes on the Hub is therefore not noticed.
    """
    if not isinstance(place, str) or not (place in DATASETS or re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", place)):
        return None
    spec, hub_id, wanted, options = _asked(place, split)

    def open_hub() -> Contents:
        announce(f"downloading {hub_id} from the Hugging Face Hub")
        import datasets

        try:
            tables = dict(datasets.load_dataset(hub_id, **options, cache_dir=str(cache_folder("datasets"))))
        except Exception as error:
            raise _not_loaded(hub_id, error) from error
        chosen = choose_splits(list(tables), wanted, where=f"{hub_id} on the Hugging Face Hub")
        columns = image_columns(tables[chosen[0]].features, where=hub_id)
        classes = columns.classes or number_names(
            label for table in tables.values() for label in table.unique(columns.label)
        )

        def rows() -> Iterator[Row]:
            for name in chosen:
                table = tables[name].select_columns([columns.image, columns.label]).with_format("arrow")
                yield from encoded_rows(table.iter(BATCH), columns, where=f"{hub_id}, split {name}")

        return Contents(classes, sum(len(tables[name]) for name in chosen), rows)

    return Source(hub_id, ["hub", hub_id, options, wanted], open_hub, spec)


def shards_on_hub(name: str, split: str) -> tuple[list[str], str, DatasetSpec | None]:
    """The addresses of a split's parquet files; the data set's ``owner/name``, and what is known of it.

    Raises:
        UserError: the Hub cannot be reached, or has no such data set, or keeps it in other files.
    """
    import datasets

    spec, hub_id, wanted, options = _asked(name, split)
    try:
        files: dict[str, list[str]] = dict(datasets.load_dataset_builder(hub_id, **options).config.data_files or {})
    except Exception as error:
        raise _not_loaded(hub_id, error) from error
    chosen = choose_splits(list(files), wanted, where=f"{hub_id} on the Hugging Face Hub")
    shards = [str(file) for each in chosen for file in files[each]]
    if not shards or not all(file.endswith(".parquet") for file in shards):
        raise UserError(f"expected {name!r} to be kept as parquet files on the Hub, got others; leave out --stream")
    return shards, hub_id, spec


def _asked(name: str, split: str) -> tuple[DatasetSpec | None, str, str, dict[str, Any]]:
    """What is known of a data set, its ``owner/name``, what it calls the split, and options for `datasets`."""
    spec = next((spec for spec in DATASETS.values() if name in (spec.name, spec.hub_id)), None)
    if spec is None:
        return None, name, split, {}
    return spec, spec.hub_id, spec.splits.get(split, split), dict(spec.hub_options)


def _not_loaded(hub_id: str, error: Exception) -> UserError:
    # No network, no such data set, no access, a loading script: `datasets` raises a dozen types, with one remedy.
    reason = " ".join(str(error).split())[:300]
    return UserError(
        f"expected to load {hub_id!r} from the Hugging Face Hub, got {type(error).__name__}: {reason}. No local file "
        "or folder of that name exists. Check the name and the network, or give a folder of parquet files or of class "
        "folders."
    )
