"""Every network: its tensors and outputs by shapes alone, and what all of them promise.

By default shapes are tested on a network of each family, bfloat16 and the promises on a few;
`-m ci` tests the shapes of every name and the promises on a sibling of each family, `-m zoo` the
promises of every name.
"""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pinned
import pytest
from drawn import settled, steady

from configs import base
from jaxcls import models, objectives, precision, sharding, trees
from jaxcls.data import device
from jaxcls.models import __main__ as table
from jaxcls.models import (
    count,
    efficientnet_v2,
    ghostnet,
    mixnet,
    mobilenet_v1,
    mobilenet_v2,
    mobilenet_v3,
    mobilenet_v4,
    mobilenext,
    pplcnet,
)
from jaxcls.models.count import equations

AT_LEAST = {  # pixels, where a family needs more than one
    "alexnet": 63,
    "densenet": 29,
    "fasternet": 32,
    "googlenet": 61,
    "convnext": 32,
    "dsnet": 32,
    "hardnet": 29,
    "inception": 75,
    "nextvit": 25,
    "peleenet": 29,
    "uniformer": 32,
    "squeezenet": 35,
    "vgg": 32,
    "vision_transformer": 16,
    "twins": 32,
    "tnt": 16,
    "pvt_v2": 29,
    "cswin_transformer": 112,
    "cvt": 16,
    "foundation_vit": 16,
}
ENOUGH = {  # pixels, with which attention has several places to choose from in every stage
    "swin_transformer_v2": 64,
    "twins": 64,
    "levit": 96,
    "pvt_v2": 64,
    "cvt": 64,
    "mobilevit": 96,
}
STEPS = {  # pixels that sizes are multiples of
    "vision_transformer": 16,
    "tnt": 16,
    "cswin_transformer": 112,
    "foundation_vit": 16,
}
SIBLINGS = {  # family -> a name, and what makes it small where something can
    "resnet": ("SE_ResNeXt50_vd_32x4d", {"depths": (1, 1), "width": 16, "stem_width": 16}),
    "res2net": ("Res2Net50_vd_26w_4s", {"depths": (1, 2), "width": 16}),
    "hrnet": ("HRNet_W18_C", {"exchanges": (1, 1, 1), "width": 4}),
    "resnest": ("ResNeSt50", {"depths": (1, 1), "width": 16, "stem_width": 16}),
    "rednet": ("RedNet26", {"depths": (1, 1), "width": 16}),
    "dla": ("DLA46_c", {"levels": (1, 2), "widths": (16, 32)}),
    "cspnet": ("CSPDarkNet53", {"depths": (1, 1, 1), "width": 8}),
    "pphgnet": (
        "PPHGNetV2_B0",
        {"stem": (8, 8), "stages": ((8, 16, 1), (8, 16, 2), (8, 16, 1)), "layers": 2, "last": 32},
    ),
    "convnext": ("ConvNeXt_tiny", {"depths": (1, 1, 1, 1), "width": 8}),
    "van": ("VAN_B0", {"depths": (1, 1), "widths": (16, 16), "ratios": (2, 2)}),
    "dsnet": (
        "DSNet_tiny",
        {
            "depths": (1,) * 4,
            "widths": (8, 16, 16, 32),
            "heads": (1, 2, 2, 2),
            "shrink": (4, 2, 2, 1),
        },
    ),
    "nextvit": (
        "NextViT_small_224",
        {"depths": (1, 2), "widths": (32, 96), "ratios": (2, 2), "stem": (8, 8, 16)},
    ),
    "uniformer": (
        "UniFormer_base_ls",
        {"depths": (1,) * 4, "widths": (16,) * 4, "head_width": 8, "gamma": 0.1},
    ),
    "darknet": ("DarkNet53", {"depths": (1, 1, 1), "width": 8}),
    "mobilenet_v1": ("MobileNetV1_x0_25", {"stages": mobilenet_v1.STAGES[:3]}),
    "mobilenet_v2": ("MobileNetV2_x0_25", {"stages": mobilenet_v2.STAGES[:3]}),
    "mobilenet_v3": ("MobileNetV3_small_x0_35", {"stages": mobilenet_v3.SMALL[:3]}),
    "googlenet": ("GoogLeNet", {}),
    "xception": ("Xception41", {"entry": ((16,), (32,), (64, 728)), "middle": 1}),
    "dpn": ("DPN68", {"depths": (1, 2, 1, 1)}),
    "densenet": ("DenseNet121", {"depths": (1, 2, 1, 1), "growth": 8}),
    "hardnet": (
        "HarDNet68",
        {"stages": (((8, 4, 16),), ((8, 3, 16),), ((8, 2, 16),), ((8, 1, 16),))},
    ),
    "peleenet": ("PeleeNet", {"depths": (1, 2, 1, 1), "growth": 8}),
    "shufflenet_v2": ("ShuffleNetV2_x0_25", {}),
    "efficientnet": ("EfficientNetB0", {"depth": 0.3, "width": 0.25}),
    "efficientnet_v2": ("EfficientNetV2_S", {"stages": efficientnet_v2.stages(*((8, 1),) * 6)}),
    "mixnet": ("MixNet_S", {"stages": mixnet.SMALL[:3]}),
    "rexnet": ("ReXNet_1_0", {"depths": (1, 1, 2)}),
    "ghostnet": ("GhostNet_x0_5", {"stages": ghostnet.STAGES[:3]}),
    "mobilenext": ("MobileNeXt_x0_35", {"stages": mobilenext.STAGES[:2]}),
    "mobilenet_v4": ("MobileNetV4_conv_small", {"stages": mobilenet_v4.SMALL[:3]}),
    "pplcnet": ("PPLCNet_x0_25", {"stages": pplcnet.STAGES[::4]}),
    "pplcnet_v2": ("PPLCNetV2_small", {"depths": (1, 1, 1, 2), "scale": 0.125}),
    "esnet": ("ESNet_x0_25", {"depths": (2,)}),
    "micronet": ("MicroNet_M0", {}),
    "repvgg": ("RepVGG_A0", {"depths": (2, 1), "widths": (64, 64), "groups": 2, "se": True}),
    "regnet": ("RegNetX_200MF", {"depths": (1, 2), "widths": (16, 24)}),
    "fasternet": ("FasterNet_T0", {"depths": (1, 1, 1, 1), "width": 8}),
    "starnet": ("StarNet_S1", {"depths": (1, 2), "width": 8}),
    "squeezenet": ("SqueezeNet1_0", {}),
    "alexnet": ("AlexNet", {}),
    "vgg": ("VGG11", {}),
    "inception": ("InceptionV3", {}),
    "vision_transformer": ("DeiT_tiny_patch16_224", {"depth": 4, "width": 48}),
    "swin_transformer": (
        "SwinTransformer_tiny_patch4_window7_224",
        {"depths": (2, 2), "width": 12, "heads": (2, 4), "window": 3},
    ),
    "swin_transformer_v2": (
        "SwinTransformerV2_tiny_patch4_window8_256",
        {"depths": (2, 2), "width": 12, "heads": (2, 4), "window": 4},
    ),
    "twins": ("alt_gvt_small", {"depths": (2, 1), "widths": (16, 32), "window": 3}),
    "tnt": ("TNT_small", {"depth": 4, "width": 96, "inner": 8}),
    "levit": ("LeViT_128S", {"depths": (1, 0), "widths": (32, 48), "key": 8}),
    "pvt_v2": ("PVT_V2_B0", {"depths": (1, 2), "widths": (16, 32)}),
    "cswin_transformer": ("CSWinTransformer_tiny_224", {"depths": (1, 1, 1, 1), "width": 16}),
    "cvt": ("CvT_13_224", {"depths": (1, 2), "widths": (16, 30)}),
    "foundation_vit": (
        "CAE_vit_base_patch16_224",
        {"depth": 4, "width": 48, "hidden": 96, "embedding": None},
    ),
    "mobilevit": ("MobileViTV3_XXS", {"layers": (1, 1, 1)}),
}
TYPICAL = {  # of which every change runs what takes seconds; of the others the zoo does
    "resnet", "mobilenet_v3", "googlenet", "shufflenet_v2", "efficientnet", "repvgg",
    "vision_transformer", "swin_transformer",
}  # fmt: skip
GOLDEN = oracle.golden()
CHEAP = ("resnet", "darknet", "mobilenet_v1")
CLASSES = 7
# Of the signal, in float32: rounding reaches 1e-4 in deep networks, a wrong layer is far above.
AGREES = 1e-3


