"""How far apart the same images are between float32 and bfloat16, for each preset.

    python benchmarks/precision.py [--model cifar10] [--num 20]

The mean absolute difference of the pixels in units of 1/255, over images of all classes from the same seeds.
"""

from __future__ import annotations

import argparse

import torch

import robustsynth as rs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="cifar10")
    parser.add_argument("--num", type=int, default=20)
    parser.add_argument("--presets", default="best,paper,duke2023")
    options = parser.parse_args()
    model = rs.load_model(options.model)
    labels = torch.arange(options.num) % len(model.classes)
    print("| preset | mean difference, 1/255 | moved from the seeds, 1/255 |\n|---|---|---|")
    for preset in options.presets.split(","):
        exact = rs.generate(model, labels, preset=preset, precision="float32")
        reduced = rs.generate(model, labels, preset=preset, precision="bfloat16")
        start = rs.generate(model, labels, preset=preset, steps=0)
        apart, moved = ((a - exact).abs().mean().item() * 255 for a in (reduced, start))
        print(f"| {preset} | {apart:.2f} | {moved:.1f} |", flush=True)


if __name__ == "__main__":
    main()
