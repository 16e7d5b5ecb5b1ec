"""The tasks on held-out photographs, scored by an independent classifier.

    python benchmarks/tasks.py --model imagenette --judge imagenette-standard --data imagenette --num 200

Super-resolution: the photographs averaged by 8, enlarged again. Inpainting: a square of 60/224 of the side at a random
place. Translation: each photograph to the class three further on. Sketches: a folder of drawings named by class.
Intervals are 95 % ones of the mean. Needs torchmetrics; OpenCV's Telea is added where it can be imported.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure as ssim

import robustsynth as rs
from robustsynth.fills import fill
from robustsynth.images import as_tensor, read_image, save_png, to_uint8
from robustsynth.masks import random_patch_masks
from robustsynth.names import matching_class
from robustsynth.randomness import image_generators
from robustsynth.resampling import back_project, resample
from robustsynth.sheet import in_rows, sheet


def interval(values: Tensor, digits: int = 2) -> str:
    """Mean and 95 % interval."""
    half = 1.96 * values.std().item() / len(values) ** 0.5
    return f"{values.mean():.{digits}f} ± {half:.{digits}f}"


def share(hits: Tensor) -> str:
    return f"{100 * hits.float().mean():.1f} %"


def psnr(a: Tensor, b: Tensor) -> Tensor:
    return -10 * (a - b).square().flatten(1).mean(1).log10()


def table(title: str, header: list[str], rows: list[list[str]]) -> None:
    print(f"\n| {title} | " + " | ".join(header) + " |\n|" + "---|" * (len(header) + 1))
    for row in rows:
        print("| " + " | ".join(row) + " |")
    sys.stdout.flush()


class Bench:
    """What is measured with, and the images.

    Args:
        arguments: of the command line.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.model, self.judge = rs.load_model(arguments.model), rs.load_model(arguments.judge)
        side = arguments.size or self.model.image_size
        data = rs.load_data(arguments.data, "test", image_size=side)
        # Spread over the whole, as files are often sorted by class.
        order = np.random.default_rng(1).permutation(len(data))[arguments.skip : arguments.skip + arguments.num]
        self.images = torch.from_numpy(data.images[order].copy()).permute(0, 3, 1, 2).float() / 255
        self.labels = torch.from_numpy(data.labels[order].copy())
        self.others, self.other_labels = self.images.roll(1, 0), self.labels.roll(1, 0)
        self.sheets, self.given = Path(arguments.sheets), arguments.settings
        self.sketches = arguments.sketches

    def judged(self, images: Tensor) -> Tensor:
        return rs.predict(self.judge, images)

    def timed(self, function: Callable[..., Tensor], *given: Any, **named: Any) -> tuple[Tensor, str]:
        began = time.monotonic()
        result = function(self.model, *given, **named)
        return result, f"{(time.monotonic() - began) / len(result):.2f}"

    def sheet(self, name: str, *columns: Tensor) -> None:
        """Twelve rows at most of images side by side."""
        mixed = torch.stack([c[:12] for c in columns], 1).flatten(0, 1)
        save_png(self.sheets / f"{name}.png", sheet(in_rows(to_uint8(mixed), 2 * len(columns))))


