"""Images of one and of four channels, from the file to the network and to fine-tuning."""

import dataclasses
import io

import jax
import numpy as np
import pytest
import runs
from PIL import Image, TiffImagePlugin

from jaxcls import check, network, preview, train, weights
from jaxcls.data import augment, records, sources
from jaxcls.data.decode import decode

RNG = np.random.default_rng(0)
COLOR = RNG.integers(0, 256, (6, 5, 4), np.uint8)
GREY16 = RNG.integers(0, 65536, (6, 5), np.uint16)


def encoded(image, kind="PNG", **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def luma(color):
    return np.asarray(Image.fromarray(np.ascontiguousarray(color[..., :3])).convert("L"))


def stacked(color, last):
    """Returns four channels: RGB, or three times a grey one, and another."""
    rest = np.broadcast_to(last, color.shape[:2])
    return np.dstack([color, rest] if color.ndim == 3 else [color] * 3 + [rest])


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encoded(Image.fromarray(COLOR)), COLOR),
        (encoded(Image.fromarray(COLOR), "TIFF"), COLOR),
        (
            encoded(Image.fromarray(COLOR[..., :3])),
            stacked(COLOR[..., :3], 255),
        ),
        (
            encoded(Image.fromarray(COLOR[..., 0])),
            stacked(COLOR[..., 0], 255),
        ),
        (
            encoded(Image.fromarray(COLOR[..., 1:3], "LA")),
            stacked(COLOR[..., 1], COLOR[..., 2]),
        ),
        (encoded(Image.fromarray(GREY16)), stacked(GREY16 >> 8, 255)),
    ],
)
def test_four_channels(data, expected):
    np.testing.assert_array_equal(decode(data, channels=4), expected)


def test_the_fourth_band_of_a_file_is_kept():
    """As near infrared stands in a TIFF: no transparency, which Pillow would throw away."""
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[338] = 0  # ExtraSamples: unspecified
    data = encoded(Image.fromarray(COLOR, "RGBX"), "TIFF", tiffinfo=info)
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "RGB"
    np.testing.assert_array_equal(decode(data, channels=4), COLOR)
    np.testing.assert_array_equal(decode(data, channels=3), COLOR[..., :3])


def test_jpegs_get_a_fourth_channel():
    data = encoded(Image.fromarray(COLOR[..., :3]), "JPEG")
    pixels = decode(data, channels=4)
    np.testing.assert_array_equal(pixels[..., :3], decode(data))
    assert (pixels[..., 3] == 255).all()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_of_16_bits(kind):
    data = encoded(Image.fromarray(GREY16), kind)
    np.testing.assert_array_equal(decode(data, channels=1)[..., 0], GREY16 >> 8)


def test_arrays():
    np.testing.assert_array_equal(decode(COLOR, channels=4), COLOR)
    np.testing.assert_array_equal(decode(COLOR), COLOR[..., :3])
    assert abs(decode(COLOR, channels=1)[..., 0].astype(int) - luma(COLOR)).max() <= 1
    got = decode(COLOR[..., :1], channels=4)
    np.testing.assert_array_equal(got, stacked(COLOR[..., 0], 255))
    item = records.unpack_record(records.pack_record(COLOR, 1, "x"))
    np.testing.assert_array_equal(item["image"], COLOR)


@pytest.mark.parametrize(
    ("channels", "changes", "message"),
    [
        (
            4,
            {"policy": "randaugment"},
            "augment.policy = 'randaugment' is for images of 3 channels",
        ),
        (4, {"color_jitter": (0, 0, 0, 0.1)}, "augment.color_jitter .* have 4 .* write \\(0.0, "),
        (4, {"grayscale": 0.1}, "augment.grayscale = 0.1 is for .*: write 0.0"),
        (4, {"lighting": 0.1}, "augment.lighting = 0.1 is for"),
        (1, {"lighting": 0.1}, "augment.lighting = 0.1 is for .* these have 1"),
    ],
)
def test_what_needs_colours(channels, changes, message):
    keys = dict(runs.tiny("plain").augment) | changes
    with pytest.raises(ValueError, match=message):
        augment.make(**keys, channels=channels)
    assert augment.make(**keys, channels=3)
    rotation = dict(runs.tiny("plain").augment) | {"rotation": 20.0}
    turned = augment.make(**rotation, channels=4)(COLOR, RNG)
    assert turned.shape == COLOR.shape


def shapes(root, channels=4):
    """Writes images whose class only the last channel tells; returns the config of a run."""
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    for i in range(120):
        pixels = RNG.integers(0, 256, (8, 8, channels), np.uint8)
        pixels[..., -1] = RNG.integers(0, 100, (8, 8)) + 150 * (i % 2)
        path = root / ("val" if i < 40 else "train") / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.squeeze(), mode).save(path)
    config = runs.tiny("plain")
    config.data.source, config.data.root = "folder", str(root)
    config.batch_size, config.duration, config.lr.warmup = 16, "40 steps", ""
    config.eval.every = config.checkpoint.every = "40 steps"
    config.image.mean, config.image.std = (0.5,) * channels, (0.25,) * channels
    return config


