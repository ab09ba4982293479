"""Converted weights against timm's and torchvision's own networks in PyTorch.

`python tests/timm_parity.py [NAME ...]`, in an environment that also has PyTorch, timm and
torchvision (of which only the Python part is used), gives random weights and random BatchNorm
statistics to each network below, converts them and compares the logits of two images; it converts
them back, into the network that `convert.timm_model` names, and compares once more. Then it checks
that networks that compute something else are refused. With `--golden`, it also writes what it found
into `golden/torch.json`, from which `test_convert_torch.py` checks the same without PyTorch. What a
file given with `--kept` has from an earlier call is not computed again.

With `--step` it trains instead: of a small network of each family, loss and gradients of a batch in
training, and the loss after a step of gradient descent, in float64 and in float32. There ReLU's
kink makes of a rounding by 1e-6 a gradient that is 1e-3 apart: what has to agree is float64.
"""

import argparse
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import torch

try:
    import torchvision
except RuntimeError:  # its compiled part is for another PyTorch; the networks do not need it
    _operators = torch.library.Library("torchvision", "DEF")
    for _name in ("nms", "qnms"):
        _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision
import timm

from jaxcls import convert, models

GOLDEN = Path(__file__).parent / "golden" / "torch.json"
LIMIT = 1e-4  # of the signal

