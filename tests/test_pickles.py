"""Pickles are read and never run: what is plain comes through, what is not is named, and nothing happens."""

from __future__ import annotations

import argparse
import collections
import contextlib
import copyreg
import datetime
import io
import os
import pickle
import pickletools
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from robustsynth.errors import UserError
from robustsynth.models.checkpoints import RefusedPickleError, StoredArray, open_checkpoint, read_pickle


def read(content: bytes):
    return read_pickle(io.BytesIO(content), "some.pt")


def read_or_refused(content: bytes) -> None:
    """Read it, or raise the one error that is for people."""
    with contextlib.suppress(UserError):
        read(content)


class Runs:
    """Pickled, it is a call of any function."""

    def __init__(self, function, *arguments):
        self.made = (function, arguments)

    def __reduce__(self):
        return self.made


@pytest.fixture
def trap(tmp_path, monkeypatch) -> Path:
    """A file in the current directory that hostile pickles would make, were they run."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "hit"


TOUCH = b"X\x09\x00\x00\x00touch hit"
SYSTEM = os.system.__module__.encode()

HOSTILE = {
    "GLOBAL, REDUCE": b"cos\nsystem\n(" + TOUCH + b"tR.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + TOUCH + b"\x85R.",
    "INST": b"(S'touch hit'\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\n" + TOUCH + b"o.",
    "NEWOBJ": b"\x80\x02cos\nsystem\n" + TOUCH + b"\x85\x81.",
    "NEWOBJ_EX": b"\x80\x04cos\nsystem\n" + TOUCH + b"\x85}\x92.",
    "a name alone": b"cos\nsystem\n.",
    "a module's import alone": b"cantigravity\nfly\n.",
    "builtins.eval": b"cbuiltins\neval\n(X\x1c\x00\x00\x00__import__('os').mkdir('hit')tR.",
    "builtins.getattr": b"cbuiltins\ngetattr\n(cbuiltins\nlist\nX\x06\x00\x00\x00appendtR.",
    "dotted": b"\x80\x04\x8c\x0bcollections\x8c\x16OrderedDict.__reduce__\x93.",
    "Python 2's": b"c__builtin__\nexecfile\n(S'hit'\ntR.",
    "through the memo": b"cos\nsystem\nq\x000h\x00" + TOUCH + b"\x85R.",
    "the memo is overwritten": b"ccollections\nOrderedDict\nq\x00cos\nsystem\nq\x000h\x00" + TOUCH + b"\x85R.",
    "nested in a dict": b"}X\x01\x00\x00\x00acos\nsystem\n(" + TOUCH + b"tRs.",
    "after something harmless": b"]cos\nsystem\n" + TOUCH + b"\x85Ra.",
    "dropped after the call": b"cos\nsystem\n" + TOUCH + b"\x85R0}.",
    "dill's _load_type": b"cdill._dill\n_load_type\n(S'FunctionType'\ntR.",
    "dill's _create_code": b"cdill._dill\n_create_code\n(I0\ntR.",
    "dill's _import_module": b"cdill._dill\n_import_module\n(S'os.system'\ntR.",
    "dill's _eval_repr": b"cdill._dill\n_eval_repr\n(" + TOUCH + b"tR.",
    "dill's _create_array of a call": b"cdill._dill\n_create_array\n(cos\nsystem\n" + TOUCH + b"\x85NtR.",
    "dill's type is called": b"cdill._dill\n_load_type\n(S'dict'\ntR)R.",
    "a reader inside": b"ctorch.storage\n_load_from_bytes\n(" + TOUCH + b"tR.",
    "torch.load": b"ctorch\nload\n(S'hit'\ntR.",
    "a state for a type": b"ccollections\nOrderedDict\n}X\x01\x00\x00\x00aI1\nsb.",
    "a state for a function": b"ctorch._utils\n_rebuild_tensor_v2\n}X\x0c\x00\x00\x00__defaults__I1\nsb.",
    "slots": b"ctorch._utils\n_rebuild_tensor_v2\nN}X\x0c\x00\x00\x00__defaults__I1\ns\x86b.",
    "the extension registry": b"\x80\x02\x82\xf0(" + TOUCH + b"tR.",
    "the extension registry, EXT2": b"\x80\x02\x83\xf0\x00(" + TOUCH + b"tR.",
    "the extension registry, EXT4": b"\x80\x02\x84\xf0\x00\x00\x00(" + TOUCH + b"tR.",
    "a textual reference": b"Pos.system\n.",
    "a reference to a module": b"(X\x06\x00\x00\x00moduleI1\ntQ.",
    "a reference that is a call": b"cos\nsystem\n" + TOUCH + b"\x85RQ.",
    "a storage that is no storage": b"(S'storage'\ncbuiltins\nint\nS'0'\nS'c'\nI1\ntQ.",
    "_reconstructor": b"ccopyreg\n_reconstructor\n(cos\nsystem\ncbuiltins\nobject\nNtR.",
    "_reconstructor of a plain type": b"ccopyreg\n_reconstructor\n(cbuiltins\nint\ncbuiltins\nobject\nNtR.",
    "an array of objects": pickle.dumps(np.array([print, None], dtype=object)),
    "a structured array": pickle.dumps(np.zeros(2, dtype=[("a", "f4"), ("b", "i4")])),
    "an encoding": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00bz2_ctR.",
    "many bytes out of nothing": b"cbuiltins\nbytearray\n(L1000000000000L\ntR.",
    "a buffer outside": b"\x80\x05\x97.",
    "a class of one's own": pickle.dumps(Runs(os.system, "touch hit")),
    "a lambda's type": b"ctypes\nFunctionType\n.",
    "hooks": pickle.dumps(collections.ChainMap({})),
    "a path that doubles itself": b"cpathlib\nPurePosixPath\np0\n(X\x08\x00\x00\x00aaaaaaaatRp1\n0"
    + b"g0\n(g1\ng1\ntRp1\n0" * 40
    + b"g1\n.",
    "a device that doubles itself": b"ctorch\ndevice\np0\n(X\x04\x00\x00\x00cudaX\x04\x00\x00\x00cudatR.",
    "a device of lists": b"ctorch\ndevice\n(]tR.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_pickle_is_refused_and_does_nothing(trap, name):
    before = set(sys.modules)
    with pytest.raises(
        RefusedPickleError, match=r"expected tensors and plain containers alone in some\.pt, got "
    ) as error:
        read(HOSTILE[name])
    assert not trap.exists()
    assert "antigravity" not in sys.modules
    assert not {m for m in set(sys.modules) - before if m.split(".")[0] in ("dill", "antigravity")}
    assert "nothing of it was run" in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("GLOBAL, REDUCE", "os.system"),
        ("STACK_GLOBAL", "posix.system"),
        ("INST", "os.system"),
        ("nested in a dict", "os.system"),
        ("dill's _load_type", "dill._dill._load_type of 'FunctionType'"),
        ("a reader inside", "torch.storage._load_from_bytes"),
        ("the extension registry", "EXT1"),
        ("a reference to a module", "a whole module"),
        ("a lambda's type", "types.FunctionType"),
    ],
)
def test_the_error_names_what_was_found(name, said):
    with pytest.raises(RefusedPickleError, match="got .*" + said.replace(".", r"\.")):
        read(HOSTILE[name])


def test_these_pickles_are_hostile_indeed(trap):
    """What the table calls hostile does something where it is run, or the tests above would prove nothing."""
    pickle.loads(HOSTILE["GLOBAL, REDUCE"])
    assert trap.exists()
    trap.unlink()
    pickle.loads(HOSTILE["a class of one's own"])
    assert trap.exists()


def test_the_extension_registry_is_not_asked(trap):
    copyreg.add_extension("os", "system", 240)
    try:
        pickle.loads(HOSTILE["the extension registry"])  # From here on the registry's cache holds os.system.
        assert trap.exists()
        trap.unlink()
        with pytest.raises(RefusedPickleError, match="EXT1"):
            read(HOSTILE["the extension registry"])
        assert not trap.exists()
    finally:
        copyreg.remove_extension("os", "system", 240)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("member", ["archive/data.pkl", "другое имя/data.pkl", "data.pkl"])
def test_a_hostile_checkpoint_is_refused(trap, legacy, member):
    path = trap.parent / "resnet.pt"
    good = {"model": {"a.weight": torch.zeros(2, 2)}, "epoch": Runs(os.system, "touch hit")}
    torch.save(good, path, _use_new_zipfile_serialization=not legacy)
    if not legacy:
        with zipfile.ZipFile(path) as archive:
            parts = {info.filename: archive.read(info) for info in archive.infolist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in parts.items():
                archive.writestr(member.removesuffix("data.pkl") + name.split("/", 1)[1], content)
    # Of an archive without a folder PyTorch's reader does not even see the pickle.
    unseen = member == "data.pkl" and not legacy
    said = "not in a subdirectory" if unseen else r"resnet\.pt, got \w+\.system"
    with pytest.raises(UserError if unseen else RefusedPickleError, match=said):
        open_checkpoint(path)
    assert not trap.exists()


@pytest.mark.parametrize("at", range(4))
def test_each_pickle_of_an_old_file_is_guarded(trap, at):
    """The format is a row of pickles before the numbers: magic number, version, system, contents, keys."""
    parts = [pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}, [])]
    parts[at + 1] = HOSTILE["GLOBAL, REDUCE"]
    path = trap.parent / "old.pt"
    path.write_bytes(b"".join(parts))
    with pytest.raises(RefusedPickleError, match=r"os\.system"):
        open_checkpoint(path)
    assert not trap.exists()


@pytest.mark.parametrize("code", [b"\x8d", b"\x8e", b"\x96"], ids=["text", "bytes", "bytearray"])
def test_a_value_that_claims_to_be_larger_than_all_memory_is_an_error(tmp_path, code):
    path = tmp_path / "a.pkl"
    path.write_bytes(b"\x80\x05" + code + (2**60).to_bytes(8, "little") + b"abc.")
    with pytest.raises(UserError, match=r"damaged or cut short|whole pickle"):
        open_checkpoint(path)


def test_a_pickled_network_is_refused_by_its_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole.pt")
    with pytest.raises(RefusedPickleError, match=r"torch\.nn\.modules\.linear\.Linear.*state_dict\(\) alone"):
        open_checkpoint(tmp_path / "whole.pt")


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
        | st.tuples(inner, inner)
        | st.sets(st.integers(), max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(value=plain, protocol=st.integers(0, 5))
def test_plain_values_come_through(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content):
    read_or_refused(content)


def test_a_text_with_an_impossible_escape_is_read_without_a_warning():
    assert read(b"S'\\o'\n.") == "\\o"


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_broken_pickle_is_read_or_refused(data):
    """Of a true state dict: cut short, or with a byte changed."""
    whole = bytearray(STATE)
    at = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        del whole[at:]
    else:
        whole[at] = data.draw(st.integers(0, 255))
    read_or_refused(bytes(whole))


def pickle_of(value) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return archive.read("archive/data.pkl")


STATE = pickle_of({"model": torch.nn.BatchNorm2d(2).state_dict(), "lr": 0.1})


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_what_training_scripts_save_beside_the_weights(protocol):
    contents = {
        "namespace": argparse.Namespace(lr=0.1, arch="resnet18"),
        "simple": types.SimpleNamespace(a=1),
        "ordered": collections.OrderedDict(a=1),
        "default": collections.defaultdict(list, a=[1]),
        "milestones": collections.Counter([60, 120]),
        "scalar": np.float64(0.5),
        "small": np.int32(-3),
        "path": __import__("pathlib").PurePosixPath("/a/b"),
        "size": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "set": frozenset([1]),
        "bytes": b"\x00\xff",
    }
    assert read(pickle.dumps(contents, protocol)) == {
        "namespace": {"lr": 0.1, "arch": "resnet18"},
        "simple": {"a": 1},
        "ordered": {"a": 1},
        "default": {"a": [1]},
        "milestones": {60: 1, 120: 1},
        "scalar": 0.5,
        "small": -3,
        "path": "/a/b",
        "size": (2, 3),
        "device": "cpu",
        "set": frozenset([1]),
        "bytes": b"\x00\xff",
    }


@pytest.mark.parametrize(
    ("value", "read_as"),
    [
        (np.str_("x"), "x"),
        (datetime.timedelta(1), (1, 0, 0)),
        (collections.deque([1], 3), [1]),
        (1j, (0.0, 1.0)),
        (range(3), (0, 3, 1)),
        (slice(3), (None, 3, None)),
        (torch.float32, torch.float32),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_harmless_values_beside_the_weights_come_through(protocol, value, read_as):
    assert read(pickle.dumps(value, protocol)) == read_as


@pytest.mark.parametrize("value", [np.array(["cat", "dog"]), datetime.datetime(2020, 1, 1), np.array([b"a"])])
def test_class_names_and_dates_come_through(value):
    found = read(pickle.dumps(value))
    assert isinstance(found, tuple) or found.array.tolist() == value.tolist()


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    "array", [np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.zeros(0)]
)
def test_arrays_come_through(protocol, array):
    found = read(pickle.dumps(array, protocol))
    assert isinstance(found, StoredArray)
    np.testing.assert_array_equal(found.array, array)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("with_dill", [False, True])
def test_tensors_come_through_as_torch_reads_them(tmp_path, legacy, with_dill):
    module = pytest.importorskip("dill") if with_dill else pickle
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {
        "whole": base,
        "view": base[1:3, ::2],
        "turned": base.T,
        "half": base.half(),
        "brain": base.bfloat16(),
        "double": base.double(),
        "counts": torch.arange(3),
        "truth": torch.tensor([True, False]),
        "byte": torch.arange(3, dtype=torch.uint8),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(base.clone()),
    }
    torch.save(
        {"model": tensors, "args": {"a": 1}}, tmp_path / "a.pt", module, _use_new_zipfile_serialization=not legacy
    )
    checkpoint = open_checkpoint(tmp_path / "a.pt")
    expected = torch.load(tmp_path / "a.pt", weights_only=True)["model"]
    for name, tensor in expected.items():
        found = checkpoint.contents["model"][name]
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor), name


def test_what_dill_adds_is_understood(tmp_path):
    dill = pytest.importorskip("dill")
    contents = {"type": dict, "array": np.arange(3.0), "scalar": np.float64(1.5), "args": argparse.Namespace(a=1)}
    torch.save(contents, tmp_path / "a.pt", pickle_module=dill)
    found = open_checkpoint(tmp_path / "a.pt").contents
    assert (str(found["type"]), found["scalar"], found["args"]) == ("builtins.dict", 1.5, {"a": 1})
    assert found["array"].array.tolist() == [0, 1, 2]


def test_what_dill_writes_of_code_is_refused(tmp_path):
    dill = pytest.importorskip("dill")
    torch.save({"model": {"a.b": torch.zeros(1)}, "schedule": lambda epoch: 0.1}, tmp_path / "a.pt", pickle_module=dill)
    with pytest.raises(RefusedPickleError, match=r"dill\._dill\._create_(function|code)"):
        open_checkpoint(tmp_path / "a.pt")


def tensor_pickle(numel: int, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """A state dict's pickle that says of a tensor whatever is asked."""

    def number(value: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", value)

    def numbers(values) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number(numel) + b"tQ"
    )
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(size) + numbers(stride)
    return b"\x80\x02}X\x03\x00\x00\x00a.b" + tensor + b"\x89}tRs."


