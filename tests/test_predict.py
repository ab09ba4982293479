"""python -m jaxcls.predict: what images show, in their order, from files, folders and lists."""

import csv
import io
import json
import re
import shutil
import subprocess
import sys

import cv2
import jax
import numpy as np
import pytest
from drawn import random_like
from PIL import Image
from runs import PATIENCE, free_port

import jaxcls
from jaxcls import network, predict, predictor, weights
from jaxcls.data import ops
from jaxcls.export import __main__ as export_command
from jaxcls.network import Network

CLASSES = ("rook", "knight", "bishop", "queen", "king")


def store(path, name="ResNet18_vd", size=32, seed=0, **told):
    image = network.published_image(name) | {"size": size, "eval_resize": size + 4}
    net = Network(
        **{"name": name, "options": {"width": 8}, "num_classes": 5, "class_names": CLASSES}
        | {"image": ops.Image(**image), "precision": "float32"}
        | told
    )
    weights.export(path, random_like(net.shapes, seed), {"network": net.described()})
    return str(path)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Returns two directories of weights, of other networks and sizes."""
    folder = tmp_path_factory.mktemp("runs")
    one = store(folder / "one", temperature=2.0)
    return one, store(folder / "two", "ResNet18", size=40, seed=1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Returns a folder of eleven images and one file that is none, in the order of their names."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(3)
    for i in range(11):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((64, 48), Image.Resampling.BICUBIC).save(folder / f"{i:02d}.png")
    (folder / "05.png").write_bytes(b"no image")
    return folder


def answers(capsys, *arguments):
    """Returns exit code and the objects that are printed."""
    code = predict.main([*map(str, arguments), "--json"])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def resized(path, short):
    pixels = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return cv2.resize(pixels, (round(short * 64 / 48), short), interpolation=cv2.INTER_LINEAR)


def centre(pixels, size):
    top, left = ((n - size) // 2 for n in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


def softmax(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def logits(run, pixels):
    net, variables = network.load(run)
    return np.float64(net.predict(variables, pixels[None])["logits"][0]) / net.temperature


def test_answers_are_those_of_the_network_in_the_order_of_images(runs, photos, capsys):
    code, found = answers(capsys, runs[0], photos, "--top=5", "--batch-size=1")
    assert code == 1  # one cannot be read
    assert [a["image"] for a in found] == [str(photos / f"{i:02d}.png") for i in range(11)]
    assert found[5].keys() == {"image", "error"}
    assert "05.png" in found[5]["error"]
    for answer in found[:5] + found[6:]:
        p = softmax(logits(runs[0], centre(resized(answer["image"], 36), 32)))
        order = np.argsort(-p)
        assert answer["classes"] == [CLASSES[i] for i in order]
        assert answer["decision"] == CLASSES[order[0]]
        np.testing.assert_allclose(answer["probabilities"], p[order], atol=1e-5)


@pytest.mark.ci
@pytest.mark.parametrize("mean", ["probabilities", "logits"])
def test_views_and_networks(runs, photos, capsys, mean):
    arguments = ["--tta=five_crop,flip", f"--fuse={runs[1]}", "--weights=3,1", f"--mean={mean}"]
    _, found = answers(capsys, runs[0], photos / "02.png", photos / "03.png", *arguments)
    for answer in found:
        total = 0.0
        for run, size, share in ((runs[0], 32, 0.75), (runs[1], 40, 0.25)):
            pixels = resized(answer["image"], size + 4)
            down, right = (n - size for n in pixels.shape[:2])
            crops = [pixels[y:, x:][:size, :size] for y in (0, down) for x in (0, right)]
            for view in [centre(pixels, size), *crops]:
                for z in (logits(run, view), logits(run, view[:, ::-1])):
                    total = total + share / 10 * (softmax(z) if mean == "probabilities" else z)
        p = total if mean == "probabilities" else softmax(total)
        np.testing.assert_allclose(answer["probabilities"], np.sort(p)[::-1], atol=1e-5)


def test_images_from_everywhere(runs, photos, tmp_path, capsys, monkeypatch):
    names = [str(photos / f"{i:02d}.png") for i in (1, 3)]
    lists = tmp_path / "some.txt"
    lists.write_text("\n".join(names) + "\n")
    near = photos / "near.txt"
    near.write_text("01.png\n03.png\n")
    (tmp_path / "folder").mkdir()
    for name in names:
        (tmp_path / "folder" / name[-6:]).symlink_to(name)
    for given in ([*names], [lists], [near], [photos / "0[13].png"], [tmp_path / "folder"], ["-"]):
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(names)))
        code, found = answers(capsys, runs[0], *given)
        assert code == 0
        assert [a["image"][-6:] for a in found] == ["01.png", "03.png"]


def test_from_python(runs, photos):
    model = jaxcls.load(runs[0])
    assert model.class_names == CLASSES
    path = photos / "01.png"
    pixels = np.asarray(Image.open(path))
    forms = [path, str(path), path.read_bytes(), pixels, Image.open(path)]
    found = model.predict(forms)
    assert len({a.probabilities for a in found}) == 1
    [alone] = model.predict(path, top=2)
    assert alone.classes == found[0].classes[:2]
    assert model.preprocess(pixels).shape == (32, 32, 3)
    several = model.predict(np.stack([pixels, pixels]))
    assert [a.probabilities for a in several] == [found[0].probabilities] * 2
    for nothing in (pixels / 255.0, 3, None):
        with pytest.raises((ValueError, TypeError)):
            model.predict([nothing])


def test_any_number_of_images_reads_only_what_is_needed(runs, photos):
    """Batches come one after the other: an answer is there before the last image is read."""
    model, read = predictor.load(runs[0], batch_size=1), []

    def images():
        for i in range(1000):
            read.append(i)
            yield predictor.readable(photos / "01.png")

    answered = model.answers(images())
    next(answered)
    assert len(read) < 10 * model.batch_size
    answered.close()


def test_csv_table_and_files(runs, photos, tmp_path, capsys):
    images = [str(photos / "01.png"), str(photos / "05.png"), str(photos / "02.png")]
    out = tmp_path / "answers.csv"
    assert predict.main([runs[0], *images, "--csv", "--top=2", f"--out={out}"]) == 1
    assert "05.png" in capsys.readouterr().err
    rows = [*csv.reader(out.open())]
    assert rows[0] == ["image", "rank", "class", "probability", "decided"]
    assert [row[:2] for row in rows[1:]] == [[images[i], r] for i in (0, 2) for r in "12"]
    assert [row[4] for row in rows[1:]] == ["1", "0"] * 2
    assert predict.main([runs[0], images[0], "--top=1"]) == 0
    assert capsys.readouterr().out.startswith(f"{images[0]}   {rows[1][2]} ")


ODD = ("cr\rx.png", "new\nline.png", 'quo"te,.png', "esc\x1b[2J.png", "\udcff.png", "=1+1.png")


def test_names_of_all_kinds(runs, photos, tmp_path, capsys):
    """Bytes that are no text, line ends, orders to a terminal: each stays a cell and a line."""
    folder, out = tmp_path / "odd", tmp_path / "answers.csv"
    folder.mkdir()
    for name in ODD:
        shutil.copy(photos / "01.png", folder / name)
    given = [runs[0], str(folder), "--top=1"]
    assert predict.main([*given, "--csv", f"--out={out}"]) == 0
    rows = [*csv.reader(io.StringIO(out.read_bytes().decode(), newline=""))]
    told = {row[0].removeprefix(f"{folder}/") for row in rows[1:]}
    assert told == {name.replace("\udcff", "\\udcff") for name in ODD}
    assert predict.main([*given, f"--out={out}"]) == 0
    assert len(out.read_text().splitlines()) == len(ODD)
    for name in ODD:
        (folder / name).write_bytes(b"no image")
    capsys.readouterr()
    assert predict.main(given) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == len(ODD)
    assert "\x1b" not in said
    assert predict.main([runs[0], str(folder / "\x1b[2J*.png")]) == 2
    assert "\\x1b[2J" in capsys.readouterr().err


def test_one_that_cannot_be_opened_stops_no_other(runs, photos, capsys):
    code, found = answers(capsys, runs[0], "x" * 300 + ".png", photos / "01.png")
    assert code == 1
    assert "name too long" in found[0]["error"]
    assert found[1]["classes"]


def test_what_is_no_number_is_no_answer(runs, photos, tmp_path, capsys):
    net, variables = network.load(runs[0])
    variables = jax.tree.map(np.array, variables)
    variables["params"]["head"]["fc"]["bias"][1] = np.nan
    weights.export(tmp_path / "run", variables, {"network": net.described()})
    said = f"{photos / '01.png'}: the network's answer is no number"
    found = answers(capsys, tmp_path / "run", photos / "01.png")
    assert found == (1, [{"image": str(photos / "01.png"), "error": said}])


def test_one_that_is_too_small_is_told_what_to_do(tmp_path, photos, capsys):
    image = {"size": 65, "eval_resize": 0}
    image = ops.Image(**network.published_image("ResNet18_vd") | image)
    run = store(tmp_path / "run", image=image)
    said = "an image of 64x48 pixels is smaller than the evaluation's crop of 65x65: enlarge it"
    [found] = answers(capsys, run, photos / "01.png")[1]
    assert found["error"] == f"{photos / '01.png'}: {said}"


def test_features(runs, photos, tmp_path, capsys):
    out = tmp_path / "x.npy"
    given = [runs[0], str(photos), f"--out={out}"]
    assert predict.main([*given, "--features=pre_logits"]) == 1
    found = np.load(out)
    net, variables = network.load(runs[0])
    assert found.dtype == np.float32
    assert np.isnan(found).any(-1).tolist() == [i == 5 for i in range(11)]
    pixels = centre(resized(photos / "07.png", 36), 32)
    expected = net.predict(variables, pixels[None])["pre_logits"][0]
    np.testing.assert_allclose(found[7], expected, rtol=1e-4, atol=1e-5)
    assert predict.main([*given, "--features=stage2"]) == 1
    assert np.load(out).shape == (11, 4, 4, 16)
    assert predict.main([*given, "--features=stage9"]) == 2
    assert "stage9" in capsys.readouterr().err


def test_decisions(tmp_path, photos, capsys):
    path = photos / "01.png"
    run = store(tmp_path / "a", background="rook", thresholds=(0.999,))
    assert answers(capsys, run, path)[1][0]["decision"] is None
    decided = answers(capsys, run, path, "--threshold=0")[1][0]
    first = decided["classes"][0]
    assert decided["decision"] == (None if first == "rook" else first)
    run = store(tmp_path / "b", multi_label=True)
    found = answers(capsys, run, path)[1][0]
    z = logits(run, centre(resized(path, 36), 32))
    p = 1 / (1 + np.exp(-z))
    np.testing.assert_allclose(found["probabilities"], np.sort(p)[::-1], atol=1e-5)
    assert found["decision"] == [CLASSES[i] for i in np.flatnonzero(p >= 0.5)]


def test_where_it_looked(runs, photos, tmp_path, capsys):
    folder = tmp_path / "why"
    code, found = answers(capsys, runs[0], photos / "01.png", f"--explain={folder}")
    assert code == 0
    [picture] = folder.iterdir()
    assert picture.name == f"0001_{found[0]['classes'][0]}.jpg"
    assert Image.open(picture).size == (224, 224)


def test_one_that_goes_before_it_is_explained(runs, photos, tmp_path):
    paths = [shutil.copy(photos / name, tmp_path) for name in ("01.png", "02.png")]
    model = jaxcls.load(runs[0])
    found = model.predict(paths)
    (tmp_path / "01.png").write_bytes(b"no image")
    gone, kept = predict._explained(model, found, tmp_path / "why")
    assert "cannot decode" in gone.error
    assert kept == found[1]
    assert [picture.name for picture in (tmp_path / "why").iterdir()] == [
        f"0002_{kept.classes[0]}.jpg"
    ]


PROCESS = """
import sys, jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
import jaxcls
model = jaxcls.load(sys.argv[3])
print(*(answer.probabilities for answer in model.predict(sys.argv[4:])), flush=True)
jax.distributed.shutdown()
"""


@pytest.mark.ci
def test_several_processes_answer_their_own_images(commands, runs, photos):
    images = [str(photos / f"{i:02d}.png") for i in range(5)]
    address = f"127.0.0.1:{free_port()}"
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, address, str(i), runs[0], *given],
            env=commands.environment(devices=2),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for i, given in enumerate((images[:2], images[2:]))
    ]
    said = [process.communicate(timeout=PATIENCE)[0].splitlines()[-1] for process in started]
    model = jaxcls.load(runs[0])
    for text, given in zip(said, (images[:2], images[2:]), strict=True):
        found = np.array(re.findall(r"[\d.e-]+", text), float).reshape(len(given), -1)
        expected = [answer.probabilities for answer in model.predict(given)]
        np.testing.assert_allclose(found, expected, atol=1e-6)


# -- Exports ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exports(runs, tmp_path_factory):
    """Returns exports of the first run, by what they take."""
    folder, formats = tmp_path_factory.mktemp("exports"), "--format=stablehlo,onnx"
    for kind in ("uint8", "float_nchw"):
        to = f"--to={folder / kind}"
        assert export_command.main([runs[0], to, formats, f"--input={kind}"]) == 0
    return folder


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("float_nchw", "model.onnx"),
        pytest.param("uint8", "", marks=pytest.mark.ci),
        pytest.param("uint8", "model.onnx", marks=pytest.mark.ci),
        pytest.param("float_nchw", "model.stablehlo", marks=pytest.mark.ci),
    ],
)
def test_exports_answer_as_their_run(runs, photos, exports, capsys, kind, file):
    for arguments in ([], ["--tta=five_crop,flip", f"--fuse={runs[0]}", "--mean=logits"]):
        expected = answers(capsys, runs[0], photos, *arguments)
        found = answers(capsys, exports / kind / file, photos, *arguments)
        assert found[0] == expected[0] == 1
        for ours, theirs in zip(expected[1], found[1], strict=True):
            np.testing.assert_allclose(
                ours.pop("probabilities", 0), theirs.pop("probabilities", 0), atol=1e-5
            )
            assert ours == theirs


def test_what_exports_cannot_do(exports, photos, tmp_path, capsys):
    path = exports / "uint8"
    for arguments in (
        ["--features=pre_logits", f"--out={tmp_path / 'x.npy'}"],
        [f"--explain={tmp_path}"],
        ["--scales=0.9,1"],
        ["--average=ema"],
    ):
        assert predict.main([str(path), str(photos / "01.png"), *arguments]) == 2
        said = capsys.readouterr().err
        assert "model.stablehlo is an export, which has a program and no weights: give the" in said


def test_exports_are_no_weights(exports, tmp_path, capsys):
    given = [str(exports / "uint8"), f"--to={tmp_path / 'again'}"]
    assert export_command.main(given) == 2
    assert "an export has a program and no weights; give the run" in capsys.readouterr().err


def test_damaged_exports(exports, photos, tmp_path, capsys):
    def said(folder):
        assert predict.main([str(folder), str(photos / "01.png")]) == 2
        return capsys.readouterr().err

    for name in ("model.stablehlo", "model.onnx"):
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(exports / "uint8" / "network.json", folder)
        assert "an export without model.stablehlo or model.onnx" in said(folder)
        data = (exports / "uint8" / name).read_bytes()
        for damaged in (b"", data[: len(data) // 2], data[:1000] + b"x" * 100):
            (folder / name).write_bytes(damaged)
            assert f"{name} cannot be read: " in said(folder)
        shutil.copy(exports / "float_nchw" / name, folder)
        assert "they are not of one export" in said(folder)
        for text in ("", "[]", "{}", '{"num_classes": 5}', '{"num_classes": 5, "input": 3}',
                     '{"num_classes": 5, "input": {"kind": []}}'):  # fmt: skip
            (folder / "network.json").write_text(text)
            assert "network.json" in said(folder)


def test_exports_whose_weights_are_others(exports, tmp_path, photos, capsys):
    """What can be read and has the right shapes, and would answer something else."""
    folder = tmp_path / "export"
    shutil.copytree(exports / "uint8", folder)
    for name in ("model.stablehlo", "model.onnx"):
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
        assert predict.main([str(folder / name), str(photos / "01.png")]) == 2
        said = capsys.readouterr().err
        assert f"{name} is not what network.json beside it was written with" in said
    shutil.copy(exports / "uint8" / "model.onnx", folder)
    assert predict.main([str(folder / "model.onnx"), str(photos / "01.png")]) == 0


def test_files_of_exports_that_are_no_programs(exports, tmp_path, photos, capsys):
    shutil.copy(exports / "uint8" / "model.onnx", tmp_path)
    shutil.copytree(exports / "uint8", tmp_path / "export")
    (tmp_path / "export" / "model.onnx").rename(tmp_path / "export" / "mine.onnx")
    for path, text in (
        ("model.onnx", "there is no network.json beside it"),
        ("export/mine.onnx", "of an export give the folder, or model.stablehlo or model.onnx"),
        ("export/README.md", "of an export give the folder"),
        ("export/model.onnx", "model.onnx cannot be read: No such file or directory"),
    ):
        assert predict.main([str(tmp_path / path), str(photos / "01.png")]) == 2
        assert text in capsys.readouterr().err


# -- What is wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--top=0"], "--top=0: write at least 1"),
        (["--tta=flop"], "flop"),
        (["--scales=1,x"], "--scales=1,x: write numbers"),
        (["--weights=1"], "--weights"),
        (["--fuse=nowhere"], "nowhere"),
        (["--threshold=2"], "--threshold=2: write a probability"),
        (["--features=pre_logits"], "--out=FILE.npy"),
        (["--features=pre_logits", "--out=x.npy", "--tta=flip"], "leave out --tta"),
        (["--out=/no/such/folder/x"], "is no folder"),
        (["--out=/"], "is a folder: give a file"),
        (["--mean=median"], "median"),
        (["--json", "--csv"], "not allowed with"),
    ],
)
def test_mistakes(runs, photos, capsys, arguments, text):
    assert predict.main([runs[0], str(photos / "01.png"), *arguments]) == 2
    assert text in capsys.readouterr().err


def test_other_mistakes(runs, photos, tmp_path, capsys):
    for given, text in (
        ([str(tmp_path), str(photos)], str(tmp_path)),
        ([runs[0], str(tmp_path)], "no images"),
        ([runs[0], str(tmp_path / "*.jpg")], "no file has such a name"),
        ([runs[0], ""], "IMAGES: one of them has no name"),
        (["", str(photos)], "a run without a name"),
    ):
        assert predict.main(given) == 2
        assert text in capsys.readouterr().err
    other = store(tmp_path / "other", class_names=(*CLASSES[:4], "pawn"))
    assert predict.main([runs[0], str(photos), f"--fuse={other}"]) == 2
    assert "pawn" in capsys.readouterr().err
