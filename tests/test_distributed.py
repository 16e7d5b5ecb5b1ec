"""Training and drawing by two processes (gloo, on the processor): what comes out, who writes, and who is missed.

As a program this file forks processes that already have PyTorch, which importing it in each would make slow.
"""

from __future__ import annotations

import contextlib
import csv
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import train_until
from robustsynth.data import ImageData
from robustsynth.errors import UserError
from robustsynth.processes import ALONE, Team, Workers
from robustsynth.randomness import image_generators
from robustsynth.training.checkpoints import read_checkpoint
from robustsynth.training.data import augment
from robustsynth.training.settings import TrainSettings
from robustsynth.training.trainer import Trainer

STEPS = 6
PARTS = "parts"
"""A run that goes on with other numbers of processes."""

RECIPES: dict[str, dict[str, Any]] = {
    "pgd": {"attack_steps": 2},
    "uneven": {"batch_size": 15, "accumulate": 3},  # Parts of five: two images and three.
    "trades and awp": {"recipe": "trades", "awp": 0.01},
    "mart": {"recipe": "mart"},
    "free": {"recipe": "free", "free_replays": 2, "accumulate": 2},
    "fast and cutmix": {"recipe": "fast", "norm": "linf", "eps": 0.05, "cutmix": 0.7, "guard_every": 2},
    "batch norm": {"architecture": "resnet18", "batch_size": 24},
}


def pictures(count: int = 84, *, seed: int = 0) -> ImageData:
    draw = np.random.default_rng(seed)
    labels = (np.arange(count) % 2).astype(np.int64)
    colour = np.array([[170, 90, 110], [90, 170, 130]])[labels]
    images = np.clip(colour[:, None, None] + draw.normal(0, 35, (count, 8, 8, 3)), 0, 255).astype(np.uint8)
    return ImageData(images, labels, ("red", "green"), "toys", "CC0-1.0", "toys", (0.5,) * 3, (0.25,) * 3)


def settings_of(name: str) -> TrainSettings:
    given: dict[str, Any] = {
        "architecture": "small-cnn",
        "width": 2,
        "eps": 0.2,
        "attack_steps": 1,
        "attack_step_size": 0.1,
        "epochs": 2,
        "batch_size": 24,
        "held_out": 12,
        "learning_rate": 0.05,
        "evaluate_every": 2,
    }
    return TrainSettings(**(given | RECIPES[name]))


# As a program: RECIPE OUT PROCESSES …


def train_one(name: str, out: Path, workers: Workers, *, stop: int | None = None, resume: bool = False) -> None:
    with workers.joined():
        trainer = Trainer(
            settings_of(name), pictures(), out, device="cpu", precision="float32", workers=workers, resume=resume
        )
        # Only one process is asked to stop: all must.
        losses = train_until(trainer, stop if workers.rank == workers.size - 1 else None)
        np.save(out.parent / f"{out.name}-losses-{workers.rank}.npy", losses)
        state = trainer.state.network.state_dict()
        torch.save(state, out.parent / f"{out.name}-weights-{workers.rank}.pt")


