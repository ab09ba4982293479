"""Every config: its differences from base, its lengths, and the shapes of its whole step."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pinned
import pytest

from configs import augment, imagenet
from jaxcls import choices, program, schedules
from jaxcls.config import plan
from jaxcls.data import ops

IMAGES = 1_281_167
ALL = pinned.configs()
RECIPES = {name: config for name, config in ALL.items() if name.startswith("configs/imagenet.py:")}
CHEAP = {"MobileNetV3_small_x0_35", "GoogLeNet", "EfficientNetB0", "ShuffleNetV2_x0_25", "VGG11"}
SLOW = {  # to trace; the shapes of these networks themselves are in test_zoo.py
    "Res2Net50_26w_4s",
    "HRNet_W18_C",
    "DarkNet53",
    "MobileNetV1",
    "MobileNetV2",
    "InceptionV4",
    "Xception41",
    "DPN68",
    "DenseNet121",
    "SqueezeNet1_0",
    "AlexNet",
}


def test_differences_from_base_are_those_of_the_golden_text():
    pinned.assert_pinned(pinned.CONFIGS, pinned.text(ALL))


def test_an_argument_is_the_model():
    assert all(name == f"configs/imagenet.py:{c.model.name}" for name, c in RECIPES.items())


@pytest.mark.parametrize("key", ["lr.peek", "lrr.peak", "duratoin"])
def test_a_misspelt_key_of_a_recipe_is_an_error(key, monkeypatch):
    monkeypatch.setattr(imagenet, "RECIPES", (("*", {key: 1.0}),))
    monkeypatch.setitem(augment.AUGMENTATIONS, "cutout", {key: 1.0})
    for recipe, name in ((imagenet, "ResNet50"), (augment, "cutout")):
        with pytest.raises(KeyError, match='"(peek|lrr.peak|duratoin)"'):
            recipe.get_config(name)


def assert_shapes_of_the_step(config):
    """Asserts that train step and evaluation step fit together, by shapes alone."""
    accelerator = types.SimpleNamespace(platform="tpu")
    config, _ = choices.settled(
        config, images=IMAGES, pixels=224, weights="", devices=[accelerator]
    )
    config.mesh.data = 1  # not every batch divides over 8
    if config.precision.name == "auto":
        config.precision.name = "bfloat16"  # as on accelerators
    several = config.data.multi_label
    built = program.build(config, num_train=IMAGES, num_classes=1000, multi_label=several)
    state, channels = built.abstract_state, len(config.image.mean)

    def batch(n, size, **more):
        arrays = {"image": jnp.uint8, "label": jnp.int32, **more}
        shapes = {"image": (n, size, size, channels)} | ({"label": (n, 1000)} if several else {})
        return {k: jax.ShapeDtypeStruct(shapes.get(k, (n,)), v) for k, v in arrays.items()}

    size = config.image.size
    after, metrics = jax.eval_shape(built.train_step, state, batch(config.batch_size, size))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state)):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert {"loss", "grad_norm", "lr", "finite", "skipped", "loss_scale"} <= metrics.keys()
    assert all(m.shape == () for m in metrics.values())

    n, size = built.plan.eval_batch_size, config.image.eval_size or size
    sums = jax.eval_shape(built.eval_step, state.variables(), batch(n, size, mask=jnp.bool_))
    metrics = ("loss", "count") if several else ("loss", "top1", "top5", "count")
    assert {k: v.shape for k, v in sums.items()} == dict.fromkeys(metrics, ())


DEFAULT = {
    "digits.py",
    "finetune.py",
    "resnet50_vd.py",
    "augment.py:ssld_v2",
    "imagenet.py:GoogLeNet",
}


def tier(name, config):
    """Returns the markers of the test of a whole step."""
    if name.removeprefix("configs/") in DEFAULT:
        return []
    return [pytest.mark.zoo if config.model.name in SLOW else pytest.mark.ci]


WHOLE = [
    pytest.param(name, marks=tier(name, config))
    for name, config in ALL.items()
    if name not in RECIPES or config.model.name in CHEAP | SLOW
]


@pytest.mark.parametrize("name", WHOLE)
def test_shapes_of_the_whole_step(name):
    assert_shapes_of_the_step(ALL[name].copy_and_resolve_references())


def with_one_block(config):
    """Returns a config with a network of one block in place of its own."""
    config = config.copy_and_resolve_references()
    config.model.name = "ResNet18_vd"
    config.model.options += (("stem", "small"), ("depths", (1,)), ("width", 8))
    return config


# Recipes that differ in the network only are one program around it.
DISTINCT = {
    pinned.text({"": with_one_block(config)}): name for name, config in reversed(RECIPES.items())
}


@pytest.mark.parametrize("name", reversed(DISTINCT.values()))
def test_shapes_of_the_step_of_every_recipe(name):
    assert_shapes_of_the_step(with_one_block(RECIPES[name]))


@pytest.mark.parametrize("name", RECIPES)
def test_lengths_and_rates_of_every_recipe(name):
    config = RECIPES[name]
    lengths = plan(config, IMAGES)
    rate = schedules.schedule(
        **config.lr,
        total_steps=lengths.total_steps,
        batch_size=lengths.batch_size,
        steps_per_epoch=lengths.steps_per_epoch,
    )
    rates = np.asarray(rate(np.linspace(0, lengths.total_steps - 1, 5, dtype=np.int32)))
    assert min(rates) >= 0
    assert rates[-1] < max(rates) < 1.0001 * config.lr.peak
    image = ops.Image(**config.image)
    assert all(map(callable, (ops.training(**config.crop, image=image), image.transform)))
    assert lengths.batch_size % config.model.bn_group == 0
