"""ONNX: every operation against JAX in onnxruntime, graphs of networks, what is simplified."""

import collections

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime
import pytest
from drawn import settled, steady
from jax import lax
from test_zoo import GIANTS, tier

from jaxcls import models
from jaxcls.export.onnx import convert
from jaxcls.models import efficientnet_v2, mixnet

RNG = np.random.default_rng(0)
W = {
    "conv": RNG.normal(size=(3, 3, 6, 8)).astype(np.float32),
    "deep": RNG.normal(size=(5, 5, 1, 6)).astype(np.float32),
    "point": RNG.normal(size=(1, 1, 6, 12)).astype(np.float32),
    "dense": RNG.normal(size=(6, 5)).astype(np.float32),
    "flat": RNG.normal(size=(6, 8, 7, 5)).astype(np.float32),
    "channels": RNG.normal(size=6).astype(np.float32),
    "table": RNG.normal(size=(9, 6)).astype(np.float32),
}
PLACES = np.array([[0, 3], [8, 2]])


def conv(x, w, stride=1, padding=1, groups=1, dilation=1):
    return lax.conv_general_dilated(
        x,
        w,
        (stride, stride),
        [(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def attention(x):
    q, k, v = jnp.split(x.reshape(x.shape[0], 56, 6), 3, axis=-1)
    heads = lambda y: y.reshape(y.shape[0], 56, 2, 1).transpose(0, 2, 1, 3)
    weights = jax.nn.softmax(heads(q) @ heads(k).swapaxes(-1, -2) / 3, axis=-1)
    return (weights @ heads(v)).transpose(0, 2, 1, 3).reshape(x.shape[0], 56, 2)


def layer_norm(x):
    mean = x.mean(-1, keepdims=True)
    var = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * lax.rsqrt(var + 1e-6) * W["channels"] + 1


def windows(x):
    x = x[:, :, :6].reshape(x.shape[0], 4, 2, 3, 2, 6).transpose(0, 1, 3, 2, 4, 5)
    return jnp.roll(x.reshape(-1, 4, 6), 1, axis=1)


FUNCTIONS = {
    "arithmetic": lambda x: (2 - x) / (1.5 + x * x) - x / 3,
    "activations": lambda x: nn.gelu(x, approximate=False) + nn.silu(x) + nn.hard_swish(x),
    "gelu": lambda x: nn.gelu(x) + jnp.tanh(x) + nn.relu6(x) + nn.sigmoid(x),
    "powers": lambda x: jnp.sqrt(x * x + 1) + lax.rsqrt(x * x + 1) + x**3 + jnp.abs(x) ** 1.5,
    "logarithms": lambda x: jnp.log1p(x * x) + jnp.expm1(x / 4) + nn.softplus(x),
    "choices": lambda x: jnp.where(x > 0.3, x, -x) + jnp.clip(x, -0.5, 0.5) + jnp.sign(x),
    "rounding": lambda x: jnp.floor(x) + jnp.ceil(x * 2),
    "channels": lambda x: x * W["channels"] + W["channels"][::-1],
    "conv": lambda x: conv(x, W["conv"]),
    "conv, stride": lambda x: conv(x, W["conv"], stride=2, padding=0),
    "conv, dilation": lambda x: conv(x, W["conv"], padding=2, dilation=2),
    "conv, depthwise": lambda x: conv(x, W["deep"], padding=2, groups=6),
    "conv, affine": lambda x: nn.relu(conv(x, W["conv"]) * RNG_8 + 3) - 1,
    "conv, then channels": lambda x: conv(x, W["point"]).mean((1, 2)),
    "dense": lambda x: x @ W["dense"] + 1,
    "dense of a mean": lambda x: (x.mean((1, 2)) * 0.8) @ W["dense"] * 2 + 1,
    "dense of all": lambda x: jnp.tensordot(x, W["flat"].transpose(1, 2, 0, 3), 3),
    "flattened, channels first": lambda x: x.transpose(0, 3, 1, 2).reshape(x.shape[0], -1),
    "max pool": lambda x: nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 2)]),
    "mean pool": lambda x: nn.avg_pool(x, (2, 2), (2, 2)),
    "mean pool, padded": lambda x: nn.avg_pool(x, (3, 3), (2, 2), "SAME", False),
    "means": lambda x: x.mean((1, 2), keepdims=True) * x + x.max(-1, keepdims=True),
    "sums": lambda x: x.sum(1) + x.min(2).sum(1, keepdims=True)[:, :1] + x.prod((1, 2))[:, None],
    "argmax": lambda x: x.argmax(-1),
    "shuffle": lambda x: jnp.stack(jnp.split(x, 2, -1), -1).reshape(x.shape),
    "shuffle after conv": lambda x: jnp.stack(jnp.split(conv(x, W["conv"]), 2, -1), -1).reshape(
        x.shape[0], 8, 7, 8
    ),
    "nearest": lambda x: jnp.broadcast_to(
        x[:, :, None, :, None], (x.shape[0], 8, 2, 7, 3, 6)
    ).reshape(x.shape[0], 16, 21, 6),
    "concatenation": lambda x: jnp.concatenate([x, conv(x, W["conv"]), x[..., :2]], -1),
    "slices": lambda x: x[:, 1:-1:2, ::3] + x[:, 2:3, 1:2, ::-1],
    "a range": lambda x: x[:, 1:3, 2:] + x[:, -2:, :5, ::-1],
    "one place": lambda x: x[:, 0, 0] + lax.index_in_dim(x, 3, 1)[:, 0, 2],
    "padding": lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 0), (3, 0)), constant_values=0.5),
    "table": lambda x: x[:, :2, :2] + W["table"][PLACES],
    "places": lambda x: x.reshape(x.shape[0], 56, 6)[:, PLACES.ravel()],
    "token": lambda x: jnp.concatenate(
        [jnp.broadcast_to(W["channels"], (x.shape[0], 1, 6)), x.reshape(x.shape[0], 56, 6)], 1
    ),
    "attention": attention,
    "einsum": lambda x: jnp.einsum("bhwc,bhvc->bhwv", x, x * 2),
    "layer norm": layer_norm,
    "windows": windows,
    "squeezed": lambda x: x.mean((1, 2), keepdims=True).squeeze((1, 2)),
    "types": lambda x: (x > 0).astype(jnp.int32) + (x * 10).astype(jnp.int8).astype(jnp.int32),
    "how many": lambda x: x * x.shape[0] + jnp.asarray(x.shape[0] * 1.0),
    "logic": lambda x: ((x > 0) & ~(x == 1) | (x <= -1) & (x != 2)).astype(jnp.float32),
}
RNG_8 = RNG.uniform(0.5, 2, 8).astype(np.float32)