def zip_of(folder: Path, pickled: bytes) -> Path:
    """A file as torch.save writes it, with the numbers of six zeros."""
    path = folder / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("data.pkl", pickled), ("version", b"3"), ("data/0", b"\x00" * 24)):
            archive.writestr(f"archive/{name}", content)
    return path


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        ((6, (10**6, 10**6), (0, 0)), "claims 1000000000000 numbers of 6"),
        ((6, (10**12,), (1,)), "claims 1000000000000 numbers of 6"),
        ((6, (2, 3), (10**11, 1)), "numbers of 6"),
        ((6, (2, 3), (3, 1), 1), "claims 7 numbers of 6"),
        ((6, (-2, 3), (3, 1)), "expected counts"),
        ((6, (2, 3), (-3, 1)), "expected counts"),
        ((6, (2, 3), (3,)), "sides"),
        ((6, (1,) * 100, (1,) * 100), "expected counts"),
        ((2**60, (2, 3), (3, 1)), "expected counts"),
    ],
)
def test_absurd_tensors_are_refused_before_they_are_made(tmp_path, tensor, said):
    with pytest.raises(UserError, match=said):
        open_checkpoint(zip_of(tmp_path, tensor_pickle(*tensor)))


def test_the_builder_of_absurd_tensors_builds_good_ones_too(tmp_path):
    found = open_checkpoint(zip_of(tmp_path, tensor_pickle(6, (2, 3), (3, 1)))).contents["a.b"]
    assert found.tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("numel", [5, 7, 10**12])