PAPER = {"paper": True, "downscale": False}
MOBILE = PAPER | {"padding": None, "bn_epsilon": 1e-5}
MOBILE_TF = PAPER | {"padding": "SAME", "bn_epsilon": 1e-3}
MOBILE_TV = PAPER | {"padding": None, "bn_epsilon": 1e-3}
SMALL = {"last": 1024}
SAME = {"padding": "SAME"}
SYMMETRIC = {"padding": None, "bn_epsilon": 1e-5}
DPN = {"bn_epsilon": 1e-3}
VGG = {"bias": True, "downscale": False}
SQUEEZE = {"ceil_mode": True, "downscale": False}
XCEPTION = {"dilation": 1, "downscale": False}
FIRST = {"project_first": False}
ORIGINAL = {"original": True}
RESNEST_FAST = {"block_args": {"radix": 1, "avd": True, "avd_first": True}}
ZEROS = {"zeros": True}
TV3 = {"aux_logits": False, "init_weights": False}
INCEPTION = {"downscale": False, "bn_epsilon": 1e-3}
NO_FIRST = {"expand_first": False}
SHORT = {"depths": (2, 1, 1, 1)}
WHOLE = {"shift_whole": False}
TWO = {"distilled": True}
CLIP = {"embedding": None, "token": 0}
SMOOTH = {"nearest": False}
LCNET = {"bias": True, "downscale": False}
TINY = {"round_depth": True, "bn_epsilon": 1e-5}
SAME_TF = {"padding": "SAME", "bn_epsilon": 1e-3}
SYMMETRIC_TF = {"padding": None, "bn_epsilon": 1e-3}
PAPER_ONLY = {"paper": True}
BY_HEAD = {"by_head": True}
D = {"stem_width": 32, "stem_type": "deep", "avg_down": True}  # timm's arguments for resnet*d
X32, X64 = ({"cardinality": groups, "base_width": 4} for groups in (32, 64))
# Ours, theirs, our arguments, image size, their arguments. Odd sizes tell apart how pools end, and
# even ones the two paddings of convolutions.
ROWS = (
    ("ResNet18", "timm.resnet18", FIRST, 97, {}),
    ("ResNet34", "torchvision.resnet34", FIRST, 96, {}),
    ("ResNet50", "timm.resnet50", {}, 97, {}),
    ("ResNet50", "torchvision.resnet50", {}, 96, {}),
    ("ResNet101", "timm.resnet101", {}, 64, {}),
    ("ResNet152", "timm.resnet152", {}, 64, {}),
    ("ResNet50_vc", "timm.resnet50c", {}, 96, {}),
    ("ResNet18_vd", "timm.resnet18d", FIRST, 97, {}),
    ("ResNet34_vd", "timm.resnet34d", FIRST, 96, {}),
    ("ResNet50_vd", "timm.resnet50d", {}, 97, {}),
    ("ResNet101_vd", "timm.resnet101d", {}, 64, {}),
    ("ResNet152_vd", "timm.resnet152d", {}, 64, {}),
    ("ResNet200_vd", "timm.resnet50", {}, 64, D | {"layers": (3, 12, 48, 3)}),
    ("ResNeXt50_32x4d", "timm.resnext50_32x4d", {}, 96, {}),
    ("ResNeXt101_32x4d", "timm.resnext101_32x4d", {}, 64, {}),
    ("ResNeXt101_64x4d", "torchvision.resnext101_64x4d", {}, 64, {}),
    ("ResNeXt50_64x4d", "timm.resnet50", {}, 64, X64),
    ("ResNeXt152_32x4d", "timm.resnet152", {}, 64, X32),
    ("ResNeXt152_64x4d", "timm.resnet152", {}, 64, X64),
    ("ResNeXt50_vd_32x4d", "timm.resnext50d_32x4d", {}, 96, {}),
    ("ResNeXt50_vd_64x4d", "timm.resnet50", {}, 64, D | X64),
    ("ResNeXt101_vd_32x4d", "timm.resnet101", {}, 64, D | X32),
    ("ResNeXt101_vd_64x4d", "timm.resnet101", {}, 64, D | X64),
    ("ResNeXt152_vd_32x4d", "timm.resnet152", {}, 64, D | X32),
    ("ResNeXt152_vd_64x4d", "timm.resnet152", {}, 64, D | X64),
    ("ResNeXt101_32x8d_wsl", "timm.resnext101_32x8d", {}, 64, {}),
    ("ResNeXt101_32x16d_wsl", "timm.resnext101_32x16d", {}, 64, {}),
    ("SE_ResNeXt50_32x4d", "timm.seresnext50_32x4d", {}, 96, {}),
    ("SE_ResNeXt101_32x4d", "timm.seresnext101_32x4d", {}, 64, {}),
    ("SE_ResNet50_vd", "timm.seresnet50", {}, 96, D),
    ("SE_ResNeXt50_vd_32x4d", "timm.seresnext50_32x4d", {}, 64, D | {"stem_width": 64}),
    ("SENet154_vd", "timm.seresnet152", {}, 64, D | X64 | {"stem_width": 64}),
    ("ResNeSt50", "timm.resnest50d", ORIGINAL, 97, {}),
    ("ResNeSt50_fast_1s1x64d", "timm.resnest50d", ORIGINAL, 64, RESNEST_FAST),
    ("ResNeSt101", "timm.resnest101e", ORIGINAL, 64, {}),
    ("ResNeSt200", "timm.resnest200e", ORIGINAL, 64, {}),
    ("ResNeSt269", "timm.resnest269e", ORIGINAL, 64, {}),
    ("DLA34", "timm.dla34", {}, 96, {}),
    ("DLA46_c", "timm.dla46_c", {}, 96, {}),
    ("DLA46x_c", "timm.dla46x_c", {}, 96, {}),
    ("DLA60", "timm.dla60", {}, 64, {}),
    ("DLA60x", "timm.dla60x", {}, 64, {}),
    ("DLA60x_c", "timm.dla60x_c", {}, 96, {}),
    ("DLA102", "timm.dla102", {}, 64, {}),
    ("DLA102x", "timm.dla102x", {}, 64, {}),
    ("DLA102x2", "timm.dla102x2", {}, 64, {}),
    ("DLA169", "timm.dla169", {}, 64, {}),
    ("Res2Net50_26w_4s", "timm.res2net50_26w_4s", ORIGINAL, 97, {}),
    ("Res2Net50_14w_8s", "timm.res2net50_14w_8s", ORIGINAL, 96, {}),
    ("Res2Net50_14w_8s", "timm.res2net50_14w_8s", ORIGINAL | SHORT, 97, {"layers": (2, 1, 1, 1)}),
    ("Res2Net50_vd_26w_4s", "timm.res2net50d", ORIGINAL, 97, {}),
    ("Res2Net101_vd_26w_4s", "timm.res2net101d", ORIGINAL, 64, {}),
    ("MobileNetV2", "timm.mobilenetv2_100", NO_FIRST, 97, {}),
    ("MobileNetV2", "torchvision.mobilenet_v2", NO_FIRST, 96, {}),
    ("MobileNetV2_x2_0", "torchvision.mobilenet_v2", NO_FIRST, 96, {"width_mult": 2.0}),
    ("MobileNetV3_large_x1_0", "timm.mobilenetv3_large_100", MOBILE, 96, {}),
    ("MobileNetV3_small_x1_0", "timm.mobilenetv3_small_100", MOBILE | SMALL, 96, {}),
    ("MobileNetV3_large_x1_0", "timm.tf_mobilenetv3_large_100", MOBILE_TF, 96, {}),
    ("MobileNetV3_small_x1_0", "timm.tf_mobilenetv3_small_100", MOBILE_TF | SMALL, 96, {}),
    ("MobileNetV3_large_x1_0", "torchvision.mobilenet_v3_large", MOBILE_TV, 96, {}),
    ("MobileNetV3_small_x1_0", "torchvision.mobilenet_v3_small", MOBILE_TV | SMALL, 96, {}),
    ("ShuffleNetV2_x0_5", "torchvision.shufflenet_v2_x0_5", {}, 97, {}),
    ("ShuffleNetV2", "torchvision.shufflenet_v2_x1_0", {}, 96, {}),
    ("ShuffleNetV2_x1_5", "torchvision.shufflenet_v2_x1_5", {}, 64, {}),
    ("ShuffleNetV2_x2_0", "torchvision.shufflenet_v2_x2_0", {}, 96, {}),
    ("EfficientNetB0", "timm.tf_efficientnet_b0", SAME, 96, {}),
    ("EfficientNetB0", "timm.efficientnet_b0", SYMMETRIC, 96, {}),
    ("EfficientNetB0", "torchvision.efficientnet_b0", SYMMETRIC, 96, {}),
    ("EfficientNetB1", "timm.tf_efficientnet_b1", SAME, 64, {}),
    ("EfficientNetB2", "timm.efficientnet_b2", SYMMETRIC, 64, {}),
    ("EfficientNetB3", "timm.tf_efficientnet_b3", SAME, 96, {}),
    ("EfficientNetB4", "timm.efficientnet_b4", SYMMETRIC, 64, {}),
    ("EfficientNetB5", "torchvision.efficientnet_b5", {"padding": None}, 64, {}),
    ("EfficientNetB6", "timm.tf_efficientnet_b6", SAME, 64, {}),
    ("EfficientNetB7", "timm.tf_efficientnet_b7", SAME, 64, {}),
    ("DenseNet121", "timm.densenet121", {}, 97, {}),
    ("DenseNet161", "torchvision.densenet161", {}, 64, {}),
    ("DenseNet169", "timm.densenet169", {}, 64, {}),
    ("DenseNet201", "timm.densenet201", {}, 64, {}),
    ("VGG11", "timm.vgg11", VGG, 64, {}),
    ("VGG13", "torchvision.vgg13", VGG, 64, {}),
    ("VGG16", "timm.vgg16", VGG, 224, {}),
    ("VGG19", "torchvision.vgg19", VGG, 96, {}),
    ("AlexNet", "torchvision.alexnet", {"downscale": False}, 97, {}),
    ("SqueezeNet1_0", "torchvision.squeezenet1_0", SQUEEZE | {"stem": (96, 7, 0)}, 224, {}),
    ("SqueezeNet1_1", "torchvision.squeezenet1_1", SQUEEZE | {"stem": (64, 3, 0)}, 97, {}),
    ("Xception41_deeplab", "timm.xception41", XCEPTION, 128, {}),
    ("Xception65_deeplab", "timm.xception65", XCEPTION, 97, {}),
    ("HRNet_W18_C", "timm.hrnet_w18", {}, 64, {}),
    ("HRNet_W18_C", "timm.hrnet_w18_ssld", {}, 96, {}),
    *((f"HRNet_W{width}_C", f"timm.hrnet_w{width}", {}, 64, {}) for width in (30, 32, 40, 44)),
    ("HRNet_W48_C", "timm.hrnet_w48", {}, 64, {}),
    ("HRNet_W64_C", "timm.hrnet_w64", {}, 64, {}),
    ("DPN68", "timm.dpn68", DPN, 97, {}),
    ("DPN68", "timm.dpn68", DPN | SHORT, 97, {"k_sec": (2, 1, 1, 1)}),
    ("DPN92", "timm.dpn92", DPN, 64, {}),
    ("DPN98", "timm.dpn98", DPN, 64, {}),
    ("DPN107", "timm.dpn107", DPN, 64, {}),
    ("DPN131", "timm.dpn131", DPN, 64, {}),
    ("DarkNet53", "timm.darknet53", {"slope": 0.01}, 96, {}),
    ("CSPDarkNet53", "timm.cspdarknet53", {}, 96, {}),
    ("ConvNeXt_tiny", "timm.convnext_tiny", {}, 96, {}),
    ("ConvNeXt_tiny", "torchvision.convnext_tiny", {}, 96, {}),
    ("ConvNeXt_small", "timm.convnext_small", {}, 64, {}),
    ("ConvNeXt_base_224", "timm.convnext_base", {}, 64, {}),
    ("ConvNeXt_large_224", "timm.convnext_large", {}, 64, {}),
    ("ConvNeXt_base_384", "torchvision.convnext_base", {}, 64, {}),
    ("ConvNeXt_large_384", "timm.convnext_large.fb_in22k_ft_in1k_384", {}, 64, {}),
    ("NextViT_small_224", "timm.nextvit_small", {}, 96, {}),
    ("NextViT_base_224", "timm.nextvit_base", {}, 64, {}),
    ("NextViT_large_224", "timm.nextvit_large.bd_in1k", {}, 64, {}),
    ("NextViT_small_384", "timm.nextvit_small.bd_in1k_384", {}, 64, {}),
    ("NextViT_base_384", "timm.nextvit_base.bd_in1k_384", {}, 64, {}),
    ("NextViT_large_384", "timm.nextvit_large", {}, 64, {}),
    ("PPHGNet_tiny", "timm.hgnet_tiny", {}, 96, {}),
    ("PPHGNet_small", "timm.hgnet_small", {}, 64, {}),
    ("PPHGNet_base", "timm.hgnet_base", {"downscale": False}, 64, {}),
    ("PPHGNetV2_B0", "timm.hgnetv2_b0", ZEROS, 97, {}),
    ("PPHGNetV2_B1", "timm.hgnetv2_b1", ZEROS, 96, {}),
    ("PPHGNetV2_B2", "timm.hgnetv2_b2", ZEROS, 64, {}),
    ("PPHGNetV2_B3", "timm.hgnetv2_b3", ZEROS, 64, {}),
    ("PPHGNetV2_B4", "timm.hgnetv2_b4", {}, 96, {}),
    ("PPHGNetV2_B5", "timm.hgnetv2_b5", {}, 64, {}),
    ("PPHGNetV2_B6", "timm.hgnetv2_b6", {}, 64, {}),
    ("InceptionV3", "timm.inception_v3", INCEPTION, 128, {}),
    ("InceptionV3", "torchvision.inception_v3", INCEPTION, 96, TV3),
    ("DeiT_tiny_patch16_224", "timm.deit_tiny_patch16_224", {}, 224, {}),
    ("DeiT_tiny_distilled_patch16_224", "timm.deit_tiny_distilled_patch16_224", {}, 224, {}),
    ("ViT_base_patch16_224", "timm.vit_base_patch16_224", {}, 224, {}),
    ("ViT_large_patch16_224", "timm.vit_large_patch16_224", {}, 224, {}),
    ("ViT_base_patch16_384", "timm.vit_base_patch16_384", {}, 384, {}),
    ("ViT_base_patch32_384", "timm.vit_base_patch32_384", {}, 384, {}),
    ("ViT_large_patch16_384", "timm.vit_large_patch16_384", {}, 384, {}),
    ("ViT_large_patch32_384", "timm.vit_large_patch32_384", {}, 384, {}),
    ("DeiT_small_patch16_224", "timm.deit_small_patch16_224", {}, 224, {}),
    ("DeiT_small_distilled_patch16_224", "timm.deit_small_distilled_patch16_224", {}, 224, {}),
    ("DeiT_base_patch16_224", "timm.deit_base_patch16_224", {}, 224, {}),
    ("DeiT_base_distilled_patch16_224", "timm.deit_base_distilled_patch16_224", {}, 224, {}),
    ("DeiT_base_patch16_384", "timm.deit_base_patch16_384", {}, 384, {}),
    ("DeiT_base_distilled_patch16_384", "timm.deit_base_distilled_patch16_384", {}, 384, {}),
    *(
        (f"SwinTransformer_{name}", f"timm.swin_{name}", WHOLE, int(name[-3:]), {})
        for name in (
            *(f"{size}_patch4_window7_224" for size in ("tiny", "small", "base", "large")),
            *(f"{size}_patch4_window12_384" for size in ("base", "large")),
        )
    ),
    *(
        (f"SwinTransformerV2_{ours}", f"timm.swinv2_{theirs}", {}, int(ours[-3:]), {})
        for ours, theirs in {
            "tiny_patch4_window8_256": "tiny_window8_256",
            "tiny_patch4_window16_256": "tiny_window16_256",
            "small_patch4_window8_256": "small_window8_256",
            "small_patch4_window16_256": "small_window16_256",
            "base_patch4_window8_256": "base_window8_256",
            "base_patch4_window16_256": "base_window16_256",
            "base_patch4_window24_384": "base_window12to24_192to384",
            "large_patch4_window16_256": "large_window12to16_192to256",
            "large_patch4_window24_384": "large_window12to24_192to384",
        }.items()
    ),
    ("pcpvt_small", "timm.twins_pcpvt_small", {}, 224, {}),
    ("pcpvt_base", "timm.twins_pcpvt_base", {}, 224, {}),
    ("pcpvt_large", "timm.twins_pcpvt_large", {}, 224, {}),
    ("alt_gvt_small", "timm.twins_svt_small", {}, 224, {}),
    ("alt_gvt_base", "timm.twins_svt_base", {}, 224, {}),
    ("alt_gvt_large", "timm.twins_svt_large", {}, 224, {}),
    ("TNT_small", "timm.tnt_s_patch16_224", {}, 224, {}),
    ("TNT_base", "timm.tnt_b_patch16_224", {}, 224, {}),
    ("LeViT_128S", "timm.levit_128s", TWO, 224, {}),
    ("LeViT_128", "timm.levit_128", TWO, 224, {}),
    ("LeViT_192", "timm.levit_192", TWO, 224, {}),
    ("LeViT_256", "timm.levit_256", TWO, 224, {}),
    ("LeViT_384", "timm.levit_384", TWO, 224, {}),
    ("PVT_V2_B0", "timm.pvt_v2_b0", {}, 64, {}),
    ("PVT_V2_B1", "timm.pvt_v2_b1", {}, 64, {}),
    ("PVT_V2_B2", "timm.pvt_v2_b2", {}, 64, {}),
    ("PVT_V2_B3", "timm.pvt_v2_b3", {}, 64, {}),
    ("PVT_V2_B4", "timm.pvt_v2_b4", {}, 64, {}),
    ("PVT_V2_B5", "timm.pvt_v2_b5", {}, 64, {}),
    ("PVT_V2_B2_Linear", "timm.pvt_v2_b2_li", {}, 96, {}),
    ("CLIP_vit_base_patch32_224", "timm.vit_base_patch32_clip_224", CLIP, 224, {}),
    ("CLIP_vit_base_patch16_224", "timm.vit_base_patch16_clip_224", CLIP, 224, {}),
    ("CLIP_vit_large_patch14_224", "timm.vit_large_patch14_clip_224", CLIP, 224, {}),
    ("CLIP_vit_large_patch14_336", "timm.vit_large_patch14_clip_336", CLIP, 336, {}),
    ("MobileViT_XXS", "timm.mobilevit_xxs", SMOOTH, 96, {}),
    ("MobileViT_XS", "timm.mobilevit_xs", SMOOTH, 96, {}),
    ("MobileViT_S", "timm.mobilevit_s", SMOOTH, 96, {}),
    ("MobileViTV2_x0_5", "timm.mobilevitv2_050", {}, 96, {}),
    ("MobileViTV2_x0_75", "timm.mobilevitv2_075", {}, 96, {}),
    ("MobileViTV2_x1_0", "timm.mobilevitv2_100", {}, 96, {}),
    ("MobileViTV2_x1_25", "timm.mobilevitv2_125", {}, 96, {}),
    ("MobileViTV2_x1_5", "timm.mobilevitv2_150", {}, 96, {}),
    ("MobileViTV2_x1_75", "timm.mobilevitv2_175", {}, 96, {}),
    ("MobileViTV2_x2_0", "timm.mobilevitv2_200", {}, 96, {}),
    ("RepVGG_A0", "timm.repvgg_a0", {}, 97, {}),
    ("RepVGG_A1", "timm.repvgg_a1", {}, 64, {}),
    ("RepVGG_A2", "timm.repvgg_a2", {}, 64, {}),
    ("RepVGG_B0", "timm.repvgg_b0", {}, 64, {}),
    ("RepVGG_B1", "timm.repvgg_b1", {}, 64, {}),
    ("RepVGG_B1g4", "timm.repvgg_b1g4", {}, 64, {}),
    ("RepVGG_B2", "timm.repvgg_b2", {}, 64, {}),
    ("RepVGG_B2g4", "timm.repvgg_b2g4", {}, 64, {}),
    ("RepVGG_B3", "timm.repvgg_b3", {}, 64, {}),
    ("RepVGG_B3g4", "timm.repvgg_b3g4", {}, 64, {}),
    ("RepVGG_D2se", "timm.repvgg_d2se", {}, 64, {}),
    ("PPLCNet_x0_35", "timm.lcnet_035", LCNET, 64, {}),
    ("PPLCNet_x0_5", "timm.lcnet_050", LCNET, 97, {}),
    ("PPLCNet_x0_75", "timm.lcnet_075", LCNET, 64, {}),
    ("PPLCNet_x1_0", "timm.lcnet_100", LCNET, 64, {}),
    ("PPLCNet_x1_5", "timm.lcnet_150", LCNET, 64, {}),
    ("GhostNet_x0_5", "timm.ghostnet_050", PAPER_ONLY, 96, {}),
    ("GhostNet_x1_0", "timm.ghostnet_100", PAPER_ONLY, 96, {}),
    ("GhostNet_x1_3", "timm.ghostnet_130", PAPER_ONLY, 96, {}),
    ("RegNetX_200MF", "timm.regnetx_002", {}, 97, {}),
    ("RegNetX_400MF", "timm.regnetx_004", {}, 64, {}),
    ("RegNetX_600MF", "timm.regnetx_006", {}, 64, {}),
    ("RegNetX_800MF", "timm.regnetx_008", {}, 64, {}),
    ("RegNetX_1600MF", "timm.regnetx_016", {}, 64, {}),
    ("RegNetX_3200MF", "timm.regnetx_032", {}, 64, {}),
    ("RegNetX_4GF", "timm.regnetx_040", {}, 64, {}),
    ("RegNetX_6400MF", "timm.regnetx_064", {}, 64, {}),
    ("RegNetX_8GF", "timm.regnetx_080", {}, 64, {}),
    ("RegNetX_12GF", "timm.regnetx_120", {}, 64, {}),
    ("RegNetX_16GF", "timm.regnetx_160", {}, 64, {}),
    ("RegNetX_32GF", "timm.regnetx_320", {}, 64, {}),
    ("RegNetX_800MF", "torchvision.regnet_x_800mf", {}, 64, {}),
    ("RegNetX_1600MF", "torchvision.regnet_x_1_6gf", {}, 64, {}),
    ("RegNetX_3200MF", "torchvision.regnet_x_3_2gf", {}, 64, {}),
    ("RegNetX_8GF", "torchvision.regnet_x_8gf", {}, 64, {}),
    ("RegNetX_16GF", "torchvision.regnet_x_16gf", {}, 64, {}),
    ("RegNetX_32GF", "torchvision.regnet_x_32gf", {}, 64, {}),
    ("TinyNet_A", "timm.tinynet_a", TINY, 64, {}),
    ("TinyNet_B", "timm.tinynet_b", TINY, 64, {}),
    ("TinyNet_C", "timm.tinynet_c", TINY, 64, {}),
    ("TinyNet_D", "timm.tinynet_d", TINY, 64, {}),
    ("TinyNet_E", "timm.tinynet_e", TINY, 97, {}),
    ("MixNet_S", "timm.mixnet_s", SYMMETRIC, 97, {}),
    ("MixNet_M", "timm.mixnet_m", SYMMETRIC, 64, {}),
    ("MixNet_L", "timm.mixnet_l", SYMMETRIC, 64, {}),
    ("MixNet_S", "timm.tf_mixnet_s", SAME_TF, 96, {}),
    ("MixNet_M", "timm.tf_mixnet_m", SAME_TF, 64, {}),
    ("MixNet_L", "timm.tf_mixnet_l", SAME_TF, 64, {}),
    ("ReXNet_1_0", "timm.rexnet_100", {}, 97, {}),
    ("ReXNet_1_3", "timm.rexnet_130", {}, 64, {}),
    ("ReXNet_1_5", "timm.rexnet_150", {}, 64, {}),
    ("ReXNet_2_0", "timm.rexnet_200", {}, 64, {}),
    ("ReXNet_3_0", "timm.rexnet_300", {}, 64, {}),
    ("EfficientNetV2_S", "timm.tf_efficientnetv2_s", SAME_TF, 96, {}),
    ("EfficientNetV2_M", "timm.tf_efficientnetv2_m", SAME_TF, 64, {}),
    ("EfficientNetV2_L", "timm.tf_efficientnetv2_l", SAME_TF, 64, {}),
    ("EfficientNetV2_XL", "timm.tf_efficientnetv2_xl", SAME_TF, 64, {}),
    ("EfficientNetV2_S", "torchvision.efficientnet_v2_s", SYMMETRIC_TF, 96, {}),
    ("EfficientNetV2_M", "torchvision.efficientnet_v2_m", SYMMETRIC_TF, 64, {}),
    ("EfficientNetV2_L", "torchvision.efficientnet_v2_l", SYMMETRIC_TF, 64, {}),
    ("FasterNet_T0", "timm.fasternet_t0", {}, 96, {}),
    ("FasterNet_T1", "timm.fasternet_t1", {}, 64, {}),
    ("FasterNet_T2", "timm.fasternet_t2", {}, 64, {}),
    ("FasterNet_S", "timm.fasternet_s", {}, 64, {}),
    ("FasterNet_M", "timm.fasternet_m", {}, 64, {}),
    ("FasterNet_L", "timm.fasternet_l", {}, 64, {}),
    ("StarNet_S1", "timm.starnet_s1", {}, 97, {}),
    ("StarNet_S2", "timm.starnet_s2", {}, 64, {}),
    ("StarNet_S3", "timm.starnet_s3", {}, 64, {}),
    ("StarNet_S4", "timm.starnet_s4", {}, 64, {}),
    ("MobileNetV4_conv_small", "timm.mobilenetv4_conv_small", {}, 96, {}),
    ("MobileNetV4_conv_medium", "timm.mobilenetv4_conv_medium", {}, 96, {}),
    ("MobileNetV4_conv_large", "timm.mobilenetv4_conv_large", {}, 64, {}),
    ("MobileNetV4_hybrid_medium", "timm.mobilenetv4_hybrid_medium", BY_HEAD, 96, {}),
    ("MobileNetV4_hybrid_large", "timm.mobilenetv4_hybrid_large", BY_HEAD, 64, {}),
)
REFUSED = (  # ours, theirs, our arguments, what the message says
    ("MobileNetV4_hybrid_medium", "timm.mobilenetv4_hybrid_medium", {}, "by_head=True"),
    ("ResNet18", "timm.resnet18", {}, "project_first=False"),
    ("ResNet50", "timm.resnet101", {}, "no place for it"),
    ("ResNet50_vd", "timm.resnet50", {}, "missing"),
    ("ResNet200_vd", "timm.resnet200d", {}, "no place for it"),
    ("SE_ResNeXt50_32x4d", "timm.legacy_seresnext50_32x4d", {}, "pool"),
    ("SENet154_vd", "timm.legacy_senet154", {}, "pool"),
    ("SENet154_vd", "timm.senet154", {}, "shape"),
    ("Res2Net50_26w_4s", "timm.res2net50_26w_4s", {}, "original=True"),
    ("MobileNetV1", "timm.mobilenetv1_100", {}, "ReLU6"),
    ("MobileNetV2", "timm.mobilenetv2_100", {}, "expand_first=False"),
    ("MobileNetV2_x0_5", "timm.mobilenetv2_050", NO_FIRST, "shape"),
    ("MobileNetV3_large_x1_0", "timm.mobilenetv3_large_100", {}, "paper=True"),
    ("MobileNetV3_small_x1_0", "timm.mobilenetv3_small_100", MOBILE, "last=1024"),
    ("MobileNetV3_large_x0_75", "timm.mobilenetv3_large_075", MOBILE, "shape"),
    ("ShuffleNetV2_swish", "torchvision.shufflenet_v2_x1_0", {}, "ReLU"),
    ("EfficientNetB0", "timm.tf_efficientnet_b0", {}, "padding='SAME'"),
    ("EfficientNetB0", "timm.efficientnet_b0", {"padding": None}, "bn_epsilon=1e-05"),
    ("EfficientNetB0_small", "timm.efficientnet_lite0", {}, "ReLU6"),
    ("VGG16", "timm.vgg16", {}, "bias=True"),
    ("VGG16", "timm.vgg16_bn", VGG, "missing"),
    ("AlexNet", "torchvision.alexnet", {}, "downscale=False"),
    ("SqueezeNet1_1", "torchvision.squeezenet1_1", SQUEEZE, r"stem=(64, 3, 0)"),
    ("GoogLeNet", "torchvision.googlenet", {}, "BatchNorm"),
    ("ResNeSt50", "timm.resnest50d", {}, "original=True"),
    ("PPHGNetV2_B0", "timm.hgnetv2_b0", {}, "zeros=True"),
    ("InceptionV3", "timm.inception_v3", {}, "bn_epsilon=0.001"),
    ("InceptionV4", "timm.inception_v4", {}, "other order"),
    ("Xception41", "timm.xception41", {}, "Xception41_deeplab"),
    ("Xception41_deeplab", "timm.xception41", {}, "dilation=1"),
    ("HRNet_W18_C", "timm.hrnet_w18_small", {}, "missing"),
    ("DPN68", "timm.dpn68", {}, "bn_epsilon=0.001"),
    ("DPN68", "timm.dpn68b", DPN, "missing"),
    ("DarkNet53", "timm.darknet53", {}, "slope=0.01"),
    ("DarkNet53", "timm.cspdarknet53", {"slope": 0.01}, "no place for it"),
    ("PPLCNet_x0_5", "timm.lcnet_050", {}, "bias=True"),
    ("GhostNet_x1_0", "timm.ghostnet_100", {}, "paper=True"),
    ("TinyNet_A", "timm.tinynet_a", {}, "round_depth=True"),
    ("MixNet_S", "timm.tf_mixnet_s", {}, "padding='SAME'"),
    ("EfficientNetV2_S", "timm.efficientnetv2_rw_s", {}, "shape"),
    ("RepVGG_A0", "timm.repvgg_a1", {}, "shape"),
    ("RegNetX_400MF", "torchvision.regnet_x_400mf", {}, "shape"),
)
STORED = {  # networks whose logits are in the golden file: small, and quick to compile
    "timm.resnet18",
    "timm.res2net50_14w_8s layers=(2, 1, 1, 1)",
    "timm.mobilenetv2_100",
    "torchvision.mobilenet_v3_small",
    "timm.tf_efficientnet_b0",
    "torchvision.squeezenet1_1",
    "torchvision.shufflenet_v2_x0_5",
    "timm.dpn68 k_sec=(2, 1, 1, 1)",
    "timm.darknet53",
    "timm.lcnet_050",
    "timm.ghostnet_050",
    "timm.regnetx_002",
    "timm.tinynet_e",
    "timm.rexnet_100",
    "timm.starnet_s1",
    "timm.mobilenetv4_conv_small",
}