def run(model, images, outputs=None):
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(outputs, {"images": images})


def spec(*sizes):
    shape = jax.export.symbolic_shape(", ".join(map(str, ("b", *sizes))))
    return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_operations(name):
    function = FUNCTIONS[name]
    x = RNG.normal(size=(3, 8, 7, 6)).astype(np.float32)
    model = convert(lambda images: {"y": function(images)}, spec(8, 7, 6), {})
    for images in (x, x[:1]):
        [y] = run(model, images)
        expected = np.asarray(function(jnp.asarray(images)))
        assert y.dtype == expected.dtype
        assert y.shape == expected.shape
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: jnp.sort(x), "jax.lax.sort"),
        (lambda x: x + jnp.arange(x.shape[0])[:, None, None, None], "images of a batch"),
        (lambda x: lax.dynamic_slice_in_dim(x, x[0, 0, 0].argmax(), 2, 1), "depends on the image"),
        (lambda x: jnp.take(x, x.argmax(-1).max(0), 1), "depend on the image"),
    ],
)
def test_what_has_no_rule_is_told(function, text):
    with pytest.raises(NotImplementedError, match=text):
        convert(lambda images: {"y": function(images)}, spec(8, 7, 6), {})


def variables_of(module, size):
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return steady(dict(jax.eval_shape(module.init, jax.random.key(0), image)))


