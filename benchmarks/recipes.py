"""Recipes of training at equal compute: each trained with as many passes of the network over an image, then attacked.

    python benchmarks/recipes.py --data CIFAR10_FOLDER [--rows pgd-1,trades] [--budget 12] [--out runs/recipes] \
        [--results benchmarks/recipes.json --table docs/log/training-recipes.md]

Compute is counted in forward-and-backward passes per training image over the whole run, `--budget` of them: a step of
PGD is one, the weights' own gradient one (two for trades and mart, which train on the clean image too), AWP's ascent
as many as the weights' gradient, a forward pass alone a third. The number of epochs follows, rounded to a whole one,
and the learning rate's schedule covers them. All rows have the same
network, batch, augmentation, average, peak rate and seed. Each is evaluated on test images, clean and under PGD-20
twice (from the image and from a random start), with 95 % intervals.

A row that is done is skipped, one that was cut off goes on, and the table is written from all rows that are done: they
are kept in `--results`, so that another day or machine goes on. Each row's own command, in the table, makes it again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from robustsynth.data import ImageData, load_data
from robustsynth.evaluation.accuracy import evaluate_accuracy
from robustsynth.files import write_json, written_beside
from robustsynth.models.execution import machine_name, processor_kind
from robustsynth.models.store import chosen_device, load_model
from robustsynth.training.checkpoints import CHECKPOINT
from robustsynth.training.settings import TrainSettings
from robustsynth.training.trainer import Trainer

BEGIN, END = "<!-- recipes: begin -->", "<!-- recipes: end -->"
FORWARD = 1 / 3
"""A forward pass alone, in forward-and-backward passes: the backward one costs twice as much."""


def rows(norm: str, eps: float) -> dict[str, dict[str, Any]]:
    """The settings that make each row of the table; one-step l2 attacks begin at the image, linf's at random."""
    one = {"attack_steps": 1, "attack_step_size": eps if norm == "l2" else 1.25 * eps, "random_start": norm == "linf"}
    two = {"attack_steps": 2, "attack_step_size": 0.75 * eps}
    return {
        "standard": {"eps": 0.0},
        "pgd-1": one,
        "pgd-1 + other start": one | {"random_start": norm == "l2"},
        "pgd-2": two,
        "pgd-7": {"attack_steps": 7, "attack_step_size": eps / 5},
        "trades": {"recipe": "trades"} | two,
        "mart": {"recipe": "mart"} | two,
        "free": {"recipe": "free", "free_replays": 4},
        "fast": {"recipe": "fast", "fast_noise": 0.5 if norm == "l2" else 2.0},
        "pgd-1 + awp": one | {"awp": 0.005},
        "pgd-1 + cutmix": one | {"cutmix": 0.5},
        "pgd-1 + smoothing": one | {"label_smoothing": 0.1},
        "pgd-1 + one-cycle": one | {"schedule": "one-cycle"},
        "pgd-1 + batch statistics": one | {"attack_statistics": "train"},
    }


def passes(settings: TrainSettings) -> float:
    """Forward-and-backward passes of an epoch, for each image."""
    if settings.recipe == "free":
        return float(settings.free_replays)
    outer = 2 if settings.recipe in ("trades", "mart") else 1
    attack = 0.0 if settings.eps == 0 else 1.0 if settings.recipe == "fast" else float(settings.attack_steps)
    reference = FORWARD if settings.recipe == "trades" else 0.0
    return attack + reference + outer * (2 if settings.awp else 1)


def settings_of(name: str, options: argparse.Namespace) -> TrainSettings:
    """A row's settings, its epochs as the budget allows."""
    common = {
        "architecture": options.architecture,
        "width": options.width,
        "norm": options.norm,
        "eps": options.eps,
        "batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "warmup": 0.15,
        "held_out": options.held_out,
        "seed": options.seed,
    }
    chosen = TrainSettings(**(common | rows(options.norm, options.eps)[name]))
    return dataclasses.replace(chosen, epochs=max(1, round(options.budget / passes(chosen))))


