"""The frozen classifier: the same function, frozen, and its precision measured once."""

from __future__ import annotations

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from conftest import VERY_DEEP, random_statistics
from robustsynth.errors import UserError
from robustsynth.models import execution
from robustsynth.models.classifier import Classifier
from robustsynth.models.execution import PRECISIONS, Execution, chosen_execution, machine_name, processor_kind
from robustsynth.models.folding import fold_batch_norm, reducible
from robustsynth.models.networks import ARCHITECTURES, build_network
from robustsynth.models.store import load_model

# ---- folding ------------------------------------------------------------------------------------------------------


class ControlFlow(nn.Module):
    """Cannot be traced: what it does depends on the numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(x))
        return x * 2 if bool((x > -1e9).any()) else x


class WithOptions(nn.Module):
    """Options as those of the authors' ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x, with_latent=False, fake_relu=False, no_relu=False, scale=1.0, name=None):
        latent = self.bn(self.conv(x))
        latent = latent if no_relu else F.relu(latent) * scale
        if fake_relu:
            raise AssertionError("not asked for")
        out = self.fc(latent.mean((2, 3)))
        return (out, latent) if with_latent else out


class Shared(nn.Module):
    """One convolution before two normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.conv(F.relu(self.first(self.conv(x)))))


class Forked(nn.Module):
    """What the convolution gives is used beside its normalisation too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.bn(x) + x


