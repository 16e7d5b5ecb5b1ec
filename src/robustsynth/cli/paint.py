"""``robustsynth paint``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli.options import mask_options
from robustsynth.cli.pictures import OnStep, PictureCommand, Plan, picture_options, split_numbers

if TYPE_CHECKING:
    from torch import Tensor

    from robustsynth.tasks.picture_job import Picture


@click.command("paint")
@click.option("--unit", required=True, help="Units of the representation, one after another: 17 or 17,203.")
@mask_options
@picture_options("paint", label=False)
def command(unit: str, mask: tuple[str, ...], invert: bool, patch: int | None, seed: int, **options: Any) -> None:
    """Paint what units respond to onto regions of pictures; robustsynth features shows what that is.

    One --mask serves all units; as many as there are units go with one each.
    """
    from robustsynth.masks import MaskSource
    from robustsynth.tasks.paint import paint

    call = PictureCommand("paint", options)
    units = split_numbers(unit, "units")
    sources = [MaskSource((each,), invert=invert, patch=patch, seed=seed) for each in mask]
    sources = sources or [MaskSource((), invert=invert, patch=patch, seed=seed)]

    extra = {"units": units, "masks": [source.record() for source in sources]}
    for source in sources:
        source.check([(p.path, p.size) for p in call.pictures])

    def regions(images: Tensor, chunk: Sequence[Picture]) -> list[Tensor]:
        return [source.masks([p.path for p in chunk], images) for source in sources]

    def view(images: Tensor, chunk: Sequence[Picture]) -> tuple[Tensor, dict[str, Tensor]]:
        import torch

        where = torch.stack(regions(images, chunk)).amax(0)
        return images, {"region": images * (0.35 + 0.65 * where)}

    def solve(images: Tensor, labels: Tensor | None, chunk: Sequence[Picture], on_step: OnStep) -> dict[str, Tensor]:
        masks = regions(images, chunk)
        return {"": paint(call.model, images, units, mask=masks, on_step=on_step, **call.arguments)}

    call.run(Plan(solve, extra=extra, labelled=False, view=view, runs=len(units)))
