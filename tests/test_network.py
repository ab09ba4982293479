"""Weights that know what they are: stored, loaded by another process, the same numbers."""

import dataclasses
import json
import re
import subprocess
import sys
import types
from typing import Any

import cv2
import flax.linen as nn
import jax
import numpy as np
import pytest
import runs
from test_zoo import AT_LEAST, SIBLINGS, STEPS, tier

from jaxcls import checkpoint, choices, evaluate, meta, models, network, program, weights
from jaxcls.data import ops
from jaxcls.data.feed import Feed
from jaxcls.models.published import ACCURACY

CLASSES = 6
LOAD = """
import json, sys
import jax, numpy as np
from jaxcls import network
for path in sys.argv[1:]:
    images = np.load(f"{path}/images.npy")[:8]
    net, variables = network.load(path, report=lambda line: None)
    pixels = np.stack([net.transform(image, None) for image in images])
    np.save(f"{path}/logits.npy", net.predict(variables, pixels)["logits"])
    assert {name.partition(".")[0] for name in sys.modules}.isdisjoint({"optax", "configs"})
"""


def config_of(family):
    """Returns the config of a run of a family's small sibling, in bfloat16, on fake images."""
    name, overrides = SIBLINGS[family]
    overrides = {k: v for k, v in overrides.items() if network.is_option((k, v))}  # not rows
    config = runs.tiny("plain")
    config.data.update({"source": "fake", "num_train": 16, "num_eval": 11, "num_classes": CLASSES})
    config.model.name, config.model.options = name, tuple(overrides.items())
    size = AT_LEAST.get(family, 32)
    config.image.update({"size": size, "eval_resize": size + 3, "std": (0.4, 0.5, 0.6)})
    config.image.mean = (0.4, 0.5, 0.6)
    config.crop.update({"name": "random_resized", "shift": 0})
    config.batch_size = config.eval.batch_size = 8
    config.precision.name = "bfloat16"
    config.lr.warmup = config.lr.warmup_if_scaled = ""
    return config


def save(config, path):
    """Saves the first state of a run with odd statistics; returns its own logits."""
    config, data = choices.open_data(config)
    names = data.class_names
    built = program.build(config, num_train=16, num_classes=CLASSES, class_names=names)
    state = built.init()
    rng = np.random.default_rng(0)
    odd = lambda x: x + 0.01 * rng.standard_normal(x.shape, np.float32)
    drawn = jax.tree.map(odd, jax.device_get(state.variables()))
    state = jax.device_put(state.replace(**drawn), built.layout.whole)
    opened = checkpoint.Checkpoints(path / "checkpoints", keep=1, best="top1")
    opened.save(1, state, meta.new(built.network, config.crop, data))
    opened.close()
    images = [data.eval[i]["image"] for i in range(len(data.eval))]
    np.save(path / "images.npy", images)

    logits = []

    def eval_step(variables, batch):
        logits.append(built.network.predict(variables, batch["image"])["logits"])
        return built.eval_step(variables, batch)

    feed = Feed(data, data.eval, built.network.transform, built.layout)
    evaluate.evaluate(eval_step, feed, state.variables(), batch_size=8)
    return np.asarray(logits[0])


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f == "mobilenet_v1" else tier(f)) for f in SIBLINGS],
)
def test_another_process_predicts_what_the_run_did(commands, tmp_path, family):
    ours = save(config_of(family), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path)],
        # as many virtual devices as here: XLA divides its threads among them
        env=commands.environment(devices=8),
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    theirs = np.load(tmp_path / "logits.npy")
    assert theirs.dtype == ours.dtype == np.float32
    np.testing.assert_array_equal(theirs, ours)
    assert np.ptp(ours, axis=0).max() > 0


def small(**changes):
    """Returns a network and variables of it."""
    image = ops.Image(**dict(runs.tiny("plain").image))
    net = network.Network(
        name="ResNet18_vd",
        options=dict(runs.tiny("plain").model.options),
        num_classes=4,
        class_names=("a", "b", "c", "d"),
        image=image,
        precision="float32",
    )
    net = dataclasses.replace(net, **changes)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), net.shapes)
    return net, zeros


