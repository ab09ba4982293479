"""The published ImageNet recipe of every model: \\
    python -m jaxcls.main --config=configs/imagenet.py:MobileNetV2 --workdir=DIR

Expected: the top-1 that `python -m jaxcls.models MobileNetV2` lists. The recipes are PaddleClas's;
where those of June 2020 and of today differ, the one of June 2020 stands here, since the published
accuracies are of that time: smaller crops for the smallest networks, EfficientNet's moving average,
cubic interpolation and exponential decay (B1 to B7 had no recipe then: that of B0), MobileNetV3 at
a batch of 4096, the SE_ResNeXts at 400. The batches of 32 and 64 that ResNeXt50_64x4d and
ResNeXt50_vd_32x4d had in June 2020 are taken for slips: 256, as today. Names without a recipe of
their own (`*_ssld`, `Fix_*`, ...) have that of their network: their weights came from distillation
or fine-tuning.

Learning rates are for the published batch, which `batch_size` is too; another batch scales them.
Departures: 5 epochs of warmup are added where the batch is larger than the published one;
BatchNorm statistics are shared by 64 images (50 at a batch of 400), as on a card of the recipes.
"""

import fnmatch

from configs import base

# (patterns, what they change), applied in this order: the last one that matches a name has its say.
RECIPES = (
    (
        "*",
        {
            "duration": "120 epochs",
            "lr.schedule": "piecewise",
            "lr.milestones": ("30 epochs", "60 epochs", "90 epochs"),
            "optim.l2": 1e-4,
        },
    ),
    (
        "ResNet18 ResNet34 VGG* SqueezeNet* GoogLeNet Xception* InceptionV4 MobileNetV2* "
        "MobileNetV3* ShuffleNet* ResNet*_v[cd]* Fix_ResNet50* SE* Res2Net* ResNeXt*_vd_* DPN* "
        "DarkNet53",
        {"lr.schedule": "cosine"},
    ),
    (
        "ResNet*_v[cd]* Fix_ResNet50* SE* Res2Net* ResNeXt*_vd_* DPN*",
        {"duration": "200 epochs", "loss.label_smoothing": 0.1, "mix.mixup": 0.2},
    ),
    ("ResNet50_vc", {"mix.mixup": 0.0}),
    (
        "ResNet18_vd ResNet34_vd ResNet50_vd* Fix_ResNet50* SE_ResNet18_vd SE_ResNet34_vd",
        {"optim.l2": 7e-5},
    ),
    (
        "SE_ResNeXt50_32x4d SE_ResNeXt101_32x4d",
        {"batch_size": 400, "loss.label_smoothing": 0.0, "mix.mixup": 0.0, "optim.l2": 1.2e-4},
    ),
    ("SE_ResNeXt101_32x4d", {"optim.l2": 1.5e-5}),
    ("ResNeXt101_64x4d", {"optim.l2": 1.5e-4}),
    ("ResNeXt152_64x4d", {"optim.l2": 1.8e-4}),
    ("DarkNet53", {"duration": "200 epochs", "image.eval_resize": 256}),
    # Old networks
    ("AlexNet GoogLeNet VGG1[369]", {"lr.peak": 0.01}),
    ("SqueezeNet*", {"lr.peak": 0.02}),
    ("VGG*", {"duration": "90 epochs", "optim.l2": 4e-4}),
    ("VGG11", {"batch_size": 512}),
    ("VGG13", {"optim.l2": 3e-4}),
    ("VGG19", {"duration": "150 epochs"}),
    # Xception, Inception
    (
        "Xception* InceptionV4",
        {"lr.peak": 0.045, "loss.label_smoothing": 0.1, "image.eval_resize": 320},
    ),
    ("Xception65 Xception71 InceptionV4", {"duration": "200 epochs", "mix.mixup": 0.2}),
    ("Xception71", {"lr.peak": 0.0225, "batch_size": 128}),
    # Small networks
    ("MobileNetV1*", {"optim.l2": 3e-5}),
    ("MobileNetV2*", {"duration": "240 epochs", "lr.peak": 0.045, "optim.l2": 4e-5}),
    ("MobileNetV2_x0_25 MobileNetV2_x0_5", {"optim.l2": 3e-5, "crop.ratio": (1.0, 1.0)}),
    (
        "ShuffleNet*",
        {
            "duration": "240 epochs",
            "batch_size": 1024,
            "lr.peak": 0.5,
            "lr.warmup": "5 epochs",
            "optim.l2": 4e-5,
        },
    ),
    (
        "ShuffleNetV2_x0_*",
        {"optim.l2": 3e-5, "crop.scale": (0.64, 1.0), "crop.ratio": (0.8, 1.2)},
    ),
    ("ShuffleNetV2_x1_5 ShuffleNetV2_x2_0", {"batch_size": 512, "lr.peak": 0.25}),
    ("ShuffleNetV2_x1_5", {"crop.ratio": (1.0, 1.0)}),
    (
        "MobileNetV3*",
        {
            "duration": "360 epochs",
            "batch_size": 4096,
            "lr.peak": 2.6,
            "lr.warmup": "5 epochs",
            "loss.label_smoothing": 0.1,
            "optim.l2": 2e-5,
            "optim.no_decay": ("/bn/(scale|bias)$",),
        },
    ),
    (
        "MobileNetV3_large_x0_5 MobileNetV3_large_x0_75 MobileNetV3_small_x1_25",
        {"batch_size": 2048, "lr.peak": 1.3},
    ),
    ("MobileNetV3_large_x1_25", {"batch_size": 1024, "lr.peak": 0.65, "optim.l2": 4e-5}),
    ("MobileNetV3_small_x0_35 MobileNetV3_small_x0_5", {"optim.l2": 1e-5}),
    ("MobileNetV3_small_x0_35", {"loss.label_smoothing": 0.0}),
    (
        "EfficientNet*",
        {
            "duration": "360 epochs",
            "batch_size": 512,
            "optim.name": "rmsprop",
            "optim.l2": 1e-5,
            "lr.peak": 0.032,
            "lr.warmup": "5 epochs",
            "lr.schedule": "exponential",
            "lr.milestones": (),
            "lr.gamma": 0.97,
            "loss.label_smoothing": 0.1,
            "ema.decay": 0.9999,
            "ema.ramp": True,
            "image.interpolation": "bicubic",
        },
    ),
    ("EfficientNetB0", {"model.options": (("drop_path", 0.1),)}),
    ("EfficientNet* MobileNetV3_large_x1_0", {"augment.policy": "autoaugment"}),
)

