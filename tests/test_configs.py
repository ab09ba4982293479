"""Every config: its differences from base, its lengths, and the shapes of its whole step."""

import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pinned
import pytest

from configs import augment, base, digits, distill, imagenet
from jaxcls import choices, distillation, network, program, schedules, trees
from jaxcls.config import plan
from jaxcls.data import ops
from jaxcls.models.spec import CTX_FIELDS

IMAGES = 1_281_167
ALL = pinned.configs()
RECIPES = {name: config for name, config in ALL.items() if name.startswith("configs/imagenet.py:")}
CHEAP = {"MobileNetV3_small_x0_35", "GoogLeNet", "EfficientNetB0", "ShuffleNetV2_x0_25", "VGG11"}
SLOW = {  # to trace; the shapes of these networks themselves are in test_zoo.py
    "Res2Net50_26w_4s",
    "HRNet_W18_C",
    "ResNeSt50",
    "RedNet26",
    "DLA34",
    "CSPDarkNet53",
    "PPHGNet_tiny",
    "ConvNeXt_tiny",
    "VAN_B0",
    "DSNet_tiny",
    "NextViT_small_224",
    "UniFormer_small",
    "HarDNet68",
    "PeleeNet",
    "InceptionV3",
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


def test_what_was_planned_is_there():
    """The table of `tests/plan_configs.py`: of configs that there are, and as the README says."""
    lines = [line.split("\t") for line in pinned.PLANS.read_text().splitlines()]
    names = [name for name, _, _ in lines]
    assert len(names) == len({*names})
    assert {*names} <= {*ALL}
    fits = [fits for _, _, fits in lines]
    assert {*fits} == {"fits", "does not fit"}
    readme = (pinned.ROOT / "README.md").read_text()
    assert f" {len(names)} of the {len(ALL)} configs" in readme
    assert f": {fits.count('fits')} fit, {fits.count('does not fit')} of " in readme


def test_an_argument_is_the_model():
    assert all(name == f"configs/imagenet.py:{c.model.name}" for name, c in RECIPES.items())


@pytest.mark.parametrize("key", ["lr.peek", "lrr.peak", "duratoin"])
def test_a_misspelt_key_of_a_recipe_is_an_error(key, monkeypatch):
    monkeypatch.setattr(imagenet, "RECIPES", (("*", {key: 1.0}),))
    monkeypatch.setitem(augment.AUGMENTATIONS, "cutout", {key: 1.0})
    for recipe, name in ((imagenet, "ResNet50"), (augment, "cutout")):
        with pytest.raises(KeyError, match='"(peek|lrr.peak|duratoin)"'):
            recipe.get_config(name)


def teacher(path, **_):
    """Returns the network of this name, and zeros that take no memory, as `network.load`."""
    recipe = digits.get_config() if path == "digits" else imagenet.get_config(path)
    net = network.Network(
        name=recipe.model.name,
        options=dict(recipe.model.options),
        num_classes=1000,
        class_names=(),
        image=ops.Image(**recipe.image),
        precision="float32",
    )
    return net, jax.tree.map(lambda x: np.broadcast_to(np.zeros((), x.dtype), x.shape), net.shapes)


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
    arguments = state, batch(config.batch_size, size), *built.teachers
    after, metrics = jax.eval_shape(built.train_step, *arguments)
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
    "distill.py:digits",
    "imagenet.py:GoogLeNet",
}


def tier(name, config):
    """Returns the markers of the test of a whole step."""
    if name.removeprefix("configs/") in DEFAULT:
        return []
    of_pair = "_from_" in name and "ResNet18" not in name  # two networks to trace
    return [pytest.mark.zoo if of_pair or config.model.name in SLOW else pytest.mark.ci]


WHOLE = [
    pytest.param(name, marks=tier(name, config))
    for name, config in ALL.items()
    if name not in RECIPES or config.model.name in CHEAP | SLOW
]


@pytest.mark.parametrize("name", WHOLE)
def test_shapes_of_the_whole_step(name, monkeypatch):
    monkeypatch.setattr(network, "load", teacher)
    config = ALL[name].copy_and_resolve_references()
    if config.loss.name in distillation.TAUGHT:
        config.teacher.checkpoints = config.teacher.checkpoints or ("digits",)
    assert_shapes_of_the_step(config)


def with_one_block(config):
    """Returns a config with a network of one block in place of its own, and its round numbers.

    Rules over parameters that it has not are left out.
    """
    config = config.copy_and_resolve_references()
    config.model.name = "ResNet18_vd"
    taken = [option for option in config.model.options if option[0] in CTX_FIELDS]
    config.model.options = (*taken, ("stem", "small"), ("depths", (1,)), ("width", 8))
    for key in ("optim.l2", "optim.weight_decay", "mix.mixup", "mix.cutmix"):
        section, _, name = key.partition(".")
        config[section][name] = 0.1 if config[section][name] else 0.0  # no shape depends on it
    config.optim.lr_mults, config.optim.no_decay = (), base.get_config().optim.no_decay
    return config


# Recipes that differ in the network and such numbers only are one program around it.
DISTINCT = {
    pinned.text({"": with_one_block(config)}): name for name, config in reversed(RECIPES.items())
}


@pytest.mark.parametrize("name", reversed(DISTINCT.values()))
def test_shapes_of_the_step_of_every_recipe(name):
    assert_shapes_of_the_step(with_one_block(RECIPES[name]))


def rules(config):
    """Returns the patterns of a recipe's rules over names of parameters."""
    return {*config.optim.no_decay, *(pattern for pattern, _ in config.optim.lr_mults)}


USUAL = rules(base.get_config()) | {"/bn/(scale|bias)$"}


@pytest.mark.zoo
@pytest.mark.parametrize("name", [n for n, config in RECIPES.items() if rules(config) - USUAL])
def test_rules_of_a_recipe_are_of_its_network(name):
    config = RECIPES[name]
    _, variables = pinned.trace(config.model.name, config.image.size)
    paths = trees.paths(variables["params"])
    for pattern in rules(config):
        assert any(re.search(pattern, path) for path in paths), pattern


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


def test_recipes_of_distillation():
    """What is published: facts of the documents, and of June 2020's configs."""
    name = "ResNet50_vd_from_ResNeXt101_32x16d_wsl"
    assert {name, "MobileNetV3_large_x1_0_from_ResNet50_vd_ssld"} <= {*distill.PAIRS}
    for pair in distill.PAIRS:
        first, second = distill.get_config(pair), distill.get_config(pair + distill.FINETUNE)
        student = pair.partition("_from_")[0]
        for c in (first, second):
            assert c.model.name == student
            assert c.loss.name == "symmetric_kl"
            assert not c.loss.label_smoothing
            assert c.mix.mixup == 0
            assert c.lr.warmup == "5 epochs"
            assert c.teacher.checkpoints == (pair.partition("_from_")[2],)
        assert first.duration == "360 epochs"
        rates = [c.lr.peak / c.batch_size for c in (first, second)]
        assert rates[0] / rates[1] > 50
    assert distill.get_config(name).optim.l2 == 7e-5
    assert distill.get_config("ResNet18_from_ResNet34").duration == "120 epochs"  # its own
    for argument in (None, "", "ResNet50", "_from_ResNet50", "ResNet50_from_"):
        with pytest.raises(ValueError, match="write --config=configs/distill.py:STUDENT_from_T"):
            distill.get_config(argument)
