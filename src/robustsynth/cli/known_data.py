"""What the name of a data set tells of a checkpoint that was trained on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from robustsynth.errors import UnknownNameError

if TYPE_CHECKING:
    from robustsynth.models.importing import DataFacts

CIFAR10_OF_ROBUSTNESS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR10_OF_BENCH = ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616))
"""In RobustBench's code, for Rice 2020, Wong 2020, Gowal 2020 and others."""
OF_CIFAR10 = {
    "robustness": CIFAR10_OF_ROBUSTNESS,
    "Rice 2020, Wong 2020, Gowal 2020 and others on RobustBench": CIFAR10_OF_BENCH,
}
RESTRICTED_OF_ROBUSTNESS = ((0.4717, 0.4499, 0.3837), (0.2600, 0.2516, 0.2575))
"""As the data sets of the library `robustness` have them."""
AS_THEY_ARE = ((0.0,), (1.0,))
LARGE = 224
DOMAINS = ("horse2zebra", "apple2orange", "summer2winter_yosemite")


def data_facts(name: str) -> DataFacts:
    """The classes, image side and usual normalisations of networks for a known data set.

    Args:
        name: of one in `robustsynth.data.specs.DATASETS`, or ``imagenet``, ``restricted-imagenet``, or one of the
            published pairs of domains.

    Raises:
        UnknownNameError: another name; the known ones are listed.

    Example:
        >>> facts = data_facts("cifar10")
        >>> facts.classes[0], facts.image_size, [choice.where for choice in facts.normalisations]
        ('airplane', 32, ['robustness', 'Rice 2020, Wong 2020, Gowal 2020 and others on RobustBench', ...])
    """
    from robustsynth.data.domains import half_names
    from robustsynth.data.restricted import IMAGENET_CLASSES, RANGES
    from robustsynth.data.specs import DATASETS, IMAGENET_MEAN, IMAGENET_STD
    from robustsynth.models.importing import DataFacts
    from robustsynth.models.recognition import Normalisation

    usual = Normalisation("ImageNet's", IMAGENET_MEAN, IMAGENET_STD)
    if name in DATASETS:
        spec = DATASETS[name]
        choices = (
            *([Normalisation(who, *values) for who, values in OF_CIFAR10.items()] if name == "cifar10" else []),
            Normalisation("the statistics of its pictures", spec.mean, spec.std),
            Normalisation("none inside or outside", *(values * spec.channels for values in AS_THEY_ARE)),
        )
        photographs = not spec.fixed_size
        size = LARGE if photographs else spec.image_size
        return DataFacts(
            name, spec.classes, size, (usual,) if photographs else choices, source=spec.hub_id, licence=spec.licence
        )
    terms = "ImageNet's terms"
    if name == "imagenet":
        numbers = tuple(map(str, range(IMAGENET_CLASSES)))
        return DataFacts(name, numbers, LARGE, (usual,), licence=terms)
    if name == "restricted-imagenet":
        choices = (usual, Normalisation("robustness", *RESTRICTED_OF_ROBUSTNESS))
        return DataFacts(name, tuple(RANGES), LARGE, choices, licence=terms)
    if name in DOMAINS:
        return DataFacts(name, half_names(name), LARGE)
    known = (*DATASETS, "imagenet", "restricted-imagenet", *DOMAINS)
    raise UnknownNameError("data set", name, known, "For another one give --classes, --image-size, --mean and --std.")