STEPS = (  # a small network of each family
    *("ResNet18", "Res2Net50_14w_8s", "ResNeSt50", "DLA46_c", "HRNet_W18_C", "DarkNet53"),
    *("CSPDarkNet53", "PPHGNetV2_B0", "ConvNeXt_tiny", "NextViT_small_224", "MobileNetV2"),
    *("MobileNetV3_small_x1_0", "InceptionV3", "Xception41_deeplab", "DPN68", "DenseNet121"),
    *("EfficientNetB0", "EfficientNetV2_S", "MixNet_S", "ReXNet_1_0", "GhostNet_x0_5"),
    *("MobileNetV4_conv_small", "MobileNetV4_hybrid_medium", "PPLCNet_x0_35", "RepVGG_A0"),
    *("RegNetX_200MF", "FasterNet_T0", "StarNet_S1", "VGG11", "DeiT_tiny_patch16_224"),
    *("SwinTransformer_tiny_patch4_window7_224", "SwinTransformerV2_tiny_patch4_window8_256"),
    *("pcpvt_small", "alt_gvt_small", "TNT_small", "PVT_V2_B0", "MobileViT_XXS"),
    *("MobileViTV2_x0_5", "CLIP_vit_base_patch32_224"),
    *("AlexNet", "SqueezeNet1_1", "ShuffleNetV2_x0_5", "LeViT_128S"),
)
IMAGES, RATE, KINDS = 4, 0.01, ("float64", "float32")  # of a step


