"""The same starts through several models: what is drawn, what is refused, what is written, and when it is stopped.
And the demo, which is such a comparison."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import nn

import robustsynth as rs
from conftest import TINY_CLASSES, make_model_folder
from robustsynth import files
from robustsynth.cli import main
from robustsynth.errors import UserError
from robustsynth.files import only_writer
from robustsynth.images import png_text, read_image, to_uint8
from robustsynth.models.card import ModelCard
from robustsynth.models.classifier import Classifier
from robustsynth.models.store import load_model, save_model
from robustsynth.sheet import GAP, MARGIN, MOST_BANDS, PAGE, sheet
from robustsynth.tasks.compare import (
    ComparisonInterrupted,
    ComparisonSteps,
    comparison_table,
    distinct,
    draw_figure,
    plan_comparison,
    shared_classes,
)
from robustsynth.tasks.generate import GENERATE

FIXED = {"precision": "float32", "batch_size": 2}


def again(folder: Path, to: Path, **fields) -> Path:
    """A copy with another card."""
    shutil.copytree(folder, to)
    dataclasses.replace(ModelCard.load(to), name=to.name, **fields).save(to)
    return to


@pytest.fixture(scope="session")
def folders(tmp_path_factory, tiny_folder) -> dict[str, Path]:
    """Models of the tiny one's classes: its standard counterpart, larger images, grey ones, one without seeds."""
    root = tmp_path_factory.mktemp("compared")
    found = {"tiny": tiny_folder}
    for name, size, channels in (("standard", 16, 3), ("large", 24, 3), ("grey", 20, 1), ("bare", 16, 3)):
        found[name] = make_model_folder(
            root / name, architecture="resnet18", classes=TINY_CLASSES, image_size=size, channels=channels
        )
    standard = load_model(found["standard"], device="cpu")
    with torch.no_grad():
        for weights in standard.network.parameters():
            weights.mul_(torch.rand(weights.shape, generator=torch.Generator().manual_seed(1)) + 0.5)
    card = dataclasses.replace(ModelCard.load(found["standard"]), threat_model={"norm": "l2", "eps": 0.0}, tasks={})
    save_model(found["standard"], standard, card)
    (found["bare"] / "seeds.safetensors").unlink()
    return found


@pytest.fixture
def load(folders):
    return lambda *names: [load_model(folders[name], device="cpu") for name in names]


def run(*arguments: object):
    return CliRunner().invoke(main, [str(a) for a in ("compare", *arguments, "--device", "cpu")])


def signalling(number: signal.Signals, after: int):
    """An iteration of `ComparisonSteps` that is sent a signal at a step, counted from 1."""
    steps = ComparisonSteps.__iter__

    def iterate(self):
        for count, step in enumerate(steps(self), 1):
            if count == after:
                signal.raise_signal(number)
            yield step

    return iterate


def drawn(plan, stop=None):
    """The comparison; or what there is of it at a place, first image and step."""
    drawing = ComparisonSteps(plan)
    for place, progress in drawing:
        if (place, progress.indices[0], progress.step) == stop:
            break
    return drawing.result()


def small(*names: object, out: Path, more: tuple[object, ...] = ()):
    return run(*names, "--out", out, "--precision", "float32", "--batch-size", "2", *more)


# ---- what is drawn -------------------------------------------------------------------------------------------------


def test_each_model_draws_what_generate_draws_from_the_same_starts(load):
    tiny, standard = load("tiny", "standard")
    result = rs.compare([tiny, standard], ["ship", "cat"], num_per_class=2, seed=5, **FIXED)
    labels = [1, 1, 0, 0]
    assert result.plan.classes == ("ship", "ship", "cat", "cat")
    assert torch.equal(result.seeds, rs.generate(tiny, labels, seed=5, steps=0, **FIXED))
    assert torch.equal(result.images[0], rs.generate(tiny, labels, seed=5, **FIXED))
    tuned = {"eps": 2.0, "step_size": 0.25, "steps": 4}
    assert torch.equal(result.images[1], rs.generate(standard, labels, seed=5, start=result.seeds, **tuned, **FIXED))
    assert bool(result.drawn.all())
    assert result.complete
    assert all(seconds is not None and 0 < seconds < 10 for seconds in result.seconds)
    for images in (result.seeds, *result.images):
        assert images.shape == (4, 3, 16, 16)
        assert 0 <= float(images.min()) <= float(images.max()) <= 1
    assert not torch.equal(result.images[0], result.seeds)


