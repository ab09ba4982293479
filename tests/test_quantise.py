"""8 bits: what `--format=int8` writes, and training for it."""

import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
import runs
from drawn import random_like
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image
from sklearn.datasets import load_digits
from test_zoo import AT_LEAST, SIBLINGS, tier

from configs import base
from jaxcls import network, weights
from jaxcls.config import consume
from jaxcls.data import ops
from jaxcls.export import __main__ as command
from jaxcls.export import formats, program, quantise
from jaxcls.export.graph import Graph
from jaxcls.export.onnx import convert
from jaxcls.models.layers import ConvBN, Linear, fold, quantised
from jaxcls.models.spec import Ctx
from jaxcls.models.tokens import Dense
from jaxcls.network import Network


def small(name, size=32, **options):
    """Returns a network with weights as training could leave them."""
    image = network.published_image(name) | {"size": size, "eval_size": 0, "eval_resize": size}
    net = Network(
        name=name,
        options=options,
        num_classes=5,
        class_names=(),
        image=ops.Image(**image),
        precision="float32",
    )
    return net, random_like(net.shapes)


def pictures(count, size=32):
    rng, out = np.random.default_rng(3), []
    for _ in range(count):
        pixels = Image.fromarray(rng.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        out.append(np.asarray(pixels.resize((size, size), Image.Resampling.BICUBIC)))
    return np.stack(out)


def answers(path, images):
    options = onnxruntime.SessionOptions()
    session = onnxruntime.InferenceSession(path, options)
    return session.run(["logits"], {"images": images})[0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    net, variables = small("ResNet18_vd", width=8)
    path = tmp_path_factory.mktemp("run") / "weights"
    weights.export(path, variables, {"network": net.described()})
    return path


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    for i, pixels in enumerate(pictures(formats.LEAST, 40)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_the_file(run, photographs, tmp_path, capfd):
    folder = tmp_path / "out"
    arguments = [str(run), f"--to={folder}", "--format=onnx,int8", f"--images={photographs}"]
    assert command.main(arguments) == 0
    printed = capfd.readouterr()
    assert "warn" not in (printed.out + printed.err).lower()

    plain, model = (onnx.load(folder / file) for file in ("model.onnx", "model_int8.onnx"))
    for of in ("input", "output"):  # pixels go in, logits and probabilities come out
        assert getattr(model.graph, of) == getattr(plain.graph, of)
    makers = {name: node for node in model.graph.node for name in node.output}
    constants = {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == sum(node.op_type in ("Conv", "Gemm") for node in plain.graph.node)
    for node in layers:
        features, kernel, bias = (makers[name] for name in node.input)
        assert {features.op_type, kernel.op_type, bias.op_type} == {"DequantizeLinear"}
        assert makers[features.input[0]].op_type == "QuantizeLinear"
        assert constants[features.input[2]].dtype == np.uint8
        assert constants[kernel.input[0]].dtype == np.int8
        channels = constants[kernel.input[0]].shape[0 if node.op_type == "Conv" else 1]
        assert constants[kernel.input[1]].shape == (channels,)
        assert constants[bias.input[0]].dtype == np.int32
    assert not [x for x in constants.values() if x.dtype == np.float32 and x.ndim in (2, 4)]
    sizes = [(folder / file).stat().st_size for file in ("model.onnx", "model_int8.onnx")]
    assert sizes[1] < 0.6 * sizes[0]

    images = pictures(40)
    ours, theirs = (answers(folder / file, images) for file in ("model.onnx", "model_int8.onnx"))
    assert 0 < np.abs(ours - theirs).max() < 0.03 * np.ptp(ours)
    found = json.loads((folder / "agreement.json").read_text())["int8"]
    assert found["images"] == formats.LEAST
    assert found["top1_equal"] >= 0.9 * formats.LEAST


DEFAULT = ("mobilenet_v3", "shufflenet_v2", "squeezenet")  # gates, hard swish; Split; Concat
SLOW = ("alexnet", "vgg", "hrnet")
ATTENTION = (  # their products of two features stay in 32 bits
    "vision_transformer",
    "swin_transformer",
    "swin_transformer_v2",
    "twins",
    "tnt",
    "levit",
    "pvt_v2",
    "cswin_transformer",
    "cvt",
    "foundation_vit",
    "mobilevit",
    "convnext",
    "van",
    "dsnet",
    "nextvit",
    "uniformer",
    "rednet",  # kernels of features times features
)
# Of random weights, noise of two grey levels changes half of its answers (3.5 of 7.4), as 8 bits
# do (3.9): features are multiplied with each other, and grow from 2 to 10^8.
CHAOTIC = ("micronet",)


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=[] if family in DEFAULT else tier(family))
        for family in SIBLINGS
        if family not in SLOW + ATTENTION
    ],
)
def test_all_layers_run_in_8_bits(family, tmp_path):
    name, options = SIBLINGS[family]
    size = max(64, AT_LEAST.get(family, 0) + 1)
    net, variables = small(name, size, **options)
    images = pictures(16, size)
    exported = program.make(net, variables)
    formats.onnx(exported, tmp_path / "model.onnx", images)
    formats.int8(exported, tmp_path / "int8.onnx", images)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.log_severity_level = 3  # it warns that the file is for this machine
    onnxruntime.InferenceSession(tmp_path / "int8.onnx", options)
    kinds = {node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node}
    assert kinds >= {"QLinearConv"}
    assert not kinds & {"Conv", "FusedConv", "Gemm", "HardSigmoid"}
    ours, theirs = (answers(tmp_path / file, images) for file in ("model.onnx", "int8.onnx"))
    if family not in CHAOTIC:
        assert np.abs(ours - theirs).max() < 0.06 * np.ptp(ours)


class Block(nn.Module):
    """Layers that round, not so many that differences of rounding grow."""

    c: Ctx

    @nn.compact
    def __call__(self, x):
        x = ConvBN(self.c, 8, 3, act=nn.relu, name="conv1")(x)
        x = ConvBN(self.c, 8, 3, groups=8, act=nn.hard_swish, name="conv2")(x)
        x = ConvBN(self.c, 8, name="conv3")(x)
        x = nn.relu(Dense(self.c, 16, name="dense")(x))
        return {"logits": Linear(self.c, 3, name="fc")(x.mean((1, 2)))}


def test_what_is_trained_is_what_is_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(quantise, "BEYOND", 0.0)  # the range of a batch, as in training
    images = np.random.default_rng(0).normal(size=(16, 8, 8, 3)).astype(np.float32)
    shape = jax.ShapeDtypeStruct(images.shape, np.float32)
    variables, wanted = (
        random_like(dict(jax.eval_shape(Block(Ctx(folded=f)).init, jax.random.key(0), shape)))
        for f in (False, True)
    )
    folded = fold(variables, wanted, 1e-5)

    def change(graph, inputs, outputs):
        def run(names):
            model = graph.model(inputs, dict.fromkeys(names, (np.float32, None)), {}, ("", ""))
            session = onnxruntime.InferenceSession(model.SerializeToString())
            return [dict(zip(names, session.run(names, {"images": images})))]

        quantise.quantise(graph, outputs, run, len(images))

    model = convert(lambda x: Block(Ctx(folded=True)).apply(folded, x), shape, {}, change)
    onnx.save(model, tmp_path / "int8.onnx")
    exported = answers(tmp_path / "int8.onnx", images)
    plain, trained = (
        np.asarray(Block(Ctx(quantise=q)).apply(variables, images)["logits"]) for q in (False, True)
    )
    distance = lambda a, b: float(np.sqrt(np.mean((a - b) ** 2)))
    # as much is lost, and much of it in the same places; ranges are those of rounded features here
    # and of exact ones there
    assert 0.7 < distance(plain, trained) / distance(plain, exported) < 1.4
    assert distance(trained, exported) < 0.85 * distance(plain, exported)


def test_rounding():
    x = jnp.array([-0.5, 0.0, 0.1, 0.301, 2.05], jnp.float32)
    step = 2.55 / 255
    np.testing.assert_allclose(quantised(x), np.round(np.float64(x) / step) * step, atol=1e-6)
    w = jnp.array([[1.0, -0.004], [0.5, 0.001], [-0.333, 0.0]], jnp.float32)
    steps = np.array([1.0, 0.004]) / 127
    expected = np.round(np.float64(w) / steps) * steps
    np.testing.assert_allclose(quantised(w, -1), expected, atol=1e-7)
    assert not quantised(jnp.zeros((2, 3))).any()
    np.testing.assert_array_equal(jax.grad(lambda x: (quantised(x) * 3).sum())(x), [3.0] * 5)


def test_ranges():
    values = np.arange(-1000, 100_000, dtype=np.float32)
    parts = [{"a": part[:, None], "b": abs(part)[:, None] * 0} for part in np.split(values, 10)]
    found = quantise.ranges(parts, len(values))
    # of 101,000 values 10 at either end, whatever part they are in
    assert found["a"] == (-990.0, 99_989.0)
    assert found["b"] == (0.0, 0.0)
    assert quantise.ranges([{"a": np.full((2, 4), 3.0)}], 2)["a"] == (0.0, 3.0)
    with pytest.raises(ValueError, match="--format=int8: a is not finite"):
        quantise.ranges([{"a": np.array([[1.0, np.nan]])}], 1)


def test_a_convolution_in_float64():
    graph, rng = Graph(), np.random.default_rng(0)
    kernel = rng.normal(size=(4, 3, 1, 1)).astype(np.float32) * [
        [[[1]]],
        [[[1e-9]]],
        [[[5]]],
        [[[0]]],
    ]
    bias = np.array([0.5, 7.0, -3.0, 0.25], np.float32)
    graph.name("images")
    inputs = {"images": (np.float32, ["batch", 3, 2, 2])}
    weights_and_bias = graph.constant(kernel.astype(np.float32)), graph.constant(bias)
    y = graph.add("Conv", "images", *weights_and_bias, of="layer", kernel_shape=[1, 1])
    y = graph.add("Relu", y, of="layer")
    graph.add_as("logits", "GlobalAveragePool", y)
    images = rng.normal(size=(6, 3, 2, 2)).astype(np.float32)

    def outputs(names):
        model = graph.model(inputs, dict.fromkeys(names, (np.float32, None)), {}, ("", ""))
        return dict(zip(names, ReferenceEvaluator(model).run(names, {"images": images})))

    quantise.quantise(graph, ["logits"], lambda names: [outputs(names)], len(images))
    assert "Relu" not in {node.op for node in graph.nodes}  # uint8 begins at 0
    [found] = outputs(["logits"]).values()

    x, w = np.float64(images), np.float64(kernel)[..., 0, 0]

    def rounded(x, low, high):
        step = (high - low) / 255
        return (
            np.clip(np.round(x / step) + np.round(-low / step), 0, 255) - np.round(-low / step)
        ) * step

    steps = np.maximum(np.abs(w).max(1, keepdims=True), 1e-30) / 127
    stored = np.round(w / np.where(np.abs(w).max(1, keepdims=True) > 1e-6, steps, 1)) * steps
    kept = rounded(x, x.min(), x.max())
    y = np.einsum("oi,bihw->bohw", stored, kept) + bias[None, :, None, None]
    whole = np.maximum(np.einsum("oi,bihw->bohw", w, x) + bias[None, :, None, None], 0)
    expected = rounded(np.maximum(y, 0), 0, whole.max()).mean((2, 3), keepdims=True)
    np.testing.assert_allclose(found, expected, atol=1.01 * whole.max() / 255 / 2)
    np.testing.assert_allclose(found[:, 1], 7.0, rtol=1e-2)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "--format=int8 finds the range of features with images of yours: add --images=DIR"),
        (
            3,
            "of yours with --images, several hundred are better; there are 3",
        ),
    ],
)
def test_images_are_needed(run, photographs, tmp_path, capsys, count, text):
    arguments = [str(run), f"--to={tmp_path / 'out'}", "--format=int8"]
    if count:
        (tmp_path / "few").mkdir()
        for file in sorted(photographs.iterdir())[:count]:
            (tmp_path / "few" / file.name).symlink_to(file)
        arguments.append(f"--images={tmp_path / 'few'}")
    assert command.main(arguments) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_that_disagrees_is_refused(run, photographs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quantise, "ranges", lambda parts, images: {
        name: (0.0, 0.01) for part in parts for name in part
    })  # fmt: skip
    arguments = [str(run), f"--to={tmp_path / 'out'}", "--format=int8", f"--images={photographs}"]
    assert command.main(arguments) == 2
    told = capsys.readouterr().err
    assert "config.model.quantise" in told or "differs from the checkpoint" in told
    assert not [*tmp_path.iterdir()]


