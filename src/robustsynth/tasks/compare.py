"""Several classifiers from the same starts: the contrast that the papers argue with (Santurkar et al. 2019, Figure 2:
what a robust classifier draws, and what a standard one does)."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from robustsynth.loop import Step
from robustsynth.models.classifier import Classifier
from robustsynth.tasks.batches import Batch
from robustsynth.tasks.compare_plan import ComparisonPlan, labels_of, plan_comparison
from robustsynth.tasks.generate import generate_batches
from robustsynth.tasks.settings import GenerateSettings

OnStep = Callable[[int, Sequence[int], Step], object]
"""Of a model's place, the indices of a batch, and each `Step` of it; returning False stops the comparison there."""


@dataclass(frozen=True, eq=False)
class Comparison:
    """What became of the same starts.

    Attributes:
        plan: what was asked for.
        images: for each model (N, C, H, W) in [0, 1] on the CPU, of its own size and channels; black where not drawn.
        drawn: (models, N), which images are there; all unless it was stopped or an image met a NaN.
        seconds: for each model, the time of an image in this run, by its median step; None where there were not two.
        failures: for each model, by image, the step at which it met a NaN or an infinity.
    """

    plan: ComparisonPlan
    images: tuple[Tensor, ...]
    drawn: Tensor
    seconds: tuple[float | None, ...]
    failures: tuple[dict[int, int], ...]

    @property
    def seeds(self) -> Tensor:
        """(N, C, H, W) start images in [0, 1]."""
        return self.plan.seeds

    @property
    def complete(self) -> bool:
        """Whether every batch was drawn; images that met a NaN are no reason to draw again."""
        return int(self.drawn.sum()) + sum(map(len, self.failures)) == self.drawn.numel()


def compare(
    models: Sequence[Classifier],
    classes: Sequence[str | int] | None = None,
    *,
    num_per_class: int = 2,
    seed: int = 0,
    preset: str | None = None,
    own_settings: bool = False,
    precision: str | None = None,
    batch_size: int | None = None,
    on_step: OnStep | None = None,
    **settings: Any,
) -> Comparison:
    """Draw the same class seeds with several classifiers.

    The seeds are those of the first robust model that has some, resized for models of other sizes. Its settings hold
    for all, so that the contrast is one of models and not of settings; ℓ2 sizes and shifts scale with the images.

    Args:
        models: one or more, which share the classes asked for.
        classes: names, or numbers as the first model counts them; all that the models share where None.
        num_per_class: start images of each class.
        seed: of the start images.
        preset: as for `generate`.
        own_settings: each model by the tuned settings of its own card in place of common ones.
        precision: as for `generate`.
        batch_size: as for `generate`.
        on_step: called with a model's place, the indices of a batch, and each `Step` of it; returning False stops all.
        **settings: fields of `GenerateSettings`, which override the preset.

    Returns:
        A `Comparison`, with ``images``, ``seeds`` and ``seconds``.

    Raises:
        UserError: no models, classes that they do not share, or settings or seeds that do not fit.

    Example:
        >>> from robustsynth.models.store import load_model
        >>> result = compare([load_model("mnist"), load_model("mnist-standard")], ["3", "8"], num_per_class=1, steps=2)
        >>> [images.shape for images in result.images]
        [torch.Size([2, 1, 28, 28]), torch.Size([2, 1, 28, 28])]
    """
    plan = plan_comparison(
        models,
        classes,
        num_per_class=num_per_class,
        seed=seed,
        preset=preset,
        own_settings=own_settings,
        precision=precision,
        batch_size=batch_size,
        given=settings,
    )
    return draw_in_turns(plan, on_step=on_step)


def draw_in_turns(plan: ComparisonPlan, *, on_step: OnStep | None = None) -> Comparison:
    """Draw a batch with each model, then the next batch with each, and take the time of each.

    Taking turns after a first step that does not count, the models meet the same moods of the machine; and what is
    there when it is stopped is there of all models.

    Args:
        plan: of `plan_comparison`.
        on_step: as for `compare`.
    """
    runs = [_Run(plan, place, on_step) for place in range(len(plan.models))]
    for run in runs:
        run.warm_up()
    left = runs
    while left:
        left = [run for run in left if not any(other.stopped for other in runs) and run.advance()]
    return Comparison(
        plan,
        tuple(run.images for run in runs),
        torch.stack([run.drawn for run in runs]),
        tuple(run.seconds_an_image() for run in runs),
        tuple(run.failures for run in runs),
    )


@dataclass(eq=False)
class _Run:
    """One model's part of a comparison, a batch at a time."""

    plan: ComparisonPlan
    place: int
    on_step: OnStep | None
    stopped: bool = False
    step_seconds: list[float] = field(default_factory=list)
    failures: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.starts = self.plan.starts(self.place)
        self.before = 0.0
        self.images = torch.zeros_like(self.starts)
        self.drawn = torch.zeros(len(self.starts), dtype=torch.bool)
        self.batches = self._draw(len(self.starts), self.plan.settings[self.place], self._tell)

    def warm_up(self) -> None:
        """One step of one batch, for what happens only the first time."""
        settings = self.plan.settings[self.place]
        short = dataclasses.replace(settings, steps=min(settings.steps, 1), scales=1)
        for _ in self._draw(1, short, None):
            pass

    def advance(self) -> bool:
        """Draw one batch; whether there was one."""
        batch = next(self.batches, None)
        if batch is None:
            return False
        if batch.stopped is not None:
            self.stopped = True
            return False
        chosen = list(batch.indices)
        self.images[chosen] = batch.images
        self.drawn[[i for i in chosen if i not in batch.failures]] = True
        self.failures |= batch.failures
        return True

    def seconds_an_image(self) -> float | None:
        """From the median step, which a hiccup of the machine does not move; None where none was taken."""
        if not self.step_seconds or not self.drawn.any():
            return None
        steps = self.plan.settings[self.place].steps
        return statistics.median(self.step_seconds) * steps / self.plan.executions[self.place].batch_size

    def _draw(
        self,
        count: int,
        settings: GenerateSettings,
        on_step: Callable[[Sequence[int], Step], object] | None,
    ) -> Iterator[Batch]:
        model, execution = self.plan.models[self.place], self.plan.executions[self.place]
        return generate_batches(
            model,
            labels_of(model, self.plan.classes[:count]),
            settings,
            seed=self.plan.seed,
            start=self.starts[:count],
            precision=execution.precision,
            batch_size=execution.batch_size,
            on_step=on_step,
        )

    def _tell(self, indices: Sequence[int], step: Step) -> object:
        now = time.perf_counter()
        # From x_k to x_k+1; what is before the first and after the last is no step.
        if 0 < step.index < self.plan.settings[self.place].steps:
            self.step_seconds.append(now - self.before)
        answer = self._ask(indices, step)
        self.before = time.perf_counter()
        return answer

    def _ask(self, indices: Sequence[int], step: Step) -> object:
        return None if self.on_step is None else self.on_step(self.place, indices, step)
