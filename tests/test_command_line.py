"""The command line as people use it: what it writes, what it says, and that it never shows a traceback."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from robustsynth.cli import main
from robustsynth.cli.generate import command as generate_command
from robustsynth.cli.options import parse_classes
from robustsynth.errors import UserError
from robustsynth.images import read_image
from robustsynth.presets import read_preset
from robustsynth.run_folder import NpzSamples, PngSamples
from robustsynth.tasks.generate import GenerateSettings
from robustsynth.tasks.settings import preset_names
from robustsynth.tasks.table import TASKS
from robustsynth.tasks.task import attribute_help

FIXED = ["--precision", "float32", "--batch-size", "4", "--device", "cpu"]


def run(*arguments: str):
    return CliRunner().invoke(main, [str(a) for a in arguments])


def draw(model, out, *arguments: str):
    return run("generate", "--model", model, "--out", out, *FIXED, *arguments)


def refused(result, *said: str) -> None:
    """Exit code 2 and one message, no traceback."""
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    for words in said:
        assert words in result.output
    assert "Traceback" not in result.output


# ---- generate -----------------------------------------------------------------------------------------------------


def test_generate_writes_images_a_grid_and_settings(tiny_folder, tmp_path):
    out = tmp_path / "new" / "out"
    result = draw(tiny_folder, out, "--classes", "ship,cat", "--num", "5", "--seed", "3", "--steps", "2")
    assert result.exit_code == 0, result.output
    names = ["000000-ship", "000001-ship", "000002-ship", "000003-cat", "000004-cat"]
    assert sorted(os.listdir(out)) == [*(f"{name}.png" for name in names), "grid.png", "settings.json"]
    record = json.loads((out / "settings.json").read_text())
    assert record["classes"] == ["ship", "cat"]
    assert (record["num"], record["seed"]) == (5, 3)
    assert record["settings"]["steps"] == 2
    assert record["settings"]["eps"] == 2.0, "the card's"
    for said in ("model tiny", "steps=2", "float32", "4 images a batch", "on cpu", "wrote 5 images"):
        assert said in result.output


def test_generate_writes_npz(tiny_folder, tmp_path):
    result = draw(tiny_folder, tmp_path, "--format", "npz", "--num", "7")
    assert result.exit_code == 0, result.output
    assert sorted(os.listdir(tmp_path)) == ["samples.npz", "settings.json"]
    with np.load(tmp_path / "samples.npz", allow_pickle=False) as opened:
        assert (opened["arr_0"].shape, opened["arr_0"].dtype) == ((7, 16, 16, 3), np.uint8)
        assert opened["arr_1"].tolist() == [0, 0, 0, 1, 1, 2, 2]


def test_both_formats_hold_the_same_images(tiny_folder, tmp_path):
    for file_format in ("png", "npz"):
        draw(tiny_folder, tmp_path / file_format, "--format", file_format, "--num", "5")
    with np.load(tmp_path / "npz" / "samples.npz") as opened:
        for image, path in zip(opened["arr_0"], sorted((tmp_path / "png").glob("0*.png")), strict=True):
            assert np.array_equal(image, read_image(path).pixels)


def test_eight_images_a_class_if_nothing_is_said(tiny_folder, tmp_path):
    assert draw(tiny_folder, tmp_path, "--steps", "0").exit_code == 0
    assert json.loads((tmp_path / "settings.json").read_text())["num"] == 24


def test_presets_and_options(tiny_folder, tmp_path):
    arguments = ("--preset", "paper", "--eps", "1.5", "--steps", "1", "--seeds-from", "normal", "--no-use-best")
    assert draw(tiny_folder, tmp_path, "--num", "1", *arguments).exit_code == 0
    settings = json.loads((tmp_path / "settings.json").read_text())["settings"]
    assert settings["eps"] == 1.5
    assert settings["step_size"] == 0.5
    assert settings["seeds_from"] == "normal"
    assert settings["use_best"] is False


def test_every_setting_is_an_option_with_help():
    described = attribute_help(GenerateSettings)
    options = {p.name: p for p in generate_command.params}
    for name in GenerateSettings.__dataclass_fields__:
        assert name in options, name
        assert str(options[name].help).startswith(described[name]), name
        assert options[name].default is None or "Sentinel" in type(options[name].default).__name__, name


def test_a_second_run_draws_nothing_anew(tiny_folder, tmp_path):
    draw(tiny_folder, tmp_path, "--num", "3")
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("0*.png")}
    result = draw(tiny_folder, tmp_path, "--num", "3")
    assert result.exit_code == 0
    assert "3 of 3 images are there already" in result.output
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("0*.png")} == before


def test_other_settings_need_overwrite(tiny_folder, tmp_path):
    draw(tiny_folder, tmp_path, "--num", "3")
    before = (tmp_path / "000000-cat.png").read_bytes()
    refused(draw(tiny_folder, tmp_path, "--num", "3", "--seed", "9"), "(seed)", "--overwrite")
    assert (tmp_path / "000000-cat.png").read_bytes() == before
    assert draw(tiny_folder, tmp_path, "--num", "3", "--seed", "9", "--overwrite").exit_code == 0
    assert (tmp_path / "000000-cat.png").read_bytes() != before


WRONG = {
    "class": (["--classes", "cat,shp"], ["unknown class 'shp'", "did you mean 'ship'", "Available: ship"]),
    "class index": (["--classes", "3"], ["class index from 0 to 2, got 3"]),
    "class range": (["--classes", "1-7"], ["class index from 0 to 2, got 7"]),
    "falling range": (["--classes", "2-0"], ["a rising range", "'2-0'"]),
    "no class": (["--classes", " , "], ["expected classes such as cat,t-shirt or all"]),
    "odd digit": (["--classes", "²"], ["unknown class '²'"]),
    "no images": (["--num", "0"], ["1 or more images, got 0"]),
    "fewer than none": (["--num", "-4"], ["1 or more images, got -4"]),
    "half an image": (["--num", "1.5"], ["1.5"]),
    "preset": (["--preset", "papr"], ["unknown preset 'papr'", "did you mean 'paper'", "duke2023"]),
    "norm": (["--norm", "l3"], ["norm of l2, linf, got 'l3'"]),
    "steps": (["--steps", "-1"], ["0 or more steps, got -1"]),
    "step size": (["--step-size", "0"], ["positive finite step_size, got 0"]),
    "eps": (["--eps", "nan"], ["finite eps of 0 or more, got nan"]),
    "seeds": (["--seeds-from", "nowhere"], ["or a folder of start images, got 'nowhere'"]),
    "seed": (["--seed", "-1"], ["seed of 0 or more, got -1"]),
    "format": (["--format", "jpg"], ["'jpg'"]),
    "precision": (["--precision", "int8"], ["'int8'"]),
    "batch": (["--batch-size", "0"], ["0"]),
    "device": (["--device", "abacus"], ["expected a device", "abacus"]),
    "option": (["--epz", "3"], ["--epz"]),
}


@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG)
def test_mistakes_are_named(tiny_folder, tmp_path, arguments, said):
    refused(draw(tiny_folder, tmp_path / "out", *arguments), *said)
    assert not list((tmp_path / "out").glob("*.png"))


def test_models_that_are_not_there(tmp_path):
    refused(draw("nosuchmodel", tmp_path / "out"), "unknown model 'nosuchmodel'", "Available")
    refused(draw(tmp_path / "gone", tmp_path / "out"), "gone", "does not exist")
    refused(draw(tmp_path, tmp_path / "out"), "without card.json")
    (tmp_path / "net.pth").write_bytes(b"")
    refused(draw(tmp_path / "net.pth", tmp_path / "out"), "pickled checkpoint", "Convert it", "weights_only=True")


def test_out_that_is_a_file(tiny_folder, tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(draw(tiny_folder, tmp_path / "file"), "is a file")
    refused(draw(tiny_folder, tmp_path / "file" / "below"), "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_missing_and_damaged_seeds(tiny_copy, tmp_path):
    content = (tiny_copy / "seeds.safetensors").read_bytes()
    (tiny_copy / "seeds.safetensors").write_bytes(content[:500])
    refused(draw(tiny_copy, tmp_path / "a", "--num", "1"), "seeds.safetensors", "damaged")
    (tiny_copy / "seeds.safetensors").unlink()
    refused(draw(tiny_copy, tmp_path / "b", "--num", "1", "--seeds-from", "normal"), "--seeds-from uniform")
    assert draw(tiny_copy, tmp_path / "c", "--num", "1").exit_code == 0, "noise needs no seeds"


TWELVE = [f"{i:06d}-{('cat', 'ship', 't-shirt')[i // 4]}" for i in range(12)]
"""What twelve images of the tiny model are called."""


@pytest.mark.parametrize("file_format", ["png", "npz"])
def test_a_full_disk(tiny_folder, tmp_path, monkeypatch, file_format):
    """The third batch finds no room; the first two stay, and the same command goes on when there is room again."""
    kind = PngSamples if file_format == "png" else NpzSamples
    plain, calls = kind.write, []

    def write(self, indices, images, labels, texts):
        calls.append(indices)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", str(self.out / "000008-t-shirt.png"))
        plain(self, indices, images, labels, texts)

    arguments = (tiny_folder, tmp_path / "out", "--num", "12", "--format", file_format)
    monkeypatch.setattr(kind, "write", write)
    refused(
        draw(*arguments),
        "No space left on device",
        "000008-t-shirt.png",
        "free some space and run the same command again",
    )
    monkeypatch.undo()
    assert kind(tmp_path / "out", TWELVE).missing() == [8, 9, 10, 11]
    result = draw(*arguments)
    assert result.exit_code == 0
    assert "8 of 12 images are there already" in result.output
    draw(tiny_folder, tmp_path / "whole", "--num", "12", "--format", file_format)
    same_images(tmp_path / "out", tmp_path / "whole")


def same_images(a: Path, b: Path) -> None:
    names = sorted(p.name for p in b.iterdir() if p.suffix in (".png", ".npz"))
    assert sorted(p.name for p in a.iterdir() if p.suffix in (".png", ".npz") and p.name[0] != ".") == names
    for name in names:
        if name.endswith(".png"):
            assert (a / name).read_bytes() == (b / name).read_bytes(), name
        else:
            with np.load(a / name) as first, np.load(b / name) as second:
                assert all(np.array_equal(first[k], second[k]) for k in ("arr_0", "arr_1"))


def begin(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "robustsynth", *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.parametrize("file_format", ["png", "npz"])
def test_a_killed_command_goes_on_to_the_same_bytes(tiny_folder, tmp_path, file_format):
    arguments = ["--num", "10", "--steps", "60", "--format", file_format, "--batch-size", "2"]
    process = begin("generate", "--model", tiny_folder, "--out", tmp_path / "cut", *FIXED, *arguments)
    kind = PngSamples if file_format == "png" else NpzSamples
    names = [f"{i:06d}-{name}" for i, name in enumerate(["cat"] * 4 + ["ship"] * 3 + ["t-shirt"] * 3)]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None and len(kind(tmp_path / "cut", names).missing()) > 8:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    output = process.communicate()[0].decode()
    done = 10 - len(kind(tmp_path / "cut", names).missing())
    assert 0 < done < 10, output
    result = draw(tiny_folder, tmp_path / "cut", *arguments)
    assert result.exit_code == 0, result.output
    assert f"{done} of 10 images are there already" in result.output
    assert draw(tiny_folder, tmp_path / "whole", *arguments).exit_code == 0
    same_images(tmp_path / "cut", tmp_path / "whole")


def test_a_mistake_in_a_real_process(tiny_folder, tmp_path):
    process = begin("generate", "--model", tiny_folder, "--out", tmp_path / "out", "--classes", "frog")
    output = process.communicate()[0].decode()
    assert process.returncode == 2, output
    assert "unknown class 'frog'" in output
    assert "Traceback" not in output


# ---- classes ------------------------------------------------------------------------------------------------------

NAMES = ("cat", "ship", "t-shirt", "0-1", "all-rounder")


def index(name: str) -> int:
    if name.isdigit():
        return int(name)
    if name not in NAMES:
        raise UserError(f"unknown class {name!r}")
    return NAMES.index(name)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cat", [0]),
        ("ship, cat", [1, 0]),
        ("2-4", [2, 3, 4]),
        ("3,cat,1-2", [3, 0, 1, 2]),
        ("all", [0, 1, 2, 3, 4]),
        (" ALL ", [0, 1, 2, 3, 4]),
        ("t-shirt", [2]),
        ("0-1", [3]),
        ("all-rounder", [4]),
        ("cat,cat,0", [0]),
        ("cat,,ship,", [0, 1]),
    ],
)
def test_classes_by_name_index_and_range(text, expected):
    assert parse_classes(text, NAMES, index) == expected


@pytest.mark.parametrize("text", ["", ",", "frog", "4-2", "t-shir"])
def test_unknown_classes(text):
    with pytest.raises(UserError, match=r"expected|unknown"):
        parse_classes(text, NAMES, index)


def test_digits_are_classes_before_they_are_indices(digits_folder, tmp_path):
    assert draw(digits_folder, tmp_path, "--classes", "3-5,8", "--num", "4", "--steps", "0").exit_code == 0
    assert json.loads((tmp_path / "settings.json").read_text())["classes"] == ["3", "4", "5", "8"]


# ---- help ---------------------------------------------------------------------------------------------------------

MEASURE = """
import resource, sys
from robustsynth.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    assert not end.code, end.code
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = [name for name in ("torch", "datasets", "PIL.Image", "numpy") if name in sys.modules]
print("\\nMEASURED", used.ru_utime + used.ru_stime, ",".join(heavy) or "none")
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["inpaint", "--help"], ["train", "--help"]], ids=" ".join
)
def test_help_starts_at_once(arguments):
    seconds = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", MEASURE, *arguments], capture_output=True, text=True, check=True, timeout=60
        )
        assert "Usage:" in done.stdout
        taken, heavy = done.stdout.split()[-2:]
        assert heavy == "none", f"{heavy} is imported just to print help"
        seconds.append(float(taken))
    assert min(seconds) < 0.5


