"""Training runs killed with SIGKILL at random moments, resumed, and compared bit for bit with undisturbed ones.

    python benchmarks/kills.py [--kills 50] [--command-line 3] [--seed 0] [--keep FOLDER]

Real runs of `robustsynth train` on a few noisy images, by recipes and of networks that keep different things in
their checkpoints. A kill is one of

- ``clock``: by another process, at a moment drawn uniformly over what an undisturbed run lasts;
- ``write``: at a drawn one of the run's operations on files, before it, after it, or with half of the bytes written:
  in a checkpoint, in the model that is kept, in the log, and in the seeds that are fitted at the end;
- ``command line``: as ``clock``, of ``python -m robustsynth train`` from its first checkpoint on.

The first two are of processes forked from one that has PyTorch in memory already. A run is killed one to five times,
each time goes on by ``robustsynth train --resume``, and is then let end. Compared are all tensors and values of
the checkpoint, ``model.safetensors``, ``seeds.safetensors``, the card and the log, times apart, and that no half
written checkpoint is left. Exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # Before PyTorch: a process that has threads cannot be forked.

import numpy as np
import torch
from PIL import Image

import robustsynth.training.trainer as trainer_module
from robustsynth.cli import main as command_line
from robustsynth.training.checkpoints import CHECKPOINT, has_checkpoint, read_checkpoint

SETTINGS = "--width 2 --eps 0.2 --attack-step-size 0.2 --epochs 3 --batch-size 12"
SETTINGS += " --held-out 12 --learning-rate 0.1 --evaluate-every 1 --device cpu --precision float32"
RECIPES = {
    "pgd": "--architecture small-cnn --attack-steps 1",
    "fast": "--architecture small-cnn --recipe fast --guard-every 3",
    "free": "--architecture small-cnn --recipe free --free-replays 2",
    "batch norm": "--architecture resnet18 --attack-steps 1",
}
"""A plain one, one that is guarded and so keeps weights to go back to, one whose perturbation goes on, and one whose
network has statistics as well as weights."""

FILE_OPERATIONS = [(os, "replace"), (os, "fsync"), (os, "link"), (Path, "write_bytes"), (Path, "write_text")]


@dataclass
class Run:
    """A run in a folder: how it is begun or resumed."""

    data: Path
    out: Path
    recipe: str

    def arguments(self) -> list[str]:
        """Of ``robustsynth``, as a user would give them who knows only what is in the folder."""
        if has_checkpoint(self.out) or (self.out / "run.json").exists():
            return ["train", "--resume", "--out", str(self.out), "--device", "cpu"]
        given = f"{SETTINGS} {RECIPES[self.recipe]}".split()
        return ["train", "--data", str(self.data), "--out", str(self.out), *given]


def make_pictures(folder: Path, count: int = 60) -> Path:
    """Class folders of two colours, with noise."""
    draw = np.random.default_rng(0)
    for index in range(count):
        name, colour = (("red", (170, 90, 110)), ("green", (90, 170, 130)))[index % 2]
        pixels = np.clip(np.array(colour) + draw.normal(0, 35, (8, 8, 3)), 0, 255).astype(np.uint8)
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{index:03}.png")
    return folder


def forked(run: Run, disturb: Callable[[], object] = lambda: None) -> int:
    """Start the run in a forked process that first calls `disturb`; its process id."""
    sys.stdout.flush()
    arguments = run.arguments()
    process = os.fork()
    if process:
        return process
    status = 70
    try:
        run.out.mkdir(parents=True, exist_ok=True)
        said = os.open(run.out / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        disturb()
        try:
            command_line(arguments)
            status = 0
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    finally:
        os._exit(status)


def ended(process: int) -> int:
    """Wait for a forked process; its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed_by_clock(run: Run, after: float) -> bool:
    """Kill the run after some seconds; whether it was still running."""
    process = forked(run)
    time.sleep(after)
    os.kill(process, signal.SIGKILL)
    return ended(process) == -signal.SIGKILL