def test_classes_are_matched_by_name_whatever_their_order(load, tmp_path):
    (tiny,) = load("tiny")
    network = load("tiny")[0].network
    order = [2, 0, 1]
    network.fc.weight.data, network.fc.bias.data = network.fc.weight.data[order], network.fc.bias.data[order]
    names = [TINY_CLASSES[i].upper() for i in order]
    turned = Classifier.wrap(network, classes=names, mean=[0.5] * 3, std=[0.25] * 3, image_size=16)
    result = rs.compare([tiny, turned], ["cat", "T-Shirt"], num_per_class=1, **FIXED)
    assert result.plan.classes == ("cat", "t-shirt")
    assert torch.allclose(*result.images, atol=1e-4)


@pytest.mark.parametrize(
    ("names", "given", "expected"),
    [
        (("standard", "tiny"), {}, "tiny"),
        (("tiny", "standard"), {}, "tiny"),
        (("bare", "standard"), {}, "standard"),
        (("bare", "large", "tiny"), {}, "large"),
        (("bare",), {}, "bare"),
        (("standard", "bare"), {"seeds_from": "uniform"}, "standard"),
    ],
)
def test_whose_seeds_are_drawn(load, names, given, expected):
    plan = plan_comparison(load(*names), given=given, num_per_class=1, **FIXED)
    assert plan.models[plan.seeds_of].name == expected
    uniform = bool(given) or expected == "bare"
    assert plan.settings[0].seeds_from == ("uniform" if uniform else "multivariate")


@pytest.mark.parametrize(("order", "side", "channels"), [(("tiny", "large", "grey"), 16, 3), (("grey", "tiny"), 20, 1)])
def test_other_sizes_and_grey_get_the_same_starts_in_their_own_form(load, order, side, channels):
    models = load(*order)
    result = rs.compare(models, num_per_class=1, steps=2, shift=4, eps=3.0, **FIXED)
    assert result.seeds.shape == (3, channels, side, side)
    for place, model in enumerate(models):
        start = result.plan.start_images(place)
        assert start.shape == result.images[place].shape == (3, model.channels, model.image_size, model.image_size)
        assert abs(float(start.mean()) - float(result.seeds.mean())) < 0.05
        settings, scale = result.plan.settings[place], model.image_size / side
        assert settings.eps == pytest.approx(3.0 * scale * (model.channels / channels) ** 0.5)
        assert settings.shift == round(4 * scale)
    assert torch.equal(result.plan.start_images(0), result.seeds)


def test_linf_sizes_are_the_same_whatever_the_size_of_images(load):
    given = {"norm": "linf", "eps": 0.1, "step_size": 0.01}
    plan = plan_comparison(load("tiny", "large", "grey"), num_per_class=1, given=given, **FIXED)
    assert [(s.eps, s.step_size) for s in plan.settings] == [(0.1, 0.01)] * 3


def test_grey_as_colours_is_grey(load):
    starts = plan_comparison(load("grey", "tiny"), num_per_class=1, **FIXED).start_images(1)
    assert torch.equal(starts[:, 0], starts[:, 1])
    assert torch.equal(starts[:, 0], starts[:, 2])


