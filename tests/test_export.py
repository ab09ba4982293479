"""python -m jaxcls.export: files that other programs run, and that say what the checkpoint says."""

import dataclasses
import errno
import json
import math
import re
import subprocess
import sys

import jax
import numpy as np
import onnxruntime
import pytest
import runs
from agreement_table import weights_of
from drawn import random_like, settled, steady
from etils import epath
from PIL import Image
from with_timm import torchvision_there

import jaxcls
from jaxcls import convert, models, network, record, weights
from jaxcls.convert import readers
from jaxcls.data import ops
from jaxcls.export import __main__ as command
from jaxcls.export import agreement, card, formats, origin, program
from jaxcls.exported import find, load
from jaxcls.network import Network

CLASSES = ("rook", "knight", "bishop", "queen", "king")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the directory of weights, as a run has them."""
    image = network.published_image("ResNet18_vd") | {"size": 32, "eval_resize": 36}
    net = Network(
        name="ResNet18_vd",
        options={"width": 8},
        num_classes=5,
        class_names=CLASSES,
        image=ops.Image(**image),
        precision="bfloat16",
        temperature=1.5,
    )
    variables = random_like(net.shapes)
    path = tmp_path_factory.mktemp("run") / "weights"
    weights.export(path, variables, {"network": net.described()})
    return path


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(3)
    for i in range(5):
        small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        small.resize((64, 48), Image.Resampling.BICUBIC).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def exported(run, photographs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "chess"
    assert command.main([str(run), f"--to={folder}", f"--images={photographs}"]) == 0
    return folder


def expected(run, pixels):
    """Returns what the network says in float32, and its probabilities, in float64."""
    net, variables = network.load(run)
    net = dataclasses.replace(net, precision="float32")
    logits = np.asarray(net.predict(variables, pixels)["logits"])
    z = np.exp(np.float64(logits) / 1.5)
    return logits, z / z.sum(-1, keepdims=True)


def test_what_is_written(exported):
    names = {"model.stablehlo", "model.onnx", "network.json", "agreement.json", "README.md"}
    assert {path.name for path in exported.iterdir()} == names
    assert not [p for p in exported.parent.iterdir() if p != exported]
    told = json.loads((exported / "network.json").read_text())
    assert told["class_names"] == list(CLASSES)
    assert told["input"] == {"name": "images", "kind": "uint8", "shape": [32, 32, 3]}
    assert told["image"]["eval_resize"] == 36
    found = json.loads((exported / "agreement.json").read_text())
    assert found.keys() == {"stablehlo", "onnx"}
    for its in found.values():
        assert its["images"] == its["top1_equal"] == 5
        assert its["of_signal"] < 1e-4


def test_the_onnx_file_says_what_the_network_says(exported, run):
    pixels = np.random.default_rng(5).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(exported / "model.onnx")
    logits, probabilities = session.run(["logits", "probabilities"], {"images": pixels})
    ours, shares = expected(run, pixels)
    np.testing.assert_allclose(logits, ours, atol=1e-4 * np.ptp(ours))
    np.testing.assert_allclose(probabilities, shares, atol=1e-4)
    assert session.get_modelmeta().custom_metadata_map["classes"].split("\n") == list(CLASSES)


def test_the_card_has_the_code_that_was_run(exported):
    card = (exported / "README.md").read_text()
    assert "rook, knight, bishop, queen, king" in card
    for name, found in formats.FORMATS.items():
        assert (f"```python\n{found.run}```" in card) == (name in ("stablehlo", "onnx"))
    assert "An image in colour (RGB), its short side resized to 36 pixels, then the central" in card
    assert "python -m jaxcls.predict FOLDER IMAGES" in card


def test_the_card_says_how_images_are_made(exported, photographs, run):
    assert "jaxcls.load(FOLDER).preprocess(data)" in (exported / "README.md").read_text()
    data = (photographs / "0.png").read_bytes()
    expected = network.load(run)[0].transform(data, None)
    np.testing.assert_array_equal(jaxcls.load(exported).preprocess(data), expected)


def test_the_card_of_a_run(run, tmp_path):
    """It says what its run is known to have been, and of these very weights."""
    (tmp_path / "report").mkdir()
    (tmp_path / "checkpoints").mkdir()
    net, variables = network.load(run)
    meta = {"network": net.described(), "data": {"train": {"number": 1234}, "eval": {}}}
    for step in (20, 30):
        weights.export(tmp_path / "checkpoints" / str(step), variables, meta)
    config = runs.tiny("plain")
    config.lr.peak, config.init.checkpoint = 0.125, "runs/older"
    record.write(config, epath.Path(tmp_path), 30)
    each = {"precision": 0.25, "recall": 0.5, "f1": 0.375, "support": 7}
    table = {"step": 30, "top1": 0.5, "images": 35, "intervals": {"top1": [0.375, 0.625]}}
    table |= {"ece": 0.25, "per_class": dict.fromkeys(CLASSES, each), "worst_classes": CLASSES}
    (tmp_path / "report" / "metrics.json").write_text(json.dumps(table))

    def lines(place, **changes):
        net, variables = network.load(place)
        made = program.make(dataclasses.replace(net, **changes), variables)
        told = card.about(made, str(place))
        return card.render(made, told, {}, origin.of(place))

    card_of_run = lines(tmp_path)
    for text in (
        "1,234 images for training.",
        "| learning rate | 0.125, ",
        "| `lr.peak` | 0.125 |",
        "| weights at the start | runs/older |",
        "| 0.5000 (0.3750 to 0.6250) |",
        "| bishop | 0.250 | 0.500 | 0.375 | 7 |",
        "measured on 35 images",
        "weakest at rook (F1 0.38), knight (F1 0.38), bishop (F1 0.38)",
        "Expected calibration error: 0.250",
        "no threshold was",
        "softmax(logits / 1.5)",
    ):
        assert text in card_of_run
    assert lines(tmp_path / "checkpoints" / "30") == card_of_run
    older = lines(tmp_path / "checkpoints" / "20")  # of which there is no report
    assert "0.125" in older
    assert "top1" not in older
    assert "none of the classes below a probability of 0.75 or where the first class is rook" in (
        lines(tmp_path, thresholds=(0.75,), background="rook")
    )
    odd = ("<img src=x>", "a|b", "`c`", "d\ne", "[f](g)")
    shown = lines(tmp_path, class_names=odd)
    assert "\\<img src=x\\>, a\\|b, \\`c\\`, d e, \\[f\\](g)" in shown
    (tmp_path / "config.json").write_text("{")
    assert "1,234 images" in lines(tmp_path)  # a run that cannot be read is no obstacle
    assert "The weights do not say" in lines(run)


def test_normalised_images_channels_first(run, tmp_path):
    folder = tmp_path / "bare"
    arguments = [str(run), f"--to={folder}", "--input=float_nchw", "--format=onnx"]
    assert command.main(arguments) == 0
    pixels = np.random.default_rng(5).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    image = network.load(run)[0].image
    given = ((pixels / 255 - image.mean) / image.std).transpose(0, 3, 1, 2).astype(np.float32)
    [logits] = onnxruntime.InferenceSession(folder / "model.onnx").run(
        ["logits"], {"images": given}
    )
    ours, _ = expected(run, pixels)
    np.testing.assert_allclose(logits, ours, atol=1e-4 * np.ptp(ours))


@pytest.mark.ci
@pytest.mark.parametrize(
    ("precision", "names"), [("float16", "onnx,stablehlo"), ("bfloat16", "stablehlo")]
)
def test_16_bits(run, tmp_path, exported, precision, names):
    folder = tmp_path / precision
    arguments = [str(run), f"--to={folder}", f"--precision={precision}", f"--format={names}"]
    assert command.main(arguments) == 0
    for name in names.split(","):
        file = formats.FORMATS[name].file
        assert (folder / file).stat().st_size < 0.6 * (exported / file).stat().st_size


@pytest.fixture(scope="module")
def of_tensorflow(run, tmp_path_factory):
    """Returns exports in float32 and float16, made with TensorFlow, of jaxcls[export-tf]."""
    for package in ("tensorflow", "ai_edge_litert"):
        if not formats.importlib.util.find_spec(package):
            pytest.skip(f"needs {package}")
    folder = tmp_path_factory.mktemp("tensorflow")
    for precision in ("float32", "float16"):
        arguments = [f"--to={folder / precision}", f"--precision={precision}"]
        assert command.main([str(run), *arguments, "--format=savedmodel,tflite"]) == 0
    return folder


@pytest.mark.ci
@pytest.mark.parametrize("name", ["savedmodel", "tflite"])
def test_tensorflow_says_what_the_network_says(of_tensorflow, run, name):
    pixels = np.random.default_rng(5).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    ours, shares = expected(run, pixels)
    for precision, tolerance in (("float32", 1e-4), ("float16", 0.03)):
        found = agreement.apart(formats.FORMATS[name], of_tensorflow / precision, pixels)
        np.testing.assert_allclose(found["logits"], ours, atol=tolerance * np.ptp(ours))
        np.testing.assert_allclose(found["probabilities"], shares, atol=tolerance)
    file = formats.FORMATS[name].file
    wide, short = (command._size(of_tensorflow / p / file) for p in ("float32", "float16"))
    assert short < 0.7 * wide


@pytest.mark.ci
def test_the_names_that_tensorflow_serving_knows(of_tensorflow):
    script = """\
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