class WeightUsedTwice(nn.Module):
    """The convolution's own numbers are used a second time, without its module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.bn(self.conv(x)), self.conv.weight, padding=1)


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(input=self.conv(input=x))


class OneNormTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.bn = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.b(self.bn(self.a(x))))


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6))
    net[0].register_forward_hook(lambda module, inputs, output: output + 1)
    return net


NETWORKS = {
    "control flow": (ControlFlow, 1),
    "options": (WithOptions, 0),
    "a shared convolution": (Shared, 2),
    "a forked convolution": (Forked, 1),
    "a weight used twice": (WeightUsedTwice, 1),
    "called by keyword": (ByKeyword, None),
    "one norm twice": (OneNormTwice, None),
    "a hook between": (hooked, 1),
    "not after a convolution": (lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 6, 3)), 1),
    "after an activation": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.BatchNorm2d(6)), 1),
    "two norms in a row": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.BatchNorm2d(6)), None),
    "groups": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, groups=3, bias=False), nn.BatchNorm2d(6)), 0),
    "a bias": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, bias=True), nn.BatchNorm2d(6)), 0),
    "dilated": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, dilation=2, padding="same"), nn.BatchNorm2d(6)), 0),
    "without factors": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, affine=False)), 0),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(3, 6, 3), nn.BatchNorm2d(6)), 1),
    "parametrised": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 6, 3)), nn.BatchNorm2d(6)),
        1,
    ),
}
"""A network, and how many batch norms must be left; None where that may be as it is."""
PREACTIVATED = {
    **{"preact-resnet18": 9, "preact-resnet18-plain": 8, "preact-resnet18-early": 8, "preact-resnet18-silu": 9},
    **{"wide-resnet28-4": 12, "wide-resnet28-10": 12, "wide-resnet34-10": 15, "wide-resnet34-20": 15},
    **{"wide-resnet28-10-silu": 13, "wide-resnet34-10-silu": 16, "wide-resnet70-16-silu": 34},
}
"""How many of their batch norms come after a sum, where there is no one convolution to fold them into."""
NETWORKS |= {
    name: (lambda name=name: build_network(name, classes=5, width=4, image_size=16), PREACTIVATED.get(name, 0))
    for name in ARCHITECTURES
}


def norms(network: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize(("build", "left"), NETWORKS.values(), ids=NETWORKS)
def test_folding_keeps_the_function(build, left):
    torch.manual_seed(0)
    network = random_statistics(build()).double()
    network.train()
    before = copy.deepcopy(network.state_dict())
    folded = fold_batch_norm(network)
    images = torch.rand(3, 3, 16, 16, dtype=torch.float64)
    assert network.training, "the original is left as it was"
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())
    assert not folded.training
    torch.testing.assert_close(folded(images), network.eval()(images), rtol=1e-9, atol=1e-9)
    if left is not None:
        assert norms(folded) == left


def test_a_norm_of_the_batch_itself_stays():
    network = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6, track_running_stats=False))
    assert norms(fold_batch_norm(network)) == 1


def test_the_registered_networks_are_reducible_when_folded():
    for name in ARCHITECTURES:
        network = build_network(name, classes=5, width=4, image_size=16)
        assert reducible(fold_batch_norm(network)) == (name not in PREACTIVATED), name
    assert not reducible(nn.Sequential(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6)))
    own = nn.Sequential(nn.Flatten())
    own.register_parameter("scale", nn.Parameter(torch.ones(1)))
    assert not reducible(own)


# ---- the frozen classifier -------------------------------------------------------------------------------------------


def wrapped(build, size: int = 16) -> Classifier:
    torch.manual_seed(0)
    network = random_statistics(build())
    with torch.no_grad():
        count = network(torch.zeros(2, 3, size, size)).flatten(1).shape[1]
    return Classifier.wrap(network, classes=max(2, count), mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25], image_size=size)


BUILDS = {
    n: lambda n=n: build_network(n, classes=5, width=8, image_size=16) for n in ARCHITECTURES if n not in VERY_DEEP
}
BUILDS |= {
    "options": WithOptions,
    "norms that stay": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)
    ),
}


def gradient(network, images: Tensor) -> Tensor:
    x = images.clone().requires_grad_(True)
    loss = F.cross_entropy(network(x), torch.zeros(len(x), dtype=torch.long), reduction="sum")
    return torch.autograd.grad(loss, x)[0]


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_the_frozen_one_is_the_classifier(build):
    model = wrapped(build).eval()
    images = torch.rand(8, 3, 16, 16)
    frozen = model.frozen(precision="float32", batch_size=4)
    with torch.no_grad():
        torch.testing.assert_close(frozen(images), model(images), rtol=0, atol=1e-4)
        torch.testing.assert_close(frozen.features(images), model.features(images), rtol=1e-4, atol=1e-4)
    # In float64: in float32 the two layouts' rounding opens a ReLU here and there in networks of thirty layers.
    exact, images = model.double(), images.double()
    frozen = exact.frozen(precision="float32", batch_size=4)
    torch.testing.assert_close(gradient(frozen, images), gradient(exact, images), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("build", BUILDS.values(), ids=BUILDS)
def test_reduced_precision_points_the_same_way(build):
    model, images = wrapped(build), torch.rand(8, 3, 16, 16)
    exact = gradient(model, images)
    reduced = gradient(model.frozen(precision="bfloat16", batch_size=4), images)
    assert reduced.dtype == torch.float32
    assert not torch.equal(exact, reduced)
    with torch.autocast("cpu", torch.bfloat16):
        autocast = gradient(lambda x: model(x).float(), images)
    near, usual = (float(F.cosine_similarity(exact.flatten(), g.flatten(), dim=0)) for g in (reduced, autocast))
    # Untrained networks of fifty layers lose more than trained ones, with autocast as well.
    assert near > 0.95 or near > usual - 0.02


def test_the_original_is_untouched(tiny):
    tiny.train()
    before = copy.deepcopy(tiny.state_dict())
    pointers = [p.data_ptr() for p in tiny.parameters()]
    frozen = tiny.frozen(precision="bfloat16", batch_size=2)
    gradient(frozen, torch.rand(2, 3, 16, 16))
    assert tiny.training
    assert all(p.requires_grad and p.grad is None and p.dtype == torch.float32 for p in tiny.parameters())
    assert [p.data_ptr() for p in tiny.parameters()] == pointers
    assert all(torch.equal(before[k], v) for k, v in tiny.state_dict().items())
    assert all(p.is_contiguous() for p in tiny.parameters()), "channels-last is the frozen one's alone"
    assert not any(p.requires_grad for p in frozen.parameters())
    assert not frozen.training
    own = {p.data_ptr() for p in tiny.parameters()}
    assert not own & {p.data_ptr() for p in frozen.parameters()}


def test_a_frozen_classifier_is_built_once(tiny):
    first = tiny.frozen(precision="float32", batch_size=4)
    assert tiny.frozen(precision="float32", batch_size=4) is first
    assert tiny.frozen(precision="float32", batch_size=8) is not first
    assert tiny.frozen(precision="float32", batch_size=4).execution.batch_size == 4


def step_of_training(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.rand(2, 3, 16, 16)).sum().backward()
    optimizer.step()


def exchange_the_head(model):
    head = nn.Linear(model.network.fc.in_features, 3)
    model.network.fc = head


def load_state(model):
    model.load_state_dict({k: v * 1.5 if v.is_floating_point() else v for k, v in model.state_dict().items()})


def assign_state(model):
    state = {k: v.clone() * 1.5 if v.is_floating_point() else v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(state, assign=True)


def assign_data(model):
    for p in model.parameters():
        p.data = p.data * 1.5


def statistics_alone(model):
    model.train()
    with torch.no_grad():
        model(torch.rand(8, 3, 16, 16) * 0.1)
    model.eval()


@pytest.mark.parametrize(
    "change", [step_of_training, exchange_the_head, load_state, assign_state, assign_data, statistics_alone]
)
def test_changed_weights_give_a_new_frozen_classifier(tiny, change):
    images = torch.rand(2, 3, 16, 16)
    first = tiny.frozen(precision="float32", batch_size=4)
    change(tiny)
    tiny.eval()
    second = tiny.frozen(precision="float32", batch_size=4)
    assert second is not first
    with torch.no_grad():
        torch.testing.assert_close(second(images), tiny(images), rtol=1e-4, atol=1e-4)


def test_double_precision_images_pass(tiny):
    for precision in PRECISIONS:
        if precision == "bfloat16":
            images = torch.rand(2, 3, 16, 16, dtype=torch.float64)
            assert tiny.frozen(precision=precision, batch_size=2)(images).dtype == torch.float64


@pytest.mark.parametrize("wrong", [{"precision": "float16"}, {"batch_size": 0}, {"batch_size": -3}])
def test_bad_execution(tiny, wrong):
    with pytest.raises(UserError, match=r"expected a (precision|batch size) of"):
        tiny.frozen(**wrong)


# ---- measured once ------------------------------------------------------------------------------------------------


@pytest.fixture
def measured(tmp_path, monkeypatch) -> list[str]:
    """A cache of one's own, and the measurements that were made; these cost nothing here."""
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "own"))
    seen: list[str] = []

    def fastest(candidates, images):
        seen.append("precision")
        assert list(candidates) == ["float32", "bfloat16"], "float32 goes first, it sets the limit"
        return "bfloat16"

    def times(network, images, sizes):
        seen.append("batch")
        return {n: 1.0 * n if n == 2 else 1.5 * n for n in sizes}

    monkeypatch.setattr(execution, "fastest_precision", fastest)
    monkeypatch.setattr(execution, "seconds_a_batch", times)
    return seen


