"""Generation that is stopped, films of it, and start images that are named without their path."""

from __future__ import annotations

import json
import os
import signal

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from robustsynth.cli import main
from robustsynth.cli.stopping import STOPPED, stoppable
from robustsynth.cli.trajectories import Trajectories
from robustsynth.errors import UserError
from robustsynth.images import read_image, save_png
from robustsynth.tasks.batches import solve_in_batches
from robustsynth.tasks.generate import resolve_generate
from robustsynth.tasks.job import GenerateJob

FIXED = {"precision": "float32", "batch_size": 2}
LABELS = torch.tensor([0, 0, 1, 1, 2])


def draw(model, out, *arguments: object):
    line = ["generate", "--model", model, "--out", out, "--num", "5", "--precision", "float32", "--batch-size", "2"]
    return CliRunner().invoke(main, [str(a) for a in (*line, "--device", "cpu", *arguments)])


def job(model, out, **settings) -> GenerateJob:
    return GenerateJob(model, LABELS, resolve_generate(model, given=settings), out, seed=3, **FIXED)


def files(folder) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix == ".png"}


def test_a_stopped_job_keeps_what_was_under_way_and_goes_on_to_the_same_bytes(tiny, tmp_path):
    assert job(tiny, tmp_path / "whole").run()
    out = tmp_path / "out"
    assert not job(tiny, out).run(on_step=lambda indices, step: not (2 in indices and step.index == 2))
    assert sorted(os.listdir(out)) == ["000000.png", "000001.png", "grid.png", "settings.json", "unfinished"]
    assert sorted(os.listdir(out / "unfinished")) == ["000002.png", "000003.png"]
    there, final = (
        read_image(p).pixels for p in (out / "unfinished" / "000002.png", tmp_path / "whole" / "000002.png")
    )
    assert there.shape == final.shape
    assert not np.array_equal(there, final)
    again = job(tiny, out)
    assert again.done == 2
    assert again.run()
    assert files(out) == files(tmp_path / "whole")
    assert not (out / "unfinished").exists()


def test_a_job_stopped_at_its_first_batch_has_no_grid_yet(tiny, tmp_path):
    assert not job(tiny, tmp_path).run(on_step=lambda indices, step: False)
    assert sorted(os.listdir(tmp_path)) == ["settings.json", "unfinished"]


def test_a_folder_of_somebody_elses_things_stays(tiny, tmp_path):
    job(tiny, tmp_path).run(on_step=lambda indices, step: False)
    (tmp_path / "unfinished" / "notes.txt").write_text("mine")
    assert job(tiny, tmp_path).run()
    assert os.listdir(tmp_path / "unfinished") == ["notes.txt"]


@pytest.mark.parametrize(("stop_at", "stopped"), [(0, 0), (2, 2), (4, None), (None, None)])
def test_batches_tell_where_they_were_stopped(tiny, tmp_path, stop_at, stopped):
    """Stopping at the last step is coming to the end."""
    made = []
    job(tiny, tmp_path).run(on_batch=made.append)
    assert [batch.indices for batch in made] == [(0, 1), (2, 3), (4,)]
    assert {batch.stopped for batch in made} == {None}
    from robustsynth.constraints import ball
    from robustsynth.loop import Problem
    from robustsynth.objectives import CrossEntropy

    def state(indices):
        labels = torch.zeros(len(indices), dtype=torch.long)
        return Problem(torch.full((len(indices), 3, 16, 16), 0.5), CrossEntropy(tiny, labels), ball("l2", 1.0))

    batches = solve_in_batches(
        [0, 1, 2], state, batch_size=2, step_size=0.1, steps=4, on_step=lambda places, step: step.index != stop_at
    )
    assert [batch.stopped for batch in batches] == [stopped, stopped]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_on_the_command_line(tiny_folder, tmp_path, monkeypatch, number):
    seen = []

    def interrupt(self, places, step):
        seen.append(step.index)
        if len(seen) == 7:
            signal.raise_signal(number)

    with monkeypatch.context() as patched:
        patched.setattr(Trajectories, "add", interrupt)
        result = draw(tiny_folder, tmp_path)
    assert result.exit_code == STOPPED == 130
    assert "stopped; 2 of 5 images are in" in result.output
    assert "Traceback" not in result.output
    result = draw(tiny_folder, tmp_path)
    assert result.exit_code == 0
    assert "2 of 5 images are there already" in result.output
    assert "wrote 5 images" in result.output


def test_asking_twice_stops_at_once_and_handlers_come_back():
    before = signal.getsignal(signal.SIGINT)
    asked: list[int] = []
    with stoppable(asked):
        signal.raise_signal(signal.SIGINT)
        assert asked == [signal.SIGINT]
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("file_format", ["png", "npz"])
def test_films_of_a_generation(tiny_folder, tmp_path, file_format):
    result = draw(tiny_folder, tmp_path, "--trajectory", "gif", "--format", file_format)
    assert result.exit_code == 0, result.output
    films = sorted(p.name for p in tmp_path.glob("*.gif"))
    assert films == [f"{i:06d}.gif" for i in range(5)]
    from PIL import Image

    with Image.open(tmp_path / films[3]) as film:
        assert film.size[0] == film.size[1]
        assert 2 <= film.n_frames <= 6  # the steps and the last once more


def test_a_folder_of_starts_is_known_by_what_is_in_it(tiny_folder, tmp_path, monkeypatch):
    own = tmp_path / "own"
    for i in range(2):
        save_png(own / f"{i}.png", np.full((16, 16, 3), 100 * (i + 1), np.uint8))
    out = tmp_path / "out"
    assert draw(tiny_folder, out, "--seeds-from", own).exit_code == 0
    written = (out / "settings.json").read_text()
    assert str(tmp_path) not in written
    assert json.loads(written)["settings"]["seeds_from"] == "own"
    monkeypatch.chdir(tmp_path)
    assert "5 of 5 images are there already" in draw(tiny_folder, out, "--seeds-from", "own").output
    save_png(own / "1.png", np.full((16, 16, 3), 7, np.uint8))
    result = draw(tiny_folder, out, "--seeds-from", own)
    assert result.exit_code == 2
    assert "(starts_sha256)" in result.output


def test_films_need_what_writes_them(monkeypatch):
    import robustsynth.cli.trajectories as trajectories

    trajectories.check_trajectory(None)
    trajectories.check_trajectory("gif")
    with pytest.raises(UserError, match="gif"):
        trajectories.check_trajectory("webm")
