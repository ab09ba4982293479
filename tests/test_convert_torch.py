"""Weights of timm and torchvision, against what their networks answered in PyTorch.

`golden/torch.json`, which `timm_parity.py` writes, has for each of their networks a hash of its
tensors' names and sizes and, for some, logits of two images with weights as in `oracle`.
"""

import itertools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax.traverse_util import flatten_dict

from jaxcls import convert, models, trees, weights
from jaxcls.convert import densenet, engine, hrnet, readers
from jaxcls.convert.__main__ import main

GOLDEN = json.loads((Path(__file__).parent / "golden" / "torch.json").read_text())
MOBILE = {"paper": True, "downscale": False, "padding": None, "bn_epsilon": 1e-5}
QUICK = {  # at least one for each rule; the others: -m zoo
    "timm.resnet18",
    "timm.resnet50c",
    "timm.resnet50d",
    "timm.seresnext50_32x4d",
    "timm.res2net50d",
    "timm.mobilenetv2_100",
    "torchvision.mobilenet_v2",
    "timm.mobilenetv3_large_100",
    "torchvision.mobilenet_v3_small",
    "torchvision.shufflenet_v2_x0_5",
    "timm.tf_efficientnet_b0",
    "torchvision.efficientnet_b0",
    "timm.densenet121",
    "timm.vgg11",
    "torchvision.vgg13",
    "torchvision.alexnet",
    "torchvision.squeezenet1_0",
    "timm.xception41",
    "timm.hrnet_w18",
    "timm.dpn68",
    "timm.darknet53",
}
CI = {
    "timm.repvgg_a0",
    "timm.lcnet_035",
    "timm.ghostnet_050",
    "timm.regnetx_002",
    "torchvision.regnet_x_800mf",
    "timm.tinynet_e",
    "timm.mixnet_s",
    "timm.rexnet_100",
    "timm.tf_efficientnetv2_s",
    "torchvision.efficientnet_v2_s",
    "timm.fasternet_t0",
    "timm.starnet_s1",
    "timm.mobilenetv4_conv_small",
    "timm.mobilenetv4_conv_medium",
}


def overrides_of(entry):
    """Returns the arguments of `models.build`, of which JSON made lists of tuples."""
    return {k: tuple(v) if isinstance(v, list) else v for k, v in entry["overrides"].items()}


def rule_of(theirs, ours, overrides):
    """Returns our module and the rule for the names that timm or torchvision has for its layers."""
    module = models.build(ours, **overrides)
    sources = convert.rules(ours).torch_sources(module)
    return module, next(s.rule for s in sources if theirs.partition(".")[0] in s.names)


def image_for(ours, module, channels=3):
    """Returns the shape of an image, of the network's size where that matters to its tensors."""
    size = models.MODELS[ours].size if getattr(module, "sized", False) else 96
    return jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)


def tensors_of(theirs, ours, overrides, in_channels=3):
    """Returns {their name: (shape, kind)} for all tensors of ours; linear weights are [out, in]."""
    module, rule = rule_of(theirs, ours, overrides)
    image = image_for(ours, module, in_channels)
    target = flatten_dict(dict(jax.eval_shape(module.init, jax.random.key(0), image)))
    tensors = {}
    for path, leaf in target.items():
        names = rule(path[1:-1], module), engine.TORCH_LEAVES[path[-1]]
        name = ".".join(filter(None, names))
        order = (3, 2, 0, 1) if len(leaf.shape) == 4 else range(len(leaf.shape))[::-1]
        order = range(len(leaf.shape)) if path[-1] == "value" else order
        kind = "scale" if path[-1] in ("scale", "factor") else "other"
        tensors[name] = (tuple(leaf.shape[d] for d in order), kind)
    assert len(tensors) == len(target)
    return tensors


def zeros(tensors):
    """Returns arrays of these shapes that take no memory."""
    return {name: np.broadcast_to(np.float32(0), shape) for name, (shape, _) in tensors.items()}


def arrays_for(ours, theirs="torchvision", in_channels=3, **overrides):
    """Returns what from_torch takes for a network of ours."""
    return zeros(tensors_of(theirs, ours, overrides, in_channels))


def tier(theirs):
    """Returns the markers of the test of a network's names."""
    return [] if theirs in QUICK else pytest.mark.ci if theirs in CI else pytest.mark.zoo


