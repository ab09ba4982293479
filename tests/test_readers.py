"""Files of weights as the real frameworks wrote them (golden/weights/make.py), and bad ones.

Hostile files by the thousand are in fuzz_readers.py.
"""

import json
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path

import fuzz_readers
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls.convert import readers
from jaxcls.convert.__main__ import main

WEIGHTS = Path(__file__).parent / "golden" / "weights"
TORCH = {
    "transposed": np.arange(12, dtype=np.float32).reshape(3, 4).T,
    "half": np.arange(5).astype(np.float16) / 2,
    "bfloat16": (np.arange(3) / 4).astype(jnp.bfloat16),
    "view": np.arange(3, 7, dtype=np.float32),
    "scalar": np.int64(3),
    "parameter": np.arange(4, dtype=np.float32).reshape(2, 2),
}


def assert_same(arrays, expected):
    assert arrays.keys() == expected.keys()
    for name, array in arrays.items():
        assert array.dtype == expected[name].dtype
        np.testing.assert_array_equal(array, expected[name], strict=False)


@pytest.mark.parametrize("file", ["new.pth", "old.pth", "training.pt"])
def test_pytorch(file):
    assert_same(readers.read(WEIGHTS / file), TORCH)


def test_several_sets_of_weights():
    assert_same(readers.read(WEIGHTS / "two.pt", "model_ema"), TORCH)
    with pytest.raises(ValueError, match="several sets of weights, model, model_ema: choose one"):
        readers.read(WEIGHTS / "two.pt")
    with pytest.raises(ValueError, match="no weights 'ema': choose one of model, model_ema"):
        readers.read(WEIGHTS / "two.pt", "ema")
    with pytest.raises(ValueError, match="no weights 'ema': it has only one set"):
        readers.read(WEIGHTS / "new.pth", "ema")


def test_a_message_shows_ten_names_of_a_file(tmp_path):
    sets = {f"set{i}\x1b[31m": {"w": np.zeros(2)} for i in range(2000)}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(sets))
    with pytest.raises(ValueError) as e:
        readers.read(tmp_path / "w.pdparams")
    assert r"weights, set0\x1b[31m, set1\x1b[31m, " in str(e.value)
    assert r"set9\x1b[31m and 1,990 more: choose one" in str(e.value)


@pytest.mark.parametrize("file", ["model.pdparams", "old_protocol.pdparams"])
def test_paddle(file):
    shapes = {"0.weight": (2, 3), "0.bias": (3,), "1.weight": (3,), "1.bias": (3,)}
    shapes |= {"1._mean": (3,), "1._variance": (3,)}
    expected = {
        name: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) + i
        for i, (name, shape) in enumerate(shapes.items())
    }
    assert_same(readers.read(WEIGHTS / file), expected)


def test_paddle_cuts_large_arrays_of_old_protocols(tmp_path):
    whole = np.arange(12, dtype=np.float32)
    parts = {f"w@@.{i}": part for i, part in enumerate(np.split(whole, 3))}
    cut = {"w": {"OriginShape": [3, 4], "slices": list(parts)}}
    content = {"b": whole[:2], **parts, "UnpackBigParamInfor@@": cut}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(content, protocol=2))
    assert_same(readers.read(tmp_path / "w.pdparams"), {"b": whole[:2], "w": whole.reshape(3, 4)})


@pytest.mark.parametrize("file", ["new.safetensors", "plain.npz", "packed.npz"])
def test_safetensors_and_npz(file):
    numpy = {name: array for name, array in TORCH.items() if array.dtype != jnp.bfloat16}
    assert_same(readers.read(WEIGHTS / file), numpy if file.endswith(".npz") else TORCH)


