"""Pictures from the Hugging Face Hub, through `datasets`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from robustsynth.data.sources import LAYOUTS, Contents, Row, Source
from robustsynth.data.specs import DatasetSpec
from robustsynth.data.splits import choose_splits
from robustsynth.data.tables import number_names, picture_columns, table_rows
from robustsynth.errors import UserError
from robustsynth.files import cache_folder


def find_on_hub(hub_id: str, split: str, *, spec: DatasetSpec | None, announce: Callable[[str], object]) -> Source:
    """A data set of the Hub. Nothing is asked of the Hub until the source is opened, so that what has been
    decoded before loads without a network; a data set that changes on the Hub is therefore not noticed."""
    options: dict[str, Any] = dict(spec.hub_options) if spec else {}
    wanted = spec.splits.get(split, split) if spec else split

    def open_hub() -> Contents:
        announce(f"downloading {hub_id} from the Hugging Face Hub")
        tables = _download(hub_id, options)
        chosen = choose_splits(list(tables), wanted, where=f"{hub_id} on the Hugging Face Hub")
        columns = picture_columns(tables[chosen[0]].features, where=hub_id)
        classes = columns.classes
        if classes is None:
            classes = number_names(value for table in tables.values() for value in table.unique(columns.label))

        def rows() -> Iterator[Row]:
            for name in chosen:
                yield from table_rows(
                    tables[name], columns, lambda index, name=name: f"{hub_id}, split {name}, row {index}"
                )

        return Contents(classes, sum(len(tables[name]) for name in chosen), rows)

    return Source(hub_id, ["hub", hub_id, options, wanted], open_hub, spec)


def _download(hub_id: str, options: dict[str, Any]) -> dict[str, Any]:
    import datasets

    try:
        return dict(datasets.load_dataset(hub_id, **options, cache_dir=str(cache_folder("datasets"))))
    # Whatever goes wrong between here and the Hub (no network, no such data set, no access, a loading
    # script): `datasets` raises a dozen unrelated types for it, and the remedy is the same.
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"expected to load {hub_id!r} from the Hugging Face Hub, got {type(error).__name__}: {reason}. "
            f"No local file or folder of that name exists. Check the name and the network, or give {LAYOUTS}."
        ) from error
