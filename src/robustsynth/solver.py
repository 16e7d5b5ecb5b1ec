"""The generator under every task: it solves problems batch by batch, and yields what a person could be shown.

A progress bar, an animation, a live preview and a cancel button are each a ``for`` loop over `solve`. Leaving that loop
cancels what is left; each image is then finished, stopped, or not begun, which `Results` keeps account of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from robustsynth.loop import BestIterate, NonFiniteError, Problem, Step, pgd_steps

FINISHED, STOPPED, FAILED, NOT_BEGUN = "finished", "stopped", "failed", "not begun"


@dataclass(frozen=True, eq=False)
class Stated:
    """What a task wants of one batch of images.

    Attributes:
        problem: for the loop.
        finish: makes results (N, C, H, W) on the CPU from iterates (N, C, H, W) on the device.
        labels: class of each image (N,); None where a task has none.
        predicted: whether the classifier chose the labels.
        given: by title, images (N, C, H, W) that the task worked from, to be shown beside the source.
    """

    problem: Problem
    finish: Callable[[Tensor], Tensor] = lambda images: images.detach().cpu()
    labels: Tensor | None = None
    predicted: bool = False
    given: Mapping[str, Tensor] = field(default_factory=dict)


State = Callable[[Sequence[int], int, "Tensor | None"], Stated]
"""States the problem of the images of given indices, in a run of the loop of given number, after the run before it
gave these results (None for the first run)."""


@dataclass(frozen=True, eq=False)
class Progress:
    """Where one batch of a task is.

    Attributes:
        indices: which images, of those that the task was asked for.
        step: number of steps taken in this run of the loop, 0 to `steps`.
        steps: of each run.
        run: number of this run; tasks such as `paint` with several units have several runs, one after another.
        runs: how many runs each image has.
        loss: of each image at this step (n,).
        failures: index of an image that met a NaN or an infinity → the step at which it did.
        stated: what the task asked for, of the batch and its padding.
        iterates: (N, C, H, W) what `previews` are made from, padding included.
    """

    indices: tuple[int, ...]
    step: int
    steps: int
    run: int
    runs: int
    loss: Tensor
    failures: Mapping[int, int]
    stated: Stated
    iterates: Tensor

    @property
    def finished(self) -> bool:
        """Whether these images are done."""
        return self.step == self.steps and self.run == self.runs - 1

    @property
    def taken(self) -> int:
        """Steps that each image of the batch has taken, over all runs."""
        return self.run * self.steps + self.step

    @property
    def previews(self) -> Tensor:
        """The results (n, C, H, W) in [0, 1] as they would be written now, on the CPU. Computed when asked for."""
        if "kept" not in self.__dict__:
            self.__dict__["kept"] = self.stated.finish(self.iterates)
        return self.__dict__["kept"][: len(self.indices)]


def solve(
    batches: Iterable[Sequence[int]],
    state: State,
    *,
    batch_size: int,
    step_size: float | Callable[[int], float],
    steps: int,
    use_best: bool = True,
    runs: int = 1,
) -> Iterator[Progress]:
    """Solve the problem of each image, a batch at a time.

    Every batch has the same size, padded with repetitions of its last image: libraries choose other kernels for other
    batch sizes, and an image's bytes must not depend on which other images are there.

    Args:
        batches: indices of images, at most `batch_size` at a time.
        state: see `State`.
        batch_size: images a batch, padding included.
        step_size: as for `pgd_steps`.
        steps: of each run of the loop.
        use_best: as for `pgd`.
        runs: runs of the loop for each image, each of which begins where `state` says.

    Yields:
        `Progress` at each step of each batch, step 0 included.

    Example:
        >>> from robustsynth.constraints import L2Ball
        >>> def state(indices, run, before):
        ...     return Stated(Problem(torch.full((len(indices), 1, 2, 2), 0.5), lambda x: x.sum((1, 2, 3)), L2Ball(9)))
        >>> for progress in solve([[0, 1], [2]], state, batch_size=2, step_size=0.5, steps=2):
        ...     print(progress.indices, progress.step, progress.finished, round(progress.previews.mean().item(), 2))
        (0, 1) 0 False 0.5
        (0, 1) 1 False 0.25
        (0, 1) 2 True 0.0
        (2,) 0 False 0.5
        (2,) 1 False 0.25
        (2,) 2 True 0.0
    """
    for batch in batches:
        wanted = tuple(batch)
        padded = wanted + wanted[-1:] * (batch_size - len(wanted))
        failures: dict[int, int] = {}
        progress: Progress | None = None
        for run in range(runs):
            stated = state(padded, run, None if progress is None else progress.stated.finish(progress.iterates))
            best = BestIterate()
            iterates = pgd_steps(stated.problem, step_size=step_size, steps=steps, score_last=use_best)
            while (step := _next(iterates)) is not None:
                if use_best:
                    best.add(step)
                for place, index in step.failures.items():
                    if place < len(wanted):
                        failures.setdefault(wanted[place], index)
                now = best.images if use_best else step.images
                loss = step.loss[: len(wanted)]
                progress = Progress(wanted, step.index, steps, run, runs, loss, dict(failures), stated, now)
                yield progress


def _next(iterates: Iterator[Step]) -> Step | None:
    # Libraries of graphics cards may add up gradients in another order each time; on a processor this is idle.
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
        return next(iterates, None)


@dataclass(frozen=True)
class ImageState:
    """What became of an image.

    `status` is ``finished``, ``stopped``, ``failed`` or ``not begun``; `step` is where it stopped or failed.
    """

    status: str
    step: int | None = None


class Results:
    """What a run of `solve` has given so far, of all images that were asked for."""

    def __init__(self, indices: Iterable[int]) -> None:
        self.indices = list(indices)
        self.images: dict[int, Tensor] = {}
        self.failures: dict[int, int] = {}
        self.last: Progress | None = None

    def add(self, progress: Progress) -> None:
        """Take note of a step; of a finished batch, keep the results."""
        self.last = progress
        self.failures |= progress.failures
        if progress.finished:
            self.images |= zip(progress.indices, progress.previews, strict=True)

    @property
    def under_way(self) -> Progress | None:
        """The batch that was begun and whose results are not kept yet."""
        last = self.last
        return None if last is None or all(index in self.images for index in last.indices) else last

    def states(self) -> list[ImageState]:
        """What became of each image, in the order of `indices`."""
        stopped = {} if self.under_way is None else dict.fromkeys(self.under_way.indices, self.under_way.taken)
        found = {index: ImageState(STOPPED, step) for index, step in stopped.items()}
        found |= {index: ImageState(FINISHED) for index in self.images}
        found |= {index: ImageState(FAILED, step) for index, step in self.failures.items()}
        return [found.get(index, ImageState(NOT_BEGUN)) for index in self.indices]

    def so_far(self) -> list[Tensor | None]:
        """Each image as it would be written now; None where it was not begun."""
        there = dict(self.images)
        if self.under_way is not None:
            there |= zip(self.under_way.indices, self.under_way.previews, strict=True)
        return [there.get(index) for index in self.indices]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in the middle of a task.

    It has `images` as they had become, (C, H, W), None where one was not begun; and `states`, an `ImageState` of each.
    """

    def __init__(self, results: Results) -> None:
        self.images, self.states = results.so_far(), results.states()
        finished = sum(state.status == FINISHED for state in self.states)
        super().__init__(
            f"{finished} of {len(self.states)} images are finished; .images and .states have what there is"
        )


def results_of(progresses: Iterator[Progress], indices: Iterable[int]) -> list[Tensor]:
    """The result (C, H, W) of each of `indices`, when `progresses` has come to its end.

    Raises:
        Interrupted: on Ctrl-C; it has what was made until then.
        NonFiniteError: some images met a NaN or an infinity; the error has all, the others finished.
    """
    results = Results(indices)
    try:
        for progress in progresses:
            results.add(progress)
    except KeyboardInterrupt:
        raise Interrupted(results) from None
    images = [results.images[index] for index in results.indices]
    if results.failures:
        place = {index: position for position, index in enumerate(results.indices)}
        failures = {place[i]: step for i, step in results.failures.items()}
        raise NonFiniteError(stacked(images), failures)  # pyright: ignore[reportArgumentType]
    return images


def stacked(images: Sequence[Tensor]) -> Tensor | list[Tensor]:
    """One tensor (N, C, H, W) of images (C, H, W) of one size; the list itself where sizes differ."""
    return torch.stack(list(images)) if len({image.shape for image in images}) == 1 else list(images)
