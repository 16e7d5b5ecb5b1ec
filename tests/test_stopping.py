"""Commands that are stopped, animations of them, and start images that are named without their path."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from robustsynth.cli import main
from robustsynth.cli.progress import STOPPED, Animations, stoppable
from robustsynth.errors import UserError
from robustsynth.images import png_text, read_image, save_png

NAMES = ["000000-cat", "000001-cat", "000002-ship", "000003-ship", "000004-t-shirt"]


def draw(model, out, *arguments: object):
    line = ["generate", "--model", model, "--out", out, "--num", "5", "--precision", "float32", "--batch-size", "2"]
    return CliRunner().invoke(main, [str(a) for a in (*line, "--seed", "3", "--device", "cpu", *arguments)])


@pytest.fixture
def stop_at(monkeypatch):
    """Ask to stop at a step of the batch that has an image, as Ctrl-C or a polite kill does."""

    def install(image: int, step: int, number: int = signal.SIGINT) -> pytest.MonkeyPatch:
        plain = Animations.add

        def add(self, progress) -> None:
            if image in progress.indices and progress.taken == step:
                signal.raise_signal(number)
            plain(self, progress)

        monkeypatch.setattr(Animations, "add", add)
        return monkeypatch

    return install


def files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix == ".png"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_keeps_what_was_under_way_and_goes_on_to_the_same_bytes(tiny_folder, tmp_path, stop_at, number):
    assert draw(tiny_folder, tmp_path / "whole").exit_code == 0
    out, patched = tmp_path / "out", stop_at(2, 2, number)
    result = draw(tiny_folder, out)
    assert result.exit_code == STOPPED == 130
    assert "stopped; 2 of 5 images are in" in result.output
    assert "Traceback" not in result.output
    assert sorted(os.listdir(out)) == [
        *(f"{name}.png" for name in NAMES[:2]),
        "grid.png",
        "settings.json",
        "unfinished",
    ]
    assert sorted(os.listdir(out / "unfinished")) == [f"{name}.png" for name in NAMES[2:4]]
    there, final = (read_image(f / f"{NAMES[2]}.png").pixels for f in (out / "unfinished", tmp_path / "whole"))
    assert there.shape == final.shape
    assert not np.array_equal(there, final)
    assert json.loads(png_text(out / "unfinished" / f"{NAMES[2]}.png")["robustsynth"])["stopped_at_step"] == 2
    patched.undo()
    result = draw(tiny_folder, out)
    assert result.exit_code == 0
    assert "2 of 5 images are there already" in result.output
    assert "wrote 3 images" in result.output
    assert files(out) == files(tmp_path / "whole")
    assert not (out / "unfinished").exists()


def test_a_run_stopped_at_its_first_batch_has_no_grid_yet(tiny_folder, tmp_path, stop_at):
    stop_at(0, 0)
    assert draw(tiny_folder, tmp_path).exit_code == STOPPED
    assert sorted(os.listdir(tmp_path)) == ["settings.json", "unfinished"]


def test_a_folder_of_somebody_elses_things_stays(tiny_folder, tmp_path, stop_at):
    patched = stop_at(0, 1)
    draw(tiny_folder, tmp_path)
    (tmp_path / "unfinished" / "notes.txt").write_text("mine")
    patched.undo()
    assert draw(tiny_folder, tmp_path).exit_code == 0
    assert os.listdir(tmp_path / "unfinished") == ["notes.txt"]


@pytest.mark.parametrize("file_format", ["png", "npz"])
def test_stopping_at_the_last_step_of_a_batch_keeps_it(tiny_folder, tmp_path, stop_at, file_format):
    patched = stop_at(2, 4)
    result = draw(tiny_folder, tmp_path, "--format", file_format)
    assert result.exit_code == STOPPED
    assert "stopped; 4 of 5 images are in" in result.output
    assert not (tmp_path / "unfinished").exists()
    patched.undo()
    assert "4 of 5 images are there already" in draw(tiny_folder, tmp_path, "--format", file_format).output


def test_stopping_at_the_very_last_step_is_coming_to_the_end(tiny_folder, tmp_path, stop_at):
    stop_at(4, 4)
    result = draw(tiny_folder, tmp_path)
    assert result.exit_code == 0
    assert "wrote 5 images" in result.output


def test_asking_twice_stops_at_once_and_handlers_come_back():
    before = signal.getsignal(signal.SIGINT)
    with stoppable() as asked:
        assert not asked
        signal.raise_signal(signal.SIGINT)
        assert asked == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("file_format", ["png", "npz"])
def test_animations_of_a_generation(tiny_folder, tmp_path, file_format):
    result = draw(tiny_folder, tmp_path, "--trajectory", "gif", "--format", file_format)
    assert result.exit_code == 0, result.output
    assert sorted(p.stem for p in tmp_path.glob("*.gif")) == NAMES
    with Image.open(tmp_path / f"{NAMES[3]}.gif") as animation:
        assert animation.size[0] == animation.size[1]
        assert getattr(animation, "n_frames", 1) == 5  # four steps, and where it starts


def test_a_stopped_animation_ends_where_it_was_stopped(tiny_folder, tmp_path, stop_at):
    save_png(tmp_path / "cat.png", np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8))
    out = tmp_path / "out"
    stop_at(0, 3)
    line = ["refine", tmp_path / "cat.png", "--model", tiny_folder, "--label", "cat", "--steps", "9", "--out", out]
    line += ["--device", "cpu", "--precision", "float32", "--batch-size", "1", "--trajectory", "gif"]
    result = CliRunner().invoke(main, [str(a) for a in line])
    assert result.exit_code == STOPPED, result.output
    with Image.open(out / "unfinished" / "cat.gif") as animation:
        assert getattr(animation, "n_frames", 1) == 4
    assert not (out / "cat.gif").exists()


def test_a_folder_of_starts_is_known_by_what_is_in_it(tiny_folder, tmp_path, monkeypatch):
    own = tmp_path / "own"
    for i in range(2):
        save_png(own / f"{i}.png", np.full((16, 16, 3), 100 * (i + 1), np.uint8))
    out = tmp_path / "out"
    assert draw(tiny_folder, out, "--seeds-from", own).exit_code == 0
    written = (out / "settings.json").read_text()
    assert str(tmp_path) not in written
    assert json.loads(written)["settings"]["seeds_from"] == "own"
    assert str(tmp_path) not in json.dumps(png_text(out / f"{NAMES[0]}.png"))
    monkeypatch.chdir(tmp_path)
    assert "5 of 5 images are there already" in draw(tiny_folder, out, "--seeds-from", "own").output
    save_png(own / "1.png", np.full((16, 16, 3), 7, np.uint8))
    result = draw(tiny_folder, out, "--seeds-from", own)
    assert result.exit_code == 2
    assert "(starts_sha256)" in result.output


def test_animations_need_what_writes_them():
    Animations(None)
    Animations("gif")
    with pytest.raises(UserError, match="gif"):
        Animations("webm")
