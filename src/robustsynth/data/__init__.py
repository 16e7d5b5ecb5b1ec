"""Labelled pictures as uint8 arrays: parquet files, class folders or the Hugging Face Hub, decoded once.

    path or name ─ find_source ─ Source ─ decoded once into the cache ─ ImageData (memory-mapped)

`specs` holds the table of known data sets, `splits` how splits are named and held out, `sources`, `folders`, `domains`,
`tables` and `hub` find the pictures, `restricted` takes restricted ImageNet out of ImageNet, `decode` turns one into an
array, `cache` keeps the arrays, `loading` is the door.
"""

from robustsynth.data.loading import ImageData, load_data
from robustsynth.data.sources import located
from robustsynth.data.specs import DATASETS, DatasetSpec
from robustsynth.data.splits import hold_out

__all__ = ["DATASETS", "DatasetSpec", "ImageData", "hold_out", "load_data", "located"]
