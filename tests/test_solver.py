"""The generator under every task: previews, leaving it in the middle, and what a task that is added gets by itself."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

import robustsynth as rs
from robustsynth.cli import main
from robustsynth.cli.progress import Animations
from robustsynth.images import png_text, read_image, save_png, to_uint8
from robustsynth.solver import FAILED, FINISHED, NOT_BEGUN, STOPPED, ImageState, Results, Stated, solve
from robustsynth.tasks import functions
from robustsynth.tasks.functions import stub, task_functions, task_signature
from robustsynth.tasks.table import TASKS
from robustsynth.tasks.task import attribute_help
from toy_task import TOY, ToySettings

FIXED = {"precision": "float32", "batch_size": 3, "steps": 3}
COUNT = 8

MASK = torch.zeros(1, 16, 16)
MASK[:, 4:9, 5:12] = 1

INSIDE = {"only_inside": True, "feather": 1.5}
"""What makes a preview of a masked task more than the loop's iterate."""

NEEDS: dict[str, dict[str, Any]] = {
    "generate": {"labels": [0, 1, 2, 2, 1, 0, 1, 2], "seed": 3},
    "inpaint": {"mask": MASK, **INSIDE},
    "translate": {"targets": [0, 1, 2, 2, 1, 0, 1, 2]},
    "upscale": {"factor": 1.5, "consistency": 2},
    "sketch": {"labels": 1, "texture": 0.2},
    "paint": {"unit": [3, 5], "mask": [MASK, MASK.flip(2)], **INSIDE},
    "refine": {},
}


def test_every_task_is_tested():
    assert set(NEEDS) == set(TASKS)


def given(task: str, count: int = COUNT) -> dict[str, Any]:
    """Arguments of a task: images, and what else it needs."""
    needs = dict(NEEDS[task])
    if count < COUNT:
        needs = {name: value[:count] if name in ("labels", "targets") else value for name, value in needs.items()}
    if TASKS[task].images:
        generator = torch.Generator().manual_seed(0)
        needs[TASKS[task].images] = torch.rand(count, 3, 16, 16, generator=generator)
    return needs | FIXED


def steps(task: str, model: rs.Classifier, **more: Any) -> Iterator[rs.Progress]:
    return getattr(rs, f"{task}_steps")(model, **(given(task) | more))


def runs(task: str) -> int:
    return 2 if task == "paint" else 1


# Progress


@pytest.mark.parametrize("task", TASKS)
def test_progress_says_where_it_is(task, tiny):
    seen = [(p.indices, p.run, p.step, p.finished) for p in steps(task, tiny)]
    last = runs(task) - 1
    assert seen == [
        (indices, run, step, step == 3 and run == last)
        for indices in ((0, 1, 2), (3, 4, 5), (6, 7))
        for run in range(runs(task))
        for step in range(4)
    ]


@pytest.mark.parametrize("task", TASKS)
def test_progress_has_losses_labels_and_previews_of_its_images_alone(task, tiny):
    for progress in steps(task, tiny):
        count = len(progress.indices)
        assert (progress.steps, progress.runs, progress.failures) == (3, runs(task), {})
        assert progress.loss.shape == (count,)
        assert progress.taken == progress.run * 3 + progress.step
        side = 24 if task == "upscale" else 16
        assert progress.previews.shape == (count, 3, side, side), "at their own size, without the batch's padding"
        assert 0 <= progress.previews.min() <= progress.previews.max() <= 1
        labels = progress.stated.labels
        assert (labels is None) == (task in ("paint", "generate"))
        assert labels is None or len(labels) == 3
        assert progress.stated.predicted == (task in ("inpaint", "upscale", "refine"))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("use_best", [True, False])
def test_the_last_preview_is_the_result(task, use_best, tiny):
    results = getattr(rs, task)(tiny, **given(task), use_best=use_best)
    last = {
        i: image for p in steps(task, tiny, use_best=use_best) for i, image in zip(p.indices, p.previews, strict=True)
    }
    assert torch.stack([last[i] for i in range(COUNT)]).equal(results)


@pytest.mark.parametrize("task", [name for name in TASKS if name != "paint"])
def test_a_preview_is_the_result_of_fewer_steps(task, tiny):
    """Of the last iterate, not the best: a step more or less changes which is."""
    for count in (0, 2):
        results = getattr(rs, task)(tiny, **(given(task) | {"steps": count}), use_best=False)
        shown = {
            i: image
            for p in steps(task, tiny, use_best=False)
            if p.step == count
            for i, image in zip(p.indices, p.previews, strict=True)
        }
        assert torch.stack([shown[i] for i in range(COUNT)]).equal(results)


