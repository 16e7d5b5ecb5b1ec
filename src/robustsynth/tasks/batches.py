"""Jobs of any size in batches of one size."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from robustsynth.loop import NonFiniteError, Problem, Step, pgd


@dataclass(frozen=True)
class Batch:
    """Finished images of a job: their `indices` in it, `images` (n, C, H, W) on the CPU, the step at which
    each one that failed did, by index, and the step at which the batch was stopped before its end, if it was."""

    indices: tuple[int, ...]
    images: Tensor
    failures: dict[int, int]
    stopped: int | None = None


def solve_in_batches(
    indices: Sequence[int],
    state: Callable[[Sequence[int]], Problem],
    *,
    batch_size: int,
    step_size: float | Callable[[int], float],
    steps: int,
    use_best: bool = True,
    on_step: Callable[[Sequence[int], Step], object] | None = None,
) -> Iterator[Batch]:
    """Solve the problem of each image, a batch at a time, and hand over each batch as it is done.

    Every batch has the same size, the last one padded with repetitions: libraries choose other kernels for other
    batch sizes, and an image's bytes must not depend on its company.

    Args:
        indices: of the images wanted.
        state: states the problem of the images with given indices.
        batch_size: images a batch.
        step_size: as for `pgd`.
        steps: as for `pgd`.
        use_best: as for `pgd`.
        on_step: called with the batch's indices and each `Step`; returning False ends the batch there.
    """
    for start in range(0, len(indices), batch_size):
        wanted = tuple(indices[start : start + batch_size])
        padded = wanted + wanted[-1:] * (batch_size - len(wanted))

        ended: list[int] = []

        def call(step: Step, wanted: tuple[int, ...] = wanted, ended: list[int] = ended) -> object:
            answer = None if on_step is None else on_step(wanted, step)
            if answer is False and step.index < steps:
                ended.append(step.index)
            return answer

        failures: dict[int, int] = {}
        try:
            # Libraries of graphics cards may add up gradients in another order each time; on a processor this is idle.
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
                images = pgd(state(padded), step_size=step_size, steps=steps, use_best=use_best, on_step=call)
        except NonFiniteError as error:
            images = error.images
            failures = {wanted[p]: step for p, step in error.failures.items() if p < len(wanted)}
        yield Batch(wanted, images[: len(wanted)].detach().cpu(), failures, ended[0] if ended else None)
