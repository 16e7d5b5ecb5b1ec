"""The Python functions of the tasks, made from the table: ``inpaint(…)`` gives the results, and ``inpaint_steps(…)``
is the generator that it runs, for progress, previews and stopping.

Their signatures, for type checkers and editors, are in ``functions.pyi``, which `stub` writes.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import torch

from robustsynth.errors import UnknownNameError
from robustsynth.models.classifier import Classifier
from robustsynth.solver import Progress, results_of, stacked
from robustsynth.tasks.call import Call, read_images
from robustsynth.tasks.table import TASKS
from robustsynth.tasks.task import REQUIRED, Task, attribute_help

SHARED = {
    "preset": (
        "str | None",
        "``paper``, ``mcgill2019``, ``duke2023``, ``hse2025`` or ``best``; the model's own where None.",
    ),
    "precision": ("str | None", "``float32`` or ``bfloat16``; measured once per model and machine where None."),
    "batch_size": ("int | None", "images a batch; measured likewise."),
}
"""Parameters of all tasks: type and description."""

IMAGES = "(N, C, H, W) in [0, 1], of any size; or a file, a PIL image, a NumPy array, or a list of these."


def task_call(task: Task, arguments: dict[str, Any]) -> Call:
    """The `Call` that the arguments of a task's function ask for.

    Raises:
        UserError: an argument that does not fit.
    """
    model: Classifier = arguments["model"]
    settings = {f.name: arguments[f.name] for f in dataclasses.fields(task.settings) if f.name not in _inputs(task)}
    resolved = task.resolve(model, preset=arguments["preset"], given=settings)
    how = {name: arguments[name] for name in ("precision", "batch_size")}
    if task.images:
        images = read_images(model, arguments[task.images], task.images, any_values=not task.reads_all)
        call = Call(task, model, resolved, [tuple(image.shape[1:]) for image in images], images.__getitem__, **how)  # pyright: ignore[reportArgumentType]
    else:
        side, count = model.image_size or 0, _count(arguments[task.inputs[0].name])
        call = Call(task, model, resolved, [(side, side)] * count, **how)
    call.give(**{name: arguments[name] for name in _inputs(task)})
    return call


def task_functions(task: Task) -> tuple[Callable[..., Any], Callable[..., Iterator[Progress]]]:
    """A task's function and its generator."""
    signature = task_signature(task)

    def steps(*args: Any, **kwargs: Any) -> Iterator[Progress]:
        return task_call(task, _bound(task, signature, args, kwargs)).steps()

    def function(*args: Any, **kwargs: Any) -> Any:
        call = task_call(task, _bound(task, signature, args, kwargs))
        if not len(call):
            size = call.model.image_size or 0
            return torch.empty(0, call.model.channels, size, size)
        return stacked(results_of(_with_bar(call), range(len(call))))

    text = documentation(task)
    for made, name, returns in ((function, task.name, "Tensor"), (steps, f"{task.name}_steps", "Iterator[Progress]")):
        made.__name__ = made.__qualname__ = name
        made.__signature__ = signature.replace(return_annotation=returns)  # type: ignore[attr-defined]
        made.__doc__ = text if made is function else _steps_documentation(task)
    return function, steps


def _with_bar(call: Call) -> Iterator[Progress]:
    """The call's progress, with a bar on a terminal or in a notebook where it takes more than a second."""
    from tqdm.auto import tqdm

    watched = sys.stderr.isatty() or "ipykernel" in sys.modules
    total = len(call) * max(call.settings.steps, 1) * call.runs
    with tqdm(total=total, unit="step", unit_scale=True, desc=call.task.name, delay=1, disable=not watched) as bar:
        for progress in call.steps():
            bar.update(len(progress.indices) if progress.step else 0)
            yield progress