def train_row(name: str, options: argparse.Namespace, data: ImageData, test: ImageData) -> None:
    """Train and evaluate a row, or what is left to do of it; ``result.json`` says that it is done."""
    folder = options.out / name.replace(" ", "")
    settings = settings_of(name, options)
    wanted = {"settings": json.loads(json.dumps(dataclasses.asdict(settings))), "images": len(data), "num": options.num}
    done = results(options)
    if name in done:
        if {k: done[name][k] for k in wanted} != wanted:
            raise SystemExit(f"{options.results} holds {name} with other settings; choose another --results")
        print(f"{name}: done")
        return
    print(f"{name}: {settings.epochs} epochs of {passes(settings):.2f} passes", flush=True)
    begun = (folder / CHECKPOINT).exists()
    trainer = Trainer(
        settings,
        data,
        folder,
        device=options.device,
        precision=None if begun else options.precision,
        resume=begun,
        announce=print,
    )
    trainer.run()
    chosen = slice(0, options.num)
    model = load_model(folder, device=options.device)
    clean, robust = evaluate_accuracy(
        model, test.images[chosen], test.labels[chosen], norm=options.norm, eps=(options.eps,)
    )
    result = {
        "clean": [clean.share, *clean.interval],
        "pgd20": [robust.share, *robust.interval],
        "passes": passes(settings) * settings.epochs,
        "seconds": round(trainer.state.seconds),
        "precision": trainer.state.execution.precision,
        "collapses": len(trainer.state.collapses),
    }
    device = chosen_device(options.device)
    kind = processor_kind() if device.type == "cpu" else device.type
    result["machine"] = f"{machine_name(device)} ({kind}), torch {torch.__version__}"
    write_json(options.results, results(options) | {name: wanted | result})


def results(options: argparse.Namespace) -> dict[str, Any]:
    """The rows that are done."""
    return json.loads(options.results.read_text(encoding="utf-8")) if options.results.exists() else {}


def table(options: argparse.Namespace, given: str) -> str:
    """The rows that are done, the most robust first."""
    done = results(options)
    found = sorted(done.items(), key=lambda row: -row[1]["pgd20"][0])
    missing = [name for name in rows(options.norm, options.eps) if name not in done]
    machines = "; ".join(dict.fromkeys(row["machine"] for _, row in found))
    lines = [
        f"{options.architecture} of width {options.width}, {options.norm} ε = {options.eps:g}, "
        f"{options.budget:g} passes an image, {found[0][1]['images'] if found else 0} training images of CIFAR-10, "
        f"{options.num} test images; {machines}.",
        *([f"Not measured yet: {', '.join(missing)}."] if missing else []),
        "",
        "| recipe | epochs | passes | clean % | PGD-20 % | its command |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in found:
        shares = [f"{100 * a:.1f} [{100 * b:.1f}, {100 * c:.1f}]" for a, b, c in (row["clean"], row["pgd20"])]
        fell = f" ({row['collapses']} collapses, recovered)" if row["collapses"] else ""
        command = f"`python benchmarks/recipes.py {given} --rows '{name}'`"
        lines.append(
            f"| {name}{fell} | {row['settings']['epochs']} | {row['passes']:.0f} | "
            f"{shares[0]} | {shares[1]} | {command} |"
        )
    return "\n".join(lines)


def write_table(path: Path, text: str) -> None:
    """Put the table between its two marks in a document."""
    document = path.read_text(encoding="utf-8")
    if BEGIN not in document or END not in document:
        raise SystemExit(f"expected the marks {BEGIN} and {END} in {path}, found them not")
    before, _, rest = document.partition(BEGIN)
    with written_beside(path) as temporary:
        temporary.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="CIFAR-10: a folder of parquet files, or a Hub name")
    parser.add_argument("--rows", default="all", help="names with commas between them")
    parser.add_argument("--out", type=Path, default=Path("runs/recipes"))
    parser.add_argument("--results", type=Path, help="where rows that are done are kept; OUT/results.json")
    parser.add_argument("--table", type=Path, help="a document with marks to put the table between")
    parser.add_argument("--device")
    parser.add_argument("--precision")
    plain: dict[str, Any] = {
        **{"budget": 12.0, "num": 1000, "images": 0, "architecture": "resnet18", "width": 16, "norm": "l2"},
        **{"eps": 0.5, "batch_size": 128, "learning_rate": 0.2, "held_out": 1000, "seed": 0},
    }
    for name, value in plain.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    options = parser.parse_args()
    options.results = options.results or options.out / "results.json"
    known = rows(options.norm, options.eps)
    chosen = list(known) if options.rows == "all" else [name.strip() for name in options.rows.split(",")]
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise SystemExit(f"expected rows of {'; '.join(known)}, got {unknown[0]!r}")
    data = load_data(options.data, "train")
    if options.images:
        part = slice(0, options.images)
        data = dataclasses.replace(data, images=data.images[part], labels=data.labels[part])
    test = load_data(options.data, "test")
    for name in chosen:
        train_row(name, options, data, test)
    changed = [f"--{n.replace('_', '-')} {getattr(options, n)}" for n, v in plain.items() if getattr(options, n) != v]
    if options.precision:
        changed.append(f"--precision {options.precision}")
    text = table(options, " ".join(["--data CIFAR10_FOLDER", *changed]))
    print(text)
    if options.table is not None:
        write_table(options.table, text)


if __name__ == "__main__":
    main()