EVERY = [pytest.param(t, marks=tier(t)) for t in GOLDEN]


@pytest.mark.parametrize("theirs", EVERY)
def test_names_and_sizes_are_theirs(theirs):
    entry = GOLDEN[theirs]
    tensors = tensors_of(theirs, entry["ours"], overrides_of(entry))
    sizes = {name: int(np.prod(shape)) for name, (shape, _) in tensors.items()}
    assert oracle.digest(sizes) == entry["tensors"]


BACK = {  # small ones, one for each exception
    "timm.resnet18",
    "timm.seresnext50_32x4d",
    "torchvision.mobilenet_v3_small",
    "timm.dpn68 k_sec=(2, 1, 1, 1)",
}
BACK_CI = {"timm.hrnet_w18", "timm.vgg11"}
marked = lambda t: pytest.param(t, marks=pytest.mark.ci if t in BACK_CI else pytest.mark.zoo)


@pytest.mark.parametrize("theirs", [t if t in BACK else marked(t) for t in GOLDEN])
def test_the_way_back_is_the_inverse(theirs):
    entry = GOLDEN[theirs]
    ours, overrides = entry["ours"], overrides_of(entry)
    module = models.build(ours, **overrides)
    shapes = jax.eval_shape(module.init, jax.random.key(0), image_for(ours, module))
    # numbers that are all different, but in the largest
    count = itertools.count(1)
    variables = {"batch_stats": {}} | jax.tree.map(
        lambda x: np.arange(x.size, dtype=np.float32).reshape(x.shape) + next(count), dict(shapes)
    )
    arrays = convert.to_torch(ours, variables, package=theirs.partition(".")[0], **overrides)
    if theirs != "timm.hrnet_w18_ssld":  # it leads back to hrnet_w18
        assert oracle.digest({k: a.shape for k, a in arrays.items()}) == entry["shapes"]
    again = convert.from_torch(ours, arrays, **overrides)
    assert trees.differences(variables, again) == []
    assert jax.tree.all(jax.tree.map(np.array_equal, variables, again))


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("ResNet50", {}, ("resnet50", {})),
        (
            "SE_ResNeXt50_vd_32x4d",
            {},
            (
                "resnet50",
                {
                    "cardinality": 32,
                    "base_width": 4,
                    "stem_type": "deep",
                    "avg_down": True,
                    "block_args": {"attn_layer": "se"},
                },
            ),
        ),
        ("Fix_ResNet50_vd_ssld", {"depths": (1, 1, 1, 1)}, ("resnet50", {"layers": [1, 1, 1, 1]})),
        ("MobileNetV3_large_x1_0_ssld", MOBILE, ("mobilenetv3_large_100", {})),
        ("MobileNetV3_large_x1_0", MOBILE | {"padding": "SAME", "bn_epsilon": 1e-3},
         ("tf_mobilenetv3_large_100", {})),
        ("Xception65_deeplab", {"dilation": 1, "downscale": False}, ("xception65", {})),
        ("DPN68", {"bn_epsilon": 1e-3, "num_classes": 7, "dropout": 0.5}, ("dpn68", {})),
        ("ResNet18", {}, "train with config.model.options = \(\('project_first', False\),\)"),
        ("ResNet50", {"bn_epsilon": 1e-3}, "than .*resnext\* and seresnet\*, without further"),
        ("ResNet50", {"bottleneck": 8}, "computes something else than"),
        ("ResNet50", {"downscale": True, "dropout": 0.5}, "computes something else than"),
        ("ResNet50", {"stem": "small"}, "with these options is not among"),
        ("SE_ResNet18_vd", {"project_first": False}, "with these options is not among"),
        ("DPN68", {"bn_epsilon": 1e-3, "depths": (1, 1, 1, 1)}, "with these options is not among"),
        ("MobileNetV2_x0_25", {"expand_first": False}, "MobileNetV2_x0_25 is not in timm"),
        ("GoogLeNet", {}, "5x5$"),
        ("AlexNet", {"downscale": False}, "AlexNet is not in timm"),
    ],
)  # fmt: skip
def test_what_timm_calls_them(name, options, found):
    if isinstance(found, str):
        with pytest.raises(ValueError, match=found):
            convert.timm_model(name, **options)
        return
    architecture, arguments = convert.timm_model(name, **options)
    assert architecture == found[0]
    assert arguments.items() >= found[1].items()
    json.dumps(arguments)