signature = tf.saved_model.load("saved_model").signatures["serving_default"]
print([*signature.structured_input_signature[1]], [*sorted(signature.structured_outputs)])
print(signature.structured_input_signature[1]["images"].shape)
print(Interpreter("model.tflite").get_signature_list())
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=of_tensorflow / "float32",
        capture_output=True,
        text=True,
    )
    outputs = ["logits", "probabilities"]
    assert done.stdout.splitlines() == [
        f"['images'] {outputs}",
        "(None, 32, 32, 3)",
        str({"serving_default": {"inputs": ["images"], "outputs": outputs}}),
    ]


@pytest.fixture(scope="module")
def for_timm(tmp_path_factory):
    """Returns a network that timm has, its variables, and the directory of them."""
    image = network.published_image("ResNet18_vd") | {"size": 40, "eval_resize": 45}
    net = Network(
        name="ResNet18_vd",
        options={"width": 8, "project_first": False},
        num_classes=5,
        class_names=CLASSES,
        image=ops.Image(**image),
        precision="float32",
        temperature=1.5,
    )
    variables = random_like(net.shapes)
    path = tmp_path_factory.mktemp("timm") / "weights"
    weights.export(path, variables, {"network": net.described()})
    return net, variables, path


def test_a_folder_for_timm(for_timm, tmp_path):
    net, variables, _ = for_timm
    formats.FORMATS["timm"].write(program.make(net, variables), tmp_path / "timm", None)
    assert {path.name for path in (tmp_path / "timm").iterdir()} == {
        "config.json",
        "model.safetensors",
    }
    file = tmp_path / "timm" / "model.safetensors"
    length = int.from_bytes(file.read_bytes()[:8], "little")
    assert json.loads(file.read_bytes()[8 : 8 + length])["__metadata__"] == {"format": "pt"}
    again = convert.from_torch(net.name, readers.read(str(file)), num_classes=5, **net.options)
    jax.tree.map(np.testing.assert_array_equal, dict(variables), again)
    config = json.loads((tmp_path / "timm" / "config.json").read_text())
    assert config["label_names"] == list(CLASSES)
    assert config["architecture"] == "resnet18"
    assert config["model_args"] == {
        "channels": [8, 16, 32, 64],
        "stem_width": 4,
        "stem_type": "deep",
        "avg_down": True,
    }
    cfg = config["pretrained_cfg"]
    assert (cfg["first_conv"], cfg["classifier"], cfg["num_classes"]) == ("conv1.0", "fc", 5)
    assert (cfg["input_size"], cfg["interpolation"]) == ([3, 40, 40], "bilinear")
    assert cfg["mean"] == list(net.image.mean)


