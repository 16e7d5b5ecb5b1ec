"""Seconds an image and a step of `translate`, on 1, 16 and 1,000 images: the batch size measured here against 2, the
batch size of version 0.1.0.

    python benchmarks/image_tasks.py [--models cifar10,imagenette] [--rounds 3]

Both run in the same process, in turns, and each one's best time counts. Of 1,000 images, `BATCHES` batches are timed.
"""

from __future__ import annotations

import argparse
import time

import torch

import robustsynth as rs
from robustsynth.models.execution import machine_name, processor_kind

COUNTS = (1, 16, 1000)
STEPS, BATCHES = 3, 2


def seconds(model: rs.Classifier, count: int, batch_size: int | None) -> tuple[float, int]:
    """Of one step of one image, and the batch size."""
    side = model.image_size or 32
    images = torch.rand(count, model.channels, side, side, generator=torch.Generator().manual_seed(0))
    spent, taken, finished, size, before = 0.0, 0, 0, 0, time.perf_counter()
    for progress in rs.translate_steps(model, images, 0, steps=STEPS, batch_size=batch_size):
        now = time.perf_counter()
        if progress.step:  # From x_k to x_k+1; what comes before x_0 is no step.
            spent, taken = spent + now - before, taken + len(progress.indices)
        size = len(progress.iterates)
        finished += progress.finished
        if finished == BATCHES:
            break
        before = time.perf_counter()
    return spent / taken, size


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", default="cifar10,imagenette")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    print(f"{machine_name()}, {processor_kind()}")
    print("| model | side | images | 0.1.0: ms an image and step | now | batch size | times as fast |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models.split(","):
        model = rs.load_model(name)
        for count in COUNTS:
            best = {2: float("inf"), None: float("inf")}
            size = 0
            for _ in range(options.rounds + 1):  # The first round measures and warms up; it can only lose.
                for batch_size in best:
                    taken, used = seconds(model, count, batch_size)
                    best[batch_size] = min(best[batch_size], taken)
                    size = used if batch_size is None else size
            before, now = 1000 * best[2], 1000 * best[None]
            print(f"| {name} | {model.image_size} | {count} | {before:.1f} | {now:.1f} | {size} | {before / now:.2f} |")


if __name__ == "__main__":
    main()