@pytest.mark.parametrize("task", TASKS)
def test_previews_may_be_asked_for_later_or_never(task, tiny):
    """They are computed when asked for, and asking changes nothing."""
    asked = [p.previews.clone() for p in steps(task, tiny)]
    kept = list(steps(task, tiny))
    assert all(p.previews.equal(image) for p, image in zip(kept, asked, strict=True))


def test_previews_are_computed_only_when_asked_for():
    finished = []

    def state(indices, run, before):
        def finish(images):
            finished.append(run)
            return images

        start = torch.full((len(indices), 1, 2, 2), 0.5)
        return Stated(rs.Problem(start, lambda x: x.sum((1, 2, 3)), rs.Box()), finish)

    for progress in solve([[0], [1]], state, batch_size=1, step_size=0.1, steps=3, runs=2):
        if progress.indices == (1,) and progress.run == 1 and progress.step == 2:
            assert progress.previews.equal(progress.previews)
    # The first run's results, from which the second begins, of both batches; and the one that was asked for.
    assert finished == [0, 0, 1]


# Leaving in the middle


class TroubleError(Exception):
    pass


def leave(progresses: Iterator[rs.Progress], results: Results, stop: Callable[[rs.Progress], bool], way: Any) -> None:
    """Note each step until the one to stop at; leave the loop there by an exception, or by `break` where None."""
    for progress in progresses:
        results.add(progress)
        if stop(progress):
            if way is None:
                break
            raise way


WAYS = {
    "break": None,
    "KeyboardInterrupt": KeyboardInterrupt,
    "another exception": TroubleError,
}

PLACES = [(0, 0), (3, 0), (3, 2), (3, 3), (6, 1)]
"""First image of a batch, and the step at which the loop is left."""


def check_states(task: str, states: list[ImageState], left: tuple[int, int]) -> list[int]:
    """What became of each image when the loop was left there; returns which are finished."""
    batch, step = range(left[0], min(left[0] + 3, COUNT)), left[1]
    done = step == 3 and runs(task) == 1
    for index, state in enumerate(states):
        if index < left[0] or (index in batch and done):
            assert state == ImageState(FINISHED)
        elif index in batch:
            assert state == ImageState(STOPPED, step)
        else:
            assert state == ImageState(NOT_BEGUN)
    return [index for index, state in enumerate(states) if state.status == FINISHED]