@pytest.mark.parametrize("protocol", range(6))
def test_all_that_a_checkpoint_holds(tmp_path, protocol):
    whole = np.arange(24).reshape(2, 3, 4)
    kinds = ("f2", "f4", ">f4", "f8", "i1", "i2", ">i8", "u1", "u8", "?")
    arrays = {kind: whole.astype(kind) for kind in kinds}
    arrays |= {"Fortran": np.asfortranarray(whole), "axes": whole.transpose(1, 2, 0)}
    arrays |= {"part": whole[:, 1:, ::2], "empty": whole[:, :0], "scalar": np.array(3.0)}
    arrays["again"] = arrays["f4"]
    rest = {"epoch": 3, "best": np.float32(0.5), "rng": np.random.get_state(), "set": {1, "a"}}
    rest |= {"history": [1.5, None, True], "large": 1 << 127, 1: {(1, 2): "x"}, "ordered": [(1, 2)]}
    content = OrderedDict(arrays, **{"rest": OrderedDict(rest)})
    content.version = 1  # an attribute, as PyTorch's _metadata
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(content, protocol))
    assert_same(readers.read(tmp_path / "w.pdparams"), arrays)


def test_bfloat16_of_safetensors(tmp_path):
    # The format: length and JSON of the header, then the numbers. 0x3F80 is 1 in bfloat16.
    header = b'{"x":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]}}'
    data = len(header).to_bytes(8, "little") + header + b"\x80\x3f\x00\xc0"
    (tmp_path / "w.safetensors").write_bytes(data)
    assert_same(readers.read(tmp_path / "w.safetensors"), {"x": np.array([1, -2], jnp.bfloat16)})


