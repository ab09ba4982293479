"""The published ImageNet recipe of every model: \\
    python -m jaxcls.main --config=configs/imagenet.py:MobileNetV2 --workdir=DIR

Expected: the top-1 that `python -m jaxcls.models MobileNetV2` lists. The recipes are PaddleClas's;
where those of June 2020 and of today differ, the one of June 2020 stands here, since the published
accuracies are of that time: smaller crops for the smallest networks, EfficientNet's moving average,
cubic interpolation and exponential decay (B1 to B7 had no recipe then: that of B0), MobileNetV3 at
a batch of 4096, the SE_ResNeXts at 400. The batches of 32 and 64 that ResNeXt50_64x4d and
ResNeXt50_vd_32x4d had in June 2020 are taken for slips: 256, as today. Names without a recipe of
their own (`*_ssld`, `Fix_*`, ...) have that of their network: their weights came from distillation
or fine-tuning. The image encoders (CLIP, MAE, ...) have that of MAE's authors for fine-tuning;
MobileViTV3 is trained on images of one size.

Learning rates are for the published batch, which `batch_size` is too; another batch scales them.
Departures: 5 epochs of warmup are added where the batch is larger than the published one;
BatchNorm statistics are shared by 64 images (50 at a batch of 400), as on a card of the recipes.
Networks that came after June 2020 have today's recipes, for four cards where the file does not say
how many; FasterNet's batches are the paper's for these learning rates. EfficientNetV2 trains at its
last size and strength of augmentation from the start, PPLCNetV2 at one size.
"""

import fnmatch

from configs import base