def operations(model):
    return collections.Counter(node.op_type for node in model.graph.node)


def check_network(name, size, **options):
    """Converts a network, with weights that do not enlarge rounding; returns its operations."""
    module = models.build(name, num_classes=10, **options)
    # images that differ in more than noise, or what tells them apart is near to rounding
    small = np.random.default_rng(2).normal(0, 2, (16, 4, 4, 3)).astype(np.float32)
    x = np.asarray(jax.image.resize(small, (16, size, size, 3), "cubic"))
    variables, x = settled(module, variables_of(module, size), x), x[:3]
    predict = lambda images: {"logits": module.apply(variables, images)["logits"]}
    model = convert(predict, spec(size, size, 3), {"of": name})
    [logits], expected = run(model, x), np.asarray(jax.jit(predict)(x)["logits"])
    assert np.abs(logits - expected).max() < 1e-4 * np.ptp(expected, axis=0).max()
    assert {p.key: p.value for p in model.metadata_props} == {"of": name}
    return operations(model)


def test_a_network_is_convolutions_without_batch_norms():
    counts = check_network("ResNet18_vd", 64, width=8)
    assert counts["Transpose"] == 1
    assert counts["Conv"] == 23
    assert counts["Mul"] == counts["Sub"] == counts["BatchNormalization"] == 0
    assert counts["Add"] == 8  # of the shortcuts
    assert counts["GlobalAveragePool"] == counts["Gemm"] == 1


def test_gates_and_hard_activations():
    counts = check_network("MobileNetV3_small_x0_35", 64)
    assert counts["Transpose"] == counts["Reshape"] == 1
    assert counts["GlobalAveragePool"] == 10


def marked(rows):
    """Returns the rows as tests: DeiT's of the default tier."""
    marks = lambda name: [] if name.startswith("DeiT") else tier(models.family_of(name))
    return [pytest.param(*row, id=row[0], marks=marks(row[0])) for row in rows]


SMALL = (
    ("ResNet50_ACNet_deploy", 64, {"conv": "asymmetric", "width": 8}),
    ("SE_ResNet18_vd", 64, {"width": 8}),
    ("Res2Net50_26w_4s", 64, {}),
    ("HRNet_W18_C", 64, {}),
    ("ResNeSt50", 64, {"depths": (1, 1, 1, 1)}),
    ("RedNet26", 64, {"depths": (1, 1, 1, 1)}),
    ("DLA46x_c", 64, {}),
    ("CSPDarkNet53", 64, {}),
    ("PPHGNetV2_B0", 64, {}),
    ("DarkNet53", 64, {}),
    ("MobileNetV1_x0_25", 64, {}),
    ("MobileNetV2_x0_25", 64, {}),
    ("GoogLeNet", 224, {}),
    ("InceptionV3", 128, {}),
    ("InceptionV4", 128, {}),
    ("Xception41", 96, {}),
    ("DPN68", 64, {}),
    ("DenseNet121", 64, {}),
    ("HarDNet39_ds", 64, {}),
    ("PeleeNet", 64, {}),
    ("ShuffleNetV2_x0_25", 64, {}),
    ("EfficientNetB0", 64, {}),
    ("SqueezeNet1_0", 96, {}),
    ("AlexNet", 224, {}),
    ("VGG11", 64, {}),
    ("EfficientNetV2_S", 64, {"stages": efficientnet_v2.stages(*((8, 1),) * 6)}),
    ("MixNet_S", 64, {"stages": mixnet.SMALL[:3]}),
    ("ReXNet_1_0", 64, {}),
    ("GhostNet_x0_5", 64, {}),
    ("MobileNeXt_x0_35", 64, {}),
    ("MobileNetV4_conv_small", 64, {}),
    ("PPLCNet_x0_25", 64, {}),
    ("PPLCNetV2_small", 64, {}),
    ("ESNet_x0_25", 64, {}),
    ("MicroNet_M0", 64, {}),
    ("RepVGG_A0", 64, {"depths": (1, 2), "widths": (64, 64), "groups": 2, "se": True}),
    ("RegNetX_200MF", 64, {}),
    ("FasterNet_T0", 64, {}),
    ("StarNet_S1", 64, {"depths": (1, 1, 1, 1)}),
)