def test_numbers_that_a_zip_does_not_have(tmp_path, numel):
    path = zip_of(tmp_path, tensor_pickle(numel, (numel,), (1,)))
    with pytest.raises(UserError, match=rf"expected {4 * numel} bytes of numbers as data/0 in a\.pt, found 24 bytes"):
        open_checkpoint(path)


@pytest.mark.parametrize("name", ["archive/constants.pkl", "archive/code/constants.pkl"])
def test_a_program_is_not_opened(tmp_path, name):
    path = zip_of(tmp_path, tensor_pickle(6, (6,), (1,)))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"")
    with pytest.raises(UserError, match="TorchScript program, which would have to be run"):
        open_checkpoint(path)


def test_a_file_that_is_there_twice_is_not_opened(tmp_path):
    path = zip_of(tmp_path, tensor_pickle(6, (6,), (1,)))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("archive/data/0", b"\x00" * 4)
    with pytest.raises(UserError, match="no file twice"):
        open_checkpoint(path)


def test_numbers_that_an_old_file_leaves_out_are_not_made_up(tmp_path):
    path = tmp_path / "old.pt"
    torch.save({"a.b": torch.zeros(2, 3)}, path, _use_new_zipfile_serialization=False)
    with path.open("rb") as file:
        for _ in range(4):
            collections.deque(pickletools.genops(file), 0)
        at = file.tell()
    path.write_bytes(path.read_bytes()[:at] + pickle.dumps([], 2))
    with pytest.raises(UserError, match="the numbers of every storage"):
        open_checkpoint(path)