def test_timm_resizes_to_the_same_size():
    image = ops.Image(**network.published_image("ResNet50"))
    assert formats.timm.crop_share(image) == 0.875
    for resize in range(32, 700):
        for shown in {resize, resize - 1, round(resize * 0.875), resize // 2}:
            image = dataclasses.replace(image, eval_resize=resize, eval_size=shown)
            assert math.floor(shown / formats.timm.crop_share(image)) == resize


@pytest.mark.ci
@pytest.mark.parametrize("channels", [3, 1])
def test_timm_says_what_the_network_says(for_timm, tmp_path, channels):
    if not all(map(formats.importlib.util.find_spec, ("timm", "torch"))):
        pytest.skip("needs timm")
    net, variables, path = for_timm
    if channels != 3:
        image = dataclasses.replace(net.image, mean=(0.5,), std=(0.2,))
        net = dataclasses.replace(net, image=image)
        variables, path = random_like(net.shapes), tmp_path / "weights"
        weights.export(path, variables, {"network": net.described()})
    folder = tmp_path / "out"
    with torchvision_there():
        assert command.main([str(path), f"--to={folder}", "--format=timm"]) == 0
        pixels = np.random.default_rng(5).integers(0, 256, (3, 40, 40, channels), dtype=np.uint8)
        given = ((pixels / 255 - net.image.mean) / net.image.std).transpose(0, 3, 1, 2)
        found = agreement.apart(formats.FORMATS["timm"], folder, given.astype(np.float32))
    ours, shares = expected(path, pixels)
    np.testing.assert_allclose(found["logits"], ours, atol=1e-4 * np.ptp(ours))
    np.testing.assert_allclose(found["probabilities"], shares, atol=1e-4)
    assert "timm.create_model(" in (folder / "README.md").read_text()
    assert "timm.data.create_transform(" in (folder / "README.md").read_text()


def test_networks_that_timm_has_not(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: True)
    assert command.main([str(run), f"--to={tmp_path / 'out'}", "--format=onnx,timm"]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "--format=timm: ResNet18_vd computes something else than timm's" in message
    assert "train with config.model.options = (('project_first', False),)" in message
    families = re.search(r"of the families ([\w, ]+)", message)[1].split(", ")
    assert {"densenet", "efficientnet", "hrnet", "resnet"} <= {*families}
    assert "googlenet" not in families
    assert not [*tmp_path.iterdir()]


def of(name, size):
    """Returns a network of ten classes, images, its variables, and what it says of them."""
    image = network.published_image(name) | {"size": size, "eval_resize": size}
    net = Network(
        name=name,
        options={},
        num_classes=10,
        class_names=(),
        image=ops.Image(**image),
        precision="float32",
    )
    pixels = agreement.generated(program.Program(net, {}, "uint8"), 16)
    variables = weights_of(net, pixels)
    return net, pixels, variables, np.asarray(net.predict(variables, pixels)["logits"])


SMALL = (
    ("MobileNetV3_small_x0_35", 64),
    ("ShuffleNetV2_x0_25", 64),
    ("SqueezeNet1_1", 96),
    ("SE_ResNet18_vd", 64),
    ("EfficientNetB0", 64),
    ("Res2Net50_26w_4s", 64),
    ("MobileNetV1_x0_25", 64),
    ("MobileNetV2_x0_25", 64),
    ("AlexNet", 224),
    ("VGG11", 64),
    ("GoogLeNet", 224),
    ("DenseNet121", 64),
    ("DarkNet53", 64),
    ("DPN68", 64),
    ("HRNet_W18_C", 64),
    ("InceptionV4", 128),
    ("Xception41", 96),
)
QUICK = ("MobileNetV3_small_x0_35", "SqueezeNet1_1")
TIERS = [
    pytest.param(*row, marks=pytest.mark.ci if row[0] in QUICK else pytest.mark.zoo)
    for row in SMALL
]


@pytest.mark.parametrize(("name", "size"), TIERS)
def test_16_bits_of_every_family(name, size, tmp_path):
    net, pixels, variables, ours = of(name, size)
    for precision in ("bfloat16", "float16"):
        made = program.make(net, variables, precision=precision)
        answers = {"jax": np.asarray(jax.jit(made)(pixels)["logits"])}
        if precision == "float16":
            formats.onnx(made, tmp_path / "model.onnx", pixels)
            session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
            [answers["onnx"]] = session.run(["logits"], {"images": pixels})
        for logits in answers.values():
            theirs = {"logits": logits, "first": logits[:1], "probabilities": logits}
            found = agreement.compare(ours, theirs, lambda x: x)
            agreement.check("", found, precision)
            assert found["of_signal"] > 1e-5  # it was 16 bits


@pytest.mark.zoo
@pytest.mark.parametrize("name", [n for n in models.names() if not models.MODELS[n].alias_of])
def test_every_network_as_stablehlo(name, tmp_path):
    net, pixels, _, _ = of(name, models.MODELS[name].size)
    # weights that do not enlarge rounding, as those of deep networks drawn otherwise do
    variables = settled(net.module, steady(net.shapes), net.normalise(pixels))
    made, path = program.make(net, variables), tmp_path / "model.stablehlo"
    if made.size > formats.LARGEST:
        made = program.make(net, variables, precision="float16")
    formats.stablehlo(made, path, pixels)
    read = jax.export.deserialize(bytearray(path.read_bytes()))
    assert read.platforms == program.PLATFORMS
    ours = np.asarray(jax.jit(made)(pixels[:2])["logits"])
    logits = np.asarray(jax.jit(read.call)(pixels[:2])["logits"])
    np.testing.assert_allclose(logits, ours, atol=1e-4 * np.ptp(ours))


def test_one_that_says_something_else_is_not_written(run, tmp_path, monkeypatch, capsys):
    def write(program, path, pixels):
        def half(path, x):
            return x * (0.5 if path == "params/head/fc/kernel" else 1)

        from jaxcls import trees

        variables = trees.map_with_path(half, program.variables)
        formats.onnx(dataclasses.replace(program, variables=variables), path, pixels)

    wrong = dataclasses.replace(formats.FORMATS["onnx"], write=write)
    monkeypatch.setitem(formats.FORMATS, "onnx", wrong)
    assert command.main([str(run), f"--to={tmp_path / 'out'}", "--format=onnx"]) == 2
    assert "--format=onnx: what it says differs from the checkpoint by" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_one_that_cannot_be_run_is_not_written(run, tmp_path, monkeypatch, capsys):
    wrong = dataclasses.replace(
        formats.FORMATS["onnx"], write=lambda program, path, pixels: path.write_bytes(b"nothing")
    )
    monkeypatch.setitem(formats.FORMATS, "onnx", wrong)
    assert command.main([str(run), f"--to={tmp_path / 'out'}", "--format=onnx"]) == 2
    assert "jaxcls: model.onnx cannot be run elsewhere: " in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_agreement():
    ours = np.array([[1, 2, 3], [3, 2, 1]], np.float32)
    compare = lambda logits, first: agreement.compare(
        ours, {"logits": logits, "first": first, "probabilities": logits / 6}, lambda x: x / 6
    )
    found = compare(ours + [[0, 0, 0], [0, 0, 4]], ours[:1])
    assert found.pop("logits") == 3.0
    assert found == {
        "images": 2,
        "largest": 4.0,
        "of_signal": 2.0,
        "top1_equal": 1,
        "sure": 2,
        "sure_equal": 1,
        "probability": 0.0,
    }
    less = {**found, "of_signal": 0.5, "logits": 3.0}
    with pytest.raises(ValueError, match="for 1 of the 2 images that it is sure of"):
        agreement.check("int8", less, "float32", quantised=True)
    agreement.check("int8", {**less, "sure": 1}, "float32", quantised=True)
    assert compare(ours, ours[:1] + 1)["largest"] == 1.0  # in a batch it is right
    with pytest.raises(ValueError, match="differs from the checkpoint by nan"):
        agreement.check("onnx", compare(ours * np.nan, ours[:1]), "float32")
    theirs = {"logits": ours, "first": ours[:1], "probabilities": ours / 6}
    found = agreement.compare(ours, theirs, lambda x: x / 5)
    assert found["sure"] == 2
    assert agreement.compare(ours, theirs, lambda x: x / 7)["sure"] == 0
    with pytest.raises(ValueError, match="probabilities differ by 0.1 from those of its logits"):
        agreement.check("onnx", found, "float32")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--format=onx"], "unknown --format 'onx': did you mean onnx"),
        (["--format=onnx,stablehlo,onnx"], "--format=onnx,stablehlo,onnx: onnx is there twice"),
        (["--format="], "--format=: write one of stablehlo, onnx"),
        (["--format=onnx", "--precision=bfloat16"], "no bfloat16: choose --precision=float32 or"),
        (["--images=nowhere"], "--images"),
        (["--input=int8"], "argument --input: invalid choice"),
        (["--images="], "--images=: write a folder"),
    ],
)
def test_mistakes(run, tmp_path, capsys, arguments, text):
    assert command.main([str(run), f"--to={tmp_path / 'out'}", *arguments]) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_mistakes_about_places(run, tmp_path, capsys, monkeypatch):
    assert command.main([str(run), f"--to={tmp_path}"]) == 2
    assert "exists: choose another directory" in capsys.readouterr().err
    assert command.main([str(tmp_path), f"--to={tmp_path / 'out'}"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert command.main([str(run), "--to=gs://bucket/out"]) == 2
    assert "--to=gs://bucket/out: write a folder of this machine" in capsys.readouterr().err
    assert command.main([str(run), "--to="]) == 2
    assert "--to=: write a folder" in capsys.readouterr().err
    (tmp_path / "broken").symlink_to("nowhere")
    assert command.main([str(run), f"--to={tmp_path / 'broken'}"]) == 2
    assert "exists: choose another directory" in capsys.readouterr().err
    assert command.main([str(run), "--to=/dev/null/out"]) == 2
    assert capsys.readouterr().err == "jaxcls: /dev/null/.out.unfinished: Not a directory\n"
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: None)
    assert command.main([str(run), f"--to={tmp_path / 'out'}", "--format=onnx"]) == 2
    assert "needs onnx, onnxruntime: pip install 'jaxcls[export]'" in capsys.readouterr().err
    assert command.main([str(run), f"--to={tmp_path / 'out'}", "--format=tflite"]) == 2
    assert "pip install 'jaxcls[export-tf]'" in capsys.readouterr().err


def test_versions_that_do_not_fit_together(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(formats.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(formats.importlib.metadata, "version", lambda name: "2.9.3")
    assert command.main([str(run), f"--to={tmp_path / 'out'}", "--format=savedmodel"]) == 2
    assert "--format=savedmodel needs tensorflow 2.21 or later, here is 2.9.3: pip install -U" in (
        capsys.readouterr().err
    )


def test_what_onnx_has_not_is_told(run, tmp_path, capsys, monkeypatch):
    def write(program, path, pixels):
        raise NotImplementedError("ONNX for jax.lax.sort is not written")

    wrong = dataclasses.replace(formats.FORMATS["onnx"], write=write)
    monkeypatch.setitem(formats.FORMATS, "onnx", wrong)
    assert command.main([str(run), f"--to={tmp_path / 'out'}", "--format=onnx"]) == 2
    assert capsys.readouterr().err == (
        "jaxcls: --format=onnx cannot be written of ResNet18_vd: ONNX for jax.lax.sort is not "
        "written\n"
    )
    assert not [*tmp_path.iterdir()]


def test_files_that_would_be_too_large(run, tmp_path, capsys, monkeypatch):
    small = dataclasses.replace(formats.FORMATS["stablehlo"], limit=100_000)
    monkeypatch.setitem(formats.FORMATS, "stablehlo", small)
    assert command.main([str(run), f"--to={tmp_path / 'out'}"]) == 2
    assert capsys.readouterr().err == (
        "jaxcls: --format=stablehlo: ResNet18_vd has 0.0 GB of weights, a file of this format at "
        "most 0.0: choose --format=onnx, or --precision=float16\n"
    )
    monkeypatch.setattr(formats, "LARGEST", 100_000)  # ONNX then has two files
    assert command.main([str(run), f"--to={tmp_path / 'out'}", "--format=onnx"]) == 0
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "out").glob("model*")}
    assert sizes["model.onnx.data"] > 4 * sizes["model.onnx"] > 0
    written = load(find(tmp_path / "out"))
    net, variables = network.load(run, report=pytest.fail)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    net = dataclasses.replace(net, precision="float32")
    ours, theirs = net.predict(variables, images), written.predict({}, images)
    np.testing.assert_allclose(theirs["logits"], ours["logits"], rtol=1e-4, atol=1e-5)
    (tmp_path / "out" / "model.onnx.data").unlink()
    with pytest.raises(ValueError, match=r"model\.onnx cannot be read: "):
        load(find(tmp_path / "out"))


def test_a_full_disk_is_told(run, tmp_path, capsys, monkeypatch):
    def write(program, path, pixels):
        raise OSError(errno.ENOSPC, "No space left on device")

    wrong = dataclasses.replace(formats.FORMATS["onnx"], write=write)
    monkeypatch.setitem(formats.FORMATS, "onnx", wrong)
    assert command.main([str(run), f"--to={tmp_path / 'out'}", "--format=onnx"]) == 2
    assert capsys.readouterr().err == f"jaxcls: {tmp_path}/out: No space left on device\n"
    assert not [*tmp_path.iterdir()]