def test_own_settings_are_those_of_each_card(load):
    tiny, standard = load("tiny", "standard")
    common = plan_comparison([tiny, standard], **FIXED)
    own = plan_comparison([tiny, standard], own_settings=True, **FIXED)
    assert [s.eps for s in common.settings] == [2.0, 2.0]
    assert [s.eps for s in own.settings] == [2.0, GENERATE.resolve(standard).eps]
    given = plan_comparison([tiny, standard], own_settings=True, given={"eps": 7.0}, **FIXED)
    assert [s.eps for s in given.settings] == [7.0, 7.0]
    assert {s.eps for s in plan_comparison([tiny, standard], preset="paper", **FIXED).settings} == {30.0}


def test_models_take_turns(load):
    models = load("tiny", "standard")
    plan = plan_comparison(models, num_per_class=4, precision="float32", batch_size=None, given={"steps": 2})
    assert all(execution.batch_size <= 4 for execution in plan.executions)
    plan = plan_comparison(models, num_per_class=2, given={"steps": 2}, **FIXED)
    seen = [(place, progress.indices, progress.step) for place, progress in ComparisonSteps(plan)]
    turns = [(place, indices) for place, indices, index in seen if index == 0]
    assert turns == [(p, i) for i in ((0, 1), (2, 3), (4, 5)) for p in (0, 1)]
    assert [index for *_, index in seen] == [0, 1, 2] * 6


@pytest.mark.parametrize(
    ("stop", "counts", "timed"),
    [((0, 0, 0), [0, 0], False), ((1, 0, 2), [2, 0], False), ((0, 2, 1), [2, 2], True), ((1, 4, 3), [6, 4], True)],
)
def test_a_stopped_comparison_has_what_was_done(load, stop, counts, timed):
    plan = plan_comparison(load("tiny", "standard"), num_per_class=2, **FIXED)
    result = drawn(plan, stop)
    assert result.drawn.sum(1).tolist() == counts
    assert not result.complete
    assert (result.seconds[1] is not None) == timed
    whole = drawn(plan)
    for images, expected, there in zip(result.images, whole.images, result.drawn, strict=True):
        assert torch.equal(images[there], expected[there])
        assert not images[~there].any()
    assert "not measured" in comparison_table(result)
    assert draw_figure(result).shape == draw_figure(whole).shape


def test_ctrl_c_in_python_gives_what_was_drawn(load, monkeypatch):
    models = load("tiny", "standard")
    monkeypatch.setattr(ComparisonSteps, "__iter__", signalling(signal.SIGINT, after=12))
    with pytest.raises(ComparisonInterrupted, match="4 of 12 images are drawn") as raised:
        rs.compare(models, **FIXED)
    assert raised.value.comparison.drawn.sum(1).tolist() == [2, 2]


def test_no_steps_give_the_starts(load):
    result = rs.compare(load("tiny", "standard"), num_per_class=1, steps=0, **FIXED)
    assert torch.equal(result.images[1], result.seeds)
    assert result.seconds == (None, None)


class Explodes(nn.Module):
    """Finite at first, then not, for one image of two."""

    def __init__(self):
        super().__init__()
        self.calls = 0
        self.fc = nn.Linear(3, 3)

    def forward(self, images):
        logits = self.fc(images.mean((2, 3)))
        return logits * torch.where(torch.arange(len(images)) == 1, torch.nan, 1.0).view(-1, 1)


def test_an_image_that_meets_a_nan_is_left_out_and_told(load):
    broken = Classifier.wrap(Explodes(), classes=TINY_CLASSES, mean=[0.5] * 3, std=[0.25] * 3, image_size=16)
    result = rs.compare([*load("tiny"), broken], ["cat"], num_per_class=2, **FIXED)
    assert result.failures[0] == {}
    assert list(result.failures[1]) == [1]
    assert result.drawn.tolist() == [[True, True], [True, False]]
    assert result.complete
    assert "- Explodes met NaN or infinity in 1 of 2 images." in comparison_table(result)


