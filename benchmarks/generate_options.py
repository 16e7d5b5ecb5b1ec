"""What each option of generation is worth, on the same labels and seeds as without it.

    python benchmarks/generate_options.py --judge JUDGE --data CIFAR10_FOLDER [--model cifar10] [--num 500] \
        [--base best --base paper] [--ensemble OTHER] [--sheets FOLDER]

A row for each base setting alone, with another seed (the difference to the first is chance), and with each option:
mixtures as seeds (where the model has them), two and three scales, an ensemble (where one is given), and mixes of each
class with the next, 0.6 to 0.4. For each: the share that the judge recognises as the intended class, for mixes as
either of the two; the Fréchet distance of its features to real test images'; variety, the mean distance between the
features of two samples of a class relative to real images'; and the time, on a processor that of all its threads
together, so that other work on the machine counts less.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import robustsynth as rs
from robustsynth.errors import UserError
from robustsynth.images import save_png, to_uint8
from robustsynth.sheet import in_rows, sheet
from sample_quality import frechet, judged

SHARES = 0.6, 0.4


def variety(features: np.ndarray, labels: np.ndarray) -> float:
    """Mean distance between two different samples of a class."""
    means = []
    for label in np.unique(labels):
        part = torch.from_numpy(features[labels == label][:1000])
        means.append(float(torch.pdist(part).mean()))
    return float(np.mean(means))


def mixed(labels: Tensor, classes: int) -> Tensor:
    """Each label's class mixed with the next, as weights (N, K)."""
    weights = torch.zeros(len(labels), classes)
    for shift, share in enumerate(SHARES):
        weights[torch.arange(len(labels)), (labels + shift) % classes] = share
    return weights


def rows(labels: Tensor, classes: int, ensemble: list[rs.Classifier]) -> list[tuple[str, Tensor, dict[str, Any]]]:
    """A name, what to draw, and further arguments of `generate`, for each row."""
    found: list[tuple[str, Tensor, dict[str, Any]]] = [
        ("alone", labels, {}),
        ("alone, another seed", labels, {"seed": 1}),
        ("mixtures as seeds", labels, {"seeds_from": "mixture"}),
        ("two scales", labels, {"scales": 2}),
        ("three scales", labels, {"scales": 3}),
    ]
    if ensemble:
        found.append((f"ensemble with {', '.join(m.name for m in ensemble)}", labels, {"ensemble": ensemble}))
    return [*found, (f"mixes, {SHARES[0]} to {SHARES[1]}", mixed(labels, classes), {})]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--base", action="append", help="presets; best and paper if not given")
    parser.add_argument("--only", action="append", default=[], help="words of the rows wanted; all if not given")
    parser.add_argument("--ensemble", action="append", default=[])
    parser.add_argument("--sheets", type=Path, help="folder for a image of each row")
    parser.add_argument("--precision", help="measured if not given")
    parser.add_argument("--batch-size", type=int, help="measured if not given")
    options = parser.parse_args()
    model, judge = rs.load_model(options.model), rs.load_model(options.judge)
    classes = len(model.classes)
    labels = torch.arange(options.num) % classes
    ensemble = [rs.load_model(name) for name in options.ensemble]
    data = rs.load_data(options.data, "test", image_size=judge.image_size, channels=judge.channels)
    real = torch.from_numpy(np.array(data.images)).permute(0, 3, 1, 2).float() / 255
    truth = np.array(data.labels)
    probabilities, features = judged(judge, real)
    real_variety = variety(features, truth)
    half = np.random.default_rng(0).permutation(len(real))
    right = 100 * (probabilities.argmax(1) == truth).mean()
    between = frechet(features[half[::2]], features[half[1::2]])
    print(f"{model.name} drawing, {options.num} images a row, {options.judge} judging")
    print("| setting | recognised | Fréchet distance | variety | s |\n|---|---|---|---|---|")
    print(f"| real test images (distance between halves) | {right:.1f} % | {between:.2f} | 1.00 | |", flush=True)
    clock = time.process_time if model.device.type == "cpu" else time.perf_counter
    for base in options.base or ["best", "paper"]:
        for name, targets, given in rows(labels, classes, ensemble):
            if options.only and not any(word in name for word in options.only):
                continue
            started = clock()
            fixed = {"preset": base, "precision": options.precision, "batch_size": options.batch_size}
            try:
                images = rs.generate(model, targets, **(fixed | {"seed": 0} | given))
            except UserError as error:
                print(f"| {base}, {name} | not drawn: {str(error).partition(';')[0]} | | | |", flush=True)
                continue
            taken = clock() - started
            p, f = judged(judge, images)
            judgement = torch.from_numpy(p.argmax(1))
            recognised = f"{100 * float((judgement == labels).float().mean()):.1f} %"
            if targets.ndim == 2:
                first, second = (100 * float((judgement == (labels + k) % classes).float().mean()) for k in (0, 1))
                recognised = f"{first + second:.1f} % ({first:.0f} + {second:.0f})"
            print(
                f"| {base}, {name} | {recognised} | {frechet(f, features):.2f} "
                f"| {variety(f, labels.numpy()) / real_variety:.3f} | {taken:.0f} |",
                flush=True,
            )
            if options.sheets:
                order = torch.argsort(labels[: 8 * classes], stable=True)
                shown = in_rows(to_uint8(images[: 8 * classes][order]), 8)
                save_png(options.sheets / f"{base}-{name.replace(' ', '-').replace(',', '')}.png", sheet(shown))


if __name__ == "__main__":
    main()