def together(processes: int, work: Any) -> None:
    """`work` in several processes forked from here."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(processes):
        if child := os.fork():
            children.append(child)
            continue
        code = 1
        try:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(processes)}
            work(Workers(rank, processes))
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(ended):
        raise SystemExit(f"processes ended with {ended}")


def program(home: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    for name in (name for name in names if name != PARTS):
        for processes in (1, 2):
            together(processes, lambda w, name=name, n=processes: train_one(name, home / f"{name} {n}", w))
    if PARTS not in names:
        return
    parts = home / PARTS
    together(2, lambda w: train_one("free", parts, w, stop=2))
    together(1, lambda w: train_one("free", parts, w, resume=True, stop=4))
    together(2, lambda w: train_one("free", parts, w, resume=True))


def run_program(home: Path, names: list[str]) -> Path:
    arguments = [sys.executable, __file__, str(home), *names]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return home


QUICK = ["uneven", "free"]
"""What is tried each time; the others take longer."""

EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("trained")
    return run_program(home, [*QUICK, PARTS])


@pytest.fixture(scope="module")
def further(quick: Path) -> Path:
    return run_program(quick, [name for name in RECIPES if name not in QUICK])


@pytest.fixture
def trained(request: pytest.FixtureRequest) -> Path:
    """Where the quick ones are, and the others too for tests that are slow."""
    return request.getfixturevalue("further" if request.node.get_closest_marker("slow") else "quick")


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)


@pytest.mark.parametrize("name", EVERY[:-1])
def test_two_processes_train_as_one(trained: Path, name: str) -> None:
    """But for the order of sums: without batch norm the weights end the same, and so do the losses on the way."""
    one, two = (read_checkpoint(trained / f"{name} {n}") for n in (1, 2))
    assert one["step"] == two["step"] >= STEPS
    begun = Trainer(settings_of(name), pictures(), trained / "nothing", device="cpu", precision="float32").state
    moved = 0.0
    for part in ("network", "average"):
        for key, value in one[part].items():
            assert torch.allclose(value, two[part][key], atol=2e-5, rtol=1e-3), key
            moved = max(moved, float((value - begun.network.state_dict()[key]).abs().max()))
    assert moved > 1e-3  # Not because nothing was learnt.
    losses = [np.load(trained / f"{name} {n}-losses-0.npy") for n in (1, 2)]
    assert np.allclose(*losses, rtol=1e-3)
    assert one["best"]["score"] == two["best"]["score"]
    assert one["collapses"] == two["collapses"]


@pytest.mark.slow
def test_with_batch_norm_they_differ_by_its_statistics_alone(trained: Path) -> None:
    one, two = (read_checkpoint(trained / f"batch norm {n}")["network"] for n in (1, 2))
    assert not torch.allclose(one["fc.weight"], two["fc.weight"], atol=2e-5, rtol=1e-3)
    losses = [np.load(trained / f"batch norm {n}-losses-0.npy") for n in (1, 2)]
    # Of eight seeds the first loss, before any step, differs by up to 0.11.
    assert np.allclose(losses[0][:2], losses[1][:2], rtol=0.15)
    assert np.allclose(*losses, rtol=0.4)


@pytest.mark.parametrize("name", EVERY)
def test_both_processes_end_with_the_same_bits(trained: Path, name: str) -> None:
    first, second = (weights(trained / f"{name} 2-weights-{rank}.pt") for rank in (0, 1))
    for key, value in first.items():
        assert torch.equal(value, second[key]), key
    losses = [np.load(trained / f"{name} 2-losses-{rank}.npy") for rank in (0, 1)]
    assert np.array_equal(*losses)


def test_one_writes_what_one_process_would(trained: Path) -> None:
    files = [sorted(p.name for p in (trained / f"uneven {n}").iterdir()) for n in (1, 2)]
    assert files[0] == files[1]
    assert {"card.json", "model.safetensors", "seeds.safetensors", "log.csv"} <= set(files[0])
    logs = [list(csv.DictReader((trained / f"uneven {n}" / "log.csv").read_text().splitlines())) for n in (1, 2)]
    for key in ("epoch", "step", "held_out_clean", "held_out_pgd"):
        assert [row[key] for row in logs[0]] == [row[key] for row in logs[1]]


def test_a_run_changes_its_number_of_processes_in_mid_epoch(trained: Path) -> None:
    """Two, one, two: free's perturbation, of which each process has its rows, goes along."""
    whole, parts = (read_checkpoint(trained / name) for name in ("free 1", PARTS))
    assert parts["step"] == whole["step"]
    for key, value in whole["network"].items():
        assert torch.allclose(value, parts["network"][key], atol=2e-5, rtol=1e-3), key
    assert parts["perturbation"].shape == whole["perturbation"].shape
    assert torch.allclose(parts["perturbation"], whole["perturbation"], atol=1e-3)


# In one process: rows and draws


@pytest.mark.parametrize(("size", "batch", "accumulate"), [(2, 12, 1), (2, 15, 3), (3, 14, 2), (5, 5, 1)])
def test_every_row_is_taken_once_and_shares_add_up(size: int, batch: int, accumulate: int) -> None:
    teams = [Team(Workers(rank, size), batch_size=batch, accumulate=accumulate) for rank in range(size)]
    taken = torch.cat([team.rows for team in teams if team.rows is not None])
    assert sorted(taken.tolist()) == list(range(batch))
    assert sum(team.share for team in teams) == pytest.approx(1)
    for team in teams:
        assert team.rows is not None
        assert team.count == len(team.rows)
        part, parts = batch // accumulate, team.rows.split(team.count // accumulate)
        # Each part of what a process has lies in that part of the batch, and at the same places of each.
        assert 0 <= parts[0].min() <= parts[0].max() < part
        for index, rows in enumerate(parts):
            assert (rows - index * part).tolist() == parts[0].tolist()


def test_more_processes_than_images_are_refused() -> None:
    with pytest.raises(UserError, match=r"each of 4 processes, got 3; raise --batch-size"):
        Team(Workers(0, 4), batch_size=6, accumulate=2)


