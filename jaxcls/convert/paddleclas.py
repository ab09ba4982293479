"""Where PaddleClas publishes its weights, as release 2.6 names them, and under which licence.

Neither their sizes nor hashes are published: those of the server's answer are compared. The
environment's JAXCLS_PADDLECLAS may name another server with the same files.
"""

import os
import re

from jaxcls import models

SERVER = "https://paddle-imagenet-models-name.bj.bcebos.com/dygraph"
# Of most the file is SERVER/NAME_pretrained.pdparams; of these it is in a folder:
LEGENDARY = re.compile(
    r"ResNet\d+(_vd)?(_ssld)?|(SE_)?HRNet_W\d+_C(_ssld)?|PPHGNet_\w+|MobileNetV1\w*"
    r"|MobileNetV3_\w+|InceptionV3|MobileNetV4_\w+|PPLCNet(V2)?_\w+|ESNet_\w+|VGG\d+"
    r"|SwinTransformer_\w+"
)
OTHERWISE = {"ResNeXt101_32x16d_wsl": "ResNeXt101_32x16_wsl_pretrained"} | {
    f"PPHGNetV2_B{i}": f"legendary_models/PPHGNetV2_B{i}_ssld_pretrained" for i in range(7)
}
NOWHERE = {  # names without a file, or with one of PaddlePaddle 1.x alone
    *("ResNet50_ACNet", "ResNet50_ACNet_deploy", "ResNet50_vd_v2", "ResNet50_vd_ssld_v2"),
    *("Fix_ResNet50_vd_ssld", "Fix_ResNet50_vd_ssld_v2", "HRNet_W60_C", "SE_HRNet_W64_C"),
    *("PPHGNet_base", "MobileNetV3_large_x1_0_ssld_int8", "ShuffleNetV2", "MobileNeXt_x0_35"),
    *("MobileNeXt_x0_5", "MobileNeXt_x0_75", "MobileNeXt_x1_4", "MobileViTV2_x0_75"),
    *("MobileViTV2_x1_25", "MobileViTV2_x1_75"),
}
# Converted by PaddleClas from weights whose authors allow no commercial use.
NON_COMMERCIAL = re.compile(r"(Fix_)?ResNeXt101_32x\d+d_wsl|MAE_\w+|MOCOV3_\w+")


def url(name: str) -> str:
    """Returns the address of the weights that PaddleClas published under this name.

    Raises:
      ValueError: it published none.
    """
    if name in NOWHERE:
        raise ValueError(
            f"PaddleClas tells of no file for {name}: convert one of your own, with "
            f"python -m jaxcls.convert {name} --from FILE --to DIR"
        )
    server = os.environ.get("JAXCLS_PADDLECLAS", "").rstrip("/") or SERVER
    if not has_head(name):
        return f"{server}/foundation_models/{name}.pdparams"
    folder = "legendary_models/" if LEGENDARY.fullmatch(name) else ""
    return f"{server}/{OTHERWISE.get(name) or f'{folder}{name}_pretrained'}.pdparams"


def has_head(name: str) -> bool:
    """Returns whether the file has a classifier; image encoders have none."""
    return models.family_of(name) != "foundation_vit"


def licence(name: str) -> str:
    """Returns the licence of the weights."""
    if NON_COMMERCIAL.fullmatch(name):
        return "Apache-2.0 of PaddleClas; their authors', CC BY-NC 4.0, allows no commercial use"
    return "Apache-2.0, of PaddleClas"
