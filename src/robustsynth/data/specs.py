"""The known data sets. Adding one is adding one entry to `DATASETS`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DatasetSpec:
    """What has to be known about a data set beyond its files.

    Args:
        name: the name it is asked for by.
        hub_id: its ``owner/name`` on the Hugging Face Hub.
        channels: 1 (grey) or 3 (RGB).
        image_size: the side in pixels at which its pictures are stored.
        classes: human-readable names in label order.
        mean, std: per-channel statistics for normalisation, in units of [0, 1].
        licence: a short text.
        splits: what the files call the splits ``"train"`` and ``"test"``.
        fixed_size: whether every picture has exactly ``image_size`` as both sides; False for photographs of
            any size.
        hub_options: further arguments that `datasets.load_dataset` needs for it.

    Example:
        >>> DATASETS["cifar10"].classes[:3]
        ('airplane', 'automobile', 'bird')
    """

    name: str
    hub_id: str
    channels: int
    image_size: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    splits: Mapping[str, str]
    fixed_size: bool = True
    hub_options: Mapping[str, Any] = field(default_factory=dict)


_SPECS = (
    DatasetSpec(
        name="cifar10",
        hub_id="uoft-cs/cifar10",
        channels=3,
        image_size=32,
        classes=(
            "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
        ),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        licence="not stated by its authors (cite Krizhevsky 2009)",
        splits={"train": "train", "test": "test"},
    ),
    DatasetSpec(
        name="mnist",
        hub_id="ylecun/mnist",
        channels=1,
        image_size=28,
        classes=tuple("0123456789"),
        mean=(0.1307,),
        std=(0.3081,),
        licence="MIT according to its Hub card (cite LeCun et al. 1998)",
        splits={"train": "train", "test": "test"},
    ),
    DatasetSpec(
        name="imagenette",
        hub_id="frgfm/imagenette",
        channels=3,
        image_size=224,
        classes=(
            "tench", "English springer", "cassette player", "chain saw", "church", "French horn",
            "garbage truck", "gas pump", "golf ball", "parachute",
        ),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        licence="Apache-2.0 (the selection); ImageNet's terms for the photographs",
        splits={"train": "train", "test": "validation"},
        fixed_size=False,
        # The Hub's main branch holds a loading script, which `datasets` 4 no longer runs; this branch holds
        # the parquet files that the Hub made from its configuration "320px".
        hub_options={
            "revision": "refs/convert/parquet",
            "data_files": {
                "train": "320px/train/*.parquet",
                "validation": "320px/validation/*.parquet",
            },
        },
    ),
)  # fmt: skip

DATASETS: dict[str, DatasetSpec] = {spec.name: spec for spec in _SPECS}


def recognised(classes: Iterable[str], *, channels: int, sizes: Sequence[tuple[int, int]]) -> DatasetSpec | None:
    """The known data set that has these class names (in any order and capitals), channels and picture sizes.

    Args:
        classes: class names.
        channels: 1 or 3, of the pictures as they are in the files.
        sizes: (width, height) of some of the pictures.

    Example:
        >>> recognised("9876543210", channels=1, sizes=[(28, 28)]).name
        'mnist'
        >>> recognised("9876543210", channels=3, sizes=[(32, 32)]) is None  # street-view house numbers
        True
    """
    names = sorted(map(_plain, classes))
    for spec in DATASETS.values():
        if channels != spec.channels or names != sorted(map(_plain, spec.classes)):
            continue
        native = (spec.image_size, spec.image_size)
        if all(size == native if spec.fixed_size else min(size) >= spec.image_size for size in sizes):
            return spec
    return None


def statistics(spec: DatasetSpec | None, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation, one number per channel: the spec's, or else a customary default.

    Example:
        >>> statistics(None, 1)
        ((0.5,), (0.5,))
        >>> statistics(DATASETS["mnist"], 3)[0]
        (0.1307, 0.1307, 0.1307)
    """
    if spec is not None and spec.channels == channels:
        return spec.mean, spec.std
    if spec is not None and spec.channels == 1:  # grey stored as RGB repeats the one channel
        return spec.mean * channels, spec.std * channels
    return (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))


def _plain(name: str) -> str:
    return name.lower().replace("_", " ").replace("-", " ").strip()