def test_what_was_measured_is_remembered(tiny_folder, measured):
    first = load_model(tiny_folder, device="cpu").frozen().execution
    assert first == Execution("bfloat16", 2, measured=True)
    assert measured == ["precision", "batch"]
    again = load_model(tiny_folder, device="cpu").frozen()
    assert again.execution == first
    assert again.precision == "bfloat16"
    assert measured == ["precision", "batch"]


def test_another_model_or_machine_is_measured_anew(tiny_folder, digits_folder, measured, monkeypatch):
    load_model(tiny_folder, device="cpu").frozen()
    load_model(digits_folder, device="cpu").frozen()
    assert measured == ["precision", "batch"] * 2
    for name in ("machine_name", "processor_kind"):
        monkeypatch.setattr(execution, name, lambda *_: "another")
        load_model(tiny_folder, device="cpu").frozen()
    assert measured == ["precision", "batch"] * 4


def test_what_is_given_is_not_measured(tiny, measured):
    assert tiny.frozen(precision="float32", batch_size=3).execution == Execution("float32", 3, measured=False)
    assert measured == []
    assert tiny.frozen(precision="float32").execution.precision == "float32"
    assert measured == ["batch"]
    assert tiny.frozen(batch_size=5).execution.batch_size == 5
    assert measured == ["batch", "precision"]


DAMAGED = [
    "",
    "{",
    "[]",
    "null",
    "{}",
    "\x00\xff",
    '{"precision": "float32"}',
    '{"precision": "bfloat16", "batch_size": 8, "measured": true}',
    '{"precision": "fast", "seconds": {}}',
    '{"precision": "bfloat16", "seconds": {"bfloat16": {"0": 1.0}}}',
    '{"precision": "bfloat16", "seconds": {"bfloat16": {"8": -1.0}}}',
    '{"precision": "bfloat16", "seconds": {"bfloat16": {"8": "long"}}}',
    '{"precision": "bfloat16", "seconds": {"bfloat16": 8}}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_cache_is_measured_anew(tiny_folder, measured, tmp_path, content):
    expected = load_model(tiny_folder, device="cpu").frozen().execution
    (file,) = (tmp_path / "own" / "execution").iterdir()
    file.write_text(content, encoding="latin-1")
    assert load_model(tiny_folder, device="cpu").frozen().execution == expected
    assert measured == ["precision", "batch"] * 2
    assert json.loads(file.read_text())["precision"] == expected.precision


def test_a_cache_that_cannot_be_written_stops_nobody(tiny, measured, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "file" / "below"))
    assert tiny.frozen().execution.precision == "bfloat16"