def create(theirs: str, arguments: dict) -> torch.nn.Module:
    """Returns a network of theirs, without its own initialisation, which takes longer than all."""
    package, _, name = theirs.partition(".")
    make = functools.partial(timm.create_model, name)
    make = make if package == "timm" else getattr(torchvision.models, name)
    if name.startswith("regnet_"):  # torchvision computes its widths with tensors
        return make(**arguments).eval()
    with torch.device("meta"):
        model = make(**arguments)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    if all(name.endswith(statistics) for name, _ in model.named_buffers()):
        return model.to_empty(device="cpu").eval()
    return make(**arguments).eval()  # what it computes of places needs no weights, but values


def randomize(model: torch.nn.Module, images: torch.Tensor) -> dict[str, tuple[float, float]]:
    """Sets every tensor to what `oracle` has for its name.

    Returns, for each BatchNorm, the mean and variance around which its statistics are drawn: those
    of what arrives at it, so that the signal survives a hundred layers.
    """
    statistics = {}

    def fill(name: str, tensor: torch.Tensor, kind: str = "other") -> None:
        values = oracle.tensor(name, tuple(tensor.shape), kind, statistics)
        tensor.copy_(torch.from_numpy(values))

    def measure(name: str):
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            (x,) = inputs
            axes = (0, *range(2, x.ndim))
            mean, var = x.mean(axes).mean(), x.var(axes, correction=0).mean()
            statistics[name] = (float(f"{mean:.6g}"), float(f"{var:.6g}"))
            fill(f"{name}._mean", module.running_mean)
            fill(f"{name}._variance", module.running_var)

        return hook

    hooks = []
    for name, module in model.named_modules():
        norm = isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        scaled = norm or isinstance(module, (torch.nn.LayerNorm, torch.nn.GroupNorm))
        for leaf, tensor in module.named_parameters(recurse=False):
            scale = leaf == "scale" or (scaled and leaf == "weight")
            fill(f"{name}.{leaf}", tensor, "scale" if scale else "other")
        if norm:
            hooks.append(module.register_forward_pre_hook(measure(name)))
    model(images)
    for hook in hooks:
        hook.remove()
    return statistics


