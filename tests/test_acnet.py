"""ACNet: the trained network's three branches and the one convolution they are fused into."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcls import models, trees
from jaxcls.models.resnet import AsymmetricConvBN, FusedConv, fuse
from jaxcls.models.spec import Ctx

NAME = "ResNet50_ACNet_deploy"
SMALL = {"width": 8, "depths": (1, 1, 1, 1), "num_classes": 5}


def random_like(tree, seed=0):
    """Returns variables of these shapes as training could leave them: nothing is 0, 1 or equal."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        last = path.rpartition("/")[2]
        if last in ("scale", "var"):
            return jnp.asarray(rng.uniform(0.5, 2, leaf.shape), leaf.dtype)
        fan_in = np.prod(leaf.shape[:-1]) if last == "kernel" else 4
        return jnp.asarray(rng.normal(0, fan_in**-0.5, leaf.shape), leaf.dtype)

    return trees.map_with_path(draw, tree)


def variables_of(module, size=64, channels=3):
    image = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
    return random_like(dict(jax.eval_shape(module.init, jax.random.key(0), image)))


def correlate(x, kernel, stride):
    """Returns the convolution of [H, W, I] with [h, w, I, O] in float64, zeros around."""
    h, w = kernel.shape[:2]
    padded = np.pad(np.float64(x), ((h // 2,) * 2, (w // 2,) * 2, (0, 0)))
    rows, columns = (range(0, n, stride) for n in x.shape[:2])
    return np.array(
        [
            [np.einsum("hwi,hwio->o", padded[r : r + h, q : q + w], kernel) for q in columns]
            for r in rows
        ]
    )


@pytest.mark.parametrize(("k", "stride"), [(3, 1), (3, 2), (7, 2)])
def test_unit_is_the_sum_of_three_normalised_convolutions(k, stride):
    unit = AsymmetricConvBN(Ctx(), 4, k, stride, act=nn.relu)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 9, 10, 3)), jnp.float32)
    variables = random_like(jax.eval_shape(unit.init, jax.random.key(0), x))

    expected = 0
    for branch, shape in {"square": (k, k), "vertical": (k, 1), "horizontal": (1, k)}.items():
        params = jax.tree.map(np.float64, variables["params"][branch])
        stats = jax.tree.map(np.float64, variables["batch_stats"][branch]["bn"])
        assert params["conv"]["kernel"].shape[:2] == shape
        y = correlate(x[0], params["conv"]["kernel"], stride)
        y = (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
        expected += y * params["bn"]["scale"] + params["bn"]["bias"]
    expected = np.maximum(expected, 0)

    np.testing.assert_allclose(unit.apply(variables, x)[0], expected, rtol=1e-4, atol=1e-5)
    fused = fuse(variables)
    assert fused["batch_stats"] == {}
    y = FusedConv(Ctx(), 4, k, stride, act=nn.relu).apply(fused, x)
    np.testing.assert_allclose(y[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_fused_network_answers_like_the_trained_one(epsilon):
    trained = models.build(NAME, conv="asymmetric", bn_epsilon=epsilon, **SMALL)
    deployed = models.build(NAME, bn_epsilon=epsilon, **SMALL)
    variables = variables_of(trained)
    fused = fuse(variables, epsilon)

    expected = variables_of(deployed)
    assert jax.tree.map(jnp.shape, fused) == jax.tree.map(jnp.shape, expected)

    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 70, 65, 3)), jnp.float32)
    before, after = (
        np.asarray(jax.jit(m.apply)(v, x)["logits"])
        for m, v in ((trained, variables), (deployed, fused))
    )
    signal = np.abs(before[0] - before[1]).max()
    assert np.abs(after - before).max() < 1e-5 * signal


def test_only_kernels_larger_than_one_are_asymmetric():
    tree = variables_of(models.build(NAME, conv="asymmetric", **SMALL))
    branched = {p.rsplit("/", 3)[0] for p in trees.paths(tree["params"]) if "/vertical/" in p}
    assert branched == {"stem/conv1"} | {f"stage{i}/block1/conv2" for i in (1, 2, 3, 4)}


def test_other_networks_have_nothing_to_fuse():
    variables = variables_of(models.build("ResNet18", width=8))
    with pytest.raises(ValueError, match='not variables of a network conv="asymmetric"'):
        fuse(variables)


def test_unknown_kind_of_convolution():
    with pytest.raises(ValueError, match="conv='deploy': choose one of plain, asymmetric, fused"):
        variables_of(models.build(NAME, conv="deploy"))
