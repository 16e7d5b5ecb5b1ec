"""``robustsynth upscale``"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from robustsynth.cli.pictures import OnStep, PictureCommand, Plan, picture_options

if TYPE_CHECKING:
    from torch import Tensor

    from robustsynth.tasks.picture_job import Picture


@click.command("upscale")
@click.option("--factor", type=float, required=True, help="How many times as wide and high, whole or not: 7, 3.5.")
@picture_options("upscale")
def command(factor: float, **options: Any) -> None:
    """Make small pictures large. The class may be named in another vocabulary: --label dog, --label truck."""
    from robustsynth.resampling import resample
    from robustsynth.tasks.upscale import enlarged_size, upscale
    from robustsynth.tasks.views import check_size

    call = PictureCommand("upscale", options)
    for picture in call.pictures:
        check_size(*enlarged_size(picture.size, factor))

    def view(images: Tensor, chunk: Sequence[Picture]) -> tuple[Tensor, dict[str, Tensor]]:
        bicubic = resample(images, enlarged_size((images.shape[2], images.shape[3]), factor), "bicubic").clamp(0, 1)
        return bicubic, {"bicubic": bicubic}

    def solve(images: Tensor, labels: Tensor | None, chunk: Sequence[Picture], on_step: OnStep) -> dict[str, Tensor]:
        return {"": upscale(call.model, images, labels, factor=factor, on_step=on_step, **call.arguments)}

    call.run(Plan(solve, extra={"factor": factor}, view=view))