def test_what_looks_at_images(tmp_path):
    config = shapes(tmp_path)
    config.erase.name, config.erase.length = "cutout", 4
    originals, images, labels = preview.preview(config, images=4, step=3)
    assert (originals.shape[1:], images.shape[1:]) == ((96, 96, 4), (8, 8, 4))
    assert preview.sheet(originals, images, labels, "t").mode == "RGB"
    result = check.check(config)
    assert result["train"]["counts"] == {"a": 40, "b": 40}
    data = sources.open(**config.data)
    pixels = network.Network(
        name="ResNet18_vd", options={}, num_classes=2, class_names=(), precision="float32",
        image=dataclasses.replace(image_of(config)),
    ).transform(data.train[0]["image"], None)  # fmt: skip
    assert pixels.shape == (8, 8, 4)


def image_of(config):
    from jaxcls.data import ops

    return ops.Image(**config.image)


@pytest.mark.parametrize(("theirs", "ours"), [(3, 1), (3, 4), (4, 3), (1, 3)])
def test_kernels_of_other_channels(theirs, ours):
    """timm's adapt_input_conv: summed, or repeated, cut off and scaled."""
    kernel = RNG.standard_normal((3, 3, theirs, 8)).astype(np.float32)
    got = weights.with_channels(kernel, ours)
    assert got.shape == (3, 3, ours, 8)
    assert got.dtype == np.float32
    expected = kernel.sum(2, keepdims=True)
    if ours > 1:
        expected = np.tile(kernel, (1, 1, 4, 1))[:, :, :ours] * (theirs / ours)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, pytest.param(4, marks=pytest.mark.ci)])
def test_fine_tuning_adapts_the_first_kernel(tmp_path, channels):
    color = shapes(tmp_path / "data")
    color.image.mean, color.image.std = (0.5,) * 3, (0.25,) * 3
    state, _, _ = train.setup(color)
    net = {"name": "ResNet18_vd", "options": {}, "num_classes": 2, "class_names": ["a", "b"]}
    net["image"] = {"mean": [0.5] * 3}
    weights.export(tmp_path / "export", jax.device_get(state.variables()), {"network": net})

    config = shapes(tmp_path / "data")
    config.image.mean, config.image.std = (0.5,) * channels, (0.25,) * channels
    start, _, _ = train.setup(config)
    said = []
    net = net | {"image": {"mean": [0.5] * channels}}
    how = {"network": net, "checkpoint": tmp_path / "export", "report": said.append}
    got = weights.initialize(start.variables(), **how)
    name = "params/stem/conv1/conv/kernel"
    assert said[1] == f"  adapted: {name} [3, 3, 3, 8] to images of {channels} channels"
    kernel = state.params["stem"]["conv1"]["conv"]["kernel"]
    expected = weights.with_channels(np.asarray(kernel), channels)
    np.testing.assert_array_equal(got["params"]["stem"]["conv1"]["conv"]["kernel"], expected)
    with pytest.raises(ValueError, match=r"stem/conv1/conv/kernel.*\[3,3,3,8\]"):
        weights.initialize(start.variables(), **how, strict=True)


@pytest.mark.ci
@pytest.mark.parametrize("channels", [1, 4])
def test_a_run_from_a_checkpoint_of_colour_images(commands, tmp_path, channels):
    """The class stands in the last channel alone; as weights, those of a run on three."""
    data = shapes(tmp_path / "data", channels)
    options = [f"--config={runs.TINY}:plain", f"--config.data.root={data.data.root}"]
    keys = ("data.source", "batch_size", "duration", "lr.warmup", "eval.every", "checkpoint.every")
    flat = data.to_dict()
    for key in keys:
        section, _, name = key.rpartition(".")
        options.append(f"--config.{key}={(flat[section] if section else flat)[name]}")
    rgb = [*options, "--config.image.mean=0.5,0.5,0.5", "--config.image.std=0.25,0.25,0.25"]
    done = commands.fork(*rgb, f"--workdir={tmp_path / 'rgb'}")
    assert done.returncode == 0, done.err
    numbers = [",".join([x] * channels) for x in ("0.5", "0.25")]
    own = [*options, f"--config.image.mean={numbers[0]}", f"--config.image.std={numbers[1]}"]
    own.append(f"--config.init.checkpoint={tmp_path / 'rgb'}")
    done = commands.fork(*own, f"--workdir={tmp_path / 'own'}")
    assert done.returncode == 0, done.err
    assert (
        f"adapted: params/stem/conv1/conv/kernel [3, 3, 3, 8] to images of {channels}" in done.out
    )
    assert runs.summary(tmp_path / "own")["best"]["top1"] > 0.95
    net, variables = network.load(tmp_path / "own")
    out = net.predict(variables, np.zeros((1, 8, 8, channels), np.uint8))
    assert out["logits"].shape == (1, 2)