@pytest.mark.ci
@pytest.mark.parametrize("theirs", [t for t, entry in GOLDEN.items() if "logits" in entry])
def test_logits_are_pytorch(theirs):
    entry = GOLDEN[theirs]
    ours, overrides = entry["ours"], overrides_of(entry)
    tensors = tensors_of(theirs, ours, overrides)
    layers = sorted(k.rpartition(".")[0] for k in tensors if k.endswith("running_mean"))
    bn = dict(zip(layers, entry["bn"], strict=True))
    statistics = {"running_mean": "_mean", "running_var": "_variance"}
    arrays = {}
    for name, (shape, kind) in tensors.items():
        layer, _, leaf = name.rpartition(".")
        arrays[name] = oracle.tensor(f"{layer}.{statistics.get(leaf, leaf)}", shape, kind, bn)
    variables = convert.from_torch(ours, arrays, **overrides)
    forward = jax.jit(models.build(ours, **overrides).apply)
    images = oracle.images(entry["size"])
    quickly = {"xla_backend_optimization_level": 0}  # compiles in half the time
    out = forward.lower(variables, images).compile(compiler_options=quickly)(variables, images)
    error = np.abs(np.asarray(out["logits"])[:, : oracle.LOGITS] - entry["logits"]).max()
    assert error / entry["signal"] < 1e-4


NEEDS = {  # network of theirs -> what has to be said
    "timm.resnet18": "project_first=False",
    "timm.res2net50_14w_8s layers=(2, 1, 1, 1)": "original=True",
    "torchvision.mobilenet_v3_small": "paper=True, downscale=False, last=1024, padding=None, "
    "bn_epsilon=0.001",
    "torchvision.alexnet": "downscale=False",
}


@pytest.mark.parametrize("theirs", NEEDS)
def test_other_networks_are_refused_with_the_arguments_that_make_them_equal(theirs):
    ours, overrides = GOLDEN[theirs]["ours"], overrides_of(GOLDEN[theirs])
    arrays = arrays_for(ours, theirs, **overrides)
    with pytest.raises(ValueError, match=re.escape(f"convert with {NEEDS[theirs]} (")):
        convert.from_torch(ours, arrays, **{k: v for k, v in overrides.items() if k == "depths"})


@pytest.mark.parametrize("theirs", GOLDEN)
def test_arguments_that_are_asked_for_are_those_that_make_them_equal(theirs):
    ours, overrides = GOLDEN[theirs]["ours"], overrides_of(GOLDEN[theirs])
    module = models.build(ours, **overrides)
    sources = convert.rules(ours).torch_sources(models.build(ours))
    assert module in [models.build(ours, **overrides | source.needs) for source in sources]


def test_each_argument_is_asked_for():
    complete = overrides_of(GOLDEN["torchvision.squeezenet1_1"])
    arrays = arrays_for("SqueezeNet1_1", **complete)
    convert.from_torch("SqueezeNet1_1", arrays, **complete)
    for key in complete:
        overrides = {k: v for k, v in complete.items() if k != key}
        with pytest.raises(ValueError, match="convert with ceil_mode=True, downscale=False, stem="):
            convert.from_torch("SqueezeNet1_1", arrays, **overrides)


def test_networks_of_equal_tensors_have_to_be_told_apart():
    arrays = arrays_for("EfficientNetB0", "timm")
    with pytest.raises(ValueError) as e:  # not even what is the default is assumed
        convert.from_torch("EfficientNetB0", arrays)
    assert "timm's tf_efficientnet_b*" in str(e.value)
    assert "config.model.options = (('padding', 'SAME'),)" in str(e.value)
    assert "config.model.bn_epsilon = 1e-05" in str(e.value)
    convert.from_torch("EfficientNetB0", arrays, padding=None, bn_epsilon=1e-5)
    with pytest.raises(ValueError, match="or timm's efficientnet_b"):  # a bit of each
        convert.from_torch("EfficientNetB0", arrays, padding="SAME", bn_epsilon=1e-5)