# ---- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "arguments", "said"),
    [
        ((), {}, "expected one or more models to compare, got none"),
        (("tiny",), {"num_per_class": 0}, "expected 1 or more start images of each class, got 0"),
        (("tiny", "standard"), {"classes": []}, "one or more classes to draw"),
        (
            ("tiny", "standard"),
            {"classes": ["zebra"]},
            "all models have, got 'zebra', which tiny, standard lack; in common they have cat, ship, t-shirt",
        ),
        (("tiny",), {"classes": [3]}, "expected a class index from 0 to 2, got 3"),
        (("tiny",), {"preset": "papre"}, "unknown preset 'papre': did you mean 'paper'"),
        (("tiny",), {"epsilon": 3.0}, "unknown setting of generate 'epsilon'"),
        (("tiny",), {"steps": -1}, "0 or more steps"),
        (("tiny",), {"seed": -1}, "a seed of 0 or more"),
        (("bare",), {"seeds_from": "normal"}, "expected class seeds in"),
        (("tiny",), {"seeds_from": "nowhere"}, "a folder of start images"),
        (("tiny",), {"precision": "int8"}, "int8"),
    ],
)
def test_what_python_refuses(load, names, arguments, said):
    with pytest.raises(UserError, match=said):
        rs.compare(load(*names), **arguments)


@pytest.mark.parametrize("classes", [None, ["cat"], [0]])
def test_models_without_a_common_class(load, digits_folder, classes):
    digits = load_model(digits_folder, device="cpu")
    said = "tiny has cat, ship, t-shirt; digits has 0, 1, 2" if classes is None else "none in common|which digits lacks"
    with pytest.raises(UserError, match=said):
        rs.compare([*load("tiny"), digits], classes)


def test_a_class_that_one_model_lacks(load):
    (tiny,) = load("tiny")
    other = Classifier.wrap(Explodes(), classes=["dog", "ship", "cat"], mean=[0] * 3, std=[1] * 3, image_size=16)
    assert shared_classes([tiny, other]) == ["cat", "ship"]
    for asked in ("dog", "t-shirt", 2):
        with pytest.raises(UserError, match=r"which (tiny|Explodes) lacks; in common they have cat, ship"):
            rs.compare([tiny, other], [asked])


@pytest.mark.parametrize(
    ("models", "more", "said"),
    [
        (("tiny", "cifra10"), (), "unknown model 'cifra10': did you mean 'cifar10'"),
        (("tiny", "no/such"), (), "'no/such', which does not exist"),
        (("tiny", "digits"), (), "none in common: tiny has cat, ship, t-shirt; digits has 0, 1"),
        (
            ("tiny", "standard"),
            ("--classes", "cat,dog"),
            "'dog', which tiny, standard lack; in common they have cat, ship",
        ),
        (("tiny",), ("--classes", "0-7"), "class index from 0 to 2"),
        (("tiny",), ("--num-per-class", "0"), "1 or more start images"),
    ],
)
def test_what_the_command_refuses(folders, digits_folder, tmp_path, models, more, said):
    known = {**folders, "digits": digits_folder}
    result = run(*(known.get(name, name) for name in models), "--out", tmp_path / "out", *more)
    assert result.exit_code == 2
    assert said in result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "out").exists()


def test_the_command_wants_a_model(tmp_path):
    result = run("--out", tmp_path)
    assert result.exit_code == 2
    assert "MODELS" in result.output


def test_a_card_of_odd_accuracies_is_refused_before_anything_is_drawn(folders, tmp_path):
    odd = again(folders["tiny"], tmp_path / "odd", accuracies={"rows": [{"eps": "much"}]})
    result = small(folders["standard"], odd, out=tmp_path / "out")
    assert result.exit_code == 2
    assert "card of 'odd'" in result.output
    assert not (tmp_path / "out").exists()


# ---- what is written -----------------------------------------------------------------------------------------------