def killed_at_write(run: Run, operation: int, how: str) -> bool:
    """Have the run kill itself at its nth operation on a file: ``before``, ``after``, or ``half`` way in a write."""

    def disturb() -> None:
        count = iter(range(1, 1 << 30))
        for owner, name in FILE_OPERATIONS:
            real = getattr(owner, name)

            def operate(*given: Any, real: Callable[..., Any] = real, name: str = name, **options: Any) -> Any:
                if next(count) != operation:
                    return real(*given, **options)
                if how == "half" and name.startswith("write"):
                    half = given[1][: len(given[1]) // 2]
                    real(given[0], half, *given[2:], **options)
                elif how == "after":
                    real(*given, **options)
                os.kill(os.getpid(), signal.SIGKILL)

            setattr(owner, name, operate)

    return ended(forked(run, disturb)) == -signal.SIGKILL


def killed_command_line(run: Run, after: float) -> bool:
    """Kill ``python -m robustsynth train`` some seconds after its first checkpoint, or its resumption."""
    stamp = run.out / "run.json"
    before = stamp.stat().st_mtime_ns if stamp.exists() else None
    process = subprocess.Popen(
        [sys.executable, "-m", "robustsynth", *run.arguments()], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def trains() -> bool:
        return has_checkpoint(run.out) and stamp.exists() and stamp.stat().st_mtime_ns != before

    while process.poll() is None and not trains():
        time.sleep(0.002)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def outcome(out: Path) -> dict[str, Any]:
    """All that a run leaves, apart from times, the folder's name and what it said."""
    card = json.loads((out / "card.json").read_text(encoding="utf-8"))
    card.pop("name")
    card["training"].pop("seconds")
    rows = list(csv.DictReader((out / "log.csv").read_text(encoding="utf-8").splitlines()))
    checkpoint = read_checkpoint(out)
    for row in (*rows, *checkpoint["rows"], checkpoint):
        row.pop("seconds")
    files = {name: (out / name).read_bytes() for name in ("model.safetensors", "seeds.safetensors")}
    return {"card": card, "log": rows, CHECKPOINT: checkpoint} | files


def differing(first: Any, second: Any, where: str = "") -> list[str]:
    """Where two outcomes are not the same in every bit."""
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and first.numpy().tobytes() == second.numpy().tobytes()
        return [] if same else [where]
    if isinstance(first, dict) and isinstance(second, dict):
        found = [] if first.keys() == second.keys() else [f"{where} (names)"]
        return found + [d for k in first if k in second for d in differing(first[k], second[k], f"{where}/{k}")]
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        return [d for i, (a, b) in enumerate(zip(first, second, strict=True)) for d in differing(a, b, f"{where}/{i}")]
    return [] if type(first) is type(second) and first == second else [where]


def place(out: Path) -> str:
    """How far a killed run had come, in words."""
    if not has_checkpoint(out):
        return "before the first checkpoint"
    half = sorted(p.name.split("-")[0][1:] for p in out.iterdir() if p.name.startswith("."))
    at = f"last checkpoint of step {read_checkpoint(out)['step']}"
    return at + (f", half written: {', '.join(half)}" if half else "")


class Kills:
    """Undisturbed runs by recipe, and runs killed to be compared with them.

    Args:
        home: for images and runs.
        seed: of the moments.
        say: told of each kill.
    """

    def __init__(self, home: Path, seed: int, say: Callable[[str], object]) -> None:
        self.home, self.random, self.say = home, random.Random(seed), say
        self.data = make_pictures(home / "images")
        # All that is imported late is in memory before anything is forked.
        warm = Run(self.data, home / "warm", "pgd")
        command_line([*warm.arguments(), "--epochs", "1"], standalone_mode=False)
        self.whole: dict[str, tuple[dict[str, Any], float, int]] = {}
        self.counts: Counter[str] = Counter()

    def undisturbed(self, recipe: str) -> tuple[dict[str, Any], float, int]:
        """A recipe's outcome, its seconds, and its number of operations on files."""
        if recipe not in self.whole:
            run = Run(self.data, self.home / f"{recipe}-whole", recipe)
            counted = self.home / f"{recipe}.count"

            def count() -> None:
                for owner, name in FILE_OPERATIONS:
                    real = getattr(owner, name)

                    def operate(*given: Any, real: Callable[..., Any] = real, **options: Any) -> Any:
                        with counted.open("ab") as opened:
                            opened.write(b".")
                        return real(*given, **options)

                    setattr(owner, name, operate)

            began = time.monotonic()
            if ended(forked(run, count)) != 0:
                raise SystemExit((run.out / "said.txt").read_text(encoding="utf-8"))
            self.whole[recipe] = (outcome(run.out), time.monotonic() - began, counted.stat().st_size)
        return self.whole[recipe]

    def kill(self, run: Run, kind: str) -> str:
        """Kill a run once at a drawn moment; what was done to it, or nothing if it ended before."""
        _, seconds, operations = self.undisturbed(run.recipe)
        after = self.random.uniform(0, seconds)
        if kind == "write":
            operation, how = self.random.randint(1, operations), self.random.choice(["before", "half", "after"])
            done = killed_at_write(run, operation, how)
            what = f"operation {operation} on a file, {how}"
        else:
            done = killed_by_clock(run, after) if kind == "clock" else killed_command_line(run, after)
            what = f"after {after:.2f} s"
        return f"{kind}, {what}: {place(run.out)}" if done else ""

    def killed_run(self, index: int, recipe: str, kinds: list[str]) -> list[str]:
        """A run killed once for each of `kinds`, and let end; where it differs from the undisturbed one."""
        whole, *_ = self.undisturbed(recipe)
        run = Run(self.data, self.home / f"{recipe}-{index}", recipe)
        for kind in kinds:
            # A run that has ended goes on as well; there is just little of it left to be killed in.
            while not (told := self.kill(run, kind)):
                self.counts["moments after the end"] += 1
            self.counts[f"kills ({kind})"] += 1
            self.say(f"run {index} ({recipe}), {told}")
        if status := ended(forked(run)):
            said = (run.out / "said.txt").read_text(encoding="utf-8").splitlines()[-1:]
            return [f"exit status {status}: {' '.join(said)}"]
        left = [p.name for p in run.out.iterdir() if p.name.startswith(".checkpoint")]
        return differing(whole, outcome(run.out)) + left


def kill_runs(
    home: Path, *, kills: int, from_command_line: int = 0, seed: int = 0, say: Callable[[str], object] = print
) -> tuple[Counter[str], list[str]]:
    """Kill runs so many times; what was done, and where anything differed from an undisturbed run.

    Args:
        home: an empty folder to work in.
        kills: in all.
        from_command_line: so many of them of the command line in a process of its own.
        seed: of the moments.
        say: told of each kill and each run.
    """
    work, faults = Kills(home, seed, say), []
    kinds = ["command line"] * from_command_line
    kinds += [("clock", "write")[i % 2] for i in range(kills - from_command_line)]
    work.random.shuffle(kinds)
    index = 0
    while kinds:
        many = work.random.randint(1, 5)
        chosen, kinds = kinds[:many], kinds[many:]
        recipe = list(RECIPES)[index % len(RECIPES)]
        found = work.killed_run(index, recipe, chosen)
        work.counts["runs that differ" if found else "runs equal bit for bit"] += 1
        faults += [f"run {index} ({recipe}): {fault}" for fault in found]
        say(f"run {index} ({recipe}): " + ("; ".join(found[:3]) or "equal bit for bit"))
        index += 1
    return work.counts, faults


def main() -> None:
    """Kill, print, and exit with 1 if anything was lost."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--command-line", type=int, default=3, help="So many of them of the real command line.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="An empty folder to leave the runs in.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    # As if each epoch took its minute: there shall be checkpoints to be killed in.
    trainer_module.EPOCH_SECONDS = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        home = given.keep or Path(temporary)
        os.environ["ROBUSTSYNTH_CACHE"] = str(home / "cache")
        counts, faults = kill_runs(home, kills=given.kills, from_command_line=given.command_line, seed=given.seed)
    print("\n".join(faults))
    print(", ".join(f"{name}: {count}" for name, count in sorted(counts.items())), end="")
    print(f"; {time.monotonic() - began:.0f} s")
    raise SystemExit(bool(faults))


if __name__ == "__main__":
    main()