REASONS = {
    "GoogLeNet": "BatchNorm after each",
    "InceptionV4": "in the other order",
    "SE_HRNet_W64_C": "not in timm",
    "RedNet26": "not in timm",
    "HarDNet39_ds": "not in timm",
    "PeleeNet": "not in timm",
    "VAN_B0": "not in timm",
    "DSNet_tiny": "not in timm",
    "UniFormer_small": "not in timm",
    "Xception65": "Xception65_deeplab",
    "MobileNetV1": "ReLU6",
    "EfficientNetB0_small": "efficientnet_lite0",
    "ShuffleNetV2_swish": "has ReLU",
    "ResNet50_ACNet": "not in timm",
    "ResNet50_ACNet_deploy": "not in timm",
    "ViT_small_patch16_224": "has this network no more",
    "CSWinTransformer_tiny_224": "do not have CSWin",
    "CvT_13_224": "do not have CvT",
    "MAE_vit_base_patch16": "have biases of patches",
    "MobileViTV3_S": "do not have MobileViTV3",
    "PPLCNetV2_small": "not in timm",
    "ESNet_x0_25": "not in timm",
    "MobileNeXt_x0_35": "not in timm",
    "MicroNet_M0": "not in timm",
}


@pytest.mark.parametrize("ours", REASONS)
def test_networks_that_pytorch_has_not(ours):
    with pytest.raises(ValueError, match=REASONS[ours]):
        convert.from_torch(ours, {})


def test_every_model_has_sources_or_a_reason():
    refused = []
    for name in models.names():
        module = models.build(name)
        try:
            sources = convert.rules(name).torch_sources(module)
        except ValueError:
            refused.append(name)
            continue
        for source in sources:
            assert bool(source.needs) == bool(source.differs)
            models.build(name, **source.needs)  # they are arguments that it has
    families = {models.family_of(name) for name in refused}
    assert families == {models.family_of(name) for name in REASONS}


def test_conversion_is_total():
    arrays = arrays_for("ResNet50")
    arrays["extra.weight"] = arrays.pop("layer1.0.bn1.running_var")
    arrays["conv1.weight"] = arrays["conv1.weight"][:32]
    arrays["bn1.num_batches_tracked"] = np.int64(1)  # ignored
    with pytest.raises(ValueError) as e:
        convert.from_torch("ResNet50", arrays)
    message = str(e.value)
    assert "layer1.0.bn1.running_var: missing (for stage1/block1/conv1/bn/var (64,))" in message
    assert "extra.weight: no place" in message
    assert "conv1.weight: shape (7, 7, 3, 32), stem/conv1/conv/kernel has (7, 7, 3, 64)" in message
    assert len(message.splitlines()) == 4


