"""Animations: GIF and MP4 files, and which steps they show."""

from __future__ import annotations

import builtins
import os
import tempfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from robustsynth import animations
from robustsynth.animations import check_animation, save_animation
from robustsynth.cli.progress import FRAMES, Animations
from robustsynth.errors import UserError
from robustsynth.images import to_pil
from robustsynth.sheet import MARGIN, sheet

av = pytest.importorskip("av")


def flat(count: int, shape: tuple[int, ...] = (16, 16, 3)) -> Iterator[np.ndarray]:
    return (np.full(shape, 200 * i // max(1, count - 1), np.uint8) for i in range(count))


def smooth(side: int = 64) -> np.ndarray:
    """More colours than a palette holds, without edges."""
    across = np.linspace(0, 255, side)
    columns, rows = np.meshgrid(across, across)
    return np.stack([columns, rows, 255 - columns], 2).astype(np.uint8)


def read_gif(path: Path) -> list[tuple[np.ndarray, float]]:
    """Frames and the seconds of each."""
    found = []
    with Image.open(path) as opened:
        for index in range(getattr(opened, "n_frames", 1)):
            opened.seek(index)
            found.append((np.asarray(opened.convert("RGB")), opened.info.get("duration", 0) / 1000))
    return found


def read_mp4(path: Path) -> tuple[list[tuple[np.ndarray, float]], float]:
    """Frames and when each begins, and the length in seconds."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        found = [(f.to_ndarray(format="rgb24"), float(f.pts * f.time_base)) for f in container.decode(video=0)]
        return found, float(stream.duration * stream.time_base)


# GIF


@pytest.mark.parametrize("frames", [1, 2, 6])
@pytest.mark.parametrize("channels", [1, 3])
def test_gifs_hold_every_frame(tmp_path, frames, channels):
    save_animation(tmp_path / "a.gif", flat(frames, (4, 5, channels)))
    found = read_gif(tmp_path / "a.gif")
    assert len(found) == frames
    for (got, _), wanted in zip(found, flat(frames, (4, 5, channels)), strict=True):
        assert np.abs(got.astype(int) - wanted).max() <= 3


def test_frames_of_a_gif_take_their_share_of_the_time(tmp_path):
    save_animation(tmp_path / "a.gif", flat(7), seconds=1.0)
    times = [seconds for _, seconds in read_gif(tmp_path / "a.gif")]
    assert times[-1] == 1.5
    assert sum(times[:-1]) == pytest.approx(6 / 7, abs=0.011)
    save_animation(tmp_path / "fast.gif", flat(100), seconds=0.1)
    assert {seconds for _, seconds in read_gif(tmp_path / "fast.gif")[:-1]} == {0.02}  # players slow faster ones down


def test_gifs_of_photographs_are_dithered_and_their_paper_stays_white(tmp_path):
    few = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    sky = np.asarray(Image.fromarray(few).resize((64, 64), Image.Resampling.BICUBIC))
    drawn = sheet([[sky]], cell=64)
    save_animation(tmp_path / "a.gif", [drawn])
    ((got, _),) = read_gif(tmp_path / "a.gif")
    assert bool((got[(drawn == 255).all(2)] == 255).all())

    def far(image: np.ndarray) -> float:
        """As seen from a distance at which 4×4 pixels are one."""
        difference = image[MARGIN:-MARGIN, MARGIN:-MARGIN] - sky.astype(float)
        return np.abs(difference.reshape(16, 4, 16, 4, 3).mean((1, 3))).mean()

    banded = np.asarray(to_pil(drawn).quantize(256, method=Image.Quantize.FASTOCTREE).convert("RGB"))
    assert far(got) < 0.5 * far(banded)


def test_each_frame_of_a_gif_has_its_own_colours(tmp_path):
    frames = [smooth() // 2, 255 - smooth() // 2]
    save_animation(tmp_path / "a.gif", frames)
    for (got, _), wanted in zip(read_gif(tmp_path / "a.gif"), frames, strict=True):
        assert np.abs(got.astype(int) - wanted).mean() < 6


# MP4


@pytest.mark.parametrize("shape", [(16, 16, 3), (17, 22, 3), (33, 31, 1), (1, 1, 3)])
def test_videos_hold_every_frame_at_even_sizes(tmp_path, shape):
    save_animation(tmp_path / "a.mp4", flat(5, shape), seconds=2)
    found, length = read_mp4(tmp_path / "a.mp4")
    assert [begins for _, begins in found] == pytest.approx([0.4 * i for i in range(5)], abs=1e-3)
    assert length == pytest.approx(2 + 1.5, abs=0.2)  # the hold is a whole number of frames
    for (got, _), wanted in zip(found, flat(5, shape), strict=True):
        assert got.shape == (shape[0] + shape[0] % 2, shape[1] + shape[1] % 2, 3)
        assert np.abs(got.astype(int) - wanted[0, 0]).max() <= 4  # padding repeats the edge
    assert os.listdir(tmp_path) == ["a.mp4"]


def test_videos_keep_colours(tmp_path):
    save_animation(tmp_path / "a.mp4", [smooth()] * 3)
    found, _ = read_mp4(tmp_path / "a.mp4")
    assert np.abs(found[-1][0].astype(int) - smooth()).mean() < 4


def test_frames_of_a_video_are_taken_one_at_a_time(tmp_path):
    alive: list[int] = []

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive.append(-1)

    most = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal most
        for frame in flat(50):
            counted = frame.copy().view(Counted)
            alive.append(1)
            most = max(most, sum(alive))
            yield counted
            del counted

    save_animation(tmp_path / "a.mp4", frames())
    assert len(read_mp4(tmp_path / "a.mp4")[0]) == 50
    assert most <= 5


@given(st.floats(0.01, 100), st.integers(1, 1000))
def test_times_are_fractions_that_video_takes(seconds, count):
    share = animations._share(seconds, count)
    assert share > 0
    assert float(share * count) == pytest.approx(seconds, rel=0.1)
    assert isinstance(share, Fraction)


# Both


@pytest.mark.parametrize("ending", ["gif", "mp4"])
@pytest.mark.parametrize(
    ("frames", "seconds", "says"),
    [
        ([], 4.0, "at least one frame"),
        ([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)], 4.0, "of one size"),
        ([np.zeros((4, 4), np.uint8)], 4.0, "uint8"),
        ([np.zeros((4, 4, 4), np.uint8)], 4.0, "1 or 3 channels"),
        ([np.zeros((4, 4, 3))], 4.0, "uint8"),
        ([np.zeros((4, 4, 3), np.uint8)], 0.0, "more than 0 seconds"),
        ([np.zeros((4, 4, 3), np.uint8)], float("inf"), "more than 0 seconds"),
    ],
)
def test_what_is_no_animation_is_refused(tmp_path, ending, frames, seconds, says):
    (tmp_path / f"a.{ending}").write_bytes(b"old")
    with pytest.raises(UserError, match=says):
        save_animation(tmp_path / f"a.{ending}", frames, seconds=seconds)
    assert (tmp_path / f"a.{ending}").read_bytes() == b"old"
    assert os.listdir(tmp_path) == [f"a.{ending}"]


@pytest.mark.parametrize("ending", ["gif", "mp4"])
def test_an_interrupted_animation_leaves_the_old_file(tmp_path, ending):
    save_animation(tmp_path / f"a.{ending}", flat(2))
    before = (tmp_path / f"a.{ending}").read_bytes()

    def stopped() -> Iterator[np.ndarray]:
        yield from flat(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_animation(tmp_path / f"a.{ending}", stopped())
    assert (tmp_path / f"a.{ending}").read_bytes() == before
    assert os.listdir(tmp_path) == [f"a.{ending}"]


@pytest.mark.parametrize("name", ["a.avi", "a", "a.gif.txt"])
def test_other_endings_are_refused(tmp_path, name):
    for call in (check_animation, lambda path: save_animation(path, flat(2))):
        with pytest.raises(UserError, match=r"end in \.gif or \.mp4, got .*a"):
            call(tmp_path / name)


def test_endings_may_be_capitals(tmp_path):
    for name in ("a.GIF", "b.MP4"):
        check_animation(tmp_path / name)
        save_animation(tmp_path / name, flat(2))
    assert sorted(os.listdir(tmp_path)) == ["a.GIF", "b.MP4"]


def test_without_av_the_way_out_is_said_before_and_after(tmp_path, monkeypatch):
    real = builtins.__import__

    def refusing(name, *arguments, **options):
        if name == "av":
            raise ModuleNotFoundError("No module named 'av'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", refusing)
    for call in (check_animation, lambda path: save_animation(path, flat(2))):
        with pytest.raises(UserError, match=r"a\.mp4.*pip install 'robustsynth\[video\]'.*\.gif"):
            call(tmp_path / "a.mp4")
    save_animation(tmp_path / "a.gif", flat(2))
    assert os.listdir(tmp_path) == ["a.gif"]


# Which steps are shown


@given(steps=st.integers(0, 250), runs=st.integers(1, 2), reached=st.integers(0, 500))
def test_frames_are_even_and_the_first_and_last_among_them(steps, runs, reached):
    total = steps * runs
    reached = min(reached, total)
    recorded, written = Animations("gif"), {}
    for taken in range(reached + 1):
        progress = SimpleNamespace(
            indices=[0], steps=steps, runs=runs, taken=taken, previews=torch.full((1, 1, 1, 1), taken / 255)
        )
        recorded.add(progress)  # pyright: ignore[reportArgumentType]
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(animations, "save_animation", lambda path, frames: written.update({path.name: frames}))
        recorded.write(Path(folder), {0: "a"}, progress)  # pyright: ignore[reportArgumentType]
    found = [int(frame.ravel()[0]) for frame in written["a.gif"]]
    assert len(found) <= FRAMES
    assert (found[0], found[-1]) == (0, min(reached, 255))
    if reached == total < 256:
        assert len(found) == min(FRAMES, total + 1)
        gaps = np.diff(found)
        assert not len(gaps) or gaps.max() - gaps.min() <= 1
