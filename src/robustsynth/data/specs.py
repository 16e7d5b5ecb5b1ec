"""What is known of published data sets beyond their files. A new data set is one entry in `DATASETS`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robustsynth.errors import UnknownNameError
from robustsynth.names import name_key

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""A mean and a standard deviation of each channel, in units of [0, 1]."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET_CLASSES = 1000

RESTRICTED_IMAGENET: dict[str, tuple[int, int]] = {
    "Dog": (151, 268), "Cat": (281, 285), "Frog": (30, 32), "Turtle": (33, 37), "Bird": (80, 100),
    "Primate": (365, 382), "Fish": (389, 397), "Crab": (118, 121), "Insect": (300, 319),
}  # fmt: skip
"""Restricted ImageNet, nine kinds of animals (Santurkar et al. 2019, Table 3), in the order of the labels. Of each the
first and last of ImageNet's class indices, both included."""


@dataclass(frozen=True)
class DatasetSpec:
    """What has to be known about a data set beyond its files.

    Args:
        name: the name it is asked for by.
        hub_id: its ``owner/name`` on the Hugging Face Hub; empty if it is not loaded from there.
        channels: 1 (grey) or 3 (RGB).
        image_size: the side in pixels at which its images are stored, and which networks for it take.
        classes: names in label order.
        mean, std: of each channel, in units of [0, 1].
        licence: a short text.
        splits: what the files call the splits ``"train"`` and ``"test"``.
        fixed_size: whether every image has both sides of ``image_size``; False for photographs.
        hub_options: further arguments that `datasets.load_dataset` needs for it.
        normalisations: what published networks for it normalise by, and whose it is.
    """

    name: str
    hub_id: str
    channels: int
    image_size: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    licence: str
    splits: Mapping[str, str] = field(default_factory=dict)
    fixed_size: bool = True
    hub_options: Mapping[str, Any] = field(default_factory=dict)
    normalisations: Mapping[str, Statistics] = field(default_factory=dict)


_CIFAR10_MEAN, _CIFAR10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

_SPECS = (
    DatasetSpec(
        name="cifar10", hub_id="uoft-cs/cifar10", channels=3, image_size=32,
        classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        mean=_CIFAR10_MEAN, std=_CIFAR10_STD,
        licence="not stated by its authors (cite Krizhevsky 2009)",
        splits={"train": "train", "test": "test"},
        normalisations={
            "robustness": (_CIFAR10_MEAN, (0.2023, 0.1994, 0.2010)),
            "Rice 2020, Wong 2020, Gowal 2020 and others on RobustBench": (_CIFAR10_MEAN, (0.2471, 0.2435, 0.2616)),
            "the statistics of its images": (_CIFAR10_MEAN, _CIFAR10_STD),
            "none inside or outside": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
        },
    ),
    DatasetSpec(
        name="mnist", hub_id="ylecun/mnist", channels=1, image_size=28,
        classes=tuple("0123456789"),
        mean=(0.1307,), std=(0.3081,),
        licence="MIT according to its Hub card (cite LeCun et al. 1998)",
        splits={"train": "train", "test": "test"},
        normalisations={
            "the statistics of its images": ((0.1307,), (0.3081,)),
            "none inside or outside": ((0.0,), (1.0,)),
        },
    ),
    DatasetSpec(
        name="imagenette", hub_id="frgfm/imagenette", channels=3, image_size=224, fixed_size=False,
        classes=(
            "tench", "English springer", "cassette player", "chain saw", "church", "French horn",
            "garbage truck", "gas pump", "golf ball", "parachute",
        ),
        mean=IMAGENET_MEAN, std=IMAGENET_STD,
        licence="Apache-2.0 (the selection); ImageNet's terms for the photographs",
        splits={"train": "train", "test": "validation"},
        # The Hub's main branch holds a loading script, which `datasets` 4 no longer runs; this branch holds
        # the parquet files that the Hub made from its configuration "320px".
        hub_options={
            "revision": "refs/convert/parquet",
            "data_files": {name: f"320px/{name}/*.parquet" for name in ("train", "validation")},
        },
        normalisations={"ImageNet's": (IMAGENET_MEAN, IMAGENET_STD)},
    ),
)  # fmt: skip

