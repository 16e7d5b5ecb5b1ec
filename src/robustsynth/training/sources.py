"""Where a run's batches come from: images in memory, or a stream of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from robustsynth.data import ImageData
from robustsynth.data.streaming import Failed, ImageStream, StreamBatches
from robustsynth.errors import UserError
from robustsynth.processes import ALONE, Workers
from robustsynth.randomness import generator
from robustsynth.training.settings import TrainSettings
from robustsynth.training.workers import Rows

ORDER = 1
"""Key of the random stream of an epoch's order."""

Batch = tuple[Tensor, Tensor]
"""Images (n, C, H, W) in [0, 1] and labels (n,), on the device that trains."""


class BatchSource(Protocol):
    """What a run asks of its training images. Places are numbers of images in the data, as its labels have them.

    Attributes:
        held: places that are held out to select by.
        kept: places that are trained on.
    """

    held: np.ndarray
    kept: np.ndarray

    def epoch(self, number: int, first: int, rows: Rows | None) -> Iterator[Batch]:
        """The batches of epoch `number` from that at position `first` on; of each only `rows`.

        A batch depends on the run's seed, the epoch and the position alone, so that a run can go on anywhere.
        """
        ...

    def held_out(self, start: int, stop: int) -> Batch:
        """The images held out from number `start` to `stop`."""
        ...

    def for_seeds(self) -> tuple[ImageData, np.ndarray]:
        """Images to fit the class seeds on, and which of them to leave out."""
        ...


class InMemory:
    """Batches of images that are decoded already.

    Args:
        data: the images.
        held: places held out.
        kept: places trained on.
        batch_size: images a step.
        seed: of the run.
        read: the images and labels at given places.

    Example:
        >>> from robustsynth.data import hold_out
        >>> source = InMemory(None, *hold_out(10, 2), batch_size=4, seed=0, read=lambda places: len(places))
        >>> list(source.epoch(0, 1, None))
        [4]
    """

    def __init__(
        self,
        data: ImageData,
        held: np.ndarray,
        kept: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        read: Callable[[np.ndarray], Batch],
    ) -> None:
        self.data, self.held, self.kept = data, held, kept
        self.batch_size, self.seed, self.read = batch_size, seed, read

    def epoch(self, number: int, first: int, rows: Rows | None) -> Iterator[Batch]:
        """See `BatchSource`; each image once, the incomplete last batch left out."""
        draw = torch.randperm(len(self.kept), generator=generator(self.seed, ORDER, number)).numpy()
        order = self.kept[draw]
        for position in range(first, len(order) // self.batch_size):
            places = order[position * self.batch_size : (position + 1) * self.batch_size]
            yield self.read(places if rows is None else places[rows.indices.numpy()])

    def held_out(self, start: int, stop: int) -> Batch:
        """See `BatchSource`."""
        return self.read(self.held[start:stop])

    def for_seeds(self) -> tuple[ImageData, np.ndarray]:
        """All images but those held out."""
        return self.data, self.held


LANES = 16
"""At most so many places of a stream are read at once."""

SEED_IMAGES = 50_000
"""At most so many images of a stream are decoded to fit the class seeds on, as many of each class."""


def lanes_of(part: int) -> int:
    """Into how many lanes a stream is cut for parts of a batch of `part` images: the most that divide it.

    Example:
        >>> lanes_of(128), lanes_of(15), lanes_of(17)
        (16, 15, 1)
    """
    return next(lanes for lanes in range(min(LANES, part), 0, -1) if part % lanes == 0)


class Streamed:
    """Batches of a stream: images are decoded while the run goes on, in processes of their own.

    A batch takes as many rows of each lane, whose order is the same whatever the processes and decoders, so that a
    batch is, too. The first images of the first shards are held out.

    Args:
        stream: the images.
        settings: of the run.
        workers: the processes that train; each reads and decodes its own lanes.
        device: that trains.
        decoders: processes that decode, for each that trains; 0 to decode in that itself.

    Raises:
        UserError: the number of processes does not divide that of lanes.
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
        self.lanes = lanes_of(self.part)
        if self.lanes % workers.size:
            fitting = [n for n in range(1, self.lanes + 1) if self.lanes % n == 0]
            raise UserError(
                f"expected a number of processes that divides the {self.lanes} lanes of a stream in batches of "
                f"{self.part}, got {workers.size}; start {', '.join(map(str, fitting))}, or choose another --batch-size"
            )
        share = self.lanes // workers.size
        self.mine = list(range(workers.rank * share, (workers.rank + 1) * share))
        self.decoders = min(decoders, share)
        self._held_images: ImageData | None = None

    @property
    def summary(self) -> dict[str, Any]:
        """What makes a stream the same stream, for a checkpoint."""
        return {"stream": [self.lanes, *map(len, self.stream.pieces)]}

    def epoch(self, number: int, first: int, rows: Rows | None) -> Iterator[Batch]:
        """See `BatchSource`. `rows` are those of this process's lanes already."""
        settings = self.settings
        lanes = StreamBatches(
            self.stream,
            self.pieces,
            seed=settings.seed,
            epoch=number,
            first=first,
            substreams=self.lanes,
            mine=self.mine,
            each=self.part // self.lanes,
            parts=settings.accumulate,
        )
        with warnings.catch_warnings():
            # How many decode is for the user to say: `--decoders`.
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            loader = iter(DataLoader(lanes, batch_size=None, num_workers=self.decoders))
        for _ in range(first, len(self.kept) // settings.batch_size):
            given = self._next(loader)
            images, labels = (torch.cat(each, 1).flatten(0, 2) for each in zip(*given, strict=True))
            yield as_batch(images, labels, self.device)

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
        """See `BatchSource`; decoded once."""
        if self._held_images is None:
            self._held_images = self.stream.data(self.held)
        images, labels = self._held_images.images[start:stop], self._held_images.labels[start:stop]
        return as_batch(torch.from_numpy(images), torch.from_numpy(labels), self.device)

    def for_seeds(self) -> tuple[ImageData, np.ndarray]:
        """As many of each class as fit, the first in the shards; at the side that seeds are fitted at."""
        labels, classes = self.stream.labels[self.kept], len(self.stream.classes)
        each = max(2, SEED_IMAGES // classes)
        chosen = np.concatenate([np.flatnonzero(labels == label)[:each] for label in range(classes)])
        size = self.settings.image_size
        # Without a size of the settings' own the seeds' is taken from the images.
        side = self.stream.image_size if size is None else size if size <= 64 else size // 4
        return self.stream.data(self.kept[np.sort(chosen)], image_size=side), np.array([], dtype=np.int64)


def as_batch(images: Tensor, labels: Tensor, device: torch.device) -> Batch:
    """Images uint8 (n, H, W, C) and labels as training takes them.

    Example:
        >>> as_batch(torch.full((1, 2, 2, 3), 255, dtype=torch.uint8), torch.tensor([4]), torch.device("cpu"))[0].shape
        torch.Size([1, 3, 2, 2])
    """
    return images.to(device).permute(0, 3, 1, 2).float() / 255, labels.to(device)
