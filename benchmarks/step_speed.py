"""One PGD step on 32 images of 32×32: the published loop, two plain channels-last loops, and ours, in one run.

    python benchmarks/step_speed.py [--width 64] [--rounds 5]

The published loop is transcribed here from its description: a float32, contiguous network in evaluation mode whose
parameters are not frozen, the mean of the losses differentiated, best-loss bookkeeping, and one more pass at the end.
All loops run the same weights on the same start images. The loops take turns in each round and each one's best time
counts, so that another program on the machine disturbs them alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import robustsynth as rs
from robustsynth.models.execution import machine_name, processor_kind
from robustsynth.models.networks import build_network

EPS, STEP_SIZE = 30.0, 0.5
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


class PublishedStyle(nn.Module):
    """A network whose forward takes the published library's flags, handed to `Classifier.wrap` as it is."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, with_latent: bool = False, fake_relu: bool = False, no_relu: bool = False) -> Tensor:
        if with_latent or fake_relu or no_relu:
            raise NotImplementedError
        return self.network(x)


def normalised(images: Tensor) -> Tensor:
    return (images - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def published_loop(network: nn.Module, images: Tensor, labels: Tensor, steps: int) -> Tensor:
    network.eval()
    center, x = images.clone(), images.clone()
    best, best_loss = x.clone(), torch.full((len(x),), float("inf"))
    for _ in range(steps):
        x = x.clone().detach().requires_grad_(True)
        losses = F.cross_entropy(network(normalised(x)), labels, reduction="none")
        (grad,) = torch.autograd.grad(losses.mean(), [x])
        with torch.no_grad():
            better = losses < best_loss
            best[better], best_loss[better] = x[better].detach(), losses[better].detach()
            x = x - STEP_SIZE * grad / (grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-10)
            x = torch.clamp(center + (x - center).renorm(p=2, dim=0, maxnorm=EPS), 0, 1)
    with torch.no_grad():
        losses = F.cross_entropy(network(normalised(x)), labels, reduction="none")
    better = losses < best_loss
    best[better] = x[better]
    return best


def plain_loop(network: nn.Module, images: Tensor, labels: Tensor, steps: int, reduced: bool) -> Tensor:
    """Frozen parameters, channels-last, one forward and one backward pass a step, nothing else."""
    x = images
    for _ in range(steps):
        x = x.detach().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            logits = network(normalised(x).contiguous(memory_format=torch.channels_last))
        (grad,) = torch.autograd.grad(F.cross_entropy(logits.float(), labels, reduction="sum"), x)
        with torch.no_grad():
            x = x - STEP_SIZE * grad / (grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-10)
            x = torch.clamp(images + (x - images).renorm(p=2, dim=0, maxnorm=EPS), 0, 1)
    return x


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.manual_seed(0)
    images = torch.rand(options.images, 3, 32, 32)
    labels = torch.randint(0, 10, (options.images,))
    network = PublishedStyle(build_network("resnet18", classes=10, width=options.width)).eval()

    def copy_of(channels_last: bool) -> nn.Module:
        other = PublishedStyle(build_network("resnet18", classes=10, width=options.width)).eval()
        other.load_state_dict(network.state_dict())
        return other.requires_grad_(False).to(memory_format=torch.channels_last) if channels_last else other

    plain, contiguous = copy_of(True), copy_of(False)
    model = rs.Classifier.wrap(network, classes=10, mean=MEAN, std=STD, image_size=32)
    problem = rs.Problem(images, rs.CrossEntropy(model, labels), rs.L2Ball(EPS))
    settings = {"eps": EPS, "step_size": STEP_SIZE, "steps": options.steps}
    loops: dict[str, Callable[[], Tensor]] = {
        "published loop": lambda: published_loop(contiguous, images, labels, options.steps),
        "plain channels-last float32": lambda: plain_loop(plain, images, labels, options.steps, False),
        "plain channels-last bfloat16": lambda: plain_loop(plain, images, labels, options.steps, True),
        "robustsynth.pgd": lambda: rs.pgd(problem, step_size=STEP_SIZE, steps=options.steps),
        "robustsynth.generate": lambda: rs.generate(model, labels, start=images, **settings),
    }
    seconds = dict.fromkeys(loops, float("inf"))
    for loop in loops.values():
        loop()
    for _ in range(options.rounds):
        for name, loop in loops.items():
            started = time.perf_counter()
            loop()
            seconds[name] = min(seconds[name], (time.perf_counter() - started) / options.steps)
    execution = model.frozen().execution
    print(f"{machine_name()} ({processor_kind()}), torch {torch.__version__}")
    print(f"ResNet-18 of width {options.width}, {options.images} images, {options.steps} steps")
    print(f"robustsynth chose {execution.precision}, {execution.batch_size} images a batch\n")
    print("| loop | seconds a step | times as fast as the published loop |\n|---|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {taken:.4f} | {seconds['published loop'] / taken:.2f} |")


if __name__ == "__main__":
    main()