@pytest.mark.parametrize("left", PLACES, ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("task", TASKS)
def test_leaving_in_the_middle_keeps_what_is_finished_and_marks_the_rest(task, way, left, tiny, undisturbed):
    whole, previews = undisturbed(task)
    results = Results(range(COUNT))
    with contextlib.nullcontext() if WAYS[way] is None else pytest.raises(WAYS[way]):
        leave(steps(task, tiny), results, lambda p: p.indices[0] == left[0] and p.taken == left[1], WAYS[way])
    finished = check_states(task, results.states(), left)
    assert sorted(results.images) == finished
    for index in finished:
        assert results.images[index].equal(whole[index]), "exactly as an undisturbed run gives it"
    for index, (image, state) in enumerate(zip(results.so_far(), results.states(), strict=True)):
        assert (image is None) == (state.status == NOT_BEGUN)
        if state.status == STOPPED:
            assert image is not None
            assert image.equal(previews[index, left[1]])


@pytest.mark.parametrize("way", WAYS)
def test_leaving_a_hundred_images_in_the_middle(way, tiny):
    labels, how = [i % 3 for i in range(100)], {"precision": "float32", "batch_size": 8, "steps": 2}
    whole = rs.generate(tiny, labels, **how)
    results = Results(range(100))
    with contextlib.nullcontext() if WAYS[way] is None else pytest.raises(WAYS[way]):
        leave(rs.generate_steps(tiny, labels, **how), results, lambda p: 50 in p.indices and p.step == 1, WAYS[way])
    counts = Counter(state.status for state in results.states())
    assert counts == {FINISHED: 48, STOPPED: 8, NOT_BEGUN: 44}
    assert torch.stack([results.images[i] for i in range(48)]).equal(whole[:48])


@pytest.fixture(scope="module")
def undisturbed(tiny_folder) -> Callable[[str], tuple[Tensor, dict[tuple[int, int], Tensor]]]:
    """A task's results, and each image's preview after each number of steps."""
    found: dict[str, Any] = {}

    def of(task: str) -> Any:
        if task not in found:
            model = rs.load_model(tiny_folder, device="cpu")
            whole = getattr(rs, task)(model, **given(task))
            previews = {
                (i, p.taken): image.clone()
                for p in steps(task, model)
                for i, image in zip(p.indices, p.previews, strict=True)
                if p.step or not p.run
            }
            found[task] = whole, previews
        return found[task]

    return of


@pytest.mark.parametrize("left", [left for left in PLACES if left[1] < 3], ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_ctrl_c_in_a_function_gives_what_there_is(task, left, tiny, undisturbed, monkeypatch):
    """The signal comes in the middle of a step, when it is computed."""
    whole, previews = undisturbed(task)
    model_calls, plain = Counter(), TASKS[task].state
    taken = {}

    def state(batch):
        stated = plain(batch)
        objective = stated.problem.objective

        def interrupted(images):
            first, run = batch.indices[0], batch.run
            done = 3 * run + model_calls[first, run]
            model_calls[first, run] += 1
            taken[first] = done
            if (first, done) == (left[0], left[1] + 1):
                signal.raise_signal(signal.SIGINT)
            return objective(images)

        return dataclasses.replace(stated, problem=dataclasses.replace(stated.problem, objective=interrupted))

    function, _ = task_functions(dataclasses.replace(TASKS[task], state=state))
    with pytest.raises(rs.Interrupted, match=r"of 8 images are finished") as caught:
        function(tiny, **given(task))
    assert isinstance(caught.value, KeyboardInterrupt)
    finished = check_states(task, caught.value.states, left)
    assert len(caught.value.images) == COUNT
    for index, image in enumerate(caught.value.images):
        if index in finished:
            assert image is not None
            assert image.equal(whole[index])
        elif caught.value.states[index].status == STOPPED:
            assert image is not None
            assert image.equal(previews[index, left[1]])
        else:
            assert image is None


def test_ctrl_c_before_anything_and_after_everything():
    results = Results([4, 2])
    assert [state.status for state in results.states()] == [NOT_BEGUN] * 2
    assert results.so_far() == [None, None]
    assert "0 of 2 images are finished" in str(rs.Interrupted(results))


def test_ctrl_c_while_a_finished_batch_is_kept_loses_nothing():
    """Finishing takes time of its own, in which somebody may press Ctrl-C."""
    presses = [True]

    def finish(images):
        if presses and presses.pop():
            raise KeyboardInterrupt
        return images

    def state(indices, run, before):
        start = torch.full((len(indices), 1, 2, 2), 0.5)
        return Stated(rs.Problem(start, lambda x: x.sum((1, 2, 3)), rs.Box()), finish)

    results = Results([0, 1])
    with pytest.raises(KeyboardInterrupt):
        leave(solve([[0], [1]], state, batch_size=1, step_size=0.1, steps=2), results, lambda p: False, None)
    assert results.states() == [ImageState(STOPPED, 2), ImageState(NOT_BEGUN)]
    assert results.so_far()[0] is not None


def test_what_failed_is_marked_so():
    def state(indices, run, before):
        start = torch.full((len(indices), 1, 2, 2), 0.5)
        broken = torch.tensor([index == 1 for index in indices])
        return Stated(rs.Problem(start, lambda x: x.sum((1, 2, 3)) / (~broken).float() * 1.0, rs.Box()))

    results = Results(range(3))
    for progress in solve([[0, 1], [2]], state, batch_size=2, step_size=0.1, steps=2):
        results.add(progress)
        if progress.indices == (2,):
            break
    assert results.states() == [ImageState(FINISHED), ImageState(FAILED, 0), ImageState(STOPPED, 0)]


@pytest.mark.parametrize("task", TASKS)
def test_a_generator_that_is_left_can_be_begun_anew_for_the_rest(task, tiny, undisturbed):
    """What is left out is drawn later, alone, and is the same: an image depends on itself."""
    whole, _ = undisturbed(task)
    call = functions.task_call(
        TASKS[task], functions._bound(TASKS[task], task_signature(TASKS[task]), (tiny,), given(task))
    )
    results = Results(range(COUNT))
    for progress in call.steps():
        results.add(progress)
        if progress.indices[0] == 3:
            break
    rest = [index for index in range(COUNT) if index not in results.images]
    for progress in call.steps(rest):
        results.add(progress)
    assert torch.stack([results.images[index] for index in range(COUNT)]).equal(whole)


# The command writes what the generator shows


OPTIONS: dict[str, list[object]] = {
    "inpaint": ["--mask", "5,4,7,5", "--only-inside", "--feather", "1.5"],
    "translate": ["--to", "ship"],
    "upscale": ["--factor", "1.5", "--consistency", "2"],
    "sketch": ["--label", "ship", "--texture", "0.2"],
    "paint": ["--unit", "3,5", "--mask", "5,4,7,5", "--only-inside", "--feather", "1.5"],
    "refine": [],
    "generate": ["--num", "2", "--seed", "3"],
}


def command(task: str, model: Path, out: Path, *arguments: object) -> str:
    fixed = ["--precision", "float32", "--batch-size", "3", "--steps", "3", "--device", "cpu"]
    line = [task, "--model", model, "--out", out, *fixed, *OPTIONS.get(task, []), *arguments]
    result = CliRunner().invoke(main, [str(a) for a in line], env={"COLUMNS": "2000"})
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def photo(tmp_path) -> Path:
    path = tmp_path / "photo.png"
    save_png(path, np.random.default_rng(0).integers(30, 220, (18, 22, 3), dtype=np.uint8))
    return path


@pytest.mark.parametrize("task", TASKS)
def test_the_last_preview_is_the_file_bit_for_bit(task, tiny_folder, photo, tmp_path, monkeypatch):
    shown: dict[int, Tensor] = {}
    plain = Animations.add

    def add(self, progress):
        shown.update(zip(progress.indices, progress.previews, strict=True))
        plain(self, progress)

    monkeypatch.setattr(Animations, "add", add)
    command(task, tiny_folder, tmp_path / "out", *([photo] if TASKS[task].images else []))
    files = sorted((tmp_path / "out").glob("0*.png")) if task == "generate" else [tmp_path / "out" / "photo.png"]
    assert len(shown) == len(files)
    for index, file in enumerate(files):
        assert np.array_equal(read_image(file).pixels, to_uint8(shown[index][None])[0])


@pytest.mark.parametrize("task", TASKS)
def test_every_png_says_model_class_seed_and_settings(task, tiny_folder, photo, tmp_path):
    command(task, tiny_folder, tmp_path / "out", *([photo] if TASKS[task].images else []))
    record = json.loads((tmp_path / "out" / "settings.json").read_text())
    files = [path for path in (tmp_path / "out").glob("*.png") if path.name not in ("figure.png", "grid.png")]
    assert len(files) == (2 if task == "generate" else 1)
    for file in files:
        told = json.loads(png_text(file)["robustsynth"])
        assert told["model"] == record["model"]
        assert told["settings"] == record["settings"]
        assert (told.get("class") in ("cat", "ship", "t-shirt")) == (task != "paint")
        assert "seed" in told or "seed" in told["settings"] or task not in ("generate", "sketch")


# One way, no stop twice


@pytest.fixture
def counted(monkeypatch) -> Counter[str]:
    """How often files are decoded, masks built and settings resolved."""
    calls: Counter[str] = Counter()

    def count(module, name: str, label: Callable[..., str]) -> None:
        plain = getattr(module, name)

        def counting(*args, **kwargs):
            calls[label(*args)] += 1
            return plain(*args, **kwargs)

        monkeypatch.setattr(module, name, counting)

    from robustsynth import images
    from robustsynth.tasks import call, task

    count(images, "open_image", lambda file, *_: f"opened {Path(str(file)).name}")
    count(call, "load_mask", lambda *_: "mask built")
    count(call, "rectangle_mask", lambda *_: "mask built")
    count(call, "mask_from_alpha", lambda *_: "mask built")
    count(task, "resolve_settings", lambda *_: "settings resolved")
    return calls


@pytest.fixture
def mask_file(tmp_path) -> Path:
    pixels = np.zeros((18, 22, 1), np.uint8)
    pixels[4:9, 5:12] = 255
    save_png(tmp_path / "mask.png", pixels)
    return tmp_path / "mask.png"


def test_a_single_image_is_decoded_once_its_mask_built_once_its_settings_resolved_once(
    tiny_folder, photo, mask_file, tmp_path, counted
):
    line = ["inpaint", photo, "--model", tiny_folder, "--out", tmp_path / "out", "--mask", mask_file, "--steps", "2"]
    result = CliRunner().invoke(main, [str(a) for a in [*line, "--device", "cpu", "--precision", "float32"]])
    assert result.exit_code == 0, result.output
    assert counted["opened photo.png"] == 1 + RESULT
    assert counted["opened mask.png"] == 1
    assert counted["mask built"] == 1
    assert counted["settings resolved"] == 1


RESULT = 1
"""The result has the image's name, and the figure reads it."""


def test_an_image_whose_hole_is_in_itself_is_decoded_once(tiny_folder, photo, mask_file, tmp_path, counted):
    with Image.open(photo) as opened, Image.open(mask_file) as mask:
        holed = opened.convert("RGBA")
        holed.putalpha(Image.fromarray(255 - np.asarray(mask)))
    holed.save(tmp_path / "holed.png")
    line = ["inpaint", tmp_path / "holed.png", "--model", tiny_folder, "--out", tmp_path / "out", "--steps", "2"]
    result = CliRunner().invoke(main, [str(a) for a in [*line, "--device", "cpu", "--precision", "float32"]])
    assert result.exit_code == 0, result.output
    assert counted["mask built"] == 1
    assert counted["opened holed.png"] == 1 + RESULT


@pytest.mark.parametrize("task", ["inpaint", "translate"])
def test_in_a_folder_an_image_is_decoded_once_to_check_and_once_to_work(task, tiny_folder, tmp_path, counted):
    for i in range(4):
        save_png(tmp_path / "in" / f"{i}.png", np.random.default_rng(i).integers(0, 256, (18, 22, 3), dtype=np.uint8))
    counted.clear()
    more = ["--to", "cat,ship"] if task == "translate" else []
    command(task, tiny_folder, tmp_path / "out", tmp_path / "in", *more, "--batch-size", "3")
    assert counted["settings resolved"] == 1
    assert counted["mask built"] == (1 if task == "inpaint" else 0), "one rectangle serves all images of one size"
    # Translation's results have other names than the images.
    result = 0 if task == "translate" else RESULT
    assert {counted[f"opened {i}.png"] for i in range(4)} == {2 + result}


@pytest.mark.parametrize("task", ["generate", "refine"])
def test_what_is_given_or_was_measured_before_is_not_measured(task, tiny_folder, photo, tmp_path, monkeypatch):
    from robustsynth.models import execution

    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "cache"))
    timed, plain = [], execution._seconds

    def seconds(*args):
        timed.append(args)
        return plain(*args)

    monkeypatch.setattr(execution, "_seconds", seconds)
    images = [photo] if TASKS[task].images else []
    command(task, tiny_folder, tmp_path / "given", *images)
    assert not timed, "precision and batch size are given"
    line = [task, *images, "--model", tiny_folder, "--out", tmp_path / "out", *OPTIONS[task], "--steps", "1"]
    line += ["--device", "cpu"]
    assert CliRunner().invoke(main, [str(a) for a in line]).exit_code == 0
    assert timed
    record = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert record["execution"]["measured"] is True
    timed.clear()
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "another"))
    assert CliRunner().invoke(main, [str(a) for a in line]).exit_code == 0
    assert not timed, "the folder knows them"
    again = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert again["execution"] == record["execution"]