def tier(family):
    """Returns the mark of a test that takes seconds for each family."""
    return pytest.mark.ci if family in TYPICAL else pytest.mark.zoo


def sides(name, least):
    """Returns the smallest size of images, of `least` pixels at least, that a network takes."""
    step = 14 if "patch14" in name else STEPS.get(models.family_of(name), 1)
    return -(-least // step) * step


def residual(name):
    """Returns whether a network has branches that `drop_path` can drop."""
    return getattr(models.MODELS[name].cls, "residual", True)


# -- By shapes alone -------------------------------------------------------------------------------


FIRST = {name for name, _ in SIBLINGS.values()}
EVERY = [pytest.param(n, marks=[] if n in FIRST else [pytest.mark.ci]) for n in pinned.NETWORKS]


@pytest.mark.parametrize("name", EVERY)
def test_tensors_and_outputs(name):
    out, variables = pinned.trace(name)
    pinned.assert_pinned(pinned.MODELS, pinned.table(pinned.rows() | {name: pinned.row(variables)}))
    if name in GOLDEN:
        places = oracle.places(name, variables)
        theirs = {key: oracle.layout(leaf) for key, (_, leaf) in places.items()}
        assert oracle.digest(theirs) == GOLDEN[name]["tensors"], "not PaddleClas's names and shapes"

    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    children = variables["params"]
    assert all(re.fullmatch(r"stem|stage\d+|neck|head|aux\d+", child) for child in children)
    stages = [child for child in children if child.startswith("stage")]
    for stage in stages:
        assert all(re.fullmatch(r"block\d+", child) for child in children[stage])

    heads = {"logits", *(child for child in children if child.startswith("aux"))}
    assert out.keys() - {"embedding"} == {"pre_logits", *heads, *stages}
    assert {(out[k].shape, out[k].dtype) for k in heads} == {((2, 1000), jnp.dtype("float32"))}
    assert (out["pre_logits"].ndim, out["pre_logits"].dtype) == (2, jnp.float32)
    sizes = [out[stage].shape[1:3] for stage in sorted(stages)]
    assert sizes == sorted(sizes, reverse=True)


def test_the_table_has_the_parameters_of_every_network():
    rows = {row["name"]: row for row in table.table(models.names())}
    assert {name: str(row["params"]) for name, row in rows.items()} == {
        name: row.partition("\t")[0] for name, row in pinned.rows().items()
    }


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n == "ResNet18" else [pytest.mark.zoo]) for n in table.counts()],
)
def test_the_table_has_what_is_counted(name):
    module, size = models.build(name), models.MODELS[name].size
    assert table.counts()[name] == count.count(module, size)