def test_the_command_writes_a_figure_a_table_and_its_settings(folders, tmp_path):
    rows = [{"eps": 0.0, "share": 0.875, "images": 2000}, {"eps": 0.5, "share": 0.625, "images": 2000}]
    auto = {"norm": "l2", "attack": "AutoAttack, standard version of x 1", "rows": [{**rows[1], "share": 0.5}]}
    accuracies = {"data": "cats test", "norm": "l2", "attack": "PGD-20", "rows": rows, "auto": auto}
    robust = again(folders["tiny"], tmp_path / "robust", accuracies=accuracies)
    result = small(robust, folders["standard"], out=tmp_path / "out", more=("--classes", "1-2,cat", "--seed", "3"))
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["figure.png", "settings.json", "table.md"]
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in result.output
    head, rule, first, second, *_ = table.splitlines()
    assert len({len(head), len(rule), len(first), len(second)}) == 1
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in (head, first, second)]
    assert cells[0] == ["model", "trained", "clean", "PGD", "AutoAttack", "weights", "parameters", "an image"]
    weights = f"{(robust / 'model.safetensors').stat().st_size / 1e6:.1f} MB"
    parameters = f"{sum(p.numel() for p in load_model(robust, device='cpu').parameters()):,}"
    measured = ["87.5 % (2,000)", "62.5 % at l2 0.5 (2,000)", "50.0 % at l2 0.5 (2,000)"]
    assert cells[1][:-1] == ["robust", "l2 0.5", *measured, weights, parameters]
    assert cells[2][:-1] == ["standard", "standard", *["not measured"] * 3, weights, parameters]
    record = json.loads((tmp_path / "out" / "settings.json").read_text())
    for place, name in enumerate(("robust", "standard")):
        seconds = record["seconds_an_image"][name]
        assert cells[place + 1][-1] == f"{seconds:.3g} s"
        assert record["settings"][name]["eps"] == 2.0
        assert record["drawn"][name] == 6
    assert (record["task"], record["seeds_of"], record["seed"]) == ("compare", "robust", 3)
    assert record["classes"] == ["ship", "t-shirt", "cat"]
    assert record["complete"] is True
    assert record["execution"]["standard"]["batch_size"] == 2
    assert str(tmp_path) not in json.dumps(record)
    for said in (
        "Clean accuracy of robust: cats test.",
        "PGD of robust: PGD-20, on cats test.",
        "class seeds of robust",
    ):
        assert said in table
    assert read_image(tmp_path / "out" / "figure.png").pixels.shape[1] > 6 * 96
    told = json.loads(png_text(tmp_path / "out" / "figure.png")["robustsynth"])
    assert [told[name] for name in ("settings", "seed", "models", "classes")] == [
        record[name] for name in ("settings", "seed", "models", "classes")
    ]


def test_drawn_again_it_is_the_same_and_another_is_not_written_over_it(folders, tmp_path):
    out = tmp_path / "out"
    pair = (folders["tiny"], folders["standard"])
    assert small(*pair, out=out).exit_code == 0
    figure = (out / "figure.png").read_bytes()
    assert small(*pair, out=out).exit_code == 0
    assert (out / "figure.png").read_bytes() == figure
    result = small(*pair, out=out, more=("--seed", "1"))
    assert result.exit_code == 2
    assert "of other ones (seed); choose another --out, or replace them with --overwrite" in result.output
    assert (out / "figure.png").read_bytes() == figure
    assert small(*pair, out=out, more=("--seed", "1", "--overwrite")).exit_code == 0
    assert (out / "figure.png").read_bytes() != figure


@pytest.mark.parametrize("content", ["{", "[]", '{"task": "generate"}'])
def test_a_folder_of_something_else_is_left_alone(folders, tmp_path, content):
    (tmp_path / "settings.json").write_text(content)
    result = small(folders["tiny"], out=tmp_path)
    assert result.exit_code == 2
    assert (tmp_path / "settings.json").read_text() == content
    (tmp_path / "file").write_text("")
    assert "is a file; choose another --out" in small(folders["tiny"], out=tmp_path / "file").output


