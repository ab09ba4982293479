"""ACNet, RepVGG: the trained network's branches and the one convolution they are fused into."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drawn import random_like

from jaxcls import models, trees
from jaxcls.models import mixnet
from jaxcls.models.layers import BranchedConvBN, fold
from jaxcls.models.resnet import AsymmetricConvBN, fused
from jaxcls.models.spec import Ctx

NAME = "ResNet50_ACNet_deploy"
SMALL = {"width": 8, "depths": (1, 1, 1, 1), "num_classes": 5}


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
    deployed = fused(Ctx(), 4, k, stride, act=nn.relu)
    wanted = jax.eval_shape(deployed.init, jax.random.key(0), x)
    assert wanted.keys() == {"params"}
    y = deployed.apply(fold(variables, wanted, 1e-5), x)
    np.testing.assert_allclose(y[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("epsilon", [1e-5, 0.3])
def test_fused_network_answers_like_the_trained_one(epsilon):
    trained = models.build(NAME, conv="asymmetric", bn_epsilon=epsilon, **SMALL)
    deployed = models.build(NAME, bn_epsilon=epsilon, **SMALL)
    variables = variables_of(trained)
    expected = variables_of(deployed)
    fused = fold(variables, expected, epsilon)
    assert jax.tree.map(jnp.shape, fused) == jax.tree.map(jnp.shape, expected)

    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 70, 65, 3)), jnp.float32)
    before, after = (
        np.asarray(jax.jit(m.apply)(v, x)["logits"])
        for m, v in ((trained, variables), (deployed, fused))
    )
    signal = np.abs(before[0] - before[1]).max()
    assert np.abs(after - before).max() < 1e-5 * signal


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (1, 2), (2, 2), (1, 4)])
def test_branches_with_the_input_among_them_are_one_convolution(stride, groups):
    unit = BranchedConvBN(Ctx(), 4, (3, 1), stride, groups, identity=stride == 1)
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 7, 6, 4)), jnp.float32)
    variables = random_like(jax.eval_shape(unit.init, jax.random.key(0), x))
    deployed = unit.clone(c=Ctx(folded=True))
    wanted = jax.eval_shape(deployed.init, jax.random.key(0), x)
    assert jax.tree.map(jnp.shape, wanted["params"]) == {
        "conv": {"kernel": (3, 3, 4 // groups, 4), "bias": (4,)}
    }
    y = deployed.apply(fold(variables, wanted, 1e-5), x)
    np.testing.assert_allclose(y, unit.apply(variables, x), rtol=1e-4, atol=1e-5)


FOLDED = {  # branches; convolutions that have a bias besides; several before one BatchNorm
    "RepVGG_D2se": {"depths": (2, 1), "widths": (16, 32), "groups": 2},
    "PPLCNetV2_small": {"depths": (1, 1, 2, 2), "scale": 0.125},
    "StarNet_S1": {"depths": (1, 2), "width": 8},
    "ReXNet_1_0": {"depths": (1, 1, 1)},
    "MixNet_S": {"stages": mixnet.SMALL[:2]},
}


@pytest.mark.ci
@pytest.mark.parametrize("name", FOLDED)
def test_folded_networks_answer_like_the_trained_ones(name):
    trained = models.build(name, num_classes=5, **FOLDED[name])
    deployed = models.build(name, num_classes=5, folded=True, **FOLDED[name])
    variables, wanted = variables_of(trained), variables_of(deployed)
    folded = fold(variables, wanted, trained.c.bn_epsilon)
    assert jax.tree.map(jnp.shape, folded) == jax.tree.map(jnp.shape, {"batch_stats": {}} | wanted)
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 70, 65, 3)), jnp.float32)
    before, after = (
        np.asarray(jax.jit(m.apply)(v, x)["logits"])
        for m, v in ((trained, variables), (deployed, folded))
    )
    signal, largest = np.abs(before[0] - before[1]).max(), np.abs(before).max()
    assert np.abs(after - before).max() < max(1e-5 * signal, 2e-6 * largest)


def test_only_kernels_larger_than_one_are_asymmetric():
    tree = variables_of(models.build(NAME, conv="asymmetric", **SMALL))
    branched = {p.rsplit("/", 3)[0] for p in trees.paths(tree["params"]) if "/vertical/" in p}
    assert branched == {"stem/conv1"} | {f"stage{i}/block1/conv2" for i in (1, 2, 3, 4)}


def test_networks_of_other_layers_do_not_fold():
    variables = variables_of(models.build("ResNet18", width=8))
    wanted = variables_of(models.build("DenseNet121"))
    with pytest.raises(ValueError, match="cannot be folded"):
        fold(variables, wanted, 1e-5)


def test_unknown_kind_of_convolution():
    with pytest.raises(ValueError, match="conv='deploy': choose one of plain, asymmetric, fused"):
        variables_of(models.build(NAME, conv="deploy"))
