"""Labelled images as uint8 arrays: parquet files, class folders or the Hugging Face Hub, decoded once.

    path or name ─ a reader ─ Source ─ decoded once into the cache ─ ImageData (memory-mapped)

From the bottom up: `specs` is the table of known data sets; `rows` has what a reader gives, and decodes an image;
`splits` names splits and holds images out; `folders`, `tables` and `hub` are the readers; `subsets` takes some classes
of a data set; `cache` keeps decoded images, `streaming` decodes them while a run goes on; `load` has `load_data` and
the table of readers.
"""

from robustsynth.data.load import load_data, located
from robustsynth.data.rows import ImageData
from robustsynth.data.specs import DATASETS, DatasetSpec
from robustsynth.data.splits import hold_out

__all__ = ["DATASETS", "DatasetSpec", "ImageData", "hold_out", "load_data", "located"]