def test_what_is_stored_is_what_is_read(tmp_path):
    net, zeros = small(precision="O3_bfloat16", class_names=("a", "\u4e2d"))
    weights.export(tmp_path / "w", zeros, {"network": net.described()})
    found, variables = network.load(tmp_path / "w", report=pytest.fail)
    assert found == net
    assert {str(x.dtype) for x in jax.tree.leaves(variables["params"])} == {"bfloat16"}
    assert network.of_meta({"network": net.described()}, zeros, "") == net
    told = net.described() | {"class_names": ["\ud800", "b"]}  # JSON may say so, UTF-8 cannot
    assert network.of_meta({"network": told}, zeros, "").class_names == ("\\ud800", "b")


def test_weights_of_versions_that_said_less(tmp_path, caplog):
    net, zeros = small()
    told = {"name": net.name, "options": json.loads(json.dumps(net.options))}
    image = dataclasses.asdict(net.image) | {"crop": "shift", "shift": 1, "flip": 0.5}
    old = {"model": net.name, "network": told, "image": image, "class_names": ["a", "b", "c", "d"]}
    weights.export(tmp_path / "run", zeros, old)
    lines = []
    found, _ = network.load(tmp_path / "run", report=lines.append)
    assert lines == [f"{tmp_path / 'run'} does not say its precision: float32"]
    assert not caplog.records  # of orbax
    assert found == dataclasses.replace(net, version="before 0.2")

    converted = {"model": net.name, "options": net.options, "class_names": None}
    big, zeros = small(image=ops.Image(**network.published_image(net.name)))
    weights.export(tmp_path / "export", zeros, converted)
    found, _ = network.load(tmp_path / "export", report=lines.append)
    assert found == dataclasses.replace(big, class_names=(), version="before 0.2")
    assert "does not say its image.size, eval_size, eval_resize, inter" in lines[1]

    grey = small()[1]
    weights.export(tmp_path / "grey", grey, converted)
    with pytest.raises(ValueError, match=r"\[3,3,1,8\] in the checkpoint, \[3,3,3,8\] here"):
        network.load(tmp_path / "grey", report=lambda line: None)
    for nothing in ({"network": "x"}, {"network": 3}, {"model": None}, {}):
        with pytest.raises(ValueError, match="do not describe a network"):
            network.of_meta(nothing, grey, "")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "ResNet19"}, "unknown model 'ResNet19'"),
        ({"options": {"width": -1}}, "options"),
        ({"options": [1]}, "do not describe a network"),
        ({"class_names": "four"}, "do not describe a network: .* another class_names"),
        ({"options": {"stem": "none"}}, "ResNet18_vd cannot be built: stem='none'"),
        ({"image": {"size": "8"}}, "config.image.size = '8': write a whole number"),
        ({"image": {"mean": [1e9]}}, "config.image.mean"),
        ({"precision": "O9"}, "unknown precision 'O9'"),
        ({"precision": "float64"}, "ResNet18_vd cannot be built: .* JAX_ENABLE_X64=1"),
        ({"num_classes": -1}, "-1 classes"),
        ({"num_classes": 10**9}, "1000000000 classes"),
        ({"num_classes": None}, "None classes"),
        ({"num_classes": 5}, r"not those of ResNet18_vd .*\[8,4\] in the checkpoint, \[8,5\] here"),
        ({"num_classes": 0}, "no classifier: fine-tune"),
    ],
)
def test_descriptions_that_are_none(tmp_path, changes, message):
    net, zeros = small()
    weights.export(tmp_path / "w", zeros, {"network": net.described() | changes})
    with pytest.raises(ValueError, match=message):
        network.load(tmp_path / "w", report=lambda line: None)