def test_integers_are_no_weights():
    arrays = arrays_for("ResNet18")
    arrays["conv1.weight"] = arrays["conv1.weight"].astype(np.uint16)  # Paddle's bfloat16
    with pytest.raises(ValueError, match="conv1.weight: numbers of uint16, .* has float32"):
        convert.from_torch("ResNet18", arrays)
    for value in (1e300, np.inf, np.nan):
        arrays["conv1.weight"] = np.full(arrays["conv1.weight"].shape, value)
        with pytest.raises(ValueError, match="conv1.weight: numbers that are not finite"):
            convert.from_torch("ResNet18", arrays)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--num-classes=0"], "--num-classes=0: write how many"),
        (["--option", "num_classes=3"], "num_classes is no option of a model"),
        (["--option", "in_channels=x"], "ShuffleNetV2_x0_5 cannot be built with in_channels='x', "),
        # JAX 0.10 refuses to build it, 0.12 does not
        (["--option", "in_channels=0"], r"be built with in_channels=0, |has \(3, 3, 0, 24\)"),
        (
            ["--option", "neck=x"],
            "ShuffleNetV2_x0_5 cannot be built with in_channels=3, .*neck=.x.: ",
        ),
        (["--option", "bn_epsilon=foo"], "bn_epsilon = 'foo': write a number above 0 and below 1"),
        (["--option", "bn_epsilon=0"], "bn_epsilon = 0: write a number above 0 and below 1"),
        (
            ["--option", "bn_momentum=(1,)"],
            r"bn_momentum = \(1,\): write a number from 0 to below 1",
        ),
        (["--option", "dropout=x"], "dropout = 'x': write a number from 0 to below 1"),
        (["--option", "bn_epsilon={1, 2}"], "--option 'bn_epsilon={1, 2}': write a number of"),
        (["--option", "dtype=bfloat16"], "dtype is no option of a model"),
        (["--option", "act=x"], "ShuffleNetV2_x0_5 cannot be built with .*act='x': "),
        (["--to=/dev/null/x"], "/dev/null/x could not be written"),
        (["--to=/" + "x" * 300], "xxx: File name too long"),
        (["--from=/dev/null/x.npz"], "/dev/null/x.npz: there is no such file"),
    ],
)
def test_mistakes_in_the_command_are_one_line(tmp_path, capsys, arguments, text):
    arrays = arrays_for("ShuffleNetV2_x0_5")
    np.savez(tmp_path / "w.npz", **arrays)
    command = [f"--from={tmp_path / 'w.npz'}", f"--to={tmp_path / 'to'}", "--style=torch"]
    assert main(["ShuffleNetV2_x0_5", *command, *arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    assert re.search(text, err), err
    assert err.count("\n") == 1


def test_weights_of_another_architecture():
    resnet50 = arrays_for("ResNet50")
    with pytest.raises(ValueError, match=r"not weights of torchvision's alexnet, but bn1.bias"):
        convert.from_torch("AlexNet", resnet50)
    with pytest.raises(ValueError, match="layer1.0.bn3.bias: no place for it"):
        convert.from_torch("ResNet18", resnet50)
    shapes = r"layer1.0.bn1.running_mean: shape \(64,\), (?s:.*)\n  ... and \d+ more such tensors$"
    with pytest.raises(ValueError, match=shapes) as e:
        convert.from_torch("ResNeXt50_32x4d", resnet50)
    assert str(e.value).count("\n") == 11
    # timm's legacy_seresnext50_32x4d: equal shapes and other pools
    legacy = {"layer0.conv1.weight": 0, "layer0.bn1.weight": 0, "last_linear.weight": 0}
    with pytest.raises(ValueError, match="legacy_se.*first pool rounds up"):
        convert.from_torch("SE_ResNeXt50_32x4d", legacy)


def test_classifier():
    name = "ShuffleNetV2_x0_5"
    seven = arrays_for(name, num_classes=7)
    assert convert.from_torch(name, seven, num_classes=7)["params"]["head"]
    with pytest.raises(ValueError, match="all but the classifier fits: give num_classes"):
        convert.from_torch(name, seven)
    without = {key: array for key, array in seven.items() if not key.startswith("fc.")}
    with pytest.raises(ValueError, match="the classifier's tensors are missing: .*head=False"):
        convert.from_torch(name, without)
    for arrays in (seven, without):
        variables = convert.from_torch(name, arrays, head=False)
        assert set(variables["params"]) == {"stem", "stage1", "stage2", "stage3", "neck"}
    del without["conv1.0.weight"]
    with pytest.raises(ValueError, match="conv1.0.weight: missing"):  # the rest stays total
        convert.from_torch(name, without, head=False)


def test_auxiliary_classifiers_go_with_the_classifier():
    module, rule = models.build("GoogLeNet", num_classes=7), convert.rules("GoogLeNet").paddle
    image = jax.ShapeDtypeStruct((1, 96, 96, 3), jnp.float32)
    target = flatten_dict(dict(jax.eval_shape(module.init, jax.random.key(0), image)))
    arrays = {}
    for path, leaf in target.items():
        shape = tuple(leaf.shape[d] for d in (3, 2, 0, 1)) if len(leaf.shape) == 4 else leaf.shape
        key = f"{rule(path[1:-1], module)}.{engine.PADDLE_LEAVES[path[-1]]}"
        arrays[key] = np.broadcast_to(np.float32(0), shape)
    params = convert.from_paddle("GoogLeNet", arrays, head=False)["params"]
    assert "head" not in params
    assert set(params["aux1"]) == {"conv1", "fc1"}


def test_other_dtypes_and_channels():
    name = "ShuffleNetV2_x0_5"
    arrays = arrays_for(name, in_channels=1)
    half = {key: array.astype(np.float16) for key, array in arrays.items()}
    params = convert.from_torch(name, half, in_channels=1)["params"]
    assert params["stem"]["conv1"]["conv"]["kernel"].shape == (3, 3, 1, 24)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float32")}
    with pytest.raises(ValueError, match=r"conv1.0.weight: shape \(3, 3, 1, 24\)"):
        convert.from_torch(name, half)


def test_layouts():
    array = np.arange(24.0).reshape(2, 3, 2, 2)
    np.testing.assert_array_equal(
        engine.torch_layout(array, (2, 2, 3, 2))[1, 0, 2, 1], array[1, 2, 1, 0]
    )
    # a convolution over the whole image is a linear layer of what is there in the order C, H, W
    x = np.random.default_rng(0).normal(size=(3, 2, 2))
    whole = engine.torch_layout(array, (12, 2))
    np.testing.assert_allclose(x.reshape(-1) @ whole, np.einsum("oihw,ihw->o", array, x))
    linear = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(engine.torch_layout(linear, (3, 2)), linear.T)
    np.testing.assert_array_equal(engine.torch_layout(linear, (1, 1, 3, 2))[0, 0], linear.T)


def test_biases_before_batch_norm_go_into_its_mean():
    rng = np.random.default_rng(0)
    y, bias, mean, var = rng.normal(size=(4, 5)).astype(np.float32)
    arrays = {"final_layer.0.bias": bias, "final_layer.1.running_mean": mean, "other": y}
    folded = engine.without_biases(arrays, hrnet.BIASED)
    assert folded.keys() == {"final_layer.1.running_mean", "other"}
    normal = lambda x, mean: (x - mean) / np.sqrt(var**2 + 1e-5)
    np.testing.assert_allclose(
        normal(y, folded["final_layer.1.running_mean"]), normal(y + bias, mean), rtol=1e-5
    )


@pytest.mark.ci
def test_names_in_the_densenet_files_of_torchvision():
    new = arrays_for("DenseNet121")
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): a for k, a in new.items()}
    assert "features.denseblock4.denselayer16.norm.2.running_mean" in old
    assert densenet.without_dots(old).keys() == new.keys()


