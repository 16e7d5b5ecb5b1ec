"""Labelled images as uint8 arrays: parquet files, class folders or the Hugging Face Hub, decoded once.

path or name ─ a reader (`folders`, `tables`) ─ Source ─ decoded once into the cache ─ ImageData (memory-mapped)
"""

from robustsynth.data.load import load_data, located
from robustsynth.data.rows import ImageData, hold_out
from robustsynth.data.specs import DATASETS, DatasetSpec

__all__ = ["DATASETS", "DatasetSpec", "ImageData", "hold_out", "load_data", "located"]