def key_of(row: tuple) -> str:
    """Returns the key of a row of `ROWS` in the golden file."""
    _, theirs, _, _, arguments = row
    return " ".join((theirs, *(f"{name}={value}" for name, value in arguments.items())))


def back(
    ours: str, theirs: str, overrides: dict, arguments: dict, variables: dict
) -> torch.nn.Module:
    """Returns the network of theirs with our variables."""
    package, _, name = theirs.partition(".")
    if package == "timm" and not {"layers", "k_sec"} & {*arguments}:
        name, arguments = convert.timm_model(ours, **overrides)
    model = create(f"{package}.{name}", arguments)
    arrays = convert.to_torch(ours, variables, package=package, **overrides)
    model.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
    return model


def compiled(function: Callable, *args) -> Callable:
    """Returns a function compiled for arguments like these, in half of the usual time.

    But in float64, whose convolutions are loops: these have to be fast.
    """
    quickly = {} if jax.config.jax_enable_x64 else {"xla_backend_optimization_level": 0}
    return jax.jit(function).lower(*args).compile(compiler_options=quickly)


def compare(ours: str, theirs: str, overrides: dict, size: int, arguments: dict) -> dict:
    """Returns what the table and the golden file say about a row of `ROWS`."""
    images = oracle.images(size)
    with torch.no_grad():
        model = create(theirs, arguments)
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        statistics = randomize(model, batch)
        expected = model(batch).numpy()
    arrays = {key: value.numpy() for key, value in model.state_dict().items()}
    parameters = sum(p.numel() for p in model.parameters())
    variables = convert.from_torch(ours, arrays, **overrides)
    module = models.build(ours, **overrides)
    logits = np.asarray(compiled(module.apply, variables, images)(variables, images)["logits"])
    signal = float(np.abs(expected[0] - expected[1]).max())
    sources = convert.rules(ours).torch_sources(module)
    with torch.no_grad():
        again = back(ours, theirs, overrides, arguments, variables)(batch).numpy()
    source = next(s for s in sources if theirs.partition(".")[0] in s.names)
    arrays = {k: v for k, v in arrays.items() if not k.endswith("num_batches_tracked")}
    sizes = {name: array.size for name, array in source.prepare(arrays).items()}
    entry = {
        "ours": ours,
        "overrides": overrides,
        "tensors": oracle.digest(sizes),
        "shapes": oracle.digest({name: array.shape for name, array in arrays.items()}),
    }
    if key_of((ours, theirs, overrides, size, arguments)) in STORED:
        entry |= {
            "size": size,
            "signal": float(f"{signal:.6g}"),
            "logits": [[float(f"{v:.6g}") for v in row[: oracle.LOGITS]] for row in expected],
            "bn": [statistics[layer] for layer in sorted(statistics)],
        }
    return {
        "parameters": parameters,
        "error": float(np.abs(logits - expected).max()) / signal,
        "back": float(np.abs(again - expected).max()) / signal,
        "signal": signal,
        "entry": entry,
    }


