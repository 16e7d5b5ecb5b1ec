"""A step of adversarial training: a plain float32, contiguous loop of the same attack and network, and ours.

    python benchmarks/training_speed.py --data cifar10 --preset cifar10-l2 [--width 64] [--steps 4] [--rounds 3]

The plain loop is what one writes first: random crop and flip, PGD on the images with the network in evaluation mode,
and a step of SGD, all in float32 with contiguous tensors, parameters not frozen during the attack. Ours is
`robustsynth.training.step.train_step`, with all that it does besides: the moving average, the bound of the gradient's
norm, the watch for NaN. Both take the same images in turns, and each one's best time counts, so that another program on
the machine disturbs them alike. An epoch is what the steps of one take. The last column is of the same loops once more,
after the process was told to keep the memory that it frees, which ``robustsynth train`` does and a plain loop does not:
there is no way back within a process. Of presets that begin at fewer pixels, the larger size is timed.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustsynth.data import load_data
from robustsynth.memory import keep_freed_memory
from robustsynth.models.execution import machine_name, processor_kind
from robustsynth.models.networks import build_network
from robustsynth.training.attack import AttackNetwork
from robustsynth.training.data import augment
from robustsynth.training.settings import TrainSettings, resolve_train_settings
from robustsynth.training.step import train_step
from robustsynth.training.trainer import Trainer


class PlainLoop:
    """Adversarial training as one writes it first.

    Args:
        settings: of the attack, the network and the optimizer.
        network: freshly initialised.
        mean, std: of the normalisation, per channel.
    """

    def __init__(
        self, settings: TrainSettings, network: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]
    ) -> None:
        self.settings, self.network = settings, network
        self.mean, self.std = (torch.tensor(v).view(1, -1, 1, 1) for v in (mean, std))
        self.optimizer = torch.optim.SGD(network.parameters(), lr=settings.learning_rate, momentum=0.9, nesterov=True)
        self.random = torch.Generator().manual_seed(0)

    def loss(self, images: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(self.network((images - self.mean) / self.std), labels)

    def attacked(self, images: Tensor, labels: Tensor) -> Tensor:
        settings, x = self.settings, images
        if settings.random_start:
            noise = torch.randn_like(images)
            x = images + settings.eps * noise / noise.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        for _ in range(settings.attack_steps):
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.loss(x, labels), x)
            length = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1) + 1e-10
            with torch.no_grad():
                x = x + settings.attack_step_size * gradient / length
                x = (images + (x - images).renorm(p=2, dim=0, maxnorm=settings.eps)).clamp(0, 1)
        return x.detach()

    def step(self, images: Tensor, labels: Tensor) -> None:
        images = augment(images, self.settings, [self.random] * len(images), side=self.settings.image_size)
        self.network.eval()
        images = self.attacked(images, labels)
        self.network.train()
        self.optimizer.zero_grad()
        self.loss(images, labels).backward()
        self.optimizer.step()


def timed(
    loops: dict[str, Callable[[Tensor, Tensor], None]], images: Tensor, labels: Tensor, steps: int, rounds: int
) -> dict[str, float]:
    """Seconds a step of each loop: the best of its rounds, which the loops take in turns."""
    seconds = dict.fromkeys(loops, float("inf"))
    for loop in loops.values():
        loop(images, labels)
    for _ in range(rounds):
        for name, loop in loops.items():
            started = time.perf_counter()
            for _ in range(steps):
                loop(images, labels)
            seconds[name] = min(seconds[name], (time.perf_counter() - started) / steps)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--preset", default="cifar10-l2")
    parser.add_argument("--width", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--steps", type=int, default=3, help="a round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    given = {"width": options.width, "batch_size": options.batch_size}
    settings = resolve_train_settings(options.preset, {k: v for k, v in given.items() if v is not None})
    settings = dataclasses.replace(settings, early_size=None, early_share=0.0)
    if settings.norm != "l2" or settings.recipe != "pgd":
        parser.error("expected a preset of l2 training by PGD, such as cifar10-l2, cifar10-small or imagenette-128")
    data = load_data(options.data, "train", image_size=settings.stored_size or settings.image_size)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(settings, data, folder, device="cpu")
        size, channels = trainer.size, data.images.shape[3]
        network = build_network(
            settings.architecture, classes=len(data.classes), width=settings.width, channels=channels, image_size=size
        )
        plain = PlainLoop(settings, network, tuple(data.mean), tuple(data.std))

        def ours(frozen: AttackNetwork | None) -> Callable[[Tensor, Tensor], None]:
            per_epoch = trainer.steps_per_epoch

            def step(images: Tensor, labels: Tensor) -> None:
                predict = trainer.predict
                train_step(trainer.state, predict, images, labels, steps_per_epoch=per_epoch, size=size, frozen=frozen)

            return step

        loops: dict[str, Callable[[Tensor, Tensor], None]] = {
            "plain float32, contiguous": plain.step,
            f"robustsynth, {trainer.state.execution.precision}": ours(trainer.frozen),
            "… whose attack asks the network itself": ours(None),
        }
        places = np.arange(settings.batch_size)
        images = torch.from_numpy(data.images[places]).permute(0, 3, 1, 2).float().contiguous() / 255
        labels = torch.from_numpy(data.labels[places])
        seconds = timed(loops, images, labels, options.steps, options.rounds)
        kept = timed(loops, images, labels, options.steps, options.rounds) if keep_freed_memory() else {}
        print(f"{machine_name()} ({processor_kind()}), torch {torch.__version__}, {torch.get_num_threads()} threads")
        print(
            f"{settings.architecture} of width {settings.width or 64}, batches of {settings.batch_size}, "
            f"{settings.attack_steps} attack steps; an epoch is {trainer.steps_per_epoch} steps of {data.name}\n"
        )
        first = next(iter(seconds.values()))
        print("| loop | seconds a step | minutes an epoch | times as fast | seconds with freed memory kept |")
        print("|---|---|---|---|---|")
        for name, taken in seconds.items():
            minutes, again = taken * trainer.steps_per_epoch / 60, f"{kept[name]:.3f}" if kept else ""
            print(f"| {name} | {taken:.3f} | {minutes:.1f} | {first / taken:.2f} | {again} |")


if __name__ == "__main__":
    main()