def test_every_name_is_pinned():
    rows = pinned.rows()
    assert list(rows) == models.names()
    assert list(table.counts()) == pinned.COUNTED
    for name, spec in models.MODELS.items():
        assert rows[name] == rows[spec.alias_of or name]
    for name, entry in GOLDEN.items():
        assert rows[name].startswith(f"{entry['params']}\t")


def test_aliases():
    other_weights = r"^Fix_|_ssld|_v2$|_int8|_22kto1k|(?<=ShuffleNetV2)_x1_0"
    for name, spec in models.MODELS.items():
        network = re.sub(other_weights, "", name)
        assert spec.alias_of == (network if network != name else "")
        assert models.build(name) == models.build(network)


@pytest.mark.parametrize("name", models.names())
def test_drop_path_needs_a_residual_branch(name):
    models.build(name, drop_path=0.0)
    if residual(name):
        models.build(name, drop_path=0.1)
    else:
        with pytest.raises(ValueError, match=f"drop_path = 0.1: {name} has no residual branch"):
            models.build(name, drop_path=0.1)


@pytest.mark.parametrize(
    "family",
    [
        *(pytest.param(f, marks=[] if f in CHEAP else [pytest.mark.ci]) for f in SIBLINGS),
        *(pytest.param(name, marks=pytest.mark.zoo) for name in pinned.NETWORKS),
    ],
)
def test_dropout_and_drop_path_are_used(family):
    name, overrides = SIBLINGS.get(family, (family, {}))
    rates = {"dropout": 0.5} | ({"drop_path": 0.3} if residual(name) else {})
    dropped = set()

    def note(call, args, kwargs, context):
        if isinstance(context.module, nn.Dropout) and context.module.rate > 0:
            dropped.add("branches" if context.module.broadcast_dims else "features")
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        pinned.trace(name, **overrides, **rates)
        assert dropped == ({"features", "branches"} if residual(name) else {"features"})
        dropped.clear()
        pinned.trace(name, **overrides, **dict.fromkeys(rates, 0.0))
        assert not dropped