def upscaling(bench: Bench) -> None:
    images, labels = bench.images, bench.labels
    size = (images.shape[2], images.shape[3])
    low = resample(images, (size[0] // 8, size[1] // 8), "area").clamp(0, 1)
    # What a file would hold.
    low = (low * 255).round() / 255
    ours, seconds = bench.timed(rs.upscale, low, labels, factor=8, **bench.given)
    predicted, _ = bench.timed(rs.upscale, low, factor=8, **bench.given)
    paper, paper_seconds = bench.timed(rs.upscale, low, labels, factor=8, preset="paper")
    bicubic = resample(low, size, "bicubic").clamp(0, 1)
    candidates = {
        "nearest": (resample(low, size, "nearest"), ""),
        "bicubic": (bicubic, ""),
        "bicubic, back-projected": (back_project(bicubic, low, rounds=10), ""),
        "paper": (paper, paper_seconds),
        "ours": (ours, seconds),
        "ours, label predicted": (predicted, ""),
    }
    rows = []
    for name, (made, took) in candidates.items():
        similar = torch.stack([ssim(m[None], i[None], data_range=1.0) for m, i in zip(made, images, strict=True)])
        again = (resample(made, (low.shape[2], low.shape[3]), "area") - low).abs().mean() * 255
        hits = bench.judged(made) == labels
        rows.append([name, interval(psnr(made, images)), interval(similar, 3), share(hits), f"{again:.2f}", took])
    table("8×", ["PSNR", "SSIM", "recognised", "÷8 differs (/255)", "s an image"], rows)
    bench.sheet("upscale", images, bicubic, paper, ours)


def inpainting(bench: Bench) -> None:
    images, labels = bench.images, bench.labels
    side = images.shape[2]
    keys = range(len(images))
    masks = random_patch_masks(
        image_generators(5, keys), size=(side, side), side=round(side * 60 / 224), border=side // 8
    )
    candidates: dict[str, tuple[Tensor, str]] = {"whole": (images, "")}
    for kind in ("mean", "laplace"):
        candidates[f"{kind} fill"] = (fill(images, masks, kind), "")
    telea = _telea(images, masks)
    if telea is not None:
        candidates["OpenCV Telea"] = (telea, "")
    ours, seconds = bench.timed(rs.inpaint, images, labels, mask=masks, **bench.given)
    candidates["ours"] = (ours, seconds)
    candidates["ours, label predicted"] = (rs.inpaint(bench.model, images, mask=masks, **bench.given), "")
    rows = []
    for name, (made, took) in candidates.items():
        squared = ((made - images).square() * masks).flatten(1).sum(1) / (3 * masks.flatten(1).sum(1))
        outside = ((made - images).abs() * (1 - masks)).amax()
        hits = bench.judged(made) == labels
        rows.append([name, interval(squared, 4), f"{outside:.3g}", share(hits), took])
    table("inpainting", ["error inside", "largest outside", "recognised", "s an image"], rows)
    bench.sheet("inpaint", images, images * (1 - masks), candidates["laplace fill"][0], ours)


def _telea(images: Tensor, masks: Tensor) -> Tensor | None:
    try:
        import cv2
    except Exception:  # It is no dependency, and may fail to load in its own ways.
        return None
    images, holes = to_uint8(images), (masks[:, 0] * 255).byte().numpy()
    return as_tensor([cv2.inpaint(p, h, 3, cv2.INPAINT_TELEA) for p, h in zip(images, holes, strict=True)])


def translation(bench: Bench) -> None:
    images, labels = bench.images, bench.labels
    targets = (labels + 3) % len(bench.model.classes)
    made, seconds = bench.timed(rs.translate, images, targets, **bench.given)
    examples = torch.stack([images[(labels == t).nonzero()[0, 0]] for t in targets])
    nearer = (made - images).flatten(1).norm(dim=1) < (examples - images).flatten(1).norm(dim=1)
    hits = bench.judged(made) == targets
    change = (made - images).flatten(1).norm(dim=1)
    row = ["ours", share(hits), share(nearer), interval(change), seconds]
    table("translation", ["recognised as the target", "nearer to the source", "l2 change", "s an image"], [row])
    bench.sheet("translate", images, made)


def sketches(bench: Bench) -> None:
    if bench.sketches is None:
        return
    files = sorted(Path(bench.sketches).glob("*.png"))
    labels = [matching_class(file.stem, bench.model.classes, bench.model.aliases) for file in files]
    known = [(file, label) for file, label in zip(files, labels, strict=True) if label is not None]
    drawings = as_tensor([read_image(file).pixels for file, _ in known])
    wanted = torch.tensor([label for _, label in known])
    made, seconds = bench.timed(rs.sketch, drawings, wanted, **bench.given)
    hits = bench.judged(made) == wanted
    change = (made - drawings).flatten(1).norm(dim=1)
    names = ", ".join(f"{file.stem} → {bench.model.classes[label]}" for file, label in known)
    table("sketches", ["recognised", "l2 change", "s an image"], [[names, share(hits), interval(change), seconds]])
    bench.sheet("sketch", drawings, made)


def painting(bench: Bench) -> None:
    images = bench.images[:40]
    side = images.shape[2]
    mask = torch.zeros(1, side, side)
    mask[:, side // 4 : side // 2, side // 4 : 3 * side // 4] = 1
    rises, outside = [], []
    with torch.no_grad():
        before = bench.model.features(resample(images, (bench.model.image_size,) * 2, "bilinear"))
    chosen = before.mean(0).topk(4).indices.tolist()
    last = images
    for unit in chosen:
        last, seconds = bench.timed(rs.paint, images, unit, mask=mask, **bench.given)
        with torch.no_grad():
            after = bench.model.features(resample(last, (bench.model.image_size,) * 2, "bilinear"))
        rises.append((after[:, unit] > before[:, unit]).float())
        outside.append(((last - images).abs() * (1 - mask)).sum() / ((1 - mask).sum() * 3 * len(images)) * 255)
    row = [f"units {chosen}", share(torch.cat(rises)), f"{max(outside):.3f}", seconds]
    table("painting", ["unit rises", "mean change outside (/255)", "s an image"], [row])
    bench.sheet("paint", images, last)


def refining(bench: Bench) -> None:
    images, labels = bench.images, bench.labels
    blurred = resample(resample(images, (images.shape[2] // 4,) * 2, "area"), (images.shape[2],) * 2, "bicubic")
    made, seconds = bench.timed(rs.refine, blurred.clamp(0, 1), labels, **bench.given)
    rows = [
        ["blurred by 4", share(bench.judged(blurred.clamp(0, 1)) == labels), interval(psnr(blurred, images)), ""],
        ["… refined", share(bench.judged(made) == labels), interval(psnr(made, images)), seconds],
    ]
    table("refinement", ["recognised", "PSNR", "s an image"], rows)
    bench.sheet("refine", blurred.clamp(0, 1), made)


TASKS = {
    "upscale": upscaling,
    "inpaint": inpainting,
    "translate": translation,
    "sketch": sketches,
    "paint": painting,
    "refine": refining,
}


def parse(text: str) -> tuple[str, Any]:
    name, _, value = text.partition("=")
    for kind in (int, float):
        try:
            return name, kind(value)
        except ValueError:
            pass
    return name, {"true": True, "false": False}.get(value, value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="imagenette")
    parser.add_argument("--judge", required=True, help="an independent classifier of the same classes")
    parser.add_argument("--data", required=True)
    parser.add_argument("--sketches", default=None, help="folder of drawings named by class")
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--skip", type=int, default=0, help="photographs left out, such as those tuned on")
    parser.add_argument("--size", type=int, default=None, help="side of the photographs; the model's by default")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--sheets", default="task-sheets", help="folder for images to look at")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="NAME=VALUE", type=parse)
    arguments = parser.parse_args()
    arguments.settings = dict(arguments.settings)
    bench = Bench(arguments)
    print(f"{arguments.num} photographs of {bench.images.shape[2]}², judge {bench.judge.name}, {arguments.settings}")
    print(f"whole photographs recognised: {share(bench.judged(bench.images) == bench.labels)}")
    for name in arguments.tasks.split(","):
        TASKS[name](bench)


if __name__ == "__main__":
    main()
