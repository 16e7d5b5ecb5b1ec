"""How much work a training run is, and how long it takes at a rate: for docs/guide/zoo.md's untrained models.

    python benchmarks/training_work.py [--here 0.43] [--accelerator 80] [--table docs/guide/zoo.md]

Arithmetic, not a measurement of the run: the operations of one forward pass, counted by PyTorch's own counter on a
network without numbers, times the passes that a preset's epochs, attack and images make. An attack step is two forward
passes' worth (forward, and the images' gradient), the weights' gradient three. Rates are in TFLOP/s of a whole training
loop: ``--here`` is what benchmarks/training_speed.py gives on the processor at hand (operations of its step divided by
its seconds), ``--accelerator`` an assumption for one modern card in bfloat16, of whose peak it is about a tenth.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from robustsynth.files import written_beside
from robustsynth.models.networks import build_network
from robustsynth.training.settings import TrainSettings, resolve_train_settings

BEGIN, END = "<!-- work: begin -->", "<!-- work: end -->"

CIFAR10, IMAGENETTE = (50_000, 32, 10), (9_469, 224, 10)
"""Training images, side where the preset has none, and classes."""

WAITING = {
    "CIFAR-10 ResNet-18, ε 0.5": ("cifar10", "cifar10-resnet18", "", CIFAR10),
    "CIFAR-10 ResNet-18, ε 1.0": ("cifar10", "cifar10-resnet18", "--eps 1.0 --attack-step-size 0.2", CIFAR10),
    "CIFAR-10 ResNet-50, the paper's": ("cifar10", "cifar10-l2", "", CIFAR10),
    "CIFAR-10 ResNet-50, shorter": ("cifar10", "cifar10-resnet18", "--architecture resnet50", CIFAR10),
    "CIFAR-10 VGG-13, ε 1.0, McGill's": ("cifar10", "cifar10-mcgill2019-vgg13", "", CIFAR10),
    "CIFAR-10 MobileNetV2, HSE's": ("cifar10", "cifar10-hse2025-mobilenet-v2", "", CIFAR10),
    "Imagenette ResNet-18 at 224², ε 3": (
        "imagenette",
        "imagenette-128",
        "--image-size 224 --stored-size 256 --early-size 160 --eps 3 --attack-steps 3 --attack-step-size 1.5",
        IMAGENETTE,
    ),
    "Imagenette ResNet-50 at 224², ε 3": (
        "imagenette",
        "imagenette-128",
        "--architecture resnet50-even --image-size 224 --stored-size 256 --early-size 160 --eps 3 --attack-steps 3 "
        "--attack-step-size 1.5",
        IMAGENETTE,
    ),
}
"""What each is called, its data, its preset, what is changed of it, and the data's facts."""


def chosen(preset: str, changes: str) -> TrainSettings:
    """The settings of a preset with command-line options."""
    words = changes.split()
    given: dict[str, int | float | str] = {}
    for name, value in zip(words[::2], words[1::2], strict=True):
        number = float(value) if value[0].isdigit() else None
        whole = number is not None and number.is_integer() and "." not in value and "eps" not in name
        given[name.removeprefix("--").replace("-", "_")] = value if number is None else int(number) if whole else number
    return resolve_train_settings(preset, given)


def forward_operations(settings: TrainSettings, side: int, classes: int) -> float:
    """Floating-point operations of a forward pass of one image."""
    with torch.device("meta"):
        network = build_network(settings.architecture, classes=classes, width=settings.width, image_size=side)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network.eval()(torch.empty(1, 3, side, side))
    return float(counter.get_total_flops())


def operations(settings: TrainSettings, images: int, side: int, classes: int) -> float:
    """Floating-point operations of a whole run, without its evaluations."""
    passes = 3 + 2 * (settings.attack_steps if settings.eps else 0)
    side = settings.image_size or side
    early = settings.early_share if settings.early_size else 0.0
    each = (1 - early) * forward_operations(settings, side, classes)
    if settings.early_size:
        each += early * forward_operations(settings, settings.early_size, classes)
    return passes * each * images * settings.epochs


def lasting(hours: float) -> str:
    """A time for people.

    Example:
        >>> lasting(0.3), lasting(5), lasting(72)
        ('18 minutes', '5.0 hours', '3.0 days')
    """
    return (
        f"{60 * hours:.0f} minutes" if hours < 1 else f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--here", type=float, default=0.43, help="TFLOP/s of a training loop on this processor")
    parser.add_argument("--accelerator", type=float, default=80.0, help="TFLOP/s assumed of one on a card")
    parser.add_argument("--table", type=Path, help="a document with marks to put the table between")
    options = parser.parse_args()
    rates = options.here, options.accelerator
    lines = [
        f"| model | command | PFLOP | two cores at {rates[0]:g} TFLOP/s | a card at {rates[1]:g} TFLOP/s |",
        "|---|---|---|---|---|",
    ]
    for name, (data, preset, changes, facts) in WAITING.items():
        work = operations(chosen(preset, changes), *facts)
        hours = [work / (rate * 1e12) / 3600 for rate in rates]
        command = f"`robustsynth train --preset {preset} {changes}{' ' if changes else ''}--data {data} --out OUT`"
        lines.append(f"| {name} | {command} | {work / 1e15:,.0f} | {lasting(hours[0])} | {lasting(hours[1])} |")
    text = "\n".join(lines)
    print(text)
    if options.table is not None:
        before, _, rest = options.table.read_text(encoding="utf-8").partition(BEGIN)
        if END not in rest:
            raise SystemExit(f"expected the marks {BEGIN} and {END} in {options.table}, found them not")
        with written_beside(options.table) as temporary:
            temporary.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