DATASETS: dict[str, DatasetSpec] = {spec.name: spec for spec in _SPECS}


def _photographs(name: str, classes: tuple[str, ...], licence: str = "", **normalisations: Statistics) -> DatasetSpec:
    """A data set of which only what its networks take is known."""
    usual = {"ImageNet's": (IMAGENET_MEAN, IMAGENET_STD)} if licence else {}
    return DatasetSpec(
        name, "", 3, 224, classes, IMAGENET_MEAN, IMAGENET_STD, licence, normalisations=usual | normalisations
    )


_NOT_LOADED = (
    _photographs("imagenet", tuple(map(str, range(IMAGENET_CLASSES))), "ImageNet's terms"),
    _photographs(
        "restricted-imagenet",
        tuple(RESTRICTED_IMAGENET),
        "ImageNet's terms",
        robustness=((0.4717, 0.4499, 0.3837), (0.2600, 0.2516, 0.2575)),
    ),
    _photographs("horse2zebra", ("horse", "zebra")),
    _photographs("apple2orange", ("apple", "orange")),
    _photographs("summer2winter_yosemite", ("summer", "winter")),
)
"""Further data sets that published networks were trained on; they are not loaded by their names."""


def find_spec(name: str) -> DatasetSpec:
    """What is known of a data set that published networks were trained on, be it one in `DATASETS` or not.

    Example:
        >>> spec = find_spec("imagenet")
        >>> spec.image_size, list(spec.normalisations)
        (224, ["ImageNet's"])
    """
    known = DATASETS | {spec.name: spec for spec in _NOT_LOADED}
    if name not in known:
        raise UnknownNameError(
            "data set", name, known, "For another one give --classes, --image-size, --mean and --std."
        )
    return known[name]


def recognised(classes: Iterable[str], *, channels: int, sizes: Sequence[tuple[int, int]]) -> DatasetSpec | None:
    """The known data set that has these class names (in any order and capitals), channels, and (width, height).

    Example:
        >>> recognised("9876543210", channels=1, sizes=[(28, 28)]).name
        'mnist'
        >>> recognised("9876543210", channels=3, sizes=[(32, 32)]) is None  # street-view house numbers
        True
    """

    def keys(names: Iterable[str]) -> list[str]:
        return sorted(name_key(re.sub("[_-]", " ", name)) for name in names)

    given = keys(classes)
    for spec in DATASETS.values():
        if channels == spec.channels and given == keys(spec.classes):
            side = spec.image_size
            if all(size == (side, side) if spec.fixed_size else min(size) >= side for size in sizes):
                return spec
    return None


def described(spec: DatasetSpec | None, *, source: str, channels: int, part: bool = False) -> dict[str, Any]:
    """What `ImageData` says of a data set beside its images, labels and classes.

    `spec` is the known data set that it is, if any; if it is only a `part` of its classes, it does not bear its name.

    Example:
        >>> described(None, source="owner/pets", channels=1)
        {'name': 'pets', 'licence': 'not stated', 'source': 'owner/pets', 'mean': (0.5,), 'std': (0.5,)}
        >>> described(DATASETS["mnist"], source="digits", channels=3)["mean"]
        (0.1307, 0.1307, 0.1307)
    """
    mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))
    if spec is not None and spec.channels == channels:
        mean, std = spec.mean, spec.std
    elif spec is not None and spec.channels == 1:  # grey stored as RGB repeats the one channel
        mean, std = spec.mean * channels, spec.std * channels
    name = spec.name if spec and not part else source.rsplit("/")[-1]
    licence = spec.licence if spec else "not stated"
    return {"name": name, "licence": licence, "source": source, "mean": mean, "std": std}