@pytest.mark.parametrize("family", SIBLINGS)
def test_images_that_are_too_small_are_refused(family):
    name, overrides = SIBLINGS[family]
    module = models.build(name, num_classes=CLASSES, **overrides)
    smallest, step = AT_LEAST.get(family, 1), STEPS.get(family, 1)
    image = lambda height, width: jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    init = lambda x: module.init_with_output(jax.random.key(0), x)[0]
    jaxpr = jax.make_jaxpr(init)(image(smallest, smallest + step))
    assert not [e for e in equations(jaxpr.jaxpr) if any(0 in v.aval.shape for v in e.outvars)]
    if smallest > 1:
        with pytest.raises(ValueError, match=f"at least {smallest} x {smallest}"):
            jax.eval_shape(init, image(smallest + 1, smallest - 1))


# -- By running ------------------------------------------------------------------------------------

FIELDS = ("dtype", "feature_dtype", "param_dtype", "norm_dtype", "head_dtype")
WIDE = {"bn_momentum": 0.0, "dropout": 0.0, "drop_path": 0.0, "bottleneck": 16}
GIANTS = {  # more than 150 million parameters: with a quarter of the width, or of the depth
    name: {"width": 16} for name in pinned.NETWORKS if re.search("x(16|32|48)d_wsl", name)
}
GIANTS |= {
    name: {"depth": 4} for name in pinned.NETWORKS if re.search("(?i)(^|_)vit_(large|huge|g)", name)
}
GIANTS |= {
    name: {"depths": (1, 1, 2, 1)}
    for name in pinned.NETWORKS
    if re.match("(Swin|CSWin)Transformer_large", name)
}
GIANTS["CvT_W24_384"] = {"depths": (1, 1, 2)}
GIANTS |= {f"ConvNeXt_large_{size}": {"width": 48} for size in (224, 384)}
for name in pinned.NETWORKS:
    if models.family_of(name) == "foundation_vit":  # a classifier does not use it
        GIANTS[name] = {"embedding": None, **GIANTS.get(name, {})}


def compiled(f, *arguments, **options):
    """Returns a jitted function, compiled without optimisation: that is what takes the time."""
    cheap = {"xla_backend_optimization_level": 0}
    return jax.jit(f, **options).lower(*arguments).compile(compiler_options=cheap)


def norm(tree):
    """Returns the Euclidean norm of all numbers in a tree."""
    return np.sqrt(sum(np.sum(np.square(x, dtype=np.float64)) for x in jax.tree.leaves(tree)))


def keeps_its_promises(name, overrides, *, devices=(), precisions=(), remat=(False,)):
    """Asserts what a network promises, with one channel and a bottleneck before the classifier.

    Its BatchNorms keep nothing of their old statistics: after a step they have the batch's.

    Args:
      name: of the model.
      overrides: arguments of `models.build`.
      devices: numbers of devices that must compute what one does.
      precisions: names of half precisions to try.
      remat: whether to recompute stages in training; what comes out must not depend on it.
    """
    overrides = {"num_classes": CLASSES, **WIDE, **overrides}
    module = models.build(name, **overrides)
    family = models.family_of(name)
    size = sides(name, ENOUGH.get(family, AT_LEAST.get(family, 32)))
    images = np.clip(40 * oracle.images(size, 8)[..., :1] + 128, 0, 255).astype(np.uint8)
    labels = np.arange(8) % CLASSES
    prepare = functools.partial(device.normalise, mean=(0.5,), std=(0.25,))
    loss = base.get_config().loss
    loss.label_smoothing = 0.1
    objective = objectives.make(**loss, outputs={})

    def train(module):
        def loss(params, batch_stats, images, labels):
            out, new = module.apply(
                {"params": params, "batch_stats": batch_stats},
                prepare(images),
                train=True,
                mutable=["batch_stats"],
            )
            loss, _ = objective.loss(out, {"label": labels})
            return loss, (out["logits"], new.get("batch_stats", {}))

        arguments = params, batch_stats, images, labels
        step = compiled(jax.grad(loss, has_aux=True), *arguments)
        return jax.device_get(step(*arguments))

    def evaluate(module, **options):
        logits = lambda variables, images: module.apply(variables, prepare(images))["logits"]
        return compiled(logits, variables, images, **options)

    one = jax.ShapeDtypeStruct((1, size, size, 1), jnp.float32)
    variables = steady(dict(jax.eval_shape(module.init, jax.random.key(0), one)))
    params, batch_stats = variables["params"], variables.get("batch_stats", {})

    # No dead branch: every tensor has a gradient, every statistic moves.
    gradients, (trained, now) = train(models.build(name, **overrides, remat=remat[0]))
    norms = zip(trees.paths(gradients), map(norm, jax.tree.leaves(gradients)))
    dead = [path for path, size in norms if size == 0]
    if (
        family == "cvt"
    ):  # of the last block the class token alone counts, and no convolution sees it
        last = f"stage{len(module.depths)}/block{module.depths[-1]}/attn/conv_proj_q/"
        dead = [path for path in dead if not path.startswith(last)]
    assert not dead
    stays = jax.tree.map(lambda a, b: bool(np.any(a == b)), now, batch_stats)
    assert not [path for path, x in zip(trees.paths(stays), jax.tree.leaves(stays)) if x]
    variables = {"params": params, "batch_stats": now}

    # With the same statistics and nothing dropped, evaluation is what training is.
    run = evaluate(module)
    logits = np.asarray(run(variables, images))
    signal = np.abs(logits - logits.mean(0)).max()
    assert np.abs(trained - logits).max() < AGREES * signal

    # Images do not see each other.
    others = np.concatenate([images[:1], 255 - images[1:]])
    among_others = np.asarray(run(variables, others))
    np.testing.assert_array_equal(among_others[0], logits[0])
    assert np.all(np.any(among_others[1:] != logits[1:], axis=1))

    for n in devices:
        layout = sharding.make(data=n, fsdp=1, model=1, fsdp_min_size=1, rules=())
        rows, whole = layout.rows, layout.whole
        spread = evaluate(module, in_shardings=(whole, rows), out_shardings=rows)(
            jax.device_put(variables, whole), jax.device_put(images, rows)
        )
        assert len(spread.addressable_shards) == n
        assert np.abs(np.asarray(spread) - logits).max() < AGREES * signal

    # Half precision costs little more than rounding the weights alone: a layer rounds those
    # once and what it computes about three times, so that twice as much is expected.
    for half in precisions:
        dtypes = dict(zip(FIELDS, precision.DTYPES[half], strict=True))
        few_bits = jax.tree.map(lambda x, half=half: x.astype(half).astype(np.float32), params)
        noise = norm(run({**variables, "params": few_bits}, images) - logits)
        rounded = np.asarray(evaluate(models.build(name, **overrides, **dtypes))(variables, images))
        assert np.all(np.isfinite(rounded))
        assert norm(rounded - logits) < 4 * noise

    for again in remat[1:]:
        others, (logits, _) = train(models.build(name, **overrides, remat=again))
        assert np.abs(logits - trained).max() < AGREES * signal
        difference = jax.tree.map(np.subtract, others, gradients)
        assert norm(difference) < AGREES * norm(gradients)