def test_a_zip_bomb_is_not_opened(tmp_path):
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", tensor_pickle(6, (6,), (1,)))
        archive.writestr("archive/data/0", b"\x00" * 10**7)
    with pytest.raises(UserError, match="stored plainly"):
        open_checkpoint(path)


@pytest.mark.parametrize("depth", [60])
def test_values_that_double_themselves_take_no_time(tmp_path, depth):
    """Each tuple holds the one before twice: whoever hashes, prints or walks it goes 2^60 ways."""
    doubled = b"(I1\nt" + b"2\x86" * depth
    for content in (
        b"}" + doubled + b"I1\ns.",
        doubled + b"Q.",
        b"(X\x07\x00\x00\x00storage" + doubled + doubled + b"I1\nI1\ntQ.",
    ):
        with pytest.raises(UserError, match=r"some\.pt"):
            read(content)
    assert isinstance(read(doubled + b"."), tuple)
    old = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {}))
    path = tmp_path / "old.pt"
    path.write_bytes(old + b"]" + doubled + b"a.")
    with pytest.raises(UserError, match="every storage"):
        open_checkpoint(path)
    for size in (doubled, b"(" + doubled + b"t"):
        content = b"ctorch._utils\n_rebuild_tensor_v2\n(NI0\n" + size + doubled + b"tR."
        with pytest.raises(UserError, match=r"some\.pt"):
            read(content)


def test_storages_that_claim_the_file_again_and_again_are_not_made(tmp_path):
    """An old file's storages are made before their numbers are read."""
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nI%d\nX\x03\x00\x00\x00cpuI%d\nNtQ"
    contents = b"(l" + b"".join(storage % (key, 900) + b"a" for key in range(3)) + b"."
    old = b"".join(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path = tmp_path / "old.pt"
    path.write_bytes(old + contents + pickle.dumps([0, 1, 2], 2) + b"\x00" * 4000)
    with pytest.raises(UserError, match="3600 bytes of numbers in old"):
        open_checkpoint(path)