# A task that is added


@pytest.fixture
def toy() -> Iterator[None]:
    """The toy in the table, as one line there would put it."""
    TASKS["toy"] = TOY
    yield
    del TASKS["toy"]
    for name in ("toy", "toy_steps"):
        for module in (functions, rs):
            module.__dict__.pop(name, None)


def test_a_toy_is_small():
    assert len(Path(inspect.getfile(ToySettings)).read_text().splitlines()) <= 60


@pytest.mark.usefixtures("toy")
def test_a_task_that_is_added_has_its_functions(tiny):
    images = torch.rand(4, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    made = rs.toy(tiny, images, "ship", amount=0.25, batch_size=2, precision="float32")
    assert made.shape == images.shape
    assert not made.equal(rs.toy(tiny, images, "ship", amount=0.5, batch_size=2, precision="float32"))
    last = [p.previews for p in rs.toy_steps(tiny, images, "ship", amount=0.25, batch_size=2, precision="float32")][-1]
    assert last.equal(made[2:])
    signature = inspect.signature(rs.toy)
    assert {"model", "images", "labels", "amount", "shade", "eps", "preset", "views"} <= set(signature.parameters)
    assert "what the images are mixed with" in (rs.toy.__doc__ or "")
    assert TOY.resolve(tiny).shade == "grey", "the tiny model has no settings of the toy"
    with pytest.raises(rs.UserError, match="shade of black, grey, got 'pink'"):
        rs.toy(tiny, images, shade="pink")
    with pytest.raises(rs.UnknownNameError, match="unknown setting of toy 'shde': did you mean 'shade'"):
        rs.toy(tiny, images, shde="grey")


def test_a_task_that_is_removed_is_gone():
    with pytest.raises(AttributeError, match="toy"):
        _ = rs.toy
    assert CliRunner().invoke(main, ["toy", "--help"]).exit_code == 2


@pytest.mark.usefixtures("toy")
def test_a_task_that_is_added_has_its_command_and_help():
    assert "  toy " in CliRunner().invoke(main, ["--help"]).output
    shown = " ".join(CliRunner().invoke(main, ["toy", "--help"]).output.split())
    for said in (TOY.summary, "--label", "--amount FLOAT How much to darken", "[default: 0.5]", "[black|grey]"):
        assert said in shown
    assert "[paper: black]" in shown
    assert "[paper: 6]" in shown


@pytest.mark.usefixtures("toy")
def test_a_task_that_is_added_runs_with_figure_resume_and_ctrl_c(tiny, tiny_folder, tmp_path, monkeypatch):
    files = [tmp_path / "in" / f"{i}.png" for i in range(3)]
    for i, file in enumerate(files):
        save_png(file, np.random.default_rng(i).integers(0, 256, (18, 22, 3), dtype=np.uint8))
    given = ["--label", "cat", "--batch-size", "1", "--amount", "0.3", "--trajectory", "gif"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    command("toy", tiny_folder, whole, *files, *given)
    names = sorted(["0.png", "1.png", "2.png", "0.gif", "1.gif", "2.gif", "figure.png", "settings.json"])
    assert sorted(os.listdir(whole)) == names
    expected = rs.toy(tiny, files, "cat", amount=0.3, batch_size=1, precision="float32", steps=3)
    for i in range(3):
        assert np.array_equal(read_image(whole / f"{i}.png").pixels, to_uint8(expected[i : i + 1])[0])
    record = json.loads((whole / "settings.json").read_text())
    assert record["settings"]["amount"] == 0.3
    assert read_image(whole / "figure.png").pixels.shape[1] > 3 * 200, "source, darkened and result"

    plain = Animations.add

    def stop(self, progress):
        if progress.indices == (1,) and progress.step == 2:
            signal.raise_signal(signal.SIGINT)
        plain(self, progress)

    with monkeypatch.context() as patched:
        patched.setattr(Animations, "add", stop)
        line = ["toy", *files, "--model", tiny_folder, "--out", out, *given, "--steps", "3"]
        line += ["--precision", "float32", "--device", "cpu"]
        stopped = CliRunner().invoke(main, [str(a) for a in line])
    assert stopped.exit_code == 130, stopped.output
    assert json.loads((out / "settings.json").read_text())["unfinished"] == {"1": 2}
    assert "1 of 3 images are there already" in command("toy", tiny_folder, out, *files, *given)
    for name in names:
        if name.endswith(".png") and name != "figure.png":
            assert (out / name).read_bytes() == (whole / name).read_bytes(), name


# What editors and people are told


def test_the_stub_is_what_the_table_says():
    written = Path(functions.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    assert written == stub(), "write robustsynth.tasks.functions.stub() to functions.pyi"


@pytest.mark.parametrize("task", TASKS)
def test_signatures_and_documentation_show_every_setting(task):
    names = [field.name for field in dataclasses.fields(TASKS[task].settings)]
    described = attribute_help(TASKS[task].settings)
    for function in (getattr(rs, task), getattr(rs, f"{task}_steps")):
        parameters = inspect.signature(function).parameters
        assert next(iter(parameters)) == "model"
        assert set(names) <= set(parameters)
        assert {"preset", "precision", "batch_size", *(each.name for each in TASKS[task].inputs)} <= set(parameters)
    told = " ".join((getattr(rs, task).__doc__ or "").split())
    for name in names:
        if name not in NEEDS[task] or name in described:
            assert f" {name}: " in told, name
    assert getattr(rs, task).__name__ == task
    assert getattr(rs, f"{task}_steps").__name__ == f"{task}_steps"