@pytest.mark.parametrize("crop", ["pad", "resized", "none"])
def test_an_augmentation_depends_on_the_place_in_the_whole_batch(crop: str) -> None:
    images, rows = torch.rand(7, 3, 16, 16), [1, 4, 6]
    settings = TrainSettings(crop=crop, jitter=0.3)
    whole = augment(images, settings, image_generators(3, range(7)), side=16)
    some = augment(images[rows], settings, image_generators(3, rows), side=16)
    assert torch.allclose(some, whole[rows], atol=1e-6)
    assert not torch.allclose(whole, images, atol=1e-2)


def test_one_process_is_alone() -> None:
    assert ALONE.alone
    assert Team().rows is None
    assert ALONE.gathered(3) == [3]
    assert ALONE.any(True, False) == [True, False]


@pytest.mark.parametrize("failing", [False, True])
def test_what_holds_the_group_of_processes_is_freed_with_it(monkeypatch: pytest.MonkeyPatch, failing: bool) -> None:
    """A group that lives until the interpreter ends aborts the process, which `torchrun` takes for a failure."""

    class Wrapped:
        """Holds itself, as DistributedDataParallel may."""

        def __init__(self) -> None:
            self.own = self

    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr("robustsynth.processes.dist.init_process_group", lambda *_, **__: None)
    monkeypatch.setattr("robustsynth.processes.dist.destroy_process_group", lambda: None)
    held: list[weakref.ref[Wrapped]] = []

    def work() -> None:
        wrapped = Wrapped()
        held.append(weakref.ref(wrapped))
        if failing:
            raise UserError("expected otherwise")

    with contextlib.suppress(UserError), Workers(0, 2).joined():
        work()
    assert held[0]() is None


# Under torchrun


def torchrun(*arguments: object, launcher: tuple[str, ...] = ()) -> list[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    return [*command, *launcher, "-m", "robustsynth", *map(str, arguments)]


def often(home: Path) -> Path:
    """The command line with a checkpoint at each epoch's end, however short: as if epochs took their minute."""
    program = home / "often.py"
    program.write_text(
        "import robustsynth.training.trainer as trainer\nfrom robustsynth.cli import main\n"
        "trainer.EPOCH_SECONDS = 0\nmain()\n",
        encoding="utf-8",
    )
    return program


def environment(home: Path) -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "ROBUSTSYNTH_CACHE": str(home / "cache")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home, data = tmp_path_factory.mktemp("toys"), pictures()
    for index, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
        path = home / "toys" / data.classes[label] / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return home / "toys"


LONG = [
    *("--architecture", "small-cnn", "--width", 2, "--attack-steps", 2, "--batch-size", 24, "--held-out", 12),
    *("--evaluate-every", 50, "--precision", "float32", "--device", "cpu", "--guard-every", 0),
]

RESTARTS = ("--max-restarts", "3")


def children_of(parent: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(parent)], capture_output=True, text=True, check=False)
    return [int(line) for line in listed.stdout.split()]


def wait_for(fulfilled: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not fulfilled():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.05)