ALL = {"devices": (8,), "precisions": ("bfloat16", "float16"), "remat": (False, True)}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param("mobilenet_v1"),
        *(pytest.param(f, marks=pytest.mark.ci) for f in sorted(TYPICAL)),
    ],
)
def test_siblings_keep_their_promises(family):
    name, overrides = SIBLINGS[family]
    keeps_its_promises(name, overrides, **(ALL if family in CHEAP else {"remat": (True,)}))


@pytest.mark.zoo
@pytest.mark.parametrize("family", [f for f in SIBLINGS if f not in CHEAP])
def test_siblings_keep_all_promises(family):
    name, overrides = SIBLINGS[family]
    keeps_its_promises(name, overrides, **ALL)


@pytest.mark.zoo
@pytest.mark.parametrize("name", pinned.NETWORKS)
def test_names_keep_their_promises(name):
    overrides = GIANTS.get(name, {})
    keeps_its_promises(name, overrides, devices=(8,), precisions=("bfloat16",))


# Of the other families the default tier compares a whole network's logits, or it takes long.
SHOWN = ("resnet", "res2net", "xception", "dpn", "densenet")


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=[] if f in SHOWN else tier(f)) for f in SIBLINGS]
    + [pytest.param(name, marks=pytest.mark.zoo) for name in pinned.NETWORKS],
)
def test_bfloat16_evaluates_to_finite_numbers(family):
    # compiled as a user's run is: it is XLA's fusions that have gone wrong
    name, overrides = SIBLINGS.get(family, (family, GIANTS.get(family, {})))
    dtypes = dict(zip(FIELDS, precision.DTYPES["bfloat16"], strict=True))
    module = models.build(name, num_classes=CLASSES, **overrides, **dtypes)
    size = sides(name, 2 * AT_LEAST.get(models.family_of(name), 32))
    images = oracle.images(size, 2)
    one = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = steady(dict(jax.eval_shape(module.init, jax.random.key(0), one)))
    run = jax.jit(lambda v, x: module.apply(v, x)["logits"])
    logits = run(variables, images)
    if not np.all(np.isfinite(logits)):  # of these weights signals may grow beyond float32 too
        logits = run(settled(module, variables, images), images)
    assert np.all(np.isfinite(logits))