# -- Training --------------------------------------------------------------------------------------


def made(name, quantise, options=()):
    config = base.get_config()
    config.model.name, config.model.quantise, config.model.options = name, quantise, options
    given = {"classes": 5, "class_names": (), "image": ops.Image(**config.image)}
    return consume(config, "model", network.make, precision="float32", **given)


def test_training_alone_is_rounded():
    plain, module, _ = made("ResNet18_vd", "")
    net, rounded, _ = made("ResNet18_vd", "int8")
    assert dataclasses.asdict(net) == dataclasses.asdict(plain)  # what is stored with the weights
    assert not net.module.c.quantise
    assert (module.c.quantise, rounded.c.quantise) == (False, True)
    assert rounded.clone(c=module.c) == module


@pytest.mark.parametrize(
    ("name", "value", "options", "text"),
    [
        ("ResNet18_vd", "int4", (), "unknown config.model.quantise 'int4': did you mean int8"),
        (
            "ResNet50_ACNet_deploy",
            "int8",
            (("conv", "asymmetric"),),
            "adds up convolutions that become one",
        ),
        ("ResNet18_vd", "", (("quantise", True),), "there is config.model.quantise"),
    ],
)
def test_mistakes(name, value, options, text):
    with pytest.raises(ValueError, match=text):
        made(name, value, options)