def test_a_folder_of_version_0_1_0_is_drawn_again(folders, tmp_path):
    """It had the versions last, and figures without text."""
    out, pair = tmp_path / "out", (folders["tiny"], folders["standard"])
    assert small(*pair, out=out).exit_code == 0
    record = json.loads((out / "settings.json").read_text())
    (out / "settings.json").write_text(json.dumps(record | {"versions": record.pop("versions")}))
    (out / "figure.png").write_bytes(b"")
    assert small(*pair, out=out).exit_code == 0
    assert "tiny" in (out / "table.md").read_text()
    assert read_image(out / "figure.png").pixels.size


@pytest.mark.parametrize("name", ["figure.png", "table.md"])
def test_files_of_unknown_origin_are_kept_unless_asked(folders, tmp_path, name):
    (tmp_path / name).write_text("somebody's")
    result = small(folders["tiny"], out=tmp_path)
    assert result.exit_code == 2
    assert f"holds {name} without settings.json" in result.output
    assert (tmp_path / name).read_text() == "somebody's"
    assert small(folders["tiny"], out=tmp_path, more=("--overwrite",)).exit_code == 0
    assert (tmp_path / name).read_bytes() != b"somebody's"


def test_two_at_once_are_refused(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "only_writer", partial(only_writer, patience=0))
    with only_writer(tmp_path / "out"):
        result = small(folders["tiny"], out=tmp_path / "out")
    assert result.exit_code == 2
    assert "expected to be the only one that writes to" in result.output
    assert not (tmp_path / "out").exists()


def test_one_model_alone_is_shown_beside_its_starts(folders, tmp_path):
    result = small(folders["tiny"], out=tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "- Start images: class seeds of tiny; l2 eps 2" in result.output
    assert result.output.count("| tiny ") == 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--own-settings",), "each with its own settings: tiny l2 eps 2, 4 steps of 0.25; large l2 eps 2"),
        (("--eps", "1"), "the same settings (l2 eps 1, 4 steps of 0.25, sizes scaled for images other than tiny's)"),
        (("--seeds-from", "uniform"), "for all (uniform noise)"),
        (("--preset", "paper", "--steps", "3"), "l2 eps 30, 3 steps of 0.5"),
    ],
)
def test_starts_and_settings_are_told(folders, tmp_path, more, said):
    result = small(folders["tiny"], folders["large"], out=tmp_path / "out", more=("--classes", "cat", *more))
    assert result.exit_code == 0, result.output
    assert said in result.output


def test_starts_from_a_folder_are_named_without_its_path(folders, tmp_path):
    from robustsynth.images import save_png

    for i in range(2):
        save_png(tmp_path / "own" / f"{i}.png", np.full((16, 16, 3), 100 * (i + 1), np.uint8))
    result = small(folders["tiny"], folders["large"], out=tmp_path / "out", more=("--seeds-from", tmp_path / "own"))
    assert result.exit_code == 0, result.output
    assert "(images of own)" in result.output
    record = (tmp_path / "out" / "settings.json").read_text()
    assert str(tmp_path) not in record
    assert "starts_sha256" in record


def test_a_nan_is_an_error_after_the_rest_is_written(folders, tmp_path, monkeypatch):
    broken = Classifier.wrap(Explodes(), classes=TINY_CLASSES, mean=[0.5] * 3, std=[0.25] * 3, image_size=16)
    monkeypatch.setattr("robustsynth.models.store.load_model", lambda name, device=None: broken)
    result = small("broken", out=tmp_path / "out")
    assert result.exit_code == 2
    assert "got NaN or infinity for 3 of broken; the other images are in" in result.output
    assert (tmp_path / "out" / "figure.png").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("after", "kept"), [(2, 0), (12, 4)])