def apart(gradients: dict, expected: dict) -> float:
    """Returns how far gradients are from those expected, of the norm of these."""
    square = lambda tree: sum(np.square(np.float64(x)).sum() for x in jax.tree.leaves(tree))
    difference = jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), gradients, expected)
    return float(np.sqrt(square(difference) / square(expected)))


def step(
    ours: str, theirs: str, overrides: dict, size: int, arguments: dict, *, kind: str
) -> tuple[dict[str, float], dict, dict]:
    """Returns how far losses (relatively) and gradients of a batch are apart, and gradients.

    Args:
      kind: one of `KINDS`.

    Returns:
      Distances, gradients of ours, and those of theirs in our places.
    """
    images = oracle.images(size, IMAGES)
    labels = np.arange(IMAGES) * 7
    with torch.no_grad():
        model = create(theirs, arguments)
        batch = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        randomize(model, batch)
    state = {key: value.numpy().copy() for key, value in model.state_dict().items()}
    variables = convert.from_torch(ours, state, **overrides)
    variables = jax.tree.map(lambda leaf: leaf.astype(kind), variables)
    model = model.to(getattr(torch, kind)).train()
    for part in model.modules():  # nothing is drawn
        if isinstance(part, torch.nn.Dropout):
            part.p = 0.0
        for rate in {"drop_rate", "drop_prob"} & vars(part).keys():
            setattr(part, rate, 0.0)
    images, batch = images.astype(kind), batch.to(getattr(torch, kind))

    def their_loss() -> torch.Tensor:
        outputs = model(batch)
        return torch.nn.functional.cross_entropy(outputs, torch.from_numpy(labels))

    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    before = their_loss()
    before.backward()
    gradients = {k: np.asarray(p.grad) for k, p in model.named_parameters() if p.grad is not None}
    optimizer.step()
    after = their_loss()
    expected = convert.from_torch(ours, state | gradients, **overrides)["params"]

    kinds = ("dtype", "feature_dtype", "param_dtype", "norm_dtype", "head_dtype")
    calm = {"dropout": 0.0, "drop_path": 0.0}
    module = models.build(ours, **overrides, **calm, **dict.fromkeys(kinds, jnp.dtype(kind)))

    def our_loss(params: dict) -> jax.Array:
        given = {"params": params, "batch_stats": variables["batch_stats"]}
        rngs = {"dropout": jax.random.key(0)}
        outputs, _ = module.apply(given, images, train=True, mutable=["batch_stats"], rngs=rngs)
        chances = jax.nn.log_softmax(outputs["logits"])
        return -chances[np.arange(IMAGES), labels].mean()

    evaluate = compiled(jax.value_and_grad(our_loss), variables["params"])
    loss, found = evaluate(variables["params"])
    trained = jax.tree.map(lambda p, g: p - RATE * g, variables["params"], found)
    relative = lambda a, b: abs(float(a) - b.item()) / abs(b.item())
    distances = {
        "loss": relative(loss, before),
        "gradients": apart(found, expected),
        "after": relative(evaluate(trained)[0], after),
    }
    return distances, found, expected