# Pixels in training and evaluation, where they are not 224.
SIZES = {
    "DarkNet53": 256,
    "Fix_*": 320,
    "Xception*": 299,
    "InceptionV4": 299,
    "EfficientNetB1": 240,
    "EfficientNetB2": 260,
    "EfficientNetB3": 300,
    "EfficientNetB4": 380,
    "EfficientNetB5": 456,
    "EfficientNetB6": 528,
    "EfficientNetB7": 600,
}


def get_config(arg=None):
    """Returns the recipe of the model that `arg` names."""
    if not arg:
        raise ValueError("configs/imagenet.py needs a model: --config=configs/imagenet.py:ResNet50")
    c = base.get_config()
    c.data.source = "tfds"
    c.model.name = arg
    for pattern, size in SIZES.items():
        if fnmatch.fnmatchcase(arg, pattern):
            c.image.size = size
            c.image.eval_resize = size + 32
    if arg.startswith("Fix_"):
        c.image.eval_resize = 320  # trained and evaluated on whole images
    for patterns, changes in RECIPES:
        if any(fnmatch.fnmatchcase(arg, pattern) for pattern in patterns.split()):
            c.update_from_flattened_dict(changes)
    if c.lr.schedule != "piecewise":
        c.lr.milestones = ()
    c.model.bn_group = 64 if c.batch_size % 64 == 0 else 50
    c.lr.batch = c.batch_size
    c.lr.warmup_if_scaled = c.lr.warmup or "5 epochs"
    return c