def test_ctrl_c_keeps_what_was_drawn(folders, tmp_path, monkeypatch, number, after, kept):
    with monkeypatch.context() as patched:
        patched.setattr(ComparisonSteps, "__iter__", signalling(number, after))
        result = small(folders["tiny"], folders["standard"], out=tmp_path / "out")
    assert result.exit_code == 130
    assert "Traceback" not in result.output
    if not kept:
        assert "nothing was written" in result.output
        assert not (tmp_path / "out").exists()
        return
    assert f"stopped; {kept} of 12 images are in" in result.output
    assert "Stopped before its end" in (tmp_path / "out" / "table.md").read_text()
    assert json.loads((tmp_path / "out" / "settings.json").read_text())["complete"] is False
    stopped = (tmp_path / "out" / "figure.png").read_bytes()
    assert small(folders["tiny"], folders["standard"], out=tmp_path / "out").exit_code == 0
    assert (tmp_path / "out" / "figure.png").read_bytes() != stopped


def test_cards_and_names_are_no_markup(load):
    plan = plan_comparison(load("tiny"), ["cat"], names=["a|b<i>\x1b[2J"], num_per_class=1, **FIXED)
    line = comparison_table(drawn(plan)).splitlines()[2]
    assert line.startswith(r"| a\|b&lt;i> \[2J ")


def test_a_wrapped_network_has_a_row(load):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3))
    wrapped = Classifier.wrap(network, classes=TINY_CLASSES, mean=[0.5] * 3, std=[0.25] * 3)
    result = rs.compare([wrapped, *load("tiny")], num_per_class=1, **FIXED)
    assert result.images[0].shape == (3, 3, 16, 16)
    row = comparison_table(result).splitlines()[2]
    assert row.startswith("| Sequential | not stated | not measured | not measured | not measured | 0.0 MB  | 2,307")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("a", "b"), ["a", "b"]),
        (("x/a", "y/a"), ["x/a", "y/a"]),
        (("x/a", "x/a"), ["a", "a"]),
        (("hf://someone/cats", "cats"), ["someone/cats", "cats"]),
        (("x/a/model.safetensors", "b/"), ["a", "b"]),
    ],
)
def test_names_are_as_short_as_they_can_be(names, expected):
    from robustsynth.cli.compare import _names

    assert _names(names) == expected
    assert len(set(distinct(_names(names)))) == len(names)


# ---- the figure ----------------------------------------------------------------------------------------------------


def flat(value: int, side: int = 32, channels: int = 3) -> np.ndarray:
    return np.full((side, side, channels), value, np.uint8)


def holds(drawn: np.ndarray, image: np.ndarray, cell: int) -> int:
    """How many cells of one colour a sheet has."""
    return int((drawn == image[0, 0, 0]).all(2).sum()) // cell**2


@pytest.mark.parametrize(
    ("classes", "each", "side", "bands"),
    [(3, 1, 32, 1), (10, 2, 32, 2), (10, 1, 32, 1), (10, 1, 128, 2), (1, 40, 32, 1), (4, 1, 400, 1), (300, 2, 32, 12)],
)
def test_bands_fit_a_page(classes, each, side, bands):
    names = [f"class {i}" for i in range(classes) for _ in range(each)]
    rows = [[flat(37, side)] * len(names), [flat(91, side)] * len(names)]
    drawn = sheet(rows, titles=names, labels=["start", ("model", "robust")], note="A note.", width=PAGE)
    cell = 96 if side == 32 else min(side, 224)
    assert drawn.shape[1] <= 1500
    assert bands <= MOST_BANDS
    assert bands * (2 * cell + GAP) < drawn.shape[0] < bands * (2 * cell + 60) + 3 * MARGIN + 20
    shown = holds(drawn, flat(37), cell)
    assert shown == holds(drawn, flat(91), cell)
    assert (shown == len(names)) == (len(names) <= 20)


def test_what_is_left_out_of_a_figure_is_said():
    few, many = (sheet([[flat(9)] * n], titles=["cat"] * n, note="Note.", width=PAGE) for n in (12, 40))
    assert few.shape == many.shape
    assert not np.array_equal(few[-30:], many[-30:])


