"""``robustsynth demo``: what a robust classifier draws and a standard one does not, in four images."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from robustsynth.cli.progress import describe_model, interactive, say

if TYPE_CHECKING:
    from torch import Tensor

EACH = 8  # images of each class


@click.command("demo")
@click.option("--out", default="demo", show_default=True, type=click.Path(), help="Folder to write to.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--device", default=None, help="cpu or cuda.")
def command(out: str, seed: int, device: str | None) -> None:
    """Draw ten classes with the bundled robust classifier, and fail to with its standard counterpart."""
    started = time.monotonic()
    import torch
    from tqdm import tqdm

    from robustsynth.animations import save_animation
    from robustsynth.images import save_png, to_uint8
    from robustsynth.models.store import load_model
    from robustsynth.sheet import class_sheet
    from robustsynth.tasks.compare import ComparisonSteps, plan_comparison

    folder = Path(out)
    robust, standard = (load_model(name, device=device) for name in ("cifar10", "cifar10-standard"))
    say(describe_model(robust))
    # The same start images and settings for both, so that the classifier is the only difference.
    plan = plan_comparison([robust, standard], num_per_class=EACH, seed=seed)
    drawing = ComparisonSteps(plan)
    # The first image of each class, as it is after each step.
    forming: dict[int, list[Tensor]] = {index: [] for index in range(0, len(plan.classes), EACH)}
    with tqdm(total=plan.steps, unit="step", unit_scale=True, disable=not interactive(), desc="drawing") as bar:
        for place, progress in drawing:
            bar.update(len(progress.indices) if progress.step else 0)
            for row, index in enumerate(progress.indices):
                if place == 0 and index in forming:
                    forming[index].append(progress.previews[row])
    result = drawing.result()

    for name, images, what in (
        ("seeds.png", result.seeds, "where every image starts: draws of class normals"),
        ("generated.png", result.images[0], "what the robust classifier draws"),
        ("standard.png", result.images[1], "the same with its standard counterpart"),
    ):
        save_png(folder / name, class_sheet(plan.classes, to_uint8(images).__getitem__))
        click.echo(f"{folder / name}  {what}")
    batches = (to_uint8(torch.stack(each)) for each in zip(*forming.values(), strict=True))
    frames = [class_sheet(robust.classes, batch.__getitem__) for batch in batches]
    save_animation(folder / "forming.gif", frames)
    click.echo(f"{folder / 'forming.gif'}  {len(forming)} images forming, step by step")
    click.echo(f"took {time.monotonic() - started:.0f} s")