def test_images_of_another_size_without_training():
    net, variables = small()
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.uniform(0.5, 1, x.shape).astype(np.float32), variables)
    image = rng.integers(0, 256, (30, 40, 1), np.uint8)
    larger = net.resized(12, 15)
    pixels = larger.transform(image, None)
    resized = cv2.resize(image, (20, 15))
    np.testing.assert_array_equal(pixels[..., 0], resized[1:13, 4:16])
    given = (pixels.astype(np.float32)[None] / 255 - 0.3) / 0.37
    expected = net.module.apply(variables, given)["logits"]
    np.testing.assert_allclose(larger.predict(variables, pixels[None])["logits"], expected, 1e-5)
    # what is not said follows: images of one size, or the proportion that there was
    assert net.resized(12).image.eval_resize == 12
    assert larger.resized(16).image.eval_resize == 20
    assert (larger.image.size, larger.image.shown) == (8, 12)
    big, _ = small(name="GoogLeNet", options={}, image=dataclasses.replace(net.image, size=64))
    assert big.resized(61).image.shown == 61
    with pytest.raises(ValueError, match="GoogLeNet, trained at 64 x 64 .* needs at least 61 x 61"):
        big.resized(60)
    with pytest.raises(ValueError, match="evaluation crops 12 pixels"):
        net.resized(12, 11)


@pytest.mark.ci
@pytest.mark.parametrize("family", SIBLINGS)
def test_every_family_takes_larger_images(family):
    name, options = SIBLINGS[family]
    size = AT_LEAST.get(family, 32)
    image = dataclasses.replace(small()[0].image, size=size, mean=(0.5,) * 3, std=(0.5,) * 3)
    net, _ = small(name=name, options=options, image=image)
    more = size + STEPS.get(family, 37)
    larger = net.resized(more)
    images = jax.ShapeDtypeStruct((2, more, more, 3), np.uint8)
    assert jax.eval_shape(larger.predict, net.shapes, images)["logits"].shape == (2, 4)


class Flat(nn.Module):
    """A network without pooling: it takes images of one size."""

    c: Any = None

    @nn.compact
    def __call__(self, x, train=False):
        return {"logits": nn.Dense(4)(x.reshape(len(x), -1))}


def test_a_size_that_a_network_does_not_take(monkeypatch):
    monkeypatch.setattr(models, "build", lambda *_, **__: Flat())
    net, _ = small()
    assert net.resized(8, 9).image.shown == 8
    with pytest.raises(ValueError, match="trained at 8 x 8 pixels, cannot be evaluated at 12 x 12"):
        net.resized(12)
    config = runs.tiny("plain")
    config.image.eval_size = config.image.eval_resize = 12
    config.model.options = ()
    with pytest.raises(ValueError, match="config.image.eval_size = 12: ResNet18_vd, trained at 8"):
        network.make(
            **config.model,
            classes=4,
            class_names=(),
            image=ops.Image(**config.image),
            precision="float32",
        )


@pytest.mark.parametrize(
    ("pixels", "what"),
    [
        (np.zeros((8, 8), np.uint8), r"uint8\[8, 8\]"),
        (np.zeros((8, 8, 2), np.uint8), r"uint8\[8, 8, 2\]"),
        (np.zeros((8, 8, 3)), r"float64\[8, 8, 3\]"),
    ],
)
def test_pixels_that_are_none(pixels, what):
    with pytest.raises(ValueError, match=f"pixels are {what}: give uint8"):
        small()[0].transform(pixels, None)


def test_a_folder_of_the_user_may_be_called_configs(monkeypatch):
    theirs = types.ModuleType("configs")
    monkeypatch.delitem(sys.modules, "configs.base", raising=False)
    monkeypatch.setitem(sys.modules, "configs", theirs)
    assert network.published_image("EfficientNetB1")["size"] == 240
    assert sys.modules["configs"] is theirs
    assert "configs.base" not in sys.modules


@pytest.mark.parametrize("name", ACCURACY)
def test_every_published_name_has_an_image(name):
    ops.Image(**network.published_image(name))


def test_depthwise_convolutions_are_what_the_platform_is_fast_at():
    """See layers.Conv: in all that answers, and nowhere else."""
    net = dataclasses.replace(small()[0], name="MobileNetV1_x0_25", options={})
    images = jax.ShapeDtypeStruct((2, *net.image.shape), np.uint8)
    for platform in ("cpu", "cuda"):
        lowered = net.predict.trace(net.shapes, images).lower(lowering_platforms=(platform,))
        grouped = set(re.findall(r"feature_group_count = (\d+)", lowered.as_text())) - {"1"}
        assert bool(grouped) == (platform == "cuda")
    fixed = dataclasses.replace(net, options={"by_platform": False})
    text = fixed.predict.trace(net.shapes, images).lower(lowering_platforms=("cpu",)).as_text()
    assert "feature_group_count = 8 " in text