def wait_for_step(out: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until the log has come to `step`."""
    log = out / "log.csv"
    wait_for(lambda: log.exists() and len(log.read_text().splitlines()) * 3 > step, process)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, folder: Path) -> dict[str, Any]:
    """The checkpoint of a run of two processes of which none was lost."""
    home = tmp_path_factory.mktemp("undisturbed")
    whole = torchrun("train", "--data", folder, "--out", home / "whole", *LONG, "--epochs", 150)
    subprocess.run(whole, env=environment(home), check=True, capture_output=True, timeout=400)
    return read_checkpoint(home / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saved", "victims"),
    [("often", [1]), ("often", [0]), ("often", [1, 0, 1]), ("at the beginning", [1])],
    ids=["another", "the first", "three, one after the other", "before a second checkpoint"],
)
def test_a_worker_that_is_killed_is_replaced_and_all_go_on_by_themselves(
    tmp_path: Path, folder: Path, undisturbed: dict[str, Any], saved: str, victims: list[int]
) -> None:
    out = tmp_path / "killed"
    command = torchrun("train", "--data", folder, "--out", out, *LONG, "--epochs", 150, launcher=RESTARTS)
    if saved == "often":
        place = command.index("-m", 2)
        command[place : place + 2] = [str(often(tmp_path))]
    with subprocess.Popen(command, env=environment(tmp_path), stderr=subprocess.PIPE, text=True) as process:
        for number, victim in enumerate(victims, start=1):
            wait_for_step(out, 30 * number, process)
            os.kill(children_of(process.pid)[victim], signal.SIGKILL)
            wait_for(lambda: not children_of(process.pid), process)
        told = process.communicate(timeout=400)[1]
    assert process.returncode == 0, told[-3000:]
    assert told.count("going on from step") == (len(victims) if saved == "often" else 0), told[-3000:]
    assert told.count("training small-cnn") == len(victims) + 1
    assert "best of the run" in told
    killed = read_checkpoint(out)
    assert killed["step"] == undisturbed["step"] == 450
    for key, value in undisturbed["network"].items():
        assert torch.equal(value, killed["network"][key]), key


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1, None])
def test_a_mistake_is_told_once_by_who_met_it(tmp_path: Path, folder: Path, rank: int | None) -> None:
    program = tmp_path / "mistaken.py"
    program.write_text(
        "import os\nimport robustsynth.cli.train as train\nfrom robustsynth.cli import main\n"
        "from robustsynth.errors import UserError\n\nreads = train._open\n\n"
        "def mistaken(*given, **options):\n"
        f"    if {rank} in (None, int(os.environ['RANK'])):\n"
        "        raise UserError('expected a folder, got none')\n"
        "    return reads(*given, **options)\n\ntrain._open = mistaken\nmain()\n",
        encoding="utf-8",
    )
    command = torchrun("train", "--data", folder, "--out", tmp_path / "out", *LONG, "--epochs", 2)
    place = command.index("-m", 2)
    command[place : place + 2] = [str(program)]
    done = subprocess.run(command, env=environment(tmp_path), check=False, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert done.stderr.count("expected a folder, got none") == 1, done.stderr[-3000:]
    assert ("process 2 of 2, on" in done.stderr) == (rank == 1)
    assert "RuntimeError" not in done.stderr


@pytest.mark.slow
def test_a_mistake_under_torchrun_does_not_become_a_resumed_run_when_it_tries_again(
    tmp_path: Path, folder: Path
) -> None:
    given = ["train", "--data", folder, "--out", tmp_path / "run", *LONG, "--epochs"]
    first = [sys.executable, "-m", "robustsynth", *map(str, [*given, 2])]
    subprocess.run(first, env=environment(tmp_path), check=True, capture_output=True, timeout=400)
    before = (tmp_path / "run" / "log.csv").read_bytes()
    again = torchrun(*given, 3, launcher=("--max-restarts", "1"))
    done = subprocess.run(again, env=environment(tmp_path), check=False, capture_output=True, text=True, timeout=400)
    assert done.returncode != 0
    assert done.stderr.count("expected an empty folder for a new run") == 2, done.stderr[-3000:]
    assert (tmp_path / "run" / "log.csv").read_bytes() == before


@pytest.mark.slow
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_launcher_stops_all_with_a_checkpoint(tmp_path: Path, folder: Path, asked: int) -> None:
    out = tmp_path / "stopped"
    command = torchrun("train", "--data", folder, "--out", out, *LONG, "--epochs", 100000)
    with subprocess.Popen(command, env=environment(tmp_path), stderr=subprocess.PIPE, text=True) as process:
        wait_for_step(out, 30, process)
        workers = children_of(process.pid)
        assert len(workers) == 2
        process.send_signal(asked)
        told = process.communicate(timeout=100)[1]
    assert process.returncode != 0
    assert "stopped at step" in told, told[-3000:]
    assert read_checkpoint(out)["step"] == int(told.split("stopped at step ")[1].split()[0])
    for worker in workers:
        assert not Path("/proc", str(worker)).exists()


@pytest.mark.slow
@pytest.mark.parametrize("file_format", ["png", "npz"])
def test_two_processes_draw_the_same_bytes_as_one(tmp_path: Path, digits_folder: Path, file_format: str) -> None:
    given = [
        "generate",
        "--model",
        digits_folder,
        "--classes",
        "1,4,7",
        "--num-images",
        11,
        "--steps",
        3,
        "--device",
        "cpu",
    ]
    given += ["--precision", "float32", "--batch-size", 2, "--format", file_format, "--out"]
    subprocess.run(torchrun(*given, tmp_path / "two"), env=environment(tmp_path), check=True, timeout=300)
    one = [sys.executable, "-m", "robustsynth", *map(str, given), str(tmp_path / "one")]
    subprocess.run(one, env=environment(tmp_path), check=True, timeout=300)
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "two").iterdir())
    assert len(names) == (13 if file_format == "png" else 2)
    for name in names:
        first, second = ((tmp_path / each / name).read_bytes() for each in ("one", "two"))
        if name == "samples.npz":
            arrays = [np.load(tmp_path / each / name) for each in ("one", "two")]
            assert all(np.array_equal(arrays[0][key], arrays[1][key]) for key in ("arr_0", "arr_1"))
        else:
            assert first == second, name


if __name__ == "__main__":
    program(Path(sys.argv[1]), sys.argv[2:])