TRANSFORMER = {  # what vision transformers are trained with, since DeiT
    "duration": "300 epochs",
    "batch_size": 1024,
    "lr.schedule": "cosine",
    "lr.peak": 1e-3,
    "lr.end": 1e-5,
    "lr.warmup": "20 epochs",
    "lr.warmup_start": 1e-6,
    "optim.name": "adamw",
    "optim.l2": 0.0,
    "optim.weight_decay": 0.05,
    "optim.no_decay": ("/(bias|scale|value)$",),
    "loss.label_smoothing": 0.1,
    "image.interpolation": "bicubic",
    "augment.policy": "rand-m9-mstd0.5-inc1",
    "erase.name": "random_erasing",
    "erase.prob": 0.25,
    "erase.fill": "pixel",
    "erase.area": (0.02, 1 / 3),
    "mix.mixup": 0.8,
    "mix.cutmix": 1.0,
}
UNERASED = {
    "erase.name": "",
    "erase.prob": None,
    "erase.fill": "constant",
    "erase.area": (0.02, 0.4),
}
MOBILE = {  # what MobileViTs have otherwise
    "image.size": 256,
    "image.eval_resize": 288,
    "image.mean": (0.0,) * 3,
    "image.std": (1.0,) * 3,
    "crop.log_ratio": True,
    "augment.policy": "randaugment",
    "mix.mixup": 0.2,
    "lr.peak": 2e-3,
    "lr.end": 2e-4,
    "lr.warmup": "16 epochs",
    "optim.clip_norm": 10.0,
    "ema.decay": 0.9995,
}
VECTORS = ("/(scale|bias)$",)
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
        "ResNet18 ResNet34 VGG* SqueezeNet* GoogLeNet Xception* InceptionV[34] MobileNetV2* "
        "MobileNetV3* ShuffleNet* ResNet*_v[cd]* Fix_ResNet50* SE_ResNe* SENet* Res2Net* "
        "ResNeXt*_vd_* DPN* DarkNet53 ResNeSt* PeleeNet",
        {"lr.schedule": "cosine"},
    ),
    (
        "ResNet*_v[cd]* Fix_ResNet50* SE_ResNe* SENet* Res2Net* ResNeXt*_vd_* DPN* ResNeSt*",
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
    (
        "ResNeSt*",
        {
            "duration": "300 epochs",
            "optim.no_decay": ("/bn/(scale|bias)$",),
            "augment.policy": "autoaugment",
        },
    ),
    ("ResNeSt50*", {"optim.l2": 7e-5}),
    ("ResNeSt200", {"image.eval_resize": 320}),
    ("ResNeSt269", {"image.eval_resize": 416}),
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
        "Xception* InceptionV[34]",
        {"lr.peak": 0.045, "loss.label_smoothing": 0.1, "image.eval_resize": 320},
    ),
    ("Xception65 Xception71 InceptionV[34]", {"duration": "200 epochs", "mix.mixup": 0.2}),
    ("Xception71", {"lr.peak": 0.0225, "batch_size": 128}),
    (
        "PPHGNet*",
        {
            "duration": "600 epochs",
            "batch_size": 512,
            "lr.peak": 0.5,
            "lr.schedule": "cosine",
            "lr.warmup": "5 epochs",
            "loss.label_smoothing": 0.1,
            "optim.l2": 4e-5,
            "optim.no_decay": ("/bn/(scale|bias)$",),
            "augment.policy": "rand-m7-mstd0.5-inc1",
            "erase.name": "random_erasing",
            "erase.prob": 0.25,
            "erase.fill": "pixel",
            "erase.area": (0.02, 1 / 3),
            "mix.mixup": 0.2,
            "mix.cutmix": 1.0,
            "image.interpolation": "bicubic",
            "image.eval_resize": 236,
        },
    ),
    ("PPHGNet_tiny* PPHGNetV2*", {"image.eval_resize": 232}),
    (
        "PPHGNet_base*",
        # published as m15-mstd0.5, of which timm makes 10, the largest there is
        {"augment.policy": "rand-m10-inc1", "erase.prob": 0.4, "mix.mixup": 0.4},
    ),
    (
        "PPHGNetV2*",
        {"duration": "200 epochs", "optim.l2": 2e-5, "mix.mixup": 0.0, "mix.cutmix": 0.0},
    ),
    ("PPHGNetV2_B[0-3]", {"optim.lr_mults": (("/affine/", 0.01),)}),
    # What vision transformers taught convolutional networks, and hybrids
    ("ConvNeXt* VAN* DSNet* NextViT* UniFormer*", TRANSFORMER),
    ("VAN* DSNet* UniFormer*", {"image.eval_resize": 248, "lr.warmup": "5 epochs"}),
    ("DSNet* UniFormer*", {"optim.no_decay": ("/(bias|scale|value)$", "/pos_embed/")}),
    ("ConvNeXt*_384 NextViT*_384*", {"image.size": 384, "image.eval_resize": 384}),
    ("NextViT*", {"optim.weight_decay": 0.1}),
    (
        "ConvNeXt*",
        {
            "batch_size": 4096,
            "lr.peak": 4e-3,
            "lr.warmup_start": 0.0,
            "lr.end": 1e-6,
            "ema.decay": 0.9999,
        },
    ),
    (
        "VAN*",  # a factor for each channel decays
        {
            "optim.no_decay": ("/(bias|scale)$",),
            "lr.end": 1e-6,
            "image.interpolation": "random",
            "image.mean": (0.5,) * 3,
            "image.std": (0.5,) * 3,
        },
    ),
    # Small networks
    ("PeleeNet", {"batch_size": 512, "lr.peak": 0.18}),
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
        "EfficientNetB*",
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
    ("EfficientNetB* MobileNetV3_large_x1_0", {"augment.policy": "autoaugment"}),
    (
        "TinyNet*",
        {
            "duration": "450 epochs",
            "batch_size": 512,
            "optim.name": "rmsprop",
            "optim.l2": 1e-5,
            "optim.no_decay": VECTORS,
            "lr.peak": 0.048,
            "lr.warmup": "3 epochs",
            "lr.warmup_start": 1e-6,
            "lr.schedule": "exponential",
            "lr.milestones": (),
            "lr.gamma": 0.97,
            "loss.label_smoothing": 0.1,
            "ema.decay": 0.9999,
            "crop.log_ratio": True,
            "augment.color_jitter": (0.4, 0.4, 0.4, 0.0),
            "image.interpolation": "bicubic",
            "model.bn_epsilon": 1e-5,
            "model.bn_momentum": 0.9,
            "model.options": (("round_depth", True), ("drop_path", 0.0)),
        },
    ),
    ("TinyNet_[AB]", {"model.options": (("round_depth", True), ("drop_path", 0.1))}),
    (
        "EfficientNetV2*",
        {
            "duration": "350 epochs",
            "batch_size": 1024,
            "optim.l2": 1e-5,
            "lr.peak": 0.65,
            "lr.warmup": "5 epochs",
            "lr.schedule": "cosine",
            "loss.label_smoothing": 0.1,
            "ema.decay": 0.9999,
            "crop.scale": (0.05, 1.0),
            "augment.policy": "randaugment",
            "augment.magnitude": 10.0,
            "image.size": 300,
            "image.eval_size": 384,
            "image.eval_resize": 416,
            "image.mean": (128 / 255,) * 3,
            "image.std": (128 / 255,) * 3,
        },
    ),
    (
        "PPLCNet* ESNet* GhostNet*",
        {
            "duration": "360 epochs",
            "batch_size": 2048,
            "lr.peak": 0.8,
            "lr.warmup": "5 epochs",
            "lr.schedule": "cosine",
            "loss.label_smoothing": 0.1,
            "optim.l2": 3e-5,
            "optim.no_decay": ("/bn/(scale|bias)$",),
        },
    ),
    ("PPLCNet_x1_5 PPLCNet_x2* PPLCNetV2* GhostNet*", {"optim.l2": 4e-5}),
    ("PPLCNet_x2_5*", {"augment.policy": "autoaugment"}),
    ("PPLCNetV2*", {"duration": "480 epochs", "batch_size": 2000}),
    ("PPLCNetV2_small", {"optim.l2": 2e-5}),
    ("PPLCNetV2_large", {"batch_size": 1000, "lr.peak": 0.4}),
    (
        "MobileNeXt*",
        {
            "duration": "200 epochs",
            "batch_size": 512,
            "optim.nesterov": True,
            "optim.no_decay": VECTORS,
            "lr.schedule": "cosine",
            "lr.warmup": "3 epochs",
            "lr.warmup_start": 1e-4,
            "lr.end": 1e-5,
            "loss.label_smoothing": 0.1,
            "augment.color_jitter": (0.4, 0.4, 0.4, 0.0),
            "image.interpolation": "bicubic",
        },
    ),
    (
        "MicroNet*",
        {
            "duration": "600 epochs",
            "batch_size": 512,
            "lr.peak": 0.2,
            "lr.schedule": "cosine",
            "optim.l2": 3e-5,
        },
    ),
    ("MicroNet_M3", {"lr.warmup": "5 epochs", "optim.l2": 4e-5, "crop.log_ratio": True}),
    # RepVGG, RegNet
    ("RepVGG*", {"lr.schedule": "cosine"}),
    (
        "RepVGG_B2* RepVGG_B3* RepVGG_D2se",
        {
            "duration": "200 epochs",
            "lr.warmup": "5 epochs",
            "loss.label_smoothing": 0.1,
            "mix.mixup": 0.2,
            "augment.policy": "autoaugment",
        },
    ),
    ("RepVGG_B3* RepVGG_D2se", {"image.interpolation": "bicubic"}),
    ("RepVGG_D2se", {"image.eval_size": 320, "image.eval_resize": 320}),
    ("RegNetX_1600MF RegNetX_12GF", {"batch_size": 512}),
    # AdamW
    (
        "FasterNet* StarNet* MobileNetV4*",
        {
            "duration": "300 epochs",
            "optim.name": "adamw",
            "optim.l2": 0.0,
            "optim.no_decay": VECTORS,
            "lr.schedule": "cosine",
            "lr.warmup": "20 epochs",
            "lr.warmup_start": 1e-6,
            "lr.end": 1e-5,
            "loss.label_smoothing": 0.1,
            "mix.cutmix": 1.0,
            "image.interpolation": "bicubic",
        },
    ),
    ("FasterNet*", {"batch_size": 4096, "lr.peak": 4e-3, "image.eval_resize": 248}),
    ("FasterNet_[ML]", {"batch_size": 2048, "lr.peak": 2e-3}),
    ("FasterNet_T0", {"optim.weight_decay": 0.005, "mix.mixup": 0.05}),
    (
        "FasterNet_T1",
        {
            "optim.weight_decay": 0.01,
            "mix.mixup": 0.05,
            "augment.policy": "rand-m3-mstd0.5-inc1",
        },
    ),
    (
        "FasterNet_T2",
        {
            "optim.weight_decay": 0.02,
            "mix.mixup": 0.1,
            "augment.policy": "rand-m5-mstd0.5-inc1",
        },
    ),
    (
        "FasterNet_[SML]",
        {"mix.mixup": 0.3, "optim.weight_decay": 0.03, "augment.policy": "rand-m7-mstd0.5-inc1"},
    ),
    ("FasterNet_M", {"mix.mixup": 0.5, "optim.weight_decay": 0.05, "optim.clip_norm": 1.0}),
    ("FasterNet_L", {"mix.mixup": 0.7, "optim.weight_decay": 0.05, "optim.clip_norm": 0.01}),
    ("StarNet* MobileNetV4*", {"erase.name": "random_erasing", "erase.prob": 0.25}),
    ("StarNet* MobileNetV4*", {"erase.fill": "pixel", "erase.area": (0.02, 1 / 3)}),
    (
        "StarNet*",
        {
            "batch_size": 2048,
            "optim.weight_decay": 0.05,
            "lr.peak": 3e-3,
            "lr.warmup": "5 epochs",
            "mix.mixup": 0.8,
            "mix.cutmix": 0.2,
            "augment.policy": "rand-m1-mstd0.5-inc1",
        },
    ),
    ("StarNet_S[23]", {"model.options": (("drop_path", 0.01),)}),
    ("StarNet_S4", {"model.options": (("drop_path", 0.02),)}),
    (
        "MobileNetV4*",
        {
            "optim.clip_norm": 5.0,
            "lr.peak": 2e-3,
            "lr.warmup_start": 0.0,
            "lr.end": 0.0,
            "ema.decay": 0.9998,
            "mix.mixup": 0.8,
            "augment.policy": "rand-m8-inc1-mstd1.0",
        },
    ),
    (
        "MobileNetV4_conv_small",
        {
            "duration": "2400 epochs",
            "batch_size": 4096,
            "lr.warmup": "5 epochs",
            "optim.weight_decay": 0.06,
            "model.options": (("dropout", 0.25), ("drop_path", 0.03)),
            "image.size": 224,
            "image.eval_size": 256,
            "image.eval_resize": 256,
        },
    ),
    (
        "MobileNetV4_conv_medium",
        {
            "duration": "500 epochs",
            "batch_size": 2048,
            "optim.weight_decay": 0.1,
            "model.options": (("dropout", 0.2), ("drop_path", 0.1)),
            "image.size": 256,
            "image.eval_size": 320,
            "image.eval_resize": 320,
        },
    ),
    (
        "MobileNetV4_conv_large",
        {
            "duration": "600 epochs",
            "batch_size": 1024,
            "lr.end": 1e-6,
            "optim.weight_decay": 0.2,
            "model.options": (("dropout", 0.2), ("drop_path", 0.35)),
            "image.size": 384,
            "image.eval_size": 448,
            "image.eval_resize": 448,
        },
    ),
    (
        "MobileNetV4_hybrid*",
        {
            "batch_size": 256,
            "lr.peak": 1e-3,
            "optim.weight_decay": 0.1,
            "augment.policy": "rand-m9-inc1-mstd1.0",
            "model.options": (("dropout", 0.2), ("drop_path", 0.1)),
        },
    ),
    (
        "MobileNetV4_hybrid_medium",
        {
            "duration": "500 epochs",
            "image.size": 224,
            "image.eval_size": 256,
            "image.eval_resize": 256,
        },
    ),
    (
        "MobileNetV4_hybrid_large",
        {
            "duration": "600 epochs",
            "lr.end": 1e-6,
            "image.size": 384,
            "image.eval_size": 448,
            "image.eval_resize": 448,
        },
    ),
    # Vision transformers
    ("ViT_* TNT_*", {"image.mean": (0.5,) * 3, "image.std": (0.5,) * 3}),
    ("TNT_*", {"image.eval_resize": 248, "image.interpolation": "bicubic"}),
    ("ViT_*_384", {"image.size": 384, "image.eval_resize": 384}),
    ("DeiT_* Swin* CSWin* CvT_* PVT_* pcpvt_* alt_gvt_* CLIP_* *_vit_*", TRANSFORMER),
    (
        "DeiT_*",
        {
            "batch_size": 2048,
            "lr.peak": 2e-3,
            "lr.end": 2e-5,
            "lr.warmup": "5 epochs",
            "lr.warmup_start": 2e-6,
            "model.options": (("drop_path", 0.1),),
        },
    ),
    ("DeiT_*_384 SwinTransformer_*_384*", {"image.size": 384, "image.eval_resize": 438}),
    ("SwinTransformer_*", {"lr.end": 2e-5, "lr.warmup_start": 2e-6}),
    (
        "pcpvt_* alt_gvt_*",
        {
            "lr.end": 2e-5,
            "lr.warmup": "5 epochs",
            "lr.warmup_start": 2e-6,
            "optim.no_decay": ("/(bias|scale|value)$", "/peg/"),
            "model.options": (("drop_path", 0.2),),
        },
    ),
    ("pcpvt_base alt_gvt_base", {"model.options": (("drop_path", 0.3),)}),
    ("pcpvt_large alt_gvt_large", {"model.options": (("drop_path", 0.5),)}),
    ("PVT_*", {"model.options": (("drop_path", 0.1),)}),
    ("PVT_V2_B[345]", {"model.options": (("drop_path", 0.3),), "optim.clip_norm": 1.0}),
    ("CSWin*_224", {"image.eval_resize": 248}),
    ("CSWin*_384 CvT_*_384", {"image.size": 384, "image.eval_resize": 384}),
    (
        "CSWin*_small_224",
        {"batch_size": 512, "lr.peak": 5e-4, "lr.end": 5e-6, "lr.warmup_start": 5e-7},
    ),
    (
        "CSWin*_base_224 CSWin*_large_224",
        {"batch_size": 256, "lr.peak": 2.5e-4, "lr.end": 2.5e-6, "lr.warmup_start": 2.5e-7},
    ),
    (
        "CSWin*_base_384",
        {"batch_size": 128, "lr.peak": 1.25e-4, "lr.end": 1.25e-6, "lr.warmup_start": 1.25e-7},
    ),
    (
        "CSWin*_large_384",
        {"batch_size": 64, "lr.peak": 6.25e-5, "lr.end": 6.25e-7, "lr.warmup_start": 6.25e-8},
    ),
    (
        "CvT_*",
        {"lr.warmup": "5 epochs", "optim.weight_decay": 0.1},
    ),
    (
        "CvT_13_*",
        {"batch_size": 2048, "lr.peak": 2e-3, "optim.weight_decay": 0.05},
    ),
    (
        "CvT_21_224",
        {"augment.policy": "", **UNERASED, "mix.mixup": 0.0, "mix.cutmix": 0.0},
    ),
    (
        "*_vit_*",
        {
            "duration": "100 epochs",
            "lr.peak": 2e-3,
            "lr.end": 1e-6,
            "lr.warmup": "5 epochs",
            "lr.warmup_start": 0.0,
            "optim.layer_decay": 0.65,
            "model.options": (("drop_path", 0.1),),
        },
    ),
    (
        "CLIP_*",
        {
            "image.mean": (0.48145466, 0.4578275, 0.40821073),
            "image.std": (0.26862954, 0.26130258, 0.27577711),
        },
    ),
    ("CLIP_*_336", {"image.size": 336, "image.eval_resize": 336}),
    ("SwinTransformerV2_*", {"image.size": 256, "image.eval_resize": 292}),
    ("SwinTransformerV2_*_384*", {"image.size": 384, "image.eval_resize": 384}),
    ("MobileViT*", TRANSFORMER | MOBILE),
    (
        "MobileViT_* MobileViTV3_*S MobileViTV3_*_L2",
        {
            "image.interpolation": "bilinear",
            "augment.policy": "",
            **UNERASED,
            "mix.mixup": 0.0,
            "mix.cutmix": 0.0,
            "optim.weight_decay": 0.01,
            "optim.clip_norm": 0.0,
            "lr.warmup": "5 epochs",
            "lr.warmup_start": 2e-4,
        },
    ),
    ("MobileViT_*", {"crop.log_ratio": False, "ema.decay": 0.0, "image.eval_resize": 292}),
    ("MobileViTV3_*S MobileViTV3_*_L2", {"batch_size": 384, "lr.warmup": "1 epochs"}),
    ("MobileViTV2_x0_5", {"lr.peak": 9e-3, "lr.end": 9e-4, "optim.weight_decay": 0.004}),
    (
        "MobileViTV2_x0_75 MobileViTV2_x1_0",
        {"lr.peak": 7.5e-3, "lr.end": 7.5e-4, "optim.weight_decay": 0.013},
    ),
    (
        "MobileViTV2_x1_25 MobileViTV2_x1_5",
        {"lr.peak": 3.5e-3, "lr.end": 3.5e-4, "optim.weight_decay": 0.029},
    ),
)

# Pixels in training and evaluation, where they are not 224.
SIZES = {
    "DarkNet53": 256,
    "CSPDarkNet53": 256,
    "ResNeSt101": 256,
    "ResNeSt200": 320,
    "ResNeSt269": 416,
    "Fix_*": 320,
    "Xception*": 299,
    "InceptionV[34]": 299,
    "EfficientNetB1": 240,
    "EfficientNetB2": 260,
    "EfficientNetB3": 300,
    "EfficientNetB4": 380,
    "EfficientNetB5": 456,
    "EfficientNetB6": 528,
    "EfficientNetB7": 600,
    "TinyNet_A": 192,
    "TinyNet_B": 188,
    "TinyNet_C": 184,
    "TinyNet_D": 152,
    "TinyNet_E": 106,
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
    if arg.startswith("TinyNet_"):
        c.image.eval_resize = int(c.image.size / 0.875)
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
