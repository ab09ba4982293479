"""Converted weights against timm's and torchvision's own networks in PyTorch.

`python tests/timm_parity.py [NAME ...]`, in an environment that also has PyTorch, timm and
torchvision (of which only the Python part is used), gives random weights and random BatchNorm
statistics to each network below, converts them and compares the logits of two images; then it
checks that networks that compute something else are refused. With `--golden`, it also writes what
it found into `golden/torch.json`, from which `test_convert_torch.py` checks the same without
PyTorch.
"""

import argparse
import functools
import json
import sys
import time
from pathlib import Path

import jax
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
NO_FIRST = {"expand_first": False}
SHORT = {"depths": (2, 1, 1, 1)}
D = {"stem_width": 32, "stem_type": "deep", "avg_down": True}  # timm's arguments for resnet*d
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
    ("ResNeXt50_32x4d", "timm.resnext50_32x4d", {}, 96, {}),
    ("ResNeXt101_32x4d", "timm.resnext101_32x4d", {}, 64, {}),
    ("ResNeXt101_64x4d", "torchvision.resnext101_64x4d", {}, 64, {}),
    ("ResNeXt50_vd_32x4d", "timm.resnext50d_32x4d", {}, 96, {}),
    ("ResNeXt101_32x8d_wsl", "timm.resnext101_32x8d", {}, 64, {}),
    ("ResNeXt101_32x16d_wsl", "timm.resnext101_32x16d", {}, 64, {}),
    ("SE_ResNeXt50_32x4d", "timm.seresnext50_32x4d", {}, 96, {}),
    ("SE_ResNeXt101_32x4d", "timm.seresnext101_32x4d", {}, 64, {}),
    ("SE_ResNet50_vd", "timm.seresnet50", {}, 96, D),
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
    ("ShuffleNetV2_x2_0", "torchvision.shufflenet_v2_x2_0", {}, 96, {}),
    ("EfficientNetB0", "timm.tf_efficientnet_b0", SAME, 96, {}),
    ("EfficientNetB0", "timm.efficientnet_b0", SYMMETRIC, 96, {}),
    ("EfficientNetB0", "torchvision.efficientnet_b0", SYMMETRIC, 96, {}),
    ("EfficientNetB3", "timm.tf_efficientnet_b3", SAME, 96, {}),
    ("EfficientNetB5", "torchvision.efficientnet_b5", {"padding": None}, 64, {}),
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
    ("HRNet_W48_C", "timm.hrnet_w48", {}, 64, {}),
    ("DPN68", "timm.dpn68", DPN, 97, {}),
    ("DPN68", "timm.dpn68", DPN | SHORT, 97, {"k_sec": (2, 1, 1, 1)}),
    ("DPN92", "timm.dpn92", DPN, 64, {}),
    ("DPN98", "timm.dpn98", DPN, 64, {}),
    ("DPN107", "timm.dpn107", DPN, 64, {}),
    ("DPN131", "timm.dpn131", DPN, 64, {}),
    ("DarkNet53", "timm.darknet53", {"slope": 0.01}, 96, {}),
)
REFUSED = (  # ours, theirs, our arguments, what the message says
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
    ("InceptionV4", "timm.inception_v4", {}, "other order"),
    ("Xception41", "timm.xception41", {}, "Xception41_deeplab"),
    ("Xception41_deeplab", "timm.xception41", {}, "dilation=1"),
    ("HRNet_W18_C", "timm.hrnet_w18_small", {}, "missing"),
    ("DPN68", "timm.dpn68", {}, "bn_epsilon=0.001"),
    ("DPN68", "timm.dpn68b", DPN, "missing"),
    ("DarkNet53", "timm.darknet53", {}, "slope=0.01"),
    ("DarkNet53", "timm.cspdarknet53", {"slope": 0.01}, "no place for it"),
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
}


def create(theirs: str, arguments: dict) -> torch.nn.Module:
    """Returns a network of theirs, without its own initialisation, which takes longer than all."""
    package, _, name = theirs.partition(".")
    with torch.device("meta"):
        if package == "timm":
            model = timm.create_model(name, **arguments)
        else:
            model = getattr(torchvision.models, name)(**arguments)
    return model.to_empty(device="cpu").eval()


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
            mean, var = x.mean((0, 2, 3)).mean(), x.var((0, 2, 3), correction=0).mean()
            statistics[name] = (float(f"{mean:.6g}"), float(f"{var:.6g}"))
            fill(f"{name}._mean", module.running_mean)
            fill(f"{name}._variance", module.running_var)

        return hook

    hooks = []
    for name, module in model.named_modules():
        norm = isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        for leaf, tensor in module.named_parameters(recurse=False):
            fill(f"{name}.{leaf}", tensor, "scale" if norm and leaf == "weight" else "other")
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
    logits = np.asarray(jax.jit(module.apply)(variables, images)["logits"])
    signal = float(np.abs(expected[0] - expected[1]).max())
    sources = convert.rules(ours).torch_sources(module)
    source = next(s for s in sources if theirs.partition(".")[0] in s.names)
    arrays = {k: v for k, v in arrays.items() if not k.endswith("num_batches_tracked")}
    sizes = {name: array.size for name, array in source.prepare(arrays).items()}
    entry = {
        "ours": ours,
        "overrides": overrides,
        "tensors": oracle.digest(sizes),
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
        "signal": signal,
        "entry": entry,
    }


def refusal(ours: str, theirs: str, overrides: dict) -> str:
    """Returns the message with which theirs is refused; "" if it is not."""
    arrays = {key: value.numpy() for key, value in create(theirs, {}).state_dict().items()}
    try:
        convert.from_torch(ours, arrays, **overrides)
    except ValueError as error:
        return str(error)
    return ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="of ours or theirs; all without")
    parser.add_argument("--golden", action="store_true", help=f"write those into {GOLDEN.name}")
    args = parser.parse_args()
    chosen = lambda ours, theirs: (
        not args.names or {ours, theirs, theirs.partition(".")[2]} & {*args.names}
    )
    failed, golden, compared = [], {}, 0
    print(f"{'ours':24} {'theirs':32} {'parameters':>11} {'size':>4} {'error':>8}  s  arguments")
    for row in ROWS:
        ours, theirs, overrides, size, _ = row
        if not chosen(ours, theirs):
            continue
        start = time.time()
        compared += 1
        result = compare(*row)
        golden[key_of(row)] = result["entry"]
        wrong = not result["error"] < LIMIT
        failed += [theirs] * wrong
        given = ", ".join(f"{key}={value!r}" for key, value in overrides.items())
        print(
            f"{ours:24} {theirs:32} {result['parameters']:11,} {size:4} {result['error']:8.1e} "
            f"{time.time() - start:2.0f}  {given}{'  WRONG' * wrong}",
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
    print(f"{compared} compared; " + (f"WRONG: {', '.join(failed)}" if failed else "all agree"))
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
