"""Where networks of each family look: Grad-CAM by other ways to its formula."""

import re

import flax.linen as nn
import jax
import numpy as np
import pytest
from drawn import random_like, settled
from test_network import small
from test_zoo import tier

from jaxcls import models, network, trees
from jaxcls.data import ops
from jaxcls.report.grad_cam import grad_cam

# one of each family, as few layers as there may be
SMALL = {
    "AlexNet": ("AlexNet", {}),
    "CSPDarkNet": ("CSPDarkNet53", {"depths": (1, 1, 1, 1, 1)}),
    "DLA": ("DLA46_c", {"levels": (1, 1, 1, 1)}),
    "DPN": ("DPN68", {"depths": (1, 1, 1, 1)}),
    "DarkNet": ("DarkNet53", {"depths": (1, 1, 1, 1, 1)}),
    "DenseNet": ("DenseNet121", {"depths": (2, 2, 2, 2)}),
    "EfficientNet": ("EfficientNetB0", {"depth": 0.2}),
    "GoogLeNet": ("GoogLeNet", {}),
    "HRNet": ("HRNet_W18_C", {"width": 4, "exchanges": (1, 1, 1)}),
    "HarDNet": ("HarDNet39_ds", {}),
    "Inception": ("InceptionV3", {}),
    "MobileNetV1": ("MobileNetV1_x0_25", {}),
    "MobileNetV2": ("MobileNetV2_x0_25", {}),
    "MobileNetV3": ("MobileNetV3_small_x0_35", {}),
    "PPHGNet": ("PPHGNetV2_B0", {}),
    "UniFormer": ("UniFormer_small", {"depths": (1, 1, 1, 1)}),
    "VAN": ("VAN_B0", {"depths": (1, 1, 1, 1)}),
    "ConvNeXt": ("ConvNeXt_tiny", {"depths": (1, 1, 1, 1)}),
    "DSNet": ("DSNet_tiny", {"depths": (1, 1, 1, 1)}),
    "NextViT": ("NextViT_small_224", {"depths": (1, 2, 5, 2)}),
    "PeleeNet": ("PeleeNet", {"depths": (1, 1, 1, 1)}),
    "RedNet": ("RedNet26", {"depths": (1, 1, 1, 1)}),
    "ResNeSt": ("ResNeSt50", {"depths": (1, 1, 1, 1)}),
    "Res2Net": ("Res2Net50_26w_4s", {"depths": (1, 1, 1, 1)}),
    "ResNet": ("ResNet18_vd", {"width": 8}),
    "ShuffleNetV2": ("ShuffleNetV2_x0_25", {}),
    "CSWinTransformer": ("CSWinTransformer_tiny_224", {"depths": (1, 1, 1, 1), "width": 16}),
    "CvT": ("CvT_13_224", {"depths": (1, 1, 1), "widths": (16, 30, 48)}),
    "FoundationViT": ("MOCOV3_vit_small", {"depth": 4, "width": 48, "hidden": 96}),
    "LeViT": ("LeViT_128S", {"depths": (1, 1), "widths": (32, 48), "key": 8}),
    "MobileViT": ("MobileViT_XXS", {"layers": (1, 1, 1)}),
    "PVTv2": ("PVT_V2_B0", {"depths": (1, 1), "widths": (16, 32)}),
    "SwinTransformer": (
        "SwinTransformer_tiny_patch4_window7_224",
        {"depths": (1, 1), "width": 12, "window": 4},
    ),
    "SwinTransformerV2": (
        "SwinTransformerV2_tiny_patch4_window8_256",
        {"depths": (1, 1), "width": 12, "window": 4},
    ),
    "TNT": ("TNT_small", {"depth": 4, "width": 96, "inner": 8}),
    "Twins": ("alt_gvt_small", {"depths": (1, 1), "widths": (16, 32), "window": 4}),
    "VisionTransformer": ("DeiT_tiny_patch16_224", {"depth": 4, "width": 48}),
    "EfficientNetV2": ("EfficientNetV2_S", {}),
    "MixNet": ("MixNet_S", {}),
    "ReXNet": ("ReXNet_1_0", {}),
    "GhostNet": ("GhostNet_x0_5", {}),
    "MobileNeXt": ("MobileNeXt_x0_35", {}),
    "MobileNetV4": ("MobileNetV4_conv_small", {}),
    "PPLCNet": ("PPLCNet_x0_25", {}),
    "PPLCNetV2": ("PPLCNetV2_small", {}),
    "ESNet": ("ESNet_x0_25", {}),
    "MicroNet": ("MicroNet_M0", {}),
    "RepVGG": ("RepVGG_A0", {}),
    "RegNet": ("RegNetX_200MF", {}),
    "FasterNet": ("FasterNet_T0", {}),
    "StarNet": ("StarNet_S1", {}),
    "SqueezeNet": ("SqueezeNet1_1", {}),
    "VGG": ("VGG11", {}),
    "Xception": ("Xception41", {"middle": 1}),
}
# behind the map there are hidden layers, not only the mean over places and the classifier
HIDDEN = (
    "AlexNet", "ConvNeXt", "ESNet", "FasterNet", "GhostNet", "LeViT", "MicroNet", "MobileNetV3",
    "MobileNetV4", "PPHGNet", "PPLCNet", "PPLCNetV2", "StarNet", "VGG",
)  # fmt: skip
# whose classifier sees a class token alone, with the side of their map at 64 pixels
TOKENS = {"VisionTransformer": 4, "FoundationViT": 4, "TNT": 4, "CvT": 8}