def in_both(row: tuple) -> dict[str, dict[str, float]]:
    """Returns what `step` does for a row of `ROWS` in each of `KINDS`, and what rounding does.

    That is how far the gradients in float32 are from theirs in float64.
    """
    results, gradients = {}, {}
    for kind in KINDS:
        with jax.enable_x64(kind == "float64"):
            results[kind], *gradients[kind] = step(*row, kind=kind)
    exact = gradients["float64"][1]
    rounded = zip(("ours", "theirs"), gradients["float32"])
    return results | {"rounding": {whose: apart(tree, exact) for whose, tree in rounded}}


def refusal(ours: str, theirs: str, overrides: dict) -> str:
    """Returns the message with which theirs is refused; "" if it is not."""
    tensors = create(theirs, {}).state_dict()
    arrays = {key: np.zeros_like(value.numpy()) for key, value in tensors.items()}
    try:
        convert.from_torch(ours, arrays, **overrides)
    except ValueError as error:
        return str(error)
    return ""


def kept(file: Path | None, key: str, compute: Callable[[], dict]) -> dict:
    """Returns what a file of results has for a key, or computes it and adds it to the file."""
    lines = file.read_text().splitlines() if file and file.exists() else []
    results = dict(map(json.loads, lines))
    if key not in results:
        start = time.time()
        results[key] = compute() | {"seconds": time.time() - start}
        if file:
            with file.open("a") as opened:
                opened.write(json.dumps([key, results[key]]) + "\n")
    return results[key]