def uneven(variables):
    """Returns weights that say the same, with features whose channels differ by up to 400 times."""
    variables, rng = jax.tree.map(np.array, variables), np.random.default_rng(0)
    for stage, blocks in variables["params"].items():
        for block in blocks.values() if stage.startswith("stage") else ():
            bn, kernel = block["conv1"]["bn"], block["conv2"]["conv"]["kernel"]
            factors = np.exp(rng.uniform(-3, 3, len(bn["scale"]))).astype(np.float32)
            block["conv1"]["bn"] = {name: x * factors for name, x in bn.items()}
            block["conv2"]["conv"]["kernel"] = kernel / factors[:, None]
    return variables


@pytest.mark.ci
def test_a_run_for_8_bits(commands, tmp_path, capsys):
    """It brings back what is lost, and leaves a checkpoint that is exported as any other."""
    digits = load_digits()
    pixels = (digits.images * 15).astype(np.uint8).repeat(2, 1).repeat(2, 2)[..., None]

    def accuracy(path):
        net, variables = network.load(path, report=lambda line: None)
        formats.int8(program.make(net, variables), tmp_path / "int8.onnx", pixels[:256])
        said = answers(tmp_path / "int8.onnx", pixels[-500:]).argmax(-1)
        return (said == digits.target[-500:]).mean()

    first, second = tmp_path / "first", tmp_path / "second"
    config = f"--config={runs.ROOT / 'configs' / 'digits.py'}"
    plain = (config, "--config.lr.warmup=", "--config.report.enabled=False")
    length = lambda n: (f"--config.duration={n} steps", f"--config.eval.every={n} steps")
    done = commands.fork(*plain, *length(150), f"--workdir={first}")
    assert done.returncode == 0, done.err
    net, variables = network.load(first)
    weights.export(tmp_path / "uneven", uneven(variables), {"network": net.described()})
    done = commands.fork(
        *plain, *length(60), "--config.lr.peak=0.001", f"--workdir={second}",
        f"--config.init.checkpoint={tmp_path / 'uneven'}", "--config.model.quantise=int8",
    )  # fmt: skip
    assert done.returncode == 0, done.err
    after, trained = network.load(second)
    assert dataclasses.replace(after, version=net.version) == net
    assert jax.tree.map(np.shape, trained) == jax.tree.map(np.shape, variables)
    assert accuracy(first) > 0.8
    assert accuracy(tmp_path / "uneven") < 0.5
    assert accuracy(second) > 0.8

    images = tmp_path / "images"
    images.mkdir()
    for i, image in enumerate(pixels[:64, ..., 0]):
        Image.fromarray(image).save(images / f"{i}.png")
    arguments = [str(second), f"--to={tmp_path / 'out'}", "--format=int8", f"--images={images}"]
    assert command.main(arguments) == 0, capsys.readouterr().err
    arguments[0] = str(tmp_path / "uneven")
    arguments[1] += "2"
    assert command.main(arguments) == 2
    assert "images that it is sure of: fine-tune it" in capsys.readouterr().err
