"""Networks against PaddleClas's own answers, shapes, names and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from jaxcls import convert, models, trees
from jaxcls.models.count import count, multiply_adds
from jaxcls.models.layers import BatchNorm
from jaxcls.models.spec import Ctx

GOLDEN = oracle.golden()
SMALL = {  # seconds each
    "ResNet18",
    "DarkNet53",
    "MobileNetV1_x0_25",
    "MobileNetV2_x0_25",
    "MobileNetV3_small_x0_35",
    "ShuffleNetV2_x0_25",
    "EfficientNetB0_small",
    "SqueezeNet1_0",
    "GoogLeNet",
}
CI = {  # with these every family, and what some can do besides; all others: -m zoo
    "ResNet50",
    "ResNet50_vc",
    "ResNet18_vd",
    "SE_ResNet18_vd",
    "ResNeXt50_32x4d",
    "Res2Net50_14w_8s",
    "HRNet_W18_C",
    "ShuffleNetV2_swish",
    "EfficientNetB0",
    "AlexNet",
    "VGG11",
    "InceptionV4",
    "Xception41",
    "Xception41_deeplab",
    "DPN68",
    "DenseNet121",
}


def paddle_tensors(name):
    """Returns PaddleClas's tensors for our architecture."""
    image = jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32)
    tree = jax.eval_shape(models.build(name).init, jax.random.key(0), image)
    layers = {k.rpartition(".")[0] for k in oracle.places(name, tree) if k.endswith("._mean")}
    bn = dict(zip(sorted(layers), GOLDEN[name]["bn"], strict=True))
    return oracle.tensors(name, tree, bn)


def tier(name):
    """Returns the markers of a network's test."""
    return [] if name in SMALL else [pytest.mark.ci] if name in CI else [pytest.mark.zoo]


EVERY = [pytest.param(name, marks=tier(name)) for name in GOLDEN]


@pytest.mark.parametrize("name", EVERY)
def test_logits_are_paddleclas(name):
    expected = GOLDEN[name]
    variables = convert.from_paddle(name, paddle_tensors(name))
    module = models.build(name)
    out = jax.jit(lambda v, x: module.apply(v, x))(variables, oracle.images(expected["size"]))
    for head, theirs, signal in zip(
        ("logits", "aux1", "aux2"), expected["logits"], expected["signal"], strict=False
    ):
        ours = np.asarray(out[head])[:, : oracle.LOGITS]
        assert np.abs(ours - theirs).max() / signal < 1e-4, head


def test_conversion_is_total():
    tensors = paddle_tensors("ResNet18_vd")
    tensors["extra.weight"] = tensors.pop("fc.bias")
    tensors["stem.0.conv.weight"] = tensors["stem.0.conv.weight"][:, :2]
    with pytest.raises(ValueError) as e:
        convert.from_paddle("ResNet18_vd", tensors)
    message = str(e.value)
    assert "fc.bias: missing" in message
    assert "extra.weight: no place" in message
    assert "stem.0.conv.weight: shape (3, 3, 2, 32)" in message
    assert len(message.splitlines()) == 4


def test_published_multiply_adds():
    # He et al. 2015, table 1: 1.8, 3.6 and 3.8 billion for 18, 34 and 50 layers with the stride in
    # the first convolution; PaddleClas lists 1.83, 3.68 and 4.09 for its own.
    for name, published in {"ResNet18": 1.83, "ResNet34": 3.68, "ResNet50": 4.09}.items():
        assert count(models.build(name), 224)["macs"] / 1e9 == pytest.approx(published, abs=0.01)


def test_multiply_adds_of_grouped_convolution():
    def grouped(x, w):
        return jax.lax.conv_general_dilated(
            x, w, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=4
        )

    x, w = jnp.zeros((1, 5, 5, 8)), jnp.zeros((3, 3, 2, 12))
    assert multiply_adds(grouped, x, w) == 3 * 3 * 12 * (3 * 3 * 2)


def test_outputs_and_path_contract():
    module = models.build("ResNet50_vd", num_classes=7)
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    out = jax.eval_shape(lambda v, x: module.apply(v, x), variables, image)
    assert {k: v.shape for k, v in out.items()} == {
        "logits": (2, 7),
        "pre_logits": (2, 2048),
        "stage1": (2, 16, 16, 256),
        "stage2": (2, 8, 8, 512),
        "stage3": (2, 4, 4, 1024),
        "stage4": (2, 2, 2, 2048),
    }
    assert set(variables["params"]) == {"stem", "stage1", "stage2", "stage3", "stage4", "head"}
    assert "stage3/block6/conv2/bn/scale" in trees.paths(variables["params"])


def batch_norm_by_formula(x, group, eps=1e-5):
    """Ioffe and Szegedy 2015, algorithm 1, in float64, group by group."""
    out = np.empty(x.shape)
    means, variances = [], []
    for start in range(0, len(x), group):
        part = x[start : start + group].astype(np.float64)
        mean, var = part.mean((0, 1, 2)), part.var((0, 1, 2))
        out[start : start + group] = (part - mean) / np.sqrt(var + eps)
        means.append(mean)
        variances.append(var)
    return out, np.mean(means, 0), np.mean(variances, 0)


@pytest.mark.parametrize("group", [None, 8, 4, 2])
def test_batch_norm_groups(group):
    x = np.random.default_rng(0).normal(3, 2, (8, 5, 5, 6)).astype(np.float32)
    layer = BatchNorm(Ctx(train=True, bn_group=group, bn_momentum=0.8))
    variables = layer.init(jax.random.key(0), x)
    assert np.all(variables["batch_stats"]["mean"] == 0)  # initialising is not a step
    y, new = layer.apply(variables, x, mutable=["batch_stats"])
    expected, mean, var = batch_norm_by_formula(x, group or 8)
    np.testing.assert_allclose(y, expected, atol=2e-5)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.2 * mean, rtol=1e-5)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.8 + 0.2 * var, rtol=1e-5)


def test_frozen_batch_norm_keeps_its_statistics():
    x = np.random.default_rng(0).normal(3, 2, (4, 3, 3, 2)).astype(np.float32)
    layer = BatchNorm(Ctx(train=True, frozen=trees.frozen_modules(("",))))
    variables = layer.init(jax.random.key(0), x)
    y, new = layer.apply(variables, x, mutable=["batch_stats"])
    np.testing.assert_allclose(y, x / np.sqrt(1 + 1e-5), rtol=1e-6)
    np.testing.assert_array_equal(new["batch_stats"]["var"], 1)


def test_unknown_names_and_arguments():
    with pytest.raises(ValueError, match=r"unknown model 'ResNet50_v': did you mean ResNet50_v"):
        models.build("ResNet50_v")
    with pytest.raises(ValueError, match=r"takes no argument widht; it takes .*width"):
        models.build("ResNet50", widht=3)
    with pytest.raises(ValueError, match="stem='conv9': choose one of"):
        jax.eval_shape(
            models.build("ResNet18", stem="conv9").init,
            jax.random.key(0),
            jnp.zeros((1, 32, 32, 3)),
        )