def steps(names: Sequence[str], file: Path | None) -> int:
    """Prints the table of `step`; returns the exit code."""
    titles = f"{'loss':>8} {'gradients':>9} {'after':>8}"
    rounding = "rounding: ours, theirs"
    print(f"{'ours':41} {'theirs':32} float64 {titles} float32 {titles} {rounding}")
    limits = {"loss": 1e-6, "gradients": 1e-5, "after": 1e-6}
    failed = []
    for name in names:
        row = next(row for row in ROWS if row[0] == name)
        row = (*row[:3], 64 if row[3] < 100 else row[3], row[4])
        both = kept(file, f"{name} --step", functools.partial(in_both, row))
        double, single = (both[kind] for kind in KINDS)
        wrong = not all(double[key] < limit for key, limit in limits.items())
        failed += [name] * wrong
        text = "".join(
            f" {'':7} {x['loss']:8.1e} {x['gradients']:9.1e} {x['after']:8.1e}"
            for x in (double, single)
        )
        text += " {ours:13.1e} {theirs:8.1e}".format(**both["rounding"])
        print(f"{name:41} {row[1]:32}{text}{'  WRONG' * wrong}", flush=True)
    print(f"{len(names)} trained; " + (f"WRONG: {', '.join(failed)}" if failed else "all agree"))
    return bool(failed)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="of ours or theirs; all without")
    parser.add_argument("--golden", action="store_true", help=f"write those into {GOLDEN.name}")
    parser.add_argument("--step", action="store_true", help="train a step instead")
    parser.add_argument("--kept", type=Path, metavar="FILE", help="go on with what it has")
    args = parser.parse_args()
    if args.step:
        return steps(args.names or STEPS, args.kept)
    chosen = lambda ours, theirs: (
        not args.names or {ours, theirs, theirs.partition(".")[2]} & {*args.names}
    )
    failed, golden, compared = [], {}, []
    titles = f"{'parameters':>11} {'size':>4} {'error':>8} {'back':>8}  s  arguments"
    print(f"{'ours':24} {'theirs':32} {titles}")
    for row in ROWS:
        ours, theirs, overrides, size, _ = row
        if not chosen(ours, theirs):
            continue
        compared.append(ours)
        result = kept(args.kept, key_of(row), functools.partial(compare, *row))
        golden[key_of(row)] = result["entry"]
        wrong = not max(result["error"], result["back"]) < LIMIT
        failed += [theirs] * wrong
        given = ", ".join(f"{key}={value!r}" for key, value in overrides.items())
        print(
            f"{ours:24} {theirs:32} {result['parameters']:11,} {size:4} {result['error']:8.1e} "
            f"{result['back']:8.1e} "
            f"{result['seconds']:2.0f}  {given}{'  WRONG' * wrong}",
            flush=True,
        )
    for ours, theirs, overrides, says in REFUSED:
        if not chosen(ours, theirs):
            continue
        message = refusal(ours, theirs, overrides)
        wrong = says not in message
        failed += [f"{theirs} (refusal)"] * wrong
        first = message.replace("\n", " ")[:140] or "NOT REFUSED"
        print(f"refused: {theirs} for {ours}: {first}{'  WRONG' * wrong}", flush=True)
    if args.golden:
        golden = json.loads(GOLDEN.read_text()) | golden if GOLDEN.exists() else golden
        compact = functools.partial(json.dumps, separators=(",", ":"))
        keys = [key for key in map(key_of, ROWS) if key in golden]
        lines = [f"{compact(key)}: {compact(golden[key])}" for key in keys]
        GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    found = {models.MODELS[name].alias_of or name for name in compared}
    names = [name for name, spec in models.MODELS.items() if (spec.alias_of or name) in found]
    print(
        f"{len(compared)} networks compared, of {len(found)} architectures that {len(names)} names "
        "have; " + (f"WRONG: {', '.join(failed)}" if failed else "all agree")
    )
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
