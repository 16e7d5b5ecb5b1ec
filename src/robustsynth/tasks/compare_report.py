"""What a comparison leaves behind: its figure, a table beside it, and the settings that it was drawn with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

import robustsynth
from robustsynth.errors import UserError
from robustsynth.files import sha256, write_json, written_beside
from robustsynth.images import save_png, to_uint8
from robustsynth.models.classifier import Classifier
from robustsynth.models.execution import machine_name
from robustsynth.models.files import WEIGHTS_FILE
from robustsynth.models.measured import AUTO, CLEAN, PGD, TITLES, Measured, measured, one_line
from robustsynth.sheet import PAGE, sheet
from robustsynth.tasks.compare import Comparison
from robustsynth.tasks.compare_plan import ComparisonPlan
from robustsynth.tasks.starts import start_identity

FIGURE_FILE, TABLE_FILE, SETTINGS_FILE = "figure.png", "table.md", "settings.json"
NOT_MEASURED = "not measured"
_TITLES = {**TITLES, CLEAN: "Clean accuracy"}


def check_folder(out: Path, plan: ComparisonPlan, *, overwrite: bool = False) -> None:
    """Refuse to write over something else, and cards that no table can be made of, before anything is drawn.

    The same comparison may be drawn again, because its times are those of a run.

    Raises:
        UserError: the folder holds another comparison, or something of another kind; or a card's accuracies are of
            another form.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"expected a folder to write to, but {out} is a file; choose another --out")
    for model in plan.models:
        _figures(model)
    there = [name for name in (FIGURE_FILE, TABLE_FILE, SETTINGS_FILE) if (out / name).exists()]
    if not there or overwrite:
        return
    try:
        before = json.loads((out / SETTINGS_FILE).read_text(encoding="utf-8"))
        before = before if isinstance(before, dict) else {}
    except (OSError, ValueError):
        before = {}
    asked = asked_for(plan)
    differing = [name for name in asked if before.get(name) != asked[name]]
    if differing:
        raise UserError(
            f"expected a new folder or one of the same comparison, but {out} holds {', '.join(there)} of another "
            f"({', '.join(differing[:4])}); choose another --out, or replace them with --overwrite"
        )


def write_comparison(out: Path, result: Comparison) -> str:
    """Write ``figure.png``, ``table.md`` and ``settings.json``; returns the table."""
    plan = result.plan
    save_png(out / FIGURE_FILE, draw_figure(result))
    table = comparison_table(result)
    with written_beside(out / TABLE_FILE) as temporary:
        temporary.write_text(table, encoding="utf-8")
    run = {
        "complete": result.complete,
        "drawn": dict(zip(plan.names, result.drawn.sum(1).tolist(), strict=True)),
        "seconds_an_image": dict(zip(plan.names, result.seconds, strict=True)),
        "execution": {n: e.as_dict() for n, e in zip(plan.names, plan.executions, strict=True)},
        "machine": machine_name(plan.models[0].device),
        "versions": {"robustsynth": robustsynth.__version__, "torch": _torch_version()},
    }
    write_json(out / SETTINGS_FILE, asked_for(plan) | run)
    return table


def asked_for(plan: ComparisonPlan) -> dict[str, Any]:
    """What tells this comparison from another, as plain values without any path."""
    settings = {
        name: start_identity(each).get("settings", dataclasses.asdict(each))
        for name, each in zip(plan.names, plan.settings, strict=True)
    }
    starts = start_identity(plan.settings[plan.seeds_of]).get("starts_sha256")
    return {
        "task": "compare",
        "models": [_identity(name, model) for name, model in zip(plan.names, plan.models, strict=True)],
        "classes": list(dict.fromkeys(plan.classes)),
        "num_per_class": len(plan.classes) // len(set(plan.classes)),
        "seed": plan.seed,
        "seeds_of": plan.names[plan.seeds_of],
        "own_settings": plan.own_settings,
        "settings": settings,
    } | ({} if starts is None else {"starts_sha256": starts})


def draw_figure(result: Comparison) -> np.ndarray:
    """The start images and what each model made of them, as uint8 (H, W, 3)."""
    plan = result.plan
    rows: list[list[np.ndarray | None]] = [list(to_uint8(plan.seeds))]
    for images, drawn in zip(result.images, result.drawn.tolist(), strict=True):
        rows.append([image if there else None for image, there in zip(to_uint8(images), drawn, strict=True)])
    labels = [("start", _starts(plan)), *((n, *_about(m)) for n, m in zip(plan.names, plan.models, strict=True))]
    note = f"{_how(plan)}; seed {plan.seed}."
    classes = plan.models[plan.seeds_of].classes
    return sheet(rows, titles=plan.classes, labels=labels, note=note, classes=classes, width=PAGE)


def comparison_table(result: Comparison) -> str:
    """The table in Markdown, its columns aligned so that it reads well as it is, and what its figures mean."""
    plan = result.plan
    head = ["model", "trained", "clean", "PGD", "AutoAttack", "weights", "parameters", "an image"]
    lines = [head]
    for place, (name, model) in enumerate(zip(plan.names, plan.models, strict=True)):
        figures = _figures(model)
        seconds = result.seconds[place]
        lines.append([
            name,
            _trained(model),
            *(_accuracy(figures, attack) for attack in (CLEAN, PGD, AUTO)),
            f"{_bytes(model) / 1e6:.1f} MB",
            f"{sum(p.numel() for p in model.network.parameters()):,}",
            NOT_MEASURED if seconds is None else f"{seconds:.3g} s",
        ])  # fmt: skip
    lines = [[escaped(cell) for cell in line] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    rule = ["-" * width for width in widths]
    drawn = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in (head, rule, *lines[1:])]
    table = "\n".join(f"| {' | '.join(line)} |" for line in drawn)
    return f"{table}\n\n" + "\n".join(f"- {escaped(note)}" for note in _notes(result)) + "\n"