def described(family):
    """Returns a network, variables and two images."""
    name, options = SMALL[family]
    size = {"Inception": 128, "CSWinTransformer": 112}.get(family, 64)
    image = network.published_image(name) | {
        "size": size, "eval_size": 0, "eval_resize": size,
    }  # fmt: skip
    net, _ = small(name=name, options=options, image=ops.Image(**image))
    images = np.random.default_rng(0).integers(0, 256, (2, size, size, 3), np.uint8)
    # no class is likely for nothing
    variables = trees.map_with_path(
        lambda path, x: x * (not re.fullmatch("params/head/.*bias", path)), random_like(net.shapes)
    )
    return net, settled(net.module, variables, net.normalise(images)), images


def parts(net, variables, images):
    """Returns what the stages and the neck give."""
    _, state = net.module.apply(
        variables,
        net.normalise(images),
        capture_intermediates=lambda module, _: len(module.path) == 1,
        mutable=["intermediates"],
    )
    return {name: its["__call__"][0] for name, its in state["intermediates"].items()}


def heat_of(weights, features):
    """Returns Grad-CAM of weights [N, D] and features [N, H, W, D]."""
    heat = np.maximum(np.einsum("nhwd,nd->nhw", np.float64(features), weights), 0)
    return heat / np.maximum(heat.max((1, 2), keepdims=True), 1e-12)


def test_all_families():
    assert {models.MODELS[name].cls.__name__ for name, _ in SMALL.values()} == {
        spec.cls.__name__ for spec in models.MODELS.values()
    }


@pytest.mark.parametrize(
    "family",
    [pytest.param(f, marks=tier(models.family_of(name))) for f, (name, *_) in SMALL.items()],
)
def test_where_it_looked(family):
    net, variables, images = described(family)
    logits = np.asarray(net.module.apply(variables, net.normalise(images))["logits"])
    classes = logits.argmax(1)
    heat = grad_cam(net, variables, images, classes)
    np.testing.assert_array_equal(heat, grad_cam(net, variables, images))
    assert heat.min() >= 0
    assert heat.max() > 0.99
    assert not np.allclose(heat, grad_cam(net, variables, images, logits.argmin(1)), atol=0.1)
    if family in TOKENS:
        assert heat.shape == (2, TOKENS[family], TOKENS[family])
        return
    found = jax.jit(lambda v, x: parts(net, v, x))(variables, images)
    if family in HIDDEN:
        stage = max(name for name in found if name.startswith("stage"))
        features = found[stage]
        assert heat.shape == features.shape[:3]
        if family == "MobileNetV3":  # few channels: the weights as difference quotients
            weights = raised(net, variables, images, classes, stage, features.shape[-1])
            np.testing.assert_allclose(heat, heat_of(weights, features), atol=0.02)
        return
    stage = max(name for name in found if name.startswith("stage"))
    features = jax.tree.leaves(found.get("neck", found[stage]))[-1]
    [kernel] = (
        x.reshape(-1, 4)
        for x in jax.tree.leaves(variables["params"]["head"])
        if x.ndim > 1 and x.shape[-1] == 4
    )
    expected = heat_of(np.float64(kernel).T[classes], features)
    assert expected.max() == 1
    np.testing.assert_allclose(heat, expected, atol=1e-3)


def raised(net, variables, images, classes, stage, channels, by=1e-2):
    """Returns what the logits of classes gain where a channel of a stage is raised, [N, D]."""

    def logits(added):
        def add(call, args, kwargs, context):
            y = call(*args, **kwargs)
            here = context.module.path == (stage,) and context.method_name == "__call__"
            return y + added if here else y

        with nn.intercept_methods(add):
            out = net.module.apply(variables, net.normalise(images))
        return out["logits"][np.arange(2), classes]

    each = by * np.eye(channels, dtype=np.float32)
    more, less = (jax.jit(jax.vmap(logits))(x) for x in (each, -each))
    return (np.float64(more) - np.float64(less)).T
