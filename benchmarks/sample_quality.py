"""How good samples are to a classifier that has nothing to do with the one that drew them.

    python benchmarks/sample_quality.py --judge JUDGE --data CIFAR10_FOLDER [--model cifar10] [--num 1000] \
        [--setting preset=paper] [--setting eps=3,step_size=0.15,steps=40] [--blind blind.png]

For the model's own settings and each `--setting`: the share that the judge recognises as the intended class; the
Inception-style score exp(E KL(p(y|x) ‖ p(y))) and the Fréchet distance to real test images of the judge's own
logits and features (only to be compared with each other); and the mean distance between samples of a class relative
to real images' (variety). A judge is any standard classifier, such as
`robustsynth train --preset cifar10-standard --width 16 --seed 1 --data FOLDER --out JUDGE` trains in minutes.
`--blind` draws 50 samples of the model's own settings in random order and prints which they are.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

import robustsynth as rs
from robustsynth.images import save_png, to_uint8
from robustsynth.sheet import in_rows, sheet


def judged(judge: Any, images: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (N, K) and features (N, D) of images, in float32."""
    frozen = judge.frozen(precision="float32")
    probabilities, features = [], []
    with torch.no_grad():
        for part in images.split(200):
            probabilities.append(frozen(part).softmax(1))
            features.append(frozen.features(part))
    return torch.cat(probabilities).double().numpy(), torch.cat(features).double().numpy()


def frechet(first: np.ndarray, second: np.ndarray) -> float:
    """Fréchet distance of two sets of features as normals (Heusel et al. 2017)."""
    difference = first.mean(0) - second.mean(0)
    a, b = np.cov(first, rowvar=False), np.cov(second, rowvar=False)
    values, vectors = np.linalg.eigh(a)
    root = vectors * np.sqrt(values.clip(0)) @ vectors.T
    cross = np.sqrt(np.linalg.eigvalsh(root @ b @ root).clip(0)).sum()
    return float(difference @ difference + np.trace(a) + np.trace(b) - 2 * cross)


def score(probabilities: np.ndarray) -> float:
    """exp of the mean divergence from the marginal (Salimans et al. 2016)."""
    marginal = probabilities.mean(0)
    terms = probabilities * (np.log(probabilities + 1e-12) - np.log(marginal + 1e-12))
    return float(np.exp(terms.sum(1).mean()))


def spread(features: np.ndarray, labels: np.ndarray) -> float:
    """Mean distance of a class's images from their class's mean."""
    parts = [features[labels == k] for k in np.unique(labels)]
    return float(np.mean([np.linalg.norm(p - p.mean(0), axis=1).mean() for p in parts]))


def parsed(setting: str) -> dict[str, Any]:
    """``eps=3,steps=40`` as keyword arguments."""
    found: dict[str, Any] = {}
    for part in filter(None, setting.split(",")):
        name, _, text = part.partition("=")
        for kind in (int, float, str):
            try:
                found[name] = kind(text)
                break
            except ValueError:
                continue
        if text in ("true", "false"):
            found[name] = text == "true"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--num", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--setting", action="append", default=[])
    parser.add_argument("--blind")
    parser.add_argument("--sheet", help="folder for a image of each setting")
    options = parser.parse_args()
    model, judge = rs.load_model(options.model), rs.load_model(options.judge)
    labels = torch.arange(len(model.classes)).repeat(options.num // len(model.classes) + 1)[: options.num]
    data = rs.load_data(options.data, "test", image_size=judge.image_size)
    real = torch.from_numpy(np.array(data.images)).permute(0, 3, 1, 2).float() / 255
    truth = np.array(data.labels)
    probabilities, features = judged(judge, real)
    half = np.random.default_rng(0).permutation(len(real))
    print(f"judge {options.judge}: {100 * (probabilities.argmax(1) == truth).mean():.1f} % accurate")
    print("| setting | recognised | score | Fréchet distance | variety | s for all |\n|---|---|---|---|---|---|")
    between = frechet(features[half[::2]], features[half[1::2]])
    real_spread = spread(features, truth)
    print(f"| real test images, distance between halves | {100 * (probabilities.argmax(1) == truth).mean():.1f} % "
          f"| {score(probabilities):.2f} | {between:.2f} | 1.00 | |")  # fmt: skip
    for setting in ["", *options.setting]:
        started = time.perf_counter()
        images = rs.generate(model, labels, seed=options.seed, **parsed(setting))
        taken = time.perf_counter() - started
        p, f = judged(judge, images)
        print(f"| {setting or 'default'} | {100 * (p.argmax(1) == labels.numpy()).mean():.1f} % | {score(p):.2f} "
              f"| {frechet(f, features):.2f} | {spread(f, labels.numpy()) / real_spread:.2f} | {taken:.0f} |",
              flush=True)  # fmt: skip
        if options.sheet:
            order = torch.argsort(labels[:80], stable=True)
            name = (setting or "default").replace(",", "_")
            save_png(f"{options.sheet}/{name}.png", sheet(in_rows(to_uint8(images[:80][order]), 8)))
        if options.blind and not setting:
            chosen = np.random.default_rng(options.seed).permutation(options.num)[:50]
            save_png(options.blind, sheet(in_rows(to_uint8(images[chosen]), 10), cell=128))
            print("blind sheet, row by row: " + ", ".join(model.classes[labels[i]] for i in chosen))


if __name__ == "__main__":
    main()
