"""``robustsynth demo``: the paper's claim in four pictures."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustsynth.cli import say

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from robustsynth.models.classifier import Classifier

EACH = 8
"""Samples of each class."""


@click.command("demo")
@click.option("--out", default="demo", show_default=True, type=click.Path(), help="Folder to write to.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default=None, help="cpu or cuda.")
def command(out: str, seed: int, device: str | None) -> None:
    """Draw ten classes with the bundled robust classifier, and fail to with its standard twin."""
    started = time.monotonic()
    import torch

    from robustsynth.cli.describe import describe_model
    from robustsynth.images import to_uint8
    from robustsynth.models.files import load_model
    from robustsynth.tasks.generate import generate, resolve_generate

    folder = Path(out)
    robust, standard = load_model("cifar10", device=device), load_model("cifar10-standard", device=device)
    say(describe_model(robust))
    labels = torch.arange(len(robust.classes)).repeat_interleave(EACH)
    settings = resolve_generate(robust)
    start = generate(robust, labels, seed=seed, steps=0)
    names = [robust.classes[label] for label in labels.tolist()]

    written = [
        _sheet(folder / "seeds.png", to_uint8(start), names, "where every picture starts: draws of class normals")
    ]
    images = generate(robust, labels, seed=seed, start=start)
    written.append(_sheet(folder / "generated.png", to_uint8(images), names, "what the robust classifier draws"))
    # The same settings for both, so that the classifier is the only difference.
    plain = generate(standard, labels, seed=seed, start=start, **dataclasses.asdict(settings))
    written.append(_sheet(folder / "standard.png", to_uint8(plain), names, "the same with its standard twin"))
    written.append(_forming(folder / "forming.gif", robust, labels[::EACH], start[::EACH]))
    for path, what in written:
        click.echo(f"{path}  {what}")
    click.echo(f"rows: {', '.join(robust.classes)}")
    click.echo(f"took {time.monotonic() - started:.0f} s")


def _sheet(path: Path, images: np.ndarray, names: Sequence[str], what: str) -> tuple[Path, str]:
    """One row a class."""
    from robustsynth.images import save_png
    from robustsynth.sheet import class_sheet

    save_png(path, class_sheet(names, images.__getitem__))
    return path, what


def _forming(path: Path, model: Classifier, labels: Tensor, start: Tensor) -> tuple[Path, str]:
    """The first image of each class, step by step."""
    from robustsynth.animations import save_animation
    from robustsynth.images import to_uint8
    from robustsynth.loop import Step
    from robustsynth.sheet import in_rows, sheet
    from robustsynth.tasks.generate import generate

    iterates: list[Tensor] = []

    def keep(indices: Sequence[int], step: Step) -> None:
        iterates.append(step.images[: len(labels)].cpu())

    # One batch of all of them, whatever batch size is fastest, so that every frame holds every image.
    generate(model, labels, start=start, on_step=keep, batch_size=len(labels))
    names = in_rows([model.classes[label] for label in labels.tolist()], 5)
    save_animation(path, [sheet(in_rows(to_uint8(images), 5), captions=names) for images in iterates])
    return path, "ten images forming, step by step"