@pytest.mark.parametrize(("name", "size", "options"), marked(SMALL))
def test_families(name, size, options):
    counts = check_network(name, size, **options)
    # at this size VGG makes 7 x 7 cells of its 2 x 2, along other axes; so do involution, halves,
    # channels in groups
    if name not in ("RedNet26", "CSPDarkNet53", "MicroNet_M0"):
        assert counts["Transpose"] == (2 if name == "VGG11" else 1)


ATTENTION = (  # whose tokens are transposed for each head
    ("DeiT_tiny_distilled_patch16_224", 32, {"depth": 4, "width": 48}),
    (
        "SwinTransformer_tiny_patch4_window7_224",
        36,
        {"depths": (2, 2), "width": 12, "heads": (2, 4), "window": 3},
    ),
    (
        "SwinTransformerV2_tiny_patch4_window8_256",
        48,
        {"depths": (2, 2), "width": 12, "heads": (2, 4), "window": 4},
    ),
    ("alt_gvt_small", 48, {"depths": (2, 1), "widths": (16, 32), "window": 3}),
    ("TNT_small", 32, {"depth": 4, "width": 96, "inner": 8}),
    ("LeViT_128S", 64, {"depths": (1, 1), "widths": (32, 48), "key": 8}),
    ("PVT_V2_B0", 64, {"depths": (1, 2), "widths": (16, 32)}),
    ("PVT_V2_B2_Linear", 64, {"depths": (1, 1), "widths": (16, 32)}),
    ("CSWinTransformer_tiny_224", 112, {"depths": (1, 1, 1, 1), "width": 16}),
    ("CvT_13_224", 48, {"depths": (1, 1), "widths": (16, 30)}),
    ("CAE_vit_base_patch16_224", 32, {"depth": 4, "width": 48, "hidden": 96}),
    ("MobileViT_XXS", 96, {}),
    ("MobileViTV2_x0_5", 64, {}),
    ("MobileViTV3_XXS", 96, {}),
    ("ConvNeXt_tiny", 64, {"depths": (1, 1, 1, 1)}),
    ("VAN_B0", 64, {"depths": (1, 1, 1, 1)}),
    ("DSNet_tiny", 64, {"depths": (1, 1, 1, 1)}),
    ("NextViT_small_224", 64, {"depths": (1, 2, 5, 2)}),
    ("UniFormer_small_plus", 64, {"depths": (1, 1, 1, 1)}),
)


@pytest.mark.parametrize(("name", "size", "options"), marked(ATTENTION))
def test_families_with_attention(name, size, options):
    check_network(name, size, **options)


@pytest.mark.zoo
@pytest.mark.parametrize("name", [n for n in models.names() if not models.MODELS[n].alias_of])
def test_every_network(name):
    check_network(name, models.MODELS[name].size, **GIANTS.get(name, {}))


def test_the_file_is_one_that_onnx_accepts(tmp_path):
    model = convert(lambda images: {"y": images * 2}, spec(8, 7, 6), {})
    onnx.save(model, tmp_path / "model.onnx")
    read = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(read, full_check=True)
    [given] = read.graph.input
    sizes = [d.dim_param or d.dim_value for d in given.type.tensor_type.shape.dim]
    assert sizes == ["batch", 8, 7, 6]