def test_help_lists_every_command():
    listed = run("--help").output
    for name in (*TASKS, "features", "compare", "train", "evaluate", "import", "publish", "models", "demo"):
        assert f"  {name} " in listed
        assert run(name, "--help").exit_code == 0


@pytest.mark.parametrize("task", TASKS)
def test_help_tells_presets_choices_and_defaults(task):
    shown = " ".join(run(task, "--help").output.split())
    for said in ("[l2|linf]", "[constant|linear]", "[paper: yes]", f"[paper: {TASKS[task].settings().steps}]"):
        assert said in shown
    listed = shown.split("--preset TEXT")[1].split("--")[0]
    for preset in preset_names():
        known = preset == "best" or task in read_preset("robustsynth.tasks", preset)
        assert (f"{preset}," in listed or f"{preset};" in listed) == known, preset


def test_unknown_commands():
    refused(run("paint"), "paint")


def test_models_are_listed(tiny_folder, monkeypatch, tmp_path):
    from robustsynth.models import store

    root = tmp_path / "weights"
    root.mkdir()
    (root / "tiny").symlink_to(tiny_folder)
    (root / "aliases.json").write_text('{"little": "tiny"}')
    monkeypatch.setattr(store, "BUNDLED", root)
    monkeypatch.setattr(store, "ZOO", tmp_path / "zoo")
    result = run("models")
    assert result.exit_code == 0, result.output
    for said in ("  tiny (= little)\n", "resnet18 of width 4", "robust in l2 to eps 0.5"):
        assert said in result.output
    (tmp_path / "none").mkdir()
    monkeypatch.setattr(store, "BUNDLED", tmp_path / "none")
    assert "no models are bundled" in run("models").output
