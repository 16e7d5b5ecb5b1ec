"""What can go wrong in training: kills, damaged checkpoints, full disks, NaN, and data that is not as it should be."""

from __future__ import annotations

import errno
import functools
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import robustsynth.data.cache as cache_module
import robustsynth.training.checkpoints as checkpoints_module
import robustsynth.training.step as step_module
import robustsynth.training.trainer as trainer_module
from conftest import png
from robustsynth.cli import main
from robustsynth.errors import UserError
from robustsynth.models.store import load_model
from robustsynth.training.checkpoints import (
    BEFORE,
    CHECKPOINT,
    DAMAGED,
    NEEDED,
    has_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from robustsynth.training.trainer import Trainer

KILLS = Path(__file__).parents[1] / "benchmarks" / "kills.py"


def loaded(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # Where dataclasses look for it.
    spec.loader.exec_module(module)
    return module


kills = loaded(KILLS)
QUICK = f"{kills.SETTINGS} {kills.RECIPES['pgd']}".split()
"""Three epochs of four steps."""


@pytest.fixture(autouse=True, scope="module")
def checkpoints_at_each_epochs_end() -> Iterator[None]:
    """Epochs are of no time here; those of a real run would have taken a minute."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(trainer_module, "EPOCH_SECONDS", 0)
        yield


def call(*arguments: object) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(result: Result, *said: str) -> str:
    """An error for people, in the words expected; the message on one line."""
    told = " ".join(result.output.split())
    assert result.exit_code == 2, told
    assert "Traceback" not in told
    for words in said:
        assert words in told
    return told


def train(data: Path, out: Path, *more: object) -> Result:
    return call("train", "--data", data, "--out", out, *QUICK, *more)


def resume(out: Path, *more: object) -> Result:
    return call("train", "--resume", "--out", out, "--device", "cpu", *more)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kills.make_pictures(tmp_path_factory.mktemp("data") / "toys")


@pytest.fixture(scope="module")
def whole(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ROBUSTSYNTH_CACHE", str(out.parent / "cache"))
        assert train(pictures, out).exit_code == 0
    return out


@pytest.fixture
def ended(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(whole, tmp_path / "ended"))


def assert_same(out: Path, whole: Path) -> None:
    assert kills.differing(kills.outcome(whole), kills.outcome(out)) == []


# Kills


@pytest.mark.parametrize(
    "many",
    [
        ("--kills", "4", "--command-line", "0", "--seed", "1"),
        pytest.param(("--kills", "50", "--command-line", "3"), marks=pytest.mark.slow),
    ],
)
def test_kills_lose_nothing(many: tuple[str, ...]) -> None:
    result = subprocess.run([sys.executable, KILLS, *many], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "equal bit for bit" in result.stdout
    assert "differ" not in result.stdout


def test_the_comparison_sees_a_bit(ended: Path, whole: Path) -> None:
    contents = read_checkpoint(ended)
    weights = next(iter(contents["network"].values())).view(torch.int32)
    weights[(0,) * weights.ndim] ^= 1
    write_checkpoint(contents, ended)
    model = ended / "model.safetensors"
    model.write_bytes(model.read_bytes()[:-1] + b"!")
    log = ended / "log.csv"
    log.write_text(log.read_text(encoding="utf-8").replace("\n1,", "\n7,"), encoding="utf-8")
    found = kills.differing(kills.outcome(whole), kills.outcome(ended))
    assert [name.split("/")[1] for name in found] == ["log", CHECKPOINT, "model.safetensors"]


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(
    pictures: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Kill(BaseException):
        pass

    def killed(self: Any, folder: Path) -> None:
        raise Kill

    with monkeypatch.context() as patched:
        patched.setattr("robustsynth.training.checkpoints.TrainState.save", killed)
        with pytest.raises(Kill):
            train(pictures, tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["run.json"]
    result = resume(tmp_path / "out")
    assert (result.exit_code, "before its first step" in result.output) == (0, True), result.output
    assert_same(tmp_path / "out", whole)


# Checkpoints


def small(step: int = 1) -> dict[str, Any]:
    return dict.fromkeys(NEEDED, 0) | {"step": step, "network": {"weight": torch.arange(4.0)}}


def damaged(folder: Path, content: bytes) -> None:
    (folder / CHECKPOINT).write_bytes(content)
    with pytest.raises(UserError, match="is damaged"):
        read_checkpoint(folder)


def test_any_flipped_bit_and_any_cut_is_noticed(tmp_path: Path) -> None:
    """One bit of every byte, many lengths, and a byte too many, of a small checkpoint."""
    write_checkpoint(small(), tmp_path)
    content = (tmp_path / CHECKPOINT).read_bytes()
    assert read_checkpoint(tmp_path)["network"]["weight"].tolist() == [0, 1, 2, 3]
    for place in range(len(content)):
        flipped = bytearray(content)
        flipped[place] ^= 1 << (place % 8)
        damaged(tmp_path, bytes(flipped))
    # More near the end, where the checksum stands.
    for length in [*range(0, len(content) - 200, 37), *range(len(content) - 200, len(content), 3)]:
        damaged(tmp_path, content[:length])
    damaged(tmp_path, content + b"\0")


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
@hypothesis_settings(deadline=None, max_examples=40)
def test_a_damaged_checkpoint_of_a_run_is_noticed(whole: Path, place: float, bit: int, cut: bool) -> None:
    content = bytearray((whole / CHECKPOINT).read_bytes())
    at = int(place * len(content))
    content[at] ^= 1 << bit
    folder = whole.parent / "damaged"
    folder.mkdir(exist_ok=True)
    damaged(folder, bytes(content[:at] if cut else content))


def test_it_is_still_a_file_that_torch_loads(ended: Path) -> None:
    assert torch.load(ended / CHECKPOINT, weights_only=True)["step"] == 12


def flip(path: Path, place: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip, "4 steps are trained again"),
        (cut, "the steps since are trained again"),
        (Path.unlink, "there is no such file"),
    ],
)
def test_the_checkpoint_before_is_used_where_the_newest_is_damaged(
    ended: Path, whole: Path, damage: Callable[[Path], object], said: str
) -> None:
    assert read_checkpoint(ended)["step"] == 12
    damage(ended / CHECKPOINT)
    told: list[str] = []
    assert read_checkpoint(ended, announce=told.append)["step"] == 8
    assert (len(told), said in told[0]) == (1, True), told
    result = resume(ended)
    assert result.exit_code == 0, result.output
    assert "going on from the one before it, of step 8" in " ".join(result.output.split())
    assert said in " ".join(result.output.split())
    assert (ended / DAMAGED).exists() == (damage is not Path.unlink)
    assert_same(ended, whole)


def test_a_damaged_checkpoint_never_takes_the_place_of_the_whole_one_before(
    ended: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within the first write after: the whole one is there still."""
    flip(ended / CHECKPOINT)

    class Kill(BaseException):
        pass

    real = os.replace

    def killed(source: Any, target: Any) -> None:
        real(source, target)
        if Path(target).name == BEFORE:
            raise Kill

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", killed)
        assert resume(ended).exit_code == 0
    assert read_checkpoint(ended)["step"] == 12
    (ended / CHECKPOINT).unlink()
    assert read_checkpoint(ended)["step"] == 8
    assert resume(ended).exit_code == 0
    assert_same(ended, whole)


def test_both_damaged_is_an_error_and_the_best_model_is_left(ended: Path, pictures: Path, tmp_path: Path) -> None:
    flip(ended / CHECKPOINT)
    cut(ended / BEFORE)
    refused(resume(ended), "expected a whole checkpoint in", "is damaged (its bytes do not have", "--fine-tune")
    result = train(pictures, tmp_path / "again", "--fine-tune", ended)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("number", [None, 1, 99])
def test_a_checkpoint_of_another_format_is_refused_and_left_as_it_is(
    ended: Path, pictures: Path, tmp_path: Path, number: int | None, sealed: bool
) -> None:
    """Those of 0.1.0 have no number, and before that no checksum."""
    contents = torch.load(ended / CHECKPOINT, weights_only=True) | {"format": number}
    for name in ("format", "attack_level", "good") if number is None else ():
        contents.pop(name)
    packed = io.BytesIO()
    torch.save(contents, packed)
    if sealed:
        checkpoints_module._add_checksum(packed, 12)
    (ended / CHECKPOINT).write_bytes(packed.getvalue())
    files = {path: path.read_bytes() for path in ended.iterdir()}
    told = refused(
        resume(ended), f"got format {number or 1}, of another version of robustsynth", "go on with that version"
    )
    assert f"begin again in another --out, also from the best model so far: --fine-tune {ended}" in told
    assert {path: path.read_bytes() for path in ended.iterdir()} == files
    assert train(pictures, tmp_path / "again", "--fine-tune", ended).exit_code == 0


def test_what_a_killed_writer_left_is_removed_and_both_names_are_kept(tmp_path: Path) -> None:
    for name in (".checkpoint-abc.pt", ".checkpoint-link.pt"):
        (tmp_path / name).write_bytes(b"half")
    assert not has_checkpoint(tmp_path)
    for step in (1, 2, 3):
        write_checkpoint(small(step), tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [BEFORE, CHECKPOINT]
    assert read_checkpoint(tmp_path)["step"] == 3
    (tmp_path / CHECKPOINT).unlink()
    assert read_checkpoint(tmp_path)["step"] == 2


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no(*_: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", no)
    for step in (1, 2):
        write_checkpoint(small(step), tmp_path)
    assert (read_checkpoint(tmp_path)["step"], (tmp_path / BEFORE).exists()) == (2, True)


# A full disk


@pytest.mark.parametrize("name", [CHECKPOINT, "model.safetensors", "card.json", "log.csv", "seeds.safetensors"])
@pytest.mark.parametrize("nth", [1, 2])
def test_a_full_disk_exits_with_two_and_what_was_written_goes_on(
    pictures: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, nth: int
) -> None:
    if (name, nth) == ("seeds.safetensors", 2):
        pytest.skip("they are written once")
    out, stem = tmp_path / "out", f".{Path(name).stem}-"
    countdown = iter(range(nth - 1, -1 - 1000, -1))

    def filling(write: Callable[..., int]) -> Callable[..., int]:
        def full(self: Path, data: Any, **options: Any) -> int:
            if self.name.startswith(stem) and next(countdown) == 0:
                write(self, data[: len(data) // 2], **options)  # What still fitted.
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
            return write(self, data, **options)

        return full

    with monkeypatch.context() as patched:
        for method in ("write_bytes", "write_text"):
            patched.setattr(Path, method, filling(getattr(Path, method)))
        refused(train(pictures, out), "No space left on device", "free some space")
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []
    if has_checkpoint(out):
        read_checkpoint(out)
    if (out / "card.json").exists():
        load_model(out, device="cpu")
    assert resume(out).exit_code == 0
    assert_same(out, whole)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of half a megabyte, where one may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or subprocess.run([mount, "-t", "tmpfs", "-o", "size=512k", "none", place]).returncode:
        pytest.skip("needs the right to mount")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_disk_that_is_really_full(pictures: Path, whole: Path, small_disk: Path) -> None:
    out, filler = small_disk / "out", small_disk / "filler"
    refusals = 0
    result = None
    for free in (0, 40, 80, 120, 160, 240):  # KiB, from too little for anything to nearly enough
        filler.unlink(missing_ok=True)
        space = os.statvfs(small_disk)
        filler.write_bytes(bytes(max(0, space.f_bavail * space.f_frsize - free * 1024)))
        result = resume(out) if (out / "run.json").exists() else train(pictures, out)
        if result.exit_code == 0:
            break
        refused(result, "No space left on device")
        refusals += 1
    assert refusals >= 2
    filler.unlink()
    assert result is not None
    assert result.exit_code == 0 or resume(out).exit_code == 0
    assert_same(out, whole)


# NaN


def test_too_high_a_learning_rate_stops_and_names_the_step(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    told = refused(train(pictures, out, "--learning-rate", "1e38", "--clip-norm", "0"), "NaN or infinity", "at step")
    assert "lower --learning-rate" in told
    contents = read_checkpoint(out)
    for part in ("network", "average"):
        assert all(bool(v.isfinite().all()) for v in contents[part].values() if v.is_floating_point())


def nan(*tensors: Any, **options: Any) -> torch.Tensor:
    return torch.full((), float("nan"), requires_grad=True)


def spoil_statistics(trainer: Trainer) -> None:
    """What activations that overflow leave: the loss stays finite, for training uses the batch's own statistics."""
    batch_norm = next(m for m in trainer.state.network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert batch_norm.running_var is not None
    batch_norm.running_var.fill_(float("inf"))


def spoil_weights(trainer: Trainer) -> None:
    with torch.no_grad():
        next(trainer.state.network.parameters()).fill_(float("nan"))


def spoil_loss(trainer: Trainer) -> None:
    step_module.recipe_loss = nan


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_loss, "expected a finite loss, got NaN or infinity at step 6"),
        (spoil_weights, "expected a finite attack, got NaN or infinity at step 6"),
        (spoil_statistics, "running_var of the average at step 7"),
    ],
)
def test_nan_keeps_the_last_good_weights_and_the_best_model(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Trainer], None], said: str
) -> None:
    out, real = tmp_path / "out", Trainer._step
    monkeypatch.setattr(step_module, "recipe_loss", step_module.recipe_loss)  # Put back at the end.

    def spoiled(self: Trainer, *batch: Any) -> float:
        if self.state.step == 6:
            spoil(self)
        return real(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", spoiled)
        refused(train(pictures, out, *kills.RECIPES["batch norm"].split()), said, "lower --learning-rate")
    contents = read_checkpoint(out)
    assert (contents["step"], contents["best"]["epoch"]) == (4, 1)
    assert all(bool(v.isfinite().all()) for v in contents["average"].values() if v.is_floating_point())
    load_model(out, device="cpu")  # Of the first epoch, and whole.
    for name, value in load_file(out / "model.safetensors").items():
        assert torch.equal(value, contents["average"][name].to(value.dtype)), name


def test_a_checkpoint_is_never_of_nan(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the average has not got it yet: the momentum's would reach the weights in the next step."""
    out, real = tmp_path / "out", Trainer._step

    def spoiled(self: Trainer, *batch: Any) -> float:
        loss = real(self, *batch)
        if self.state.step == 8:
            next(iter(self.state.optimizer.state.values()))["momentum_buffer"].fill_(float("inf"))
        return loss

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", spoiled)
        refused(train(pictures, out), "momentum_buffer 0 of the optimizer at step 8")
    assert read_checkpoint(out)["step"] == 4


# Data


@pytest.fixture
def own(pictures: Path, tmp_path: Path) -> Path:
    """A copy of the class folders, to be changed."""
    return Path(shutil.copytree(pictures, tmp_path / "own"))


def empty_class(data: Path) -> None:
    (data / "blue").mkdir()


def class_of_one(data: Path) -> None:
    (data / "blue").mkdir()
    shutil.copy(data / "red" / "000.png", data / "blue")


def only_one_class(data: Path) -> None:
    shutil.rmtree(data / "red")


def truncated(data: Path) -> None:
    cut(data / "red" / "002.png")


def seven_unreadable(data: Path) -> None:
    for index in range(0, 12, 2):
        cut(data / "red" / f"{index:03}.png")
    (data / "red" / "014.png").write_text("no picture", encoding="utf-8")


def all_unreadable(data: Path) -> None:
    for path in data.glob("*/*.png"):
        path.write_bytes(b"")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (empty_class, ("blue: expected the images of a class, got none", "remove the folder")),
        (class_of_one, ("at least 2 images of each class", "of 'blue'", "add images")),
        (only_one_class, ("at least two classes, got 1 (green)",)),
        (truncated, ("red/002.png: expected an image that can be decoded", "Replace it or take it out")),
        (seven_unreadable, ("red/000.png: expected an image", "6 more cannot be decoded either", "red/010.png, …")),
        (all_unreadable, ("green/001.png: expected an image that can be decoded, got an empty file",)),
    ],
)
def test_faults_of_class_folders_are_named(
    own: Path, tmp_path: Path, change: Callable[[Path], None], said: tuple[str, ...]
) -> None:
    change(own)
    refused(train(own, tmp_path / "out"), *said)
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_resumed_on_other_classes(own: Path, tmp_path: Path, ended: Path) -> None:
    shutil.copytree(own / "red", own / "blue")
    told = refused(resume(ended, "--data", own), "classes: 2 then, 3 now, such as blue", "images: 60 then, 90 now")
    assert "pass its --data" in told
    shutil.rmtree(own / "red")
    refused(resume(ended, "--data", own), "classes: 2 then, 2 now, such as blue, red")


def test_a_run_that_is_fine_tuned_takes_other_classes_but_no_other_network(
    own: Path, tmp_path: Path, ended: Path
) -> None:
    shutil.copytree(own / "red", own / "blue")
    result = train(own, tmp_path / "three", "--fine-tune", ended, "--epochs", "1")
    assert (result.exit_code, "new: blue" in result.output) == (0, True), result.output
    refused(train(own, tmp_path / "out", "--fine-tune", ended, "--width", "3"), "a model of the same network")


def table(path: Path, labels: list[int | None], names: list[str] | None) -> Path:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    images = [{"bytes": png(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)), "path": None} for _ in labels]
    label = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    features = datasets.Features({"image": datasets.Image(), "label": label})
    written = pa.table(
        {"image": images, "label": pa.array(labels, pa.int64())},
        schema=features.arrow_schema,
    )
    pq.write_table(written, path)
    return path


@pytest.mark.parametrize(
    ("label", "names", "said"),
    [
        (7, ["cat", "dog"], "row 40: expected a label from 0 to 1, got 7"),
        (-1, ["cat", "dog"], "row 40: expected a label from 0 to 1, got -1"),
        (None, ["cat", "dog"], "row 40: expected a label from 0 to 1, got None"),
        (-1, None, "row 40: expected a label from 0 to 1, got -1"),
        (5, None, "expected at least 2 images of each class beside the 12 held out, got 0 of '2'"),
        (987654321, None, "at most 999999, got 987654321"),
    ],
)
def test_labels_out_of_range_are_named(tmp_path: Path, label: int | None, names: list[str] | None, said: str) -> None:
    labels: list[int | None] = [i % 2 for i in range(60)]
    labels[40] = label
    refused(train(table(tmp_path / "train.parquet", labels, names), tmp_path / "out"), said)


def test_a_folder_that_disappears_while_it_is_read(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = cache_module.decode

    def decode(row: Any, **options: Any) -> np.ndarray:
        shutil.rmtree(own, ignore_errors=True)
        return real(row, **options)

    monkeypatch.setattr(cache_module, "decode", decode)
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "cache"))
    refused(train(own, tmp_path / "out"), "001.png: expected an image that can be decoded", "59 more")
    assert list((tmp_path / "cache" / "data").iterdir()) == []


def test_a_folder_that_disappears_while_it_is_trained_on(
    own: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run has its own decoded copy; a resumed one must be sure that it is the same data, and says what is gone."""
    out, kept, real = tmp_path / "out", tmp_path / "kept", Trainer._step

    def step(self: Trainer, *batch: Any) -> float:
        if self.state.step == 5:
            own.rename(kept)
        if self.state.step == 9:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "a disk that is pulled out")
        return real(self, *batch)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", step)
        refused(train(own, out), "Input/output error: a disk that is pulled out")
    assert read_checkpoint(out)["step"] == 8
    refused(resume(out), str(own.name), "No file or folder of that name exists")
    kept.rename(own)
    assert resume(out).exit_code == 0
    found = kills.outcome(out)
    expected = kills.outcome(whole)
    for outcome in (found, expected):
        outcome["card"].pop("data")  # It has the folder's name.
    assert kills.differing(expected, found) == []


# What says what a run is of, and who writes to it


@pytest.mark.parametrize("damage", ["", "{}", "[1]", '{"data": '])
def test_a_run_whose_record_is_damaged_goes_on_where_the_data_are_named(
    pictures: Path, ended: Path, whole: Path, damage: str
) -> None:
    (ended / "run.json").write_text(damage, encoding="utf-8")
    refused(resume(ended), "expected run.json of the run to say", "pass --data")
    assert resume(ended, "--data", pictures).exit_code == 0
    assert_same(ended, whole)


def test_a_folder_that_another_process_trains_in_is_refused(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(trainer_module, "only_writer", functools.partial(trainer_module.only_writer, patience=0.1))
    out = tmp_path / "out"
    program = (
        "import sys, time\nfrom robustsynth.files import only_writer\n"
        "with only_writer(sys.argv[1]):\n    print('here', flush=True)\n    time.sleep(100)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, out], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "here\n"
        refused(train(pictures, out), "expected to be the only one that writes to", "wait for it or end it")
        assert not (out / CHECKPOINT).exists()
        other.kill()
    again = train(pictures, out) if not (out / "run.json").exists() else resume(out)
    assert again.exit_code == 0, again.output


def test_ctrl_c_while_seeds_are_fitted_does_not_call_a_finished_run_stopped(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = trainer_module.finish_model

    def interrupted(*given: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        finish(*given)

    monkeypatch.setattr(trainer_module, "finish_model", interrupted)
    result = train(pictures, tmp_path / "out")
    assert (result.exit_code, "best of the run" in result.output) == (0, True), result.output


def test_ctrl_c_once_more_stops_at_once(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluation(*_: Any, **__: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(trainer_module, "count_clean_and_robust", evaluation)
    assert train(pictures, tmp_path / "out").exit_code == 130
    monkeypatch.undo()
    monkeypatch.setattr(trainer_module, "EPOCH_SECONDS", 0)
    assert resume(tmp_path / "out").exit_code == 0
