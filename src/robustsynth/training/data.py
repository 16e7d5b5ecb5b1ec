"""Training images: where a run's batches come from, and how they are varied: crops, mirror images, colours, CutMix."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from robustsynth.data import ImageData, hold_out
from robustsynth.data.streaming import Failed, ImageStream, StreamBatches
from robustsynth.errors import UserError
from robustsynth.processes import ALONE, Workers
from robustsynth.randomness import generator, uniform
from robustsynth.training.settings import TrainSettings

ORDER = 1
"""Key of the random stream of an epoch's order."""

Batch = tuple[Tensor, Tensor]
"""Images (n, C, H, W) in [0, 1] and labels (n,), on the device that trains."""


class InMemory:
    """Batches of decoded images: those with the numbers `kept`; those with the numbers `held` are held out."""

    summary: Mapping[str, Any] = {"stream": None}
    """For a checkpoint, what makes it the same stream: it is none."""

    def __init__(self, data: ImageData, settings: TrainSettings, device: torch.device) -> None:
        self.data, self.settings, self.device = data, settings, device
        self.held, self.kept = hold_out(len(data), settings.held_out)

    def epoch(self, number: int, first: int, rows: Tensor | None) -> Iterator[Batch]:
        """The batches of epoch `number` from that at position `first` on; of each only `rows`, all where None.

        A batch depends on the run's seed, the epoch and the position alone, so that a run can go on anywhere. Each
        image comes once, the incomplete last batch is left out.
        """
        size = self.settings.batch_size
        draw = torch.randperm(len(self.kept), generator=generator(self.settings.seed, ORDER, number)).numpy()
        order = self.kept[draw]
        for position in range(first, len(order) // size):
            numbers = order[position * size : (position + 1) * size]
            yield self.read(numbers if rows is None else numbers[rows.numpy()])

    def held_out(self, start: int, stop: int) -> Batch:
        """The images held out from number `start` to `stop`."""
        return self.read(self.held[start:stop])

    def for_seeds(self) -> tuple[ImageData, np.ndarray]:
        """Images to fit the class seeds on, and which of them to leave out: those held out."""
        return self.data, self.held

    def read(self, numbers: np.ndarray) -> Batch:
        # Indexing by an array copies from the memory map, so that the tensor may be written to.
        return _as_batch(self.data.images[numbers], self.data.labels[numbers], self.device)


SUBSTREAMS = 16
"""At most so many places of a stream are read at once."""

SEED_IMAGES = 50_000
"""At most so many images of a stream are decoded to fit the class seeds on, as many of each class."""


def substreams_of(part: int) -> int:
    """Into how many substreams a stream is cut for parts of a batch of `part` images: the most that divide it.

    Example:
        >>> substreams_of(128), substreams_of(15), substreams_of(17)
        (16, 15, 1)
    """
    return next(substreams for substreams in range(min(SUBSTREAMS, part), 0, -1) if part % substreams == 0)


class Streamed:
    """Batches of a stream, as `InMemory` has them: images are decoded while the run goes on, in their own processes.

    A batch takes as many rows of each substream, whose order is the same whatever the processes and decoders, so that
    a batch is, too. The first images of the first shards are held out. Each of `workers`, whose number divides that of
    substreams, decodes its own, in `decoders` processes; in itself where they are 0.
    """

    def __init__(
        self,
        stream: ImageStream,
        settings: TrainSettings,
        *,
        workers: Workers = ALONE,
        device: torch.device | str = "cpu",
        decoders: int = 0,
    ) -> None:
        self.stream, self.settings, self.device = stream, settings, torch.device(device)
        self.held, self.kept = np.arange(settings.held_out), np.arange(settings.held_out, len(stream))
        self.pieces = stream.without(settings.held_out)
        self.part = settings.batch_size // settings.accumulate
        self.substreams = substreams_of(self.part)
        if self.substreams % workers.size:
            fitting = [n for n in range(1, self.substreams + 1) if self.substreams % n == 0]
            raise UserError(
                f"expected a number of processes that divides the {self.substreams} substreams of a stream in "
                f"batches of {self.part}, got {workers.size}; start {', '.join(map(str, fitting))}, or choose another "
                "--batch-size"
            )
        share = self.substreams // workers.size
        self.mine = list(range(workers.rank * share, (workers.rank + 1) * share))
        self.decoders = min(decoders, share)
        self._held_images: ImageData | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """What makes a stream the same stream, for a checkpoint."""
        return {"stream": [self.substreams, *map(len, self.stream.pieces)]}

    def epoch(self, number: int, first: int, rows: Tensor | None) -> Iterator[Batch]:
        """See `InMemory`; `rows` are those of this process's substreams already."""
        settings = self.settings
        where = {"seed": settings.seed, "epoch": number, "first": first, "substreams": self.substreams}
        share = {"mine": self.mine, "each": self.part // self.substreams, "parts": settings.accumulate}
        batches: Any = StreamBatches(self.stream, self.pieces, **where, **share)
        with warnings.catch_warnings():
            # How many decode is for the user to say: `--decoders`.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader = iter(DataLoader(batches, batch_size=None, num_workers=self.decoders))
        for _ in range(first, len(self.kept) // settings.batch_size):
            given = self._next(loader)
            images, labels = (torch.cat(each, 1).flatten(0, 2) for each in zip(*given, strict=True))
            yield _as_batch(images, labels, self.device)

    def _next(self, loader: Iterator[Any]) -> list[tuple[Tensor, Tensor]]:
        """What each decoder has of a step."""
        again = "--resume goes on from the last checkpoint"
        try:
            given = [next(loader) for _ in range(max(1, self.decoders))]
        except RuntimeError as error:
            if "exited unexpectedly" not in str(error):
                raise
            raise UserError(
                "expected the processes that decode to go on, got one that was killed, as where memory is short; "
                f"{again}, with fewer --decoders"
            ) from None
        for each in given:
            if isinstance(each, Failed):
                raise UserError(f"{each.reason}; once it is mended {again}")
        return given

    def held_out(self, start: int, stop: int) -> Batch:
        """See `InMemory`; decoded once."""
        if self._held_images is None:
            self._held_images = self.stream.data(self.held)
        return _as_batch(self._held_images.images[start:stop], self._held_images.labels[start:stop], self.device)

    def for_seeds(self) -> tuple[ImageData, np.ndarray]:
        """As many of each class as fit, the first in the shards; at the side that seeds are fitted at."""
        labels, classes = self.stream.labels[self.kept], len(self.stream.classes)
        each = max(2, SEED_IMAGES // classes)
        chosen = np.concatenate([np.flatnonzero(labels == label)[:each] for label in range(classes)])
        size = self.settings.image_size
        # Without a size of the settings' own the seeds' is taken from the images.
        side = self.stream.image_size if size is None else size if size <= 64 else size // 4
        return self.stream.data(self.kept[np.sort(chosen)], image_size=side), np.array([], dtype=np.int64)


def _as_batch(images: Tensor | np.ndarray, labels: Tensor | np.ndarray, device: torch.device) -> Batch:
    """Images uint8 (n, H, W, C) and labels as training takes them."""
    images, labels = torch.as_tensor(images), torch.as_tensor(labels)
    return images.to(device).permute(0, 3, 1, 2).float() / 255, labels.to(device)


def augment(
    images: Tensor, settings: TrainSettings, generators: Sequence[torch.Generator], *, side: int | None = None
) -> Tensor:
    """Random views (N, C, H, W) of `images` (N, C, h, w) in [0, 1], each drawn from its image's own CPU generator.

    ``resized`` crops have `side` pixels, or the images' where None.

    Example:
        >>> from robustsynth.randomness import image_generators
        >>> views = augment(torch.rand(4, 3, 8, 8), TrainSettings(), image_generators(0, range(4)))
        >>> views.shape
        torch.Size([4, 3, 8, 8])
    """
    if settings.crop == "pad":
        images = _padded_crop(images, max(1, images.shape[-1] // 8), settings.flip, generators)
    elif settings.crop == "resized":
        images = _resized_crop(images, settings, generators, side or images.shape[-1])
    elif settings.flip:
        mirrored = (uniform(generators, (1, 1, 1)) < 0.5).to(images.device)
        images = torch.where(mirrored, images.flip(3), images)
    if settings.jitter:
        images = _jitter(images, settings.jitter, generators)
    return images


def _padded_crop(images: Tensor, padding: int, flip: bool, generators: Sequence[torch.Generator]) -> Tensor:
    """Crops of the reflected-padded images at random places: one gather for the whole batch."""
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4, mode="reflect")
    corner = torch.stack([torch.randint(0, 2 * padding + 1, (2,), generator=g) for g in generators]).to(images.device)
    mirrored = (uniform(generators, (1,)) < 0.5).to(images.device) & flip
    across = torch.arange(width, device=images.device)
    down = corner[:, :1] + torch.arange(height, device=images.device)
    columns = corner[:, 1:] + torch.where(mirrored, across.flip(0), across)
    each = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[each, down[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _resized_crop(images: Tensor, settings: TrainSettings, generators: Sequence[torch.Generator], side: int) -> Tensor:
    """Crops of some share of the area and aspect 3:4 to 4:3, brought to `side` bilinearly."""
    count, channels = images.shape[:2]
    draw = uniform(generators, (5,)).to(images.device)
    area = settings.crop_area + (1 - settings.crop_area) * draw[:, 0]
    aspect = torch.exp((2 * draw[:, 1] - 1) * math.log(4 / 3))
    wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    left, top = (2 * draw[:, 2] - 1) * (1 - wide), (2 * draw[:, 3] - 1) * (1 - high)
    mirror = torch.where((draw[:, 4] < 0.5) & settings.flip, -1.0, 1.0)
    zero = torch.zeros_like(wide)
    affine = torch.stack([torch.stack([wide * mirror, zero, left], 1), torch.stack([zero, high, top], 1)], 1)
    grid = F.affine_grid(affine, [count, channels, side, side], align_corners=False)
    views = F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return views.clamp(0, 1)  # Rounded weights may add up to a little more than one.


def _jitter(images: Tensor, strength: float, generators: Sequence[torch.Generator]) -> Tensor:
    factor = 1 + strength * (2 * uniform(generators, (3, 1, 1, 1)).to(images.device) - 1)
    brightness, contrast, saturation = factor.unbind(1)
    images = images * brightness
    middle = images.mean((1, 2, 3), keepdim=True)
    images = middle + (images - middle) * contrast
    grey = images.mean(1, keepdim=True)
    return (grey + (images - grey) * saturation).clamp(0, 1)


def cutmix(
    images: Tensor, labels: Tensor, *, classes: int, probability: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Images (N, C, H, W) with a rectangle of another image of the batch each, and the shares of their labels.

    Yun et al. 2019, Section 3.1 (α = 1), drawn for each image rather than for the batch: the rectangle has the
    image's aspect, an area uniform in [0, 1] before it is cut off at the border, and a centre uniform in the image.
    An image is mixed with `probability`. Of `labels` (N,) become shares (N, `classes`) of the pixels.

    Example:
        >>> both = torch.stack([torch.zeros(1, 8, 8), torch.ones(1, 8, 8)])
        >>> mixed, shares = cutmix(both, torch.tensor([0, 1]), classes=2, probability=1.0,
        ...                        generator=torch.Generator().manual_seed(1))
        >>> torch.allclose(mixed.mean((1, 2, 3)), shares[:, 1])
        True
    """
    count, _, height, width = images.shape
    draw = torch.rand(count, 4, generator=generator)
    partner = torch.randperm(count, generator=generator).to(images.device)
    side = draw[:, 0].sqrt() * (draw[:, 3] < probability)
    inside = _spans(draw[:, 1], side, height)[:, :, None] & _spans(draw[:, 2], side, width)[:, None, :]
    share = inside.float().mean((1, 2)).to(images.device)[:, None]
    mixed = torch.where(inside[:, None].to(images.device), images[partner], images)
    own = F.one_hot(labels, classes).float()
    return mixed, own * (1 - share) + own[partner] * share


def _spans(center: Tensor, share: Tensor, length: int) -> Tensor:
    """(N, length): which of `length` pixels lie within `share`·`length` around `center`·`length`."""
    place = torch.arange(length) + 0.5
    return (place - (center * length)[:, None]).abs() < (share * length / 2)[:, None]
