"""Reader of data sets on the Hugging Face Hub, through `datasets`."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator

from robustsynth.data.rows import Contents, Place, Row, Source
from robustsynth.data.specs import DATASETS
from robustsynth.data.splits import choose_splits
from robustsynth.data.tables import BATCH, encoded_rows, image_columns, number_names
from robustsynth.errors import UserError
from robustsynth.files import cache_folder


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

    def open_hub() -> Contents:
        import datasets

        announce(f"downloading {hub_id} from the Hugging Face Hub")
        with _failure_in_words(hub_id):
            tables = dict(datasets.load_dataset(hub_id, **options, cache_dir=str(cache_folder("datasets"))))
        chosen = choose_splits(list(tables), wanted, where=where)
        columns = image_columns(tables[chosen[0]].features, where=hub_id)
        classes = columns.classes or number_names(
            label for table in tables.values() for label in table.unique(columns.label)
        )

        def rows() -> Iterator[Row]:
            for name in chosen:
                table = tables[name].select_columns([columns.image, columns.label]).with_format("arrow")
                yield from encoded_rows(table.iter(BATCH), columns, where=f"{hub_id}, split {name}")

        return Contents(classes, sum(len(tables[name]) for name in chosen), rows)

    def shards() -> list[str]:
        import datasets

        announce(f"asking the Hugging Face Hub for {hub_id}")
        with _failure_in_words(hub_id):
            files = dict(datasets.load_dataset_builder(hub_id, **options).config.data_files or {})
        found = [str(file) for name in choose_splits(list(files), wanted, where=where) for file in files[name]]
        if not found or not all(file.endswith(".parquet") for file in found):
            raise UserError(f"expected {where} to be kept as parquet files, got others; leave out --stream")
        return found

    return Source(hub_id, ["hub", hub_id, options, wanted], open_hub, spec, shards)


@contextlib.contextmanager
def _failure_in_words(hub_id: str) -> Iterator[None]:
    try:
        yield
    # No network, no such data set, no access, a loading script: `datasets` raises a dozen types, with one remedy.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"expected to load {hub_id!r} from the Hugging Face Hub, got {type(error).__name__}: {reason}. No local "
            "file or folder of that name exists. Check the name and the network, or give a folder of parquet files or "
            "of class folders."
        ) from error
