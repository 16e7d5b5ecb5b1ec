"""Average the weights of two models of one network, and estimate batch norm's statistics anew.

    python benchmarks/average_models.py FIRST SECOND --share 0.35 --data imagenette --out OUT

SECOND is a model's folder, or the checkpoint.pt of a run, whose moving average is taken as it was then.

Two models that one run passed through, such as where it ended and where it goes at a higher rate from there, lie in one
valley, and so does what is between them. The statistics of batch norm are means over images under the attack that was
trained with, and those of the average are not the average's. OUT has the first's card and seeds, and no accuracies.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from robustsynth.data import hold_out, load_data
from robustsynth.models.card import ModelCard
from robustsynth.models.classifier import Classifier
from robustsynth.models.store import load_model, save_model
from robustsynth.training.attack import adversarial_images


def weights_of(path: Path) -> dict[str, Tensor]:
    """Of a model's folder, or of the moving average in a checkpoint."""
    if path.is_dir():
        return load_model(path).network.state_dict()
    return torch.load(path, map_location="cpu", weights_only=True)["average"]


def averaged(first: Classifier, others: dict[str, Tensor], share: float) -> Classifier:
    """The first model with `share` of the other weights."""
    with torch.no_grad():
        for name, value in first.network.state_dict().items():
            if value.is_floating_point():
                value.lerp_(others[name], share)
    return first


def logits_of(model: Classifier, images: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(images.contiguous(memory_format=torch.channels_last)).float()


def estimate_statistics(model: Classifier, batches: list[tuple[Tensor, Tensor]], *, norm: str, eps: float) -> None:
    """Put the mean over attacked batches into each batch norm."""
    model.eval().requires_grad_(False)
    attacked = [
        adversarial_images(lambda x: logits_of(model, x), x, y, norm=norm, eps=eps, step_size=eps, steps=1)
        for x, y in batches
    ]
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [each.momentum for each in norms]
    for each in norms:
        each.reset_running_stats()
        each.momentum = None  # The plain mean of all batches.
    model.train()
    with torch.no_grad():
        for images in attacked:
            logits_of(model, images)
    for each, momentum in zip(norms, momenta, strict=True):
        each.momentum = momentum
    model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--share", type=float, required=True, help="of the second")
    parser.add_argument("--data", required=True)
    parser.add_argument("--held-out", type=int, default=400)
    parser.add_argument("--batches", type=int, default=24, help="of 64 images")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.out.exists():
        parser.error(f"expected a new folder, but {options.out} exists; choose another --out")
    model = averaged(load_model(options.first), weights_of(options.second), options.share)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    card = ModelCard.load(options.first)
    data = load_data(options.data, "train", image_size=card.image_size)
    _, kept = hold_out(len(data), options.held_out)
    random = np.random.default_rng(0)
    batches = []
    for _ in range(options.batches):
        chosen = np.sort(random.choice(kept, 64, replace=False))
        images = torch.from_numpy(data.images[chosen]).permute(0, 3, 1, 2).float() / 255
        batches.append((images, torch.from_numpy(data.labels[chosen])))
    estimate_statistics(model, batches, norm=card.threat_model["norm"], eps=card.threat_model["eps"])
    options.out.mkdir(parents=True)
    shutil.copy(options.first / "seeds.safetensors", options.out)
    save_model(options.out, model, dataclasses.replace(card, name=options.out.name, accuracies={}, sha256={}))
    print(f"wrote {options.out}; robustsynth evaluate --model {options.out} --data … --record measures it")


if __name__ == "__main__":
    main()