def _bound(task: Task, signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    unknown = [name for name in kwargs if name not in signature.parameters]
    if unknown:
        settings = [field.name for field in dataclasses.fields(task.settings)]
        raise UnknownNameError(f"setting of {task.name}", unknown[0], settings)
    bound = signature.bind(*args, **kwargs)
    bound.apply_defaults()
    return dict(bound.arguments)


def _count(labels: Any) -> int:
    """How many images labels are of: one where a single class is given."""
    single = isinstance(labels, str) or not hasattr(labels, "__len__") or getattr(labels, "ndim", 1) == 0
    return 1 if single else len(labels)


def _inputs(task: Task) -> list[str]:
    return [each.name for each in task.inputs]


def task_signature(task: Task) -> inspect.Signature:
    """Model, images, inputs, what all tasks share, and every setting; None is what the preset or the model says."""
    kinds = inspect.Parameter
    empty = inspect.Parameter.empty
    parameters = [kinds("model", kinds.POSITIONAL_OR_KEYWORD, annotation="Classifier")]
    if task.images:
        parameters.append(kinds(task.images, kinds.POSITIONAL_OR_KEYWORD, annotation="Any"))
    for each in sorted(task.inputs, key=lambda each: not each.positional):
        kind = kinds.POSITIONAL_OR_KEYWORD if each.positional else kinds.KEYWORD_ONLY
        default = empty if each.default is REQUIRED else each.default
        parameters.append(kinds(each.name, kind, default=default, annotation=each.annotation))
    for name, (annotation, _) in SHARED.items():
        parameters.append(kinds(name, kinds.KEYWORD_ONLY, default=None, annotation=annotation))
    taken = {parameter.name for parameter in parameters}
    for field in dataclasses.fields(task.settings):
        if field.name not in taken:
            annotation = str(field.type).removesuffix(" | None") + " | None"
            parameters.append(kinds(field.name, kinds.KEYWORD_ONLY, default=None, annotation=annotation))
    return inspect.Signature(parameters)


def documentation(task: Task) -> str:
    """The docstring of a task's function."""
    described = attribute_help(task.settings)
    lines = [task.summary, ""]
    if task.details:
        lines += [*_wrapped(task.details, 0), ""]
    lines += ["Args:", *_wrapped("model: a robust classifier, from `load_model` or `Classifier.wrap`.", 1)]
    if task.images:
        lines += _wrapped(f"{task.images}: {IMAGES}", 1)
    for each in task.inputs:
        lines += _wrapped(f"{each.name}: {each.help}", 1)
    for name, (_, text) in SHARED.items():
        lines += _wrapped(f"{name}: {text}", 1)
    taken = set(_inputs(task))
    for field in dataclasses.fields(task.settings):
        if field.name not in taken:
            lines += _wrapped(f"{field.name}: {described.get(field.name, '')}", 1)
    lines += ["", "Returns:", *_wrapped(task.returns + " A list of (C, H, W) where sizes differ.", 1), "", "Raises:"]
    lines += _wrapped("UserError: an input or a setting that does not fit.", 1)
    lines += _wrapped("NonFiniteError: some images met a NaN or an infinity; the error has all images.", 1)
    lines += _wrapped("Interrupted: on Ctrl-C; its ``images`` and ``states`` have what was made until then.", 1)
    if task.example:
        lines += ["", "Example:", "    >>> from robustsynth.models.store import load_model"]
        lines += [f"    >>> {task.example}.ndim", "    4"]
    return "\n".join(lines) + "\n"


def _steps_documentation(task: Task) -> str:
    return (
        f"The generator that `{task.name}` runs, with the same parameters.\n\nYields:\n"
        "    `robustsynth.solver.Progress` at each step of each batch: which images, which step, and previews\n"
        "    that are the results as they would be now. Leaving the loop cancels what is left.\n"
    )


def _wrapped(text: str, depth: int) -> list[str]:
    indent = "    " * depth
    return textwrap.wrap(
        text, 112, initial_indent=indent, subsequent_indent=indent + "    " * bool(depth), break_long_words=False
    )


def stub() -> str:
    """What ``functions.pyi`` has to say."""
    lines = [
        "# Written by robustsynth.tasks.functions.stub; a test compares.",
        "from collections.abc import Iterator, Sequence",
        "from typing import Any",
        "",
        "from torch import Tensor",
        "",
        "from robustsynth.models.classifier import Classifier",
        "from robustsynth.solver import Progress",
        "from robustsynth.tasks.task import Task",
        "",
    ]
    for task in TASKS.values():
        for name, returns in ((task.name, "Tensor"), (f"{task.name}_steps", "Iterator[Progress]")):
            signature = task_signature(task)
            shown, star = [], False
            for parameter in signature.parameters.values():
                if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not star:
                    shown.append("*")
                    star = True
                default = "" if parameter.default is inspect.Parameter.empty else " = ..."
                shown.append(f"{parameter.name}: {parameter.annotation}{default}")
            lines += [f"def {name}(", *(f"    {each}," for each in shown), f") -> {returns}: ..."]
    lines += [
        "def task_functions(task: Task) -> tuple[Any, Any]: ...",
        "def stub() -> str: ...",
    ]
    return "\n".join(lines) + "\n"


def __getattr__(name: str) -> Any:
    """A task's function or generator, made when it is first asked for."""
    task = TASKS.get(name.removesuffix("_steps"))
    if task is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    function, steps = task_functions(task)
    globals().update({task.name: function, f"{task.name}_steps": steps})
    return globals()[name]
