"""Attention, windows and places, against formulas, and against what timm makes of other sizes.

`golden/resize.json` has what timm's `resample_abs_pos_embed` and `resize_rel_pos_bias_table_simple`
(Swin's own way) answered in PyTorch, every n-th number, by function, sides and class tokens.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import models, trees
from jaxcls.models import transformer
from jaxcls.models.spec import Ctx

RESIZED = json.loads((Path(__file__).parent / "golden" / "resize.json").read_text())


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("case", RESIZED)
def test_other_sizes_are_timms(case):
    what, *numbers = case.split()
    old, h, w, tokens = map(int, numbers)
    if what == "positions":
        value = normal((1, old * old + tokens, 3), old)
        ours = transformer.positions(value, (h, w), tokens)
    else:
        value = normal(((2 * old - 1) ** 2 + tokens, 4), 100 + old)
        ours = transformer.relative(value, (h, w), tokens)
        name, other = "stage1/block1/attn/bias_table/value", ours.shape
        np.testing.assert_array_equal(transformer.adapted(name, value, other), ours)
    assert isinstance(ours, np.ndarray)
    expected = RESIZED[case]
    some = ours.ravel()[:: max(1, ours.size // 60)]
    np.testing.assert_allclose(some, expected, atol=1e-5)


def test_what_adapts():
    adapted = transformer.adapted
    name = "stem/pos_embed/value"
    assert adapted(name, normal((1, 197, 8)), (1, 577, 8)).shape == (1, 577, 8)
    assert adapted(name, normal((1, 197, 8)), (1, 578, 8)) is None  # one class token more
    assert adapted(name, normal((1, 197, 8)), (1, 577, 9)) is None
    assert adapted("stem/cls_token/value", normal((1, 1, 8)), (1, 2, 8)) is None
    assert adapted("stem/proj/kernel", normal((1, 197, 8)), (1, 577, 8)) is None
    assert adapted("a/bias_grid/value", normal((4, 196)), (4, 576)).shape == (4, 576)


def test_attention_by_its_formula():
    q, k, v = (normal((2, 5, 3, 4), seed) for seed in range(3))
    bias = normal((1, 3, 5, 5), 3)
    logits = np.einsum("btnh,bsnh->bnts", q, k) * 0.3 + bias
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.einsum("bnts,bsnh->btnh", weights, v)
    np.testing.assert_allclose(transformer.attend(Ctx(), q, k, v, bias, 0.3), expected, atol=1e-5)
    wide = np.concatenate([v, 2 * v], -1)  # values wider than keys
    found = transformer.attend(Ctx(), q, k, wide, bias, 0.3)
    np.testing.assert_allclose(found[..., :4], expected, atol=1e-5)


@pytest.mark.parametrize("train", [False, True])
def test_attention_in_bfloat16_and_its_gradients(train):
    bfloat16 = lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)  # no rounding later
    q, k, v, ct = (bfloat16(normal((2, 65, 3, 16), seed)) for seed in range(4))
    bias = bfloat16(normal((1, 3, 65, 65), 4))
    logits = np.einsum("btnh,bsnh->bnts", q, k) / 4 + bias
    w = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    of_w = np.einsum("btnh,bsnh->bnts", ct, v)
    of_logits = w * (of_w - (w * of_w).sum(-1, keepdims=True))
    expected = [
        np.einsum("bnts,bsnh->btnh", w, v),
        np.einsum("bnts,bsnh->btnh", of_logits, k) / 4,
        np.einsum("bnts,btnh->bsnh", of_logits, q) / 4,
        np.einsum("bnts,btnh->bsnh", w, ct),
        of_logits.sum(0, keepdims=True),
    ]
    c = Ctx(train=train, dtype=jnp.bfloat16, feature_dtype=jnp.bfloat16)
    half = [jnp.asarray(x, jnp.bfloat16) for x in (q, k, v)]

    @jax.jit
    def value_and_gradients(ct, *args):
        y, pullback = jax.vjp(lambda *args: transformer.attend(c, *args), *args)
        return y, *pullback(ct.astype(y.dtype))

    found = value_and_gradients(jnp.asarray(ct), *half, jnp.asarray(bias))
    # queries, scores, weights and results are rounded, each by less than a step of 2^-8
    for a, b in zip(map(bfloat16, found), expected, strict=True):
        assert np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2)) < 4 * 2**-8


def test_windows_and_back():
    x = normal((2, 6, 4, 10))
    parts = transformer.windows_of(x, (3, 2), 5)
    assert parts.shape == (2, 6, 4 * 5, 2)
    np.testing.assert_array_equal(parts[1, 0, 3 * 5 :, :].ravel(), x[1, 3, 2])
    np.testing.assert_array_equal(transformer.unwindowed(parts, (3, 2), (6, 4)), x)


def test_parts_of_shifted_windows_do_not_see_each_other():
    places = np.arange(36).reshape(6, 6)
    rolled = np.roll(places, (-1, -1), (0, 1))
    windows = rolled.reshape(2, 3, 2, 3).transpose(0, 2, 1, 3).reshape(4, 9)
    y, x = windows // 6, windows % 6
    near = lambda a: np.abs(a[:, :, None] - a[:, None]) < 3
    expected = ~(near(y) & near(x))
    np.testing.assert_array_equal(transformer.between_parts((6, 6), 3, 1), expected)


def test_layer_norm_by_its_formula():
    x = normal((2, 3, 4, 5)) * 3 + 100
    for whole, axes in ((False, -1), (True, (1, 2, 3))):
        layer = transformer.LayerNorm(Ctx(), 1e-6, whole)
        wide = x.astype(np.float64)
        expected = (wide - wide.mean(axes, keepdims=True)) / wide.std(axes, keepdims=True)
        found = layer.apply(layer.init(jax.random.key(0), x), x)
        np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("DeiT_tiny_distilled_patch16_224", {"depth": 4, "width": 48}, 48),
        ("LeViT_128S", {"depths": (1, 1), "widths": (32, 48), "key": 8}, 96),
        ("CAE_vit_base_patch16_224", {"depth": 4, "width": 48, "hidden": 96}, 48),
    ],
)
def test_weights_of_one_size_take_images_of_another(name, options, size):
    module = models.build(name, num_classes=3, **options)
    image = lambda n, m: jax.ShapeDtypeStruct((1, n, m, 3), jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), image(size, size))
    for shape in ((size, size + 16), (2 * size, 2 * size)):
        out = jax.eval_shape(module.apply, variables, image(*shape))
        assert out["logits"].shape == (1, 3)
    there = jax.eval_shape(module.init, jax.random.key(0), image(2 * size, 2 * size))
    assert jax.tree.map(jnp.shape, there) != jax.tree.map(jnp.shape, variables)


def test_impossible_sizes_name_possible_ones():
    module = models.build("ViT_base_patch16_224")
    with pytest.raises(ValueError, match="230 x 230 pixels.*multiples of 16, such as 224 and 240"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 230, 230, 3)))
    module = models.build("CSWinTransformer_tiny_224")
    with pytest.raises(ValueError, match="multiples of 112, such as 336 and 448"):
        jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 384, 384, 3)))


def test_parameters_that_do_not_decay_are_all_but_matrices():
    pattern = r"/(bias|scale|value)$"
    module = models.build("CAE_vit_base_patch16_224", depth=4, width=48, hidden=96)
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    tree = jax.eval_shape(module.init, jax.random.key(0), image)["params"]
    left = {p.rpartition("/")[2] for p in trees.paths(tree) if not trees.matches([pattern], p)}
    assert left == {"kernel"}
