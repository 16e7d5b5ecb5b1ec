"""Masks on the command line: a file, a rectangle, a random patch, or what is transparent in the picture itself."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from robustsynth.errors import UserError
from robustsynth.files import sha256

if TYPE_CHECKING:
    from torch import Tensor

    from robustsynth.tasks.picture_job import Picture


def mask_options(function: Any) -> Any:
    """The options that say where."""
    options: list[Callable[[Any], Any]] = [
        click.option(
            "--mask", multiple=True, help="A picture of where, or a rectangle LEFT,TOP,WIDTH,HEIGHT in pixels."
        ),
        click.option("--invert", is_flag=True, help="Take the other part."),
        click.option("--patch", type=click.IntRange(min=1), default=None, help="A square of so many pixels at random."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of the random patches."),
    ]
    for option in reversed(options):
        function = option(function)
    return function


class MaskSource:
    """Where the masks of pictures come from.

    Args:
        mask: what ``--mask`` was given: at most one file or rectangle.
        invert: take the other part.
        patch: side of a random square.
        seed: of random squares; picture i of the job has its own stream.
        own_alpha: where nothing is given, what is transparent in a picture is its mask.

    Raises:
        UserError: not exactly one source.
    """

    def __init__(
        self, mask: tuple[str, ...], *, invert: bool, patch: int | None, seed: int, own_alpha: bool = False
    ) -> None:
        if len(mask) > 1 or (mask and patch is not None):
            raise UserError("expected one --mask or --patch for each picture, got several; merge the masks into one")
        if not mask and patch is None and not own_alpha:
            raise UserError("expected --mask (a picture, or LEFT,TOP,WIDTH,HEIGHT) or --patch SIDE, got neither")
        self.mask, self.invert, self.patch, self.seed = (mask[0] if mask else None), invert, patch, seed
        self.rectangle = mask[0] if mask and re.fullmatch(r"[-\d.,\s]+", mask[0]) and "," in mask[0] else None

    def masks(self, chunk: Sequence[Picture], images: Tensor) -> Tensor:
        """(n, 1, H, W) for pictures of one size."""
        from robustsynth.masks import check_mask

        chosen = self._chosen(chunk, (images.shape[2], images.shape[3]))
        return check_mask(1 - chosen if self.invert else chosen, images)

    def _chosen(self, chunk: Sequence[Picture], size: tuple[int, int]) -> Tensor:
        import torch

        from robustsynth.masks import load_mask, mask_from_alpha, random_patch_masks, rectangle_mask
        from robustsynth.randomness import image_generators

        if self.rectangle is not None:
            return rectangle_mask(self.rectangle, size)
        if self.mask is not None:
            return load_mask(self.mask, size)
        if self.patch is not None:
            # Keyed by the picture's contents, not its place: the same picture has the same hole in any company.
            keys = [int(sha256(p.path)[:8], 16) for p in chunk]
            generators = image_generators(self.seed, keys)
            return random_patch_masks(generators, size=size, side=self.patch, border=min(size) // 8)
        return torch.stack([mask_from_alpha(p.path) for p in chunk])

    def check(self, pictures: Sequence[Picture]) -> None:
        """Find out whether there is a mask for each picture before anything is made of any."""
        import torch

        seen: set[tuple[int, int]] = set()
        for picture in pictures:
            if picture.size not in seen or (self.mask is None and self.rectangle is None):
                self.masks([picture], torch.zeros(1, 1, *picture.size))
            seen.add(picture.size)

    def record(self, pictures: Sequence[Picture]) -> dict[str, Any]:
        """What decides the masks, for ``settings.json``."""
        if self.rectangle is not None:
            return {"mask": self.rectangle, "invert": self.invert}
        if self.mask is not None:
            path = Path(self.mask)
            if not path.is_file():
                raise UserError(f"expected a picture of the mask in {path}, found no such file")
            return {"mask": {"file": path.name, "sha256": sha256(path)}, "invert": self.invert}
        if self.patch is not None:
            return {"patch": self.patch, "seed": self.seed, "invert": self.invert}
        return {"mask": "transparent parts", "invert": self.invert}