class Harm:
    """Unpickled by an ordinary unpickler it makes a directory."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("suffix", [".pdparams", ".pth"])
def test_a_pickle_with_code_is_refused(tmp_path, suffix, protocol):
    content = pickle.dumps({"w": np.zeros(3), "harm": Harm(tmp_path / "made")}, protocol)
    (tmp_path / f"w{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match=r"asks for \w+\.mkdir. It is not read"):
        readers.read(tmp_path / f"w{suffix}")
    assert not (tmp_path / "made").exists()
    pickle.loads(content)  # it would have
    assert (tmp_path / "made").exists()


@pytest.mark.parametrize(
    "name", ["builtins.eval", "builtins.getattr", "numpy.load", "functools.partial", "torch.load"]
)
def test_functions_and_classes_are_refused(tmp_path, name):
    module, function = name.split(".")
    (tmp_path / "w.pdparams").write_bytes(f"c{module}\n{function}\n(tR.".encode())
    with pytest.raises(ValueError, match=f"the pickle asks for {name}"):
        readers.read(tmp_path / "w.pdparams")


def test_a_module_is_not_a_state_dict():
    with pytest.raises(ValueError, match=r"asks for torch\.nn\.modules\.linear\.Linear"):
        readers.read(WEIGHTS / "module.pt")


def test_arrays_of_python_objects_are_refused(tmp_path):
    content = {"w": np.array(["a", None], object)}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match="an array of .O8., not of numbers"):
        readers.read(tmp_path / "w.pdparams")
    np.savez(tmp_path / "w.npz", **content)
    with pytest.raises(ValueError, match="w.npy is not an array of numbers"):
        readers.read(tmp_path / "w.npz")


def test_a_tensor_outside_its_storage_is_refused(tmp_path):
    data = bytearray((WEIGHTS / "old.pth").read_bytes())
    at = data.index(b"transposed")
    shape = data.index(b"K\x04K\x03\x86", at)  # the tuple (4, 3) of the first tensor
    data[shape + 1] = 200
    (tmp_path / "w.pth").write_bytes(data)
    with pytest.raises(ValueError, match=r"a tensor of \(200, 3\) needs more than 12 numbers"):
        readers.read(tmp_path / "w.pth")


def test_a_tensor_whose_sign_is_to_be_changed_is_refused(tmp_path):
    view = fuzz_readers.tensor(
        fuzz_readers.storage(),
        *(fuzz_readers.number(0), fuzz_readers.numbers(4), fuzz_readers.numbers(1)),
        *(b"\x89", fuzz_readers.DICT, fuzz_readers.table(neg=fuzz_readers.TRUE)),
    )
    (tmp_path / "w.pth").write_bytes(fuzz_readers.torch_zip(view).data)
    with pytest.raises(ValueError, match=r"a tensor that is a view: save what clone\(\) returns"):
        readers.read(tmp_path / "w.pth")


def test_the_state_of_a_random_generator_is_no_set_of_weights(tmp_path):
    weights = {"w": np.zeros(3, np.float32), "steps": np.zeros(3, np.int64)}
    content = {"rng": np.zeros(8, np.uint8), "model": weights}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(content))
    assert_same(readers.read(tmp_path / "w.pdparams"), weights)
    content = {"rng": np.zeros(8, np.uint8)}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(content))
    assert_same(readers.read(tmp_path / "w.pdparams"), content)


@pytest.fixture(scope="module")
def hostile():
    return dict(fuzz_readers.hostile())


def test_what_expand_makes_is_refused(tmp_path, hostile):
    (tmp_path / "w.pth").write_bytes(hostile["arguments: many zero strides"].data)
    with pytest.raises(ValueError, match=r"256\) has 4 numbers: save what clone\(\) returns"):
        readers.read(tmp_path / "w.pth")


def fuzz(*arguments):
    command = [sys.executable, fuzz_readers.__file__, *arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    counts = json.loads(done.stdout)
    assert not counts["by hand"]["problems"]
    assert not counts["mutations"]["problems"]
    assert min(counts["by hand"][end] for end in ("arrays", "refused")) > 200
    return counts["mutations"]


@pytest.mark.ci
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process takes")
def test_hostile_files():
    counts = fuzz("--mutations=500", "--batch=100")
    assert counts["arrays"] > 10
    assert counts["refused"] > 400


@pytest.mark.zoo
def test_hostile_files_each_in_a_process_of_its_own():
    counts = fuzz("--mutations=20000", "--batch=1")
    assert counts["arrays"] + counts["refused"] == 20_000


@pytest.mark.parametrize(
    ("limits", "file", "text"),
    [
        ({"pickles.MAX_STEPS": 20}, "model.pdparams", "its pickle has more than 20 steps"),
        ({"pickles.MAX_BITS": 8}, "old.pth", "an integer of"),
        ({"readers.MAX_NAME": 3}, "new.pth", '"transposed" is no name of a tensor'),
        ({"zips.MAX_MEMBERS": 2}, "plain.npz", "there are more than 2 files in it"),
        ({"zips._Limited.limit": 64}, "plain.npz", "its table of contents has"),
        ({"zips.MAX_RATIO": 0, "zips.MAX_HEADER": 64}, "packed.npz", "the files in it claim"),
        (
            {"readers.MAX_HEADER": 64},
            "new.safetensors",
            "its header is not one, or of more than 64 bytes",
        ),
    ],
)
def test_limits_hold(monkeypatch, limits, file, text):
    """Of files that are sound, and larger than that."""
    for name, value in limits.items():
        monkeypatch.setattr(f"jaxcls.convert.{name}", value)
    with pytest.raises(ValueError, match=re.escape(text)):
        readers.read(WEIGHTS / file)


def test_nothing_of_a_file_counts_more_often_than_it_is_there(tmp_path):
    part = np.zeros(100, np.float32)
    cut = {"w": {"OriginShape": [10, 100], "slices": [f"w{i}" for i in range(10)]}}
    again = {"a": part, **{f"w{i}": part for i in range(10)}, "UnpackBigParamInfor@@": cut}
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps(again, 4))
    with pytest.raises(ValueError, match="its cut arrays have more numbers than the file"):
        readers.read(tmp_path / "w.pdparams")

    text = fuzz_readers.text("x" * 1000) + b"q\x00"
    encoded = fuzz_readers.call("_codecs.encode", b"h\x00", fuzz_readers.text("latin1"))
    (tmp_path / "w.pdparams").write_bytes(
        b"\x80\x02" + text + fuzz_readers.many(*[encoded] * 100) + b"."
    )
    with pytest.raises(ValueError, match="it encodes more text than it has"):
        readers.read(tmp_path / "w.pdparams")

    (tmp_path / "w.pdparams").write_bytes(b"\x80\x02Nr\xff\xff\xff\x7f.")  # memo[2^31 - 1] = None
    with pytest.raises(ValueError, match="a value is remembered out of turn"):
        readers.read(tmp_path / "w.pdparams")

    with zipfile.ZipFile(tmp_path / "w.npz", "w") as archive:
        archive.writestr("w.npy", b"")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("w.npy", b"")
    with pytest.raises(ValueError, match="two files of one name in it"):
        readers.read(tmp_path / "w.npz")


def test_arrays_whose_header_lies_are_refused(tmp_path):
    """They have the bytes of their numbers, neither fewer nor more, and no fields."""
    make = fuzz_readers
    number, text, raw = make.number, make.text, make.raw
    plain = make.dtype()
    eight = lambda count, kind=plain: make.array(make.numbers(count), kind, raw(bytes(8)))
    fields = make.table(a=make.many(plain, number(0)))
    record = make.many(
        *(number(3), text("<"), make.NONE, make.many(text("a")), fields),
        *(number(4), number(4), number(0)),
    )
    for array, message in (
        (eight(1), r"an array of \(1,\) has 8 bytes instead of 4"),
        (eight(3), r"an array of \(3,\) has 8 bytes instead of 12"),
        (eight(2, make.dtype(state=record)), "it has an array of records"),
        (eight(2, make.dtype(state=record.replace(b"<", b"?"))), "it has an array of records"),
    ):
        (tmp_path / "w.pdparams").write_bytes(make.weights(array).data)
        with pytest.raises(ValueError, match=message):
            readers.read(tmp_path / "w.pdparams")
    (tmp_path / "w.pdparams").write_bytes(make.weights(eight(2)).data)
    assert readers.read(tmp_path / "w.pdparams")["w"].shape == (2,)


@pytest.mark.parametrize(
    "what",
    [
        "calls: REDUCE os.system",
        "calls: a name of line ends",
        "states: ndarray whose flags lie",
        "states: slots of torch.BFloat16Storage",
        "structures: deeper key",
        "structures: name with a terminal's command",
        "zips: bomb storage",
    ],
)
def test_the_command_answers_hostile_files_with_one_line(tmp_path, capsys, hostile, what):
    file = tmp_path / f"w{hostile[what].suffix}"
    file.write_bytes(hostile[what].data)
    assert main(["ResNet18", f"--from={file}", f"--to={tmp_path / 'to'}"]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith(f"jaxcls: {file}: ")
    assert err.count("\n") == 1
    assert err[:-1].isprintable()
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize(
    "file", ["new.pth", "old.pth", "model.pdparams", "plain.npz", "new.safetensors"]
)
def test_half_downloaded(tmp_path, file):
    whole = (WEIGHTS / file).read_bytes()
    for size in range(0, len(whole), 37):
        (tmp_path / file).write_bytes(whole[:size])
        with pytest.raises(ValueError, match="is the download complete"):
            readers.read(tmp_path / file)


def test_what_is_no_file_of_weights(tmp_path):
    with pytest.raises(ValueError, match=r"w\.onnx: give a file that ends in \.pdparams"):
        readers.read(tmp_path / "w.onnx")
    with pytest.raises(ValueError, match="there is no such file"):
        readers.read(tmp_path / "w.pth")
    with pytest.raises(ValueError, match="it cannot be read: File name too long"):
        readers.read(tmp_path / f"{'w' * 300}.pth")
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match="it holds a list, not a dictionary of arrays"):
        readers.read(tmp_path / "w.pdparams")
    (tmp_path / "w.pdparams").write_bytes(pickle.dumps({"epoch": 3}))
    with pytest.raises(ValueError, match="it has no arrays"):
        readers.read(tmp_path / "w.pdparams")
