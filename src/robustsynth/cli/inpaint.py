"""``robustsynth inpaint``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli.options import mask_options
from robustsynth.cli.pictures import OnStep, PictureCommand, Plan, picture_options

if TYPE_CHECKING:
    from torch import Tensor

    from robustsynth.tasks.picture_job import Picture


@click.command("inpaint")
@mask_options
@picture_options("inpaint")
def command(mask: tuple[str, ...], invert: bool, patch: int | None, seed: int, **options: Any) -> None:
    """Fill holes in pictures. What is under the mask is never read."""
    import torch

    from robustsynth.fills import fill
    from robustsynth.masks import MaskSource
    from robustsynth.tasks.inpaint import inpaint

    call = PictureCommand("inpaint", options)
    source = MaskSource(mask, invert=invert, patch=patch, seed=seed, own_alpha=True)
    recorded = source.record()
    source.check([(p.path, p.size) for p in call.pictures])

    starts: list[Tensor] = []

    def view(images: Tensor, chunk: Sequence[Picture]) -> tuple[Tensor, dict[str, Tensor]]:
        holes = source.masks([p.path for p in chunk], images)
        holed = torch.where(holes > 0, torch.full_like(images, 0.5), images)
        filled = fill(images, holes, getattr(call.settings, "fill"))  # noqa: B009 - of InpaintSettings
        starts[:] = [filled]  # The fill of a large hole takes seconds: the task starts from this one.
        return filled, {"to fill": holed}

    def solve(images: Tensor, labels: Tensor | None, chunk: Sequence[Picture], on_step: OnStep) -> dict[str, Tensor]:
        holes = source.masks([p.path for p in chunk], images)
        start = starts.pop()
        return {"": inpaint(call.model, images, labels, mask=holes, start=start, on_step=on_step, **call.arguments)}

    call.run(Plan(solve, extra=recorded, view=view))