def test_images_of_other_sizes_share_a_cell_and_missing_ones_leave_it_empty():
    drawn = sheet([[flat(50, 28), flat(50, 28)], [flat(70, 128, 1), None]], titles=["0", "1"], width=PAGE)
    # Letters have a pixel or two of any grey.
    assert 2 * 112**2 <= (drawn == 50).all(2).sum() < 2 * 112**2 + 99
    assert 128**2 <= (drawn == 70).all(2).sum() < 128**2 + 99
    assert (drawn == 245).all(2).sum() >= 128**2


def test_long_names_are_wrapped_not_cut():
    names = ["a-very-long-class-name-of-some-collection, also known otherwise"]
    label = ("someone-or-other/resnet18-robust-at-eps-3-second-attempt", *("robust",) * 20)
    drawn = sheet([[flat(50)]], titles=names, labels=[label], width=PAGE)
    assert drawn.shape[0] > 96 + 5 * 16
    assert drawn.shape[1] < 96 + 190 + 60
    margins = np.concatenate([drawn[:, :MARGIN].ravel(), drawn[:, -MARGIN:].ravel()])
    assert (margins == 255).all()


def test_the_figure_shows_each_models_images_below_the_starts(load):
    result = rs.compare(load("tiny", "standard"), ["cat"], num_per_class=1, **FIXED)
    drawn = draw_figure(result)
    tops = []
    for images in (result.seeds, *result.images):
        image = to_uint8(images)[0].repeat(6, 0).repeat(6, 1)
        column = drawn[:, -MARGIN - 96 : -MARGIN]
        tops += [y for y in range(len(column) - 96) if np.array_equal(column[y : y + 96], image)]
    assert len(tops) == 3
    assert tops == sorted(tops)


# ---- the demo ------------------------------------------------------------------------------------------------------


def enlarged(images) -> np.ndarray:
    """Images (N, 3, 16, 16) as large as they are shown, side by side."""
    return np.concatenate(list(to_uint8(images).repeat(6, 1).repeat(6, 2)), 1)


def test_the_demo_draws_with_a_robust_and_a_standard_classifier(folders, load, tmp_path, monkeypatch):
    models = dict(zip(("cifar10", "cifar10-standard"), load("tiny", "standard"), strict=True))
    monkeypatch.setattr("robustsynth.models.store.load_model", lambda name, device=None: models[name])
    result = CliRunner().invoke(main, ["demo", "--out", str(tmp_path), "--seed", "1"])
    assert result.exit_code == 0, result.output
    assert "3 images forming, step by step" in result.output
    expected = rs.compare(list(models.values()), num_per_class=8, seed=1)
    cells = [MARGIN + 100 * place for place in range(8)]
    drawn = dict(zip(("seeds", "generated", "standard"), (expected.seeds, *expected.images), strict=True))
    for name, images in drawn.items():
        pixels = read_image(tmp_path / f"{name}.png").pixels
        for row in range(3):
            found = pixels[cells[row] : cells[row] + 96]
            wanted = enlarged(images[8 * row : 8 * row + 8])
            left = found.shape[1] - MARGIN - 8 * 96 - 7 * GAP
            shown = [found[:, left + 100 * place :][:, :96] for place in range(8)]
            assert np.array_equal(np.concatenate(shown, 1), wanted)
    with Image.open(tmp_path / "forming.gif") as forming:
        assert forming.n_frames == 5
        for step, name in ((0, "seeds"), (4, "generated")):
            forming.seek(step)
            frame = np.asarray(forming.convert("RGB")).astype(int)
            shown = np.concatenate([frame[MARGIN : MARGIN + 96, left : left + 96] for left in cells[:3]], 1)
            # A GIF has few colours: it is nearest to what it should be.
            distances = {other: abs(enlarged(images[::8]) - shown).mean() for other, images in drawn.items()}
            assert min(distances, key=distances.__getitem__) == name