def test_options_that_no_names_are_for_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no name for stage4/block27/.* of a network of these"):
        convert.from_paddle("Res2Net50_14w_8s", {}, depths=(1, 1, 1, 27))


def test_the_number_of_channels_is_no_option_of_the_result(tmp_path):
    name = "ShuffleNetV2_x0_5"
    np.savez(tmp_path / "w.npz", **arrays_for(name, in_channels=1))
    command = [f"--from={tmp_path / 'w.npz'}", f"--to={tmp_path / 'to'}", "--style=torch"]
    assert main([name, *command, "--option", "in_channels=1"]) == 0
    assert weights.load(tmp_path / "to")[1]["network"]["options"] == {}


def test_the_command_of_the_way_back(tmp_path, capsys):
    """Checkpoint -> file of timm's tensors; that timm loads it, `timm_parity.py` shows."""
    name, folder, file = "PPLCNet_x0_35", tmp_path / "ours", tmp_path / "theirs.safetensors"
    options = ["--option", "bias=True", "--option", "downscale=False"]
    arrays = arrays_for(name, "timm", bias=True, downscale=False)
    np.savez(tmp_path / "w.npz", **arrays)
    first = [name, f"--from={tmp_path / 'w.npz'}", f"--to={folder}", "--style=torch", *options]
    assert main(first) == 0
    assert main([f"--to-torch={folder}", f"--out={file}"]) == 0
    assert "timm.create_model('lcnet_035', num_classes=1000)" in capsys.readouterr().out
    written = readers.read(str(file))
    assert written.keys() == arrays.keys()
    for key, array in arrays.items():
        np.testing.assert_array_equal(written[key], array)
    assert main([f"--to-torch={folder}", f"--out={file}"]) == 2
    assert main([f"--to-torch={folder}"]) == 2
    assert main([f"--to-torch={folder}", f"--out={file}x"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert "exists: choose another file" in said[0]
    assert said[1:] == ["jaxcls: --to-torch needs --out FILE.safetensors"] * 2
    # dropout that scales in evaluation, as in PaddleClas, timm has not
    plain, other = tmp_path / "plain", {"options": {"bias": True}}
    variables, meta = weights.load(folder)
    weights.export(plain, variables, meta | {"network": meta["network"] | other})
    assert main([f"--to-torch={plain}", f"--out={tmp_path / 'x.safetensors'}"]) == 2
    assert "computes something else than timm's lcnet_*" in capsys.readouterr().err