def escaped(text: str) -> str:
    """Text that is nothing but text in a cell of Markdown and on a terminal: a card may be anybody's.

    Example:
        >>> escaped("a|b<i>")
        'a\\\\|b&lt;i>'
    """
    return one_line(text).replace("\\", "\\\\").replace("|", "\\|").replace("[", "\\[").replace("<", "&lt;")


def _accuracy(figures: list[Measured], attack: str) -> str:
    told = [
        f"{100 * row.share:.1f} %"
        + (f" at {row.norm} {row.eps:g}" if row.eps else "")
        + ("" if row.images is None else f" ({row.images:,})")
        for row in figures
        if row.attack == attack
    ]
    return ", ".join(told) or NOT_MEASURED


def _notes(result: Comparison) -> list[str]:
    plan = result.plan
    notes = ["Accuracies are those of the models' cards, with the number of images in brackets; weights without seeds."]
    for attack in (CLEAN, PGD, AUTO):
        told: dict[str, list[str]] = {}
        for name, model in zip(plan.names, plan.models, strict=True):
            for row in _figures(model):
                if row.attack == attack:
                    how = row.data if attack == CLEAN else f"{row.how}, on {row.data}"
                    told.setdefault(how, []).append(name)
        for how, names in told.items():
            notes.append(f"{_TITLES[attack]} of {', '.join(dict.fromkeys(names))}: {how}.")
    ways: dict[str, list[str]] = {}
    for name, execution in zip(plan.names, plan.executions, strict=True):
        ways.setdefault(f"{execution.precision}, {execution.batch_size} images a batch", []).append(name)
    each = "; ".join(way if len(ways) == 1 else f"{', '.join(names)} in {way}" for way, names in ways.items())
    steps = {settings.steps for settings in plan.settings}
    count = f"{min(steps)}" if len(steps) == 1 else f"{min(steps)} to {max(steps)}"
    notes.append(
        f"An image: {count} times the median step of this run, in which the models drew batches in turns after a "
        f"first step that does not count ({each}; {machine_name(plan.models[0].device)})."
    )
    notes.append(f"{_how(plan)}; seed {plan.seed}.")
    if not result.complete:
        notes.append("Stopped before its end: the figure has what was drawn until then.")
    for name, failures in zip(plan.names, result.failures, strict=True):
        if failures:
            notes.append(f"{name} met NaN or infinity in {len(failures)} of {len(plan.classes)} images.")
    return notes


def _how(plan: ComparisonPlan) -> str:
    """Starts and settings in a sentence."""
    origin = plan.names[plan.seeds_of]
    if len(plan.models) == 1:
        return f"Start images: {_starts(plan)}; {_settings(plan, 0)}"
    starts = f"The same start images for all ({_starts(plan)})"
    if plan.own_settings:
        told = [f"{n} {_settings(plan, place)}" for place, n in enumerate(plan.names)]
        return f"{starts}, each with its own settings: {'; '.join(told)}"
    sizes = {(model.image_size, model.channels) for model in plan.models}
    more = "" if len(sizes) == 1 else f", sizes scaled for images other than {origin}'s"
    return f"{starts} and the same settings ({_settings(plan, plan.seeds_of)}{more})"


def _settings(plan: ComparisonPlan, place: int) -> str:
    settings = plan.settings[place]
    schedule = ", falling" if settings.step_schedule == "linear" else ""
    return f"{settings.norm} eps {settings.eps:g}, {settings.steps} steps of {settings.step_size:g}{schedule}"


def _starts(plan: ComparisonPlan) -> str:
    settings = plan.settings[plan.seeds_of]
    name = plan.names[plan.seeds_of]
    if settings.seeds_from == "uniform":
        return "uniform noise"
    if "starts_sha256" in start_identity(settings):
        return f"pictures of {Path(settings.seeds_from).resolve().name}"
    return f"class seeds of {name}"


def _figures(model: Classifier) -> list[Measured]:
    return [] if model.card is None else measured(model.card)


def _trained(model: Classifier) -> str:
    threat = {} if model.card is None else model.card.threat_model
    if not threat:
        return "not stated"
    return f"{threat.get('norm', 'l2')} {threat['eps']}" if threat.get("eps") else "standard"


def _about(model: Classifier) -> tuple[str, ...]:
    """What stands below a model's name in the figure: how it was trained, and its accuracies at a glance."""
    trained = _trained(model)
    kind = {"standard": "standard training", "not stated": "training not stated"}.get(trained, f"robust, {trained}")
    lines = [kind]
    for row in _figures(model):
        if row.attack in (CLEAN, PGD, AUTO):
            lines.append(f"{100 * row.share:.1f} % {row.title}" + (f", eps {row.eps:g}" if row.eps else ""))
    return tuple(lines)


def _bytes(model: Classifier) -> int:
    """Of the weights' file; of the numbers in memory for a network that has none."""
    if model.folder is not None and (model.folder / WEIGHTS_FILE).exists():
        return (model.folder / WEIGHTS_FILE).stat().st_size
    tensors = (*model.network.parameters(), *model.network.buffers())
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _identity(name: str, model: Classifier) -> dict[str, Any]:
    weights = None if model.folder is None else model.folder / WEIGHTS_FILE
    return {"name": name, "sha256": sha256(weights) if weights is not None and weights.exists() else None}


def _torch_version() -> str:
    import torch

    return torch.__version__
