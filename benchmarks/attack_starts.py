"""How strong one step of an l2 attack is, begun at random in the ball or at the image, beside PGD-20.

    python benchmarks/attack_starts.py --model imagenette --data imagenette --num 200

The mean loss of the images, and how many of them are still right.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F

import robustsynth as rs
from robustsynth.training.attack import adversarial_images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="imagenette")
    parser.add_argument("--data", required=True)
    parser.add_argument("--num", type=int, default=200)
    parser.add_argument("--eps", type=float, default=None, help="the model's own by default")
    options = parser.parse_args()
    model = rs.load_model(options.model)
    frozen = model.frozen(batch_size=50)
    assert model.card is not None
    eps = options.eps or model.card.threat_model["eps"]
    data = rs.load_data(options.data, "test", image_size=model.image_size, channels=model.channels)
    order = np.random.default_rng(0).permutation(len(data))[: options.num]
    # Steps, their length, and whether the attack begins at random.
    attacks = {
        "none": (0, eps, False),
        "one step from a random start": (1, eps, True),
        "one step from the image": (1, eps, False),
        "two steps of 2/3 ε from the image": (2, eps * 2 / 3, False),
        "PGD-20": (20, 2.5 * eps / 20, True),
    }
    print(f"{model.name}, {len(order)} test images of {data.name}, l2 eps {eps:g}\n")
    print("| attack | loss | right % |\n|---|---|---|")
    for name, (steps, length, random) in attacks.items():
        stream = torch.Generator().manual_seed(0)
        losses, right = 0.0, 0
        for start in range(0, len(order), 50):
            places = order[start : start + 50]
            images = torch.from_numpy(data.images[places]).permute(0, 3, 1, 2).float() / 255
            labels = torch.from_numpy(data.labels[places])
            if steps:
                begin = [stream] * len(images) if random else None
                images = adversarial_images(
                    frozen, images, labels, norm="l2", eps=eps, step_size=length, steps=steps, random_start=begin
                )
            with torch.no_grad():
                logits = frozen(images)
            losses += float(F.cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(1) == labels).sum())
        print(f"| {name} | {losses / len(order):.2f} | {100 * right / len(order):.1f} |", flush=True)


if __name__ == "__main__":
    main()