class Slow(nn.Module):
    """Takes as long as it is told, and counts its passes."""

    def __init__(self, seconds: float, clock: list[float]) -> None:
        super().__init__()
        self.seconds, self.clock, self.sizes = seconds, clock, []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        self.clock[0] += self.seconds * len(x)
        return x.flatten(1)


@pytest.fixture
def clock(monkeypatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr(execution.time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize(("reduced", "chosen"), [(0.0004, "bfloat16"), (0.003, "float32"), (5.0, "float32")])
def test_the_fastest_precision_is_chosen(clock, reduced, chosen):
    candidates = {"float32": Slow(0.001, clock), "bfloat16": Slow(reduced, clock)}
    assert execution.fastest_precision(candidates, torch.rand(8, 1, 2, 2)) == chosen
    if reduced == 5.0:
        assert candidates["bfloat16"].sizes == [1], "what is slower by thousands is tried on one image alone"
    else:
        assert clock[0] < 4 * execution.BUDGET


def test_the_times_of_batches_are_those_of_one_pass(clock):
    times = execution.seconds_a_batch(Slow(0.001, clock), torch.rand(4, 1, 2, 2), (1, 2, 4))
    assert times == pytest.approx({1: 0.001, 2: 0.002, 4: 0.004})
    assert clock[0] < 2 * execution.BUDGET


OVERHEAD = {n: 0.004 + 0.001 * n for n in (1, 2, 4, 8, 16, 32)}
"""Seconds of a batch on a machine on which each batch has a price of its own."""


@pytest.mark.parametrize(
    ("images", "chosen"), [(1, 1), (2, 2), (3, 4), (5, 8), (16, 16), (17, 8), (40, 8), (1000, 32), (None, 32)]
)
def test_the_batch_that_takes_all_images_least_time(images, chosen):
    assert execution.best_batch(OVERHEAD, list(OVERHEAD), images) == chosen


@pytest.mark.parametrize("images", [1, 5, 16, 1000, None])
def test_of_batches_that_are_as_good_the_smallest(images):
    assert execution.best_batch({n: 0.1 * n for n in OVERHEAD}, list(OVERHEAD), images) == 1


def test_one_image_pays_for_no_padding_and_no_measurement(tiny_folder, measured):
    assert load_model(tiny_folder, device="cpu").frozen(images=1).execution.batch_size == 1
    assert measured == ["precision"]


def test_more_images_measure_larger_batches_once(tiny_folder, measured):
    for images in (3, 4, 16, 1000, None, 1000, 3):
        load_model(tiny_folder, device="cpu").frozen(images=images)
    assert measured == ["precision", "batch", "batch", "batch"]


def test_batches_of_several_sizes_share_one_network(tiny):
    small, large = (tiny.frozen(precision="float32", batch_size=n) for n in (1, 8))
    assert (small.execution.batch_size, large.execution.batch_size) == (1, 8)
    assert small.network is large.network
    assert tiny.frozen(precision="float32", batch_size=8) is large


def test_the_true_measurement_is_short(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUSTSYNTH_CACHE", str(tmp_path / "own"))
    chosen = load_model(tiny_folder, device="cpu").frozen().execution
    assert chosen.precision in PRECISIONS
    assert chosen.measured
    assert chosen.batch_size in execution.batch_sizes(16, torch.device("cpu"))


def test_the_machine_is_named():
    assert machine_name(torch.device("cpu")).endswith("threads")
    assert processor_kind()


def test_given_execution_needs_no_model():
    of_none = {"network": None, "image_size": None, "channels": 3, "device": torch.device("cpu")}
    assert chosen_execution(None, **of_none, precision="float32", batch_size=2).as_dict() == {
        "precision": "float32",
        "batch_size": 2,
        "measured": False,
    }
