"""Fills of a random square patch, by their squared error inside and the processor time they take.

    python benchmarks/fills.py --data imagenette --num 300 [--size 128] [--figure fills.png]
    python benchmarks/fills.py --times

On photographs of the training split, each with one patch of 60/224 of the side, at least an eighth of the side from
the edges. Errors are means over images of the mean squared difference inside the patch, pixels in [0, 1], with the
standard error of the difference to Laplace's. OpenCV's and scikit-image's fills take part where these are installed
(`pip install opencv-python-headless scikit-image`). ``--times``, without photographs: seconds of our fills elsewhere.
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from robustsynth.data import load_data
from robustsynth.fills import FILLS, fill
from robustsynth.images import as_tensor, save_png, to_uint8
from robustsynth.masks import random_patch_masks
from robustsynth.randomness import image_generators
from robustsynth.sheet import in_rows, sheet

Fill = Callable[[Tensor, Tensor], Tensor]


def ours(kind: str) -> Fill:
    return lambda images, mask: fill(images, mask, kind)


def each(function: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Fill:
    """A fill of batches from one of a image (H, W, 3) in [0, 1] and a mask (H, W)."""

    def filled(images: Tensor, mask: Tensor) -> Tensor:
        images = [
            torch.from_numpy(np.asarray(function(image.permute(1, 2, 0).numpy(), hole[0].numpy() > 0))).float()
            for image, hole in zip(images, mask, strict=True)
        ]
        return torch.where(mask > 0, torch.stack(images).permute(0, 3, 1, 2), images)

    return filled


def others() -> dict[str, Fill]:
    found: dict[str, Fill] = {}
    if importlib.util.find_spec("cv2"):
        import cv2

        cv2.setNumThreads(1)

        def opencv(method: int, radius: float) -> Fill:
            def one(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
                levels = (image * 255).round().astype(np.uint8)
                return cv2.inpaint(levels, hole.astype(np.uint8), radius, method).astype(np.float32) / 255

            return each(one)

        for radius in (3, 5, 10):
            found[f"OpenCV Telea, radius {radius}"] = opencv(cv2.INPAINT_TELEA, radius)
        found["OpenCV Navier-Stokes, radius 3"] = opencv(cv2.INPAINT_NS, 3)
    if importlib.util.find_spec("skimage"):
        from skimage.restoration import inpaint_biharmonic

        found["scikit-image biharmonic"] = each(lambda image, hole: inpaint_biharmonic(image, hole, channel_axis=2))
    return found


def times(seed: int) -> None:
    """Seconds that holes of other kinds take, on noise of 1/f."""
    random = torch.Generator().manual_seed(seed)

    def image(height: int, width: int) -> Tensor:
        spectrum = torch.fft.rfft2(torch.randn(1, 3, height, width, generator=random))
        frequency = torch.fft.fftfreq(height)[:, None].hypot(torch.fft.rfftfreq(width)).clamp_min(1 / width)
        noise = torch.fft.irfft2(spectrum / frequency, s=(height, width))
        return ((noise - noise.mean()) / noise.std() / 5 + 0.5).clamp(0, 1)

    def square(height: int, width: int, tall: int, wide: int) -> Tensor:
        mask = torch.zeros(1, 1, height, width)
        top, left = (height - tall) // 2, (width - wide) // 2
        mask[..., top : top + tall, left : left + wide] = 1
        return mask

    holes = {
        "60×60 in 224×224": square(224, 224, 60, 60),
        "204×204 in 224×224": square(224, 224, 204, 204),
        "70 % of 224×224, at random": (torch.rand(1, 1, 224, 224, generator=random) < 0.7).float(),
        "580×650 in 768×1024": square(768, 1024, 580, 650),
    }
    kinds = [kind for kind in FILLS if kind != "mean"]
    print(f"| hole | {' | '.join(f'{kind}, s' for kind in kinds)} |\n|---|{'---|' * len(kinds)}")
    for name, mask in holes.items():
        image = image(*mask.shape[-2:])
        taken = []
        for kind in kinds:
            started = time.perf_counter()
            fill(torch.where(mask > 0, 0.5, image), mask, kind)
            taken.append(time.perf_counter() - started)
        print(f"| {name} | {' | '.join(f'{seconds:.2f}' for seconds in taken)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="imagenette")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--num", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--figure", help="write the first images: whole, with the patch, and every fill")
    parser.add_argument("--times", action="store_true", help="seconds for holes of other kinds, and nothing else")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.times:
        times(options.seed)
        return
    data = load_data(options.data, "train", image_size=options.size, channels=3)
    chosen = np.sort(np.random.default_rng(options.seed).choice(len(data.images), options.num, replace=False))
    images = as_tensor([np.asarray(data.images[index]) for index in chosen])
    generators = image_generators(options.seed, chosen)
    side, border = round(options.size * 60 / 224), options.size // 8
    mask = random_patch_masks(generators, size=(options.size, options.size), side=side, border=border)
    # What is under the mask must not help anybody.
    damaged = torch.where(mask > 0, 0.5, images)
    methods = {kind: ours(kind) for kind in FILLS} | others()
    filled: dict[str, Tensor] = {}
    seconds: dict[str, float] = {}
    for name, method in methods.items():
        started = time.process_time()
        filled[name] = method(damaged, mask).clamp(0, 1)
        seconds[name] = time.process_time() - started
    errors = {name: inside(result - images, mask) for name, result in filled.items()}
    base = errors["laplace"]
    print(f"{options.num} photographs {options.size}×{options.size}, patches {side}×{side}, seed {options.seed}\n")
    print("| fill | squared error inside | against laplace | better than laplace on | ms an image |")
    print("|---|---|---|---|---|")
    for name, error in errors.items():
        change = (error.mean() / base.mean() - 1) * 100
        doubt = (error - base).std() / len(error) ** 0.5 / base.mean() * 100
        share = (error < base).double().mean() * 100
        print(
            f"| {name} | {error.mean():.4f} | {change:+.1f} ± {doubt:.1f} % | {share:.0f} % | "
            f"{seconds[name] / options.num * 1000:.1f} |"
        )
    if options.figure:
        rows = torch.stack([images, damaged, *filled.values()], dim=1)[:24].flatten(0, 1)
        save_png(options.figure, sheet(in_rows(to_uint8(rows), 2 * (2 + len(filled)))))


def inside(difference: Tensor, mask: Tensor) -> Tensor:
    squared = (difference.double() ** 2).mean(dim=1, keepdim=True) * mask
    return squared.sum((1, 2, 3)) / mask.sum((1, 2, 3))


if __name__ == "__main__":
    main()
