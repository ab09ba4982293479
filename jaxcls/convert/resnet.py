"""Names of the layers of ResNet in PaddleClas, timm and torchvision.

PaddleClas's model files have three styles. ResNet50_ACNet_deploy was published for PaddlePaddle 1.x
alone, as a folder with a file for each tensor; it is read under the names that ResNet50's tensors
have.
"""

from typing import Any

from jaxcls.convert import engine

# stem: of one convolution, of three; {0} counts from 0, {1} from 1, {running} over all stages
LEGENDARY = {
    "stem": ("stem.{0}", "stem.{0}"),
    "block": "blocks.{running}",
    "branch": "conv{0}",
    "fc": "fc",
}
ZOO = {
    "stem": ("conv", "conv1_{1}"),
    "block": "bb_{stage}_{block}",
    "branch": "conv{0}",
    "se": "scale",
    "excite": "excitation",
    "fc": "out",
} | engine.PADDLE_PARTS
WSL = {
    "stem": ("_conv_stem", "_conv_stem{1}"),
    "block": "_conv{stage1}_{block}",
    "branch": "_conv{0}",
    "short": "_short._conv",
    "conv": "_conv",
    "bn": "_bn",
    "fc": "_out",
}


def style(module: Any) -> dict[str, Any]:
    """Returns the names of the file that has this network."""
    if module.groups == 32 and module.group_width >= 8:
        return WSL
    vc = module.stem == "conv3" and not module.mean_short
    return ZOO if vc or module.se or module.groups > 1 else LEGENDARY


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    names = style(module)
    if layer[0] == "head":
        return names["fc"]
    if layer[0] == "stem":
        i = engine.number(layer[1])
        theirs, inside = names["stem"][module.stem == "conv3"].format(i - 1, i), layer[2:]
    else:
        stage, block = engine.numbers(*layer[:2])
        running = engine.index_of(module.depths, layer)
        theirs = names["block"].format(
            stage=stage - 1, stage1=stage, block=block - 1, running=running
        )
        role, inside = layer[2], layer[3:]
        if role == "short":
            inside = inside[1:]  # theirs is the convolution that ours has
        if role.startswith("conv"):
            role = names["branch"].format(engine.number(role) - 1)
        theirs += f".{names.get(role, role)}"
    return ".".join((theirs, *(names.get(part, part) for part in inside)))


def torch(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm and torchvision."""
    if "se" in layer:
        return f"{engine.torch_block(layer)}.se.{ {'squeeze': 'fc1', 'excite': 'fc2'}[layer[-1]] }"
    return engine.torch_residual(layer, module)


def legacy(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm's legacy_se*."""
    name = torch(layer, module).replace(".se.", ".se_module.")
    return {"stem": f"layer0.{name}", "head": "last_linear"}.get(layer[0], name)


DEPTHS = {  # of timm's networks
    ("Basic", (2, 2, 2, 2)): "resnet18",
    ("Basic", (3, 4, 6, 3)): "resnet34",
    ("Bottleneck", (3, 4, 6, 3)): "resnet50",
    ("Bottleneck", (3, 4, 23, 3)): "resnet101",
    ("Bottleneck", (3, 8, 36, 3)): "resnet152",
}
DEFAULTS = {"channels": [64, 128, 256, 512], "cardinality": 1, "base_width": 64, "stem_width": 64}

# What timm calls them for which `timm` gives a name and arguments: weights there have that name.
TIMM_NAMES = {
    "ResNet50_vc": "resnet50c",
    **{f"ResNet{depth}_vd": f"resnet{depth}d" for depth in (18, 34, 50, 101, 152)},
    "ResNeXt50_32x4d": "resnext50_32x4d",
    "ResNeXt101_32x4d": "resnext101_32x4d",
    "ResNeXt101_64x4d": "resnext101_64x4d",
    "ResNeXt50_vd_32x4d": "resnext50d_32x4d",
    **{f"ResNeXt101_32x{width}d_wsl": f"resnext101_32x{width}d" for width in (8, 16, 32)},
    "SE_ResNeXt50_32x4d": "seresnext50_32x4d",
    "SE_ResNeXt101_32x4d": "seresnext101_32x4d",
}


def timm(module: Any) -> tuple[str, dict[str, Any]] | None:
    """Returns the network in timm, with what it has otherwise than the plain one."""
    kind, width, stem = module.block.__name__, module.width, module.stem_width or module.width
    basic, deep = kind == "Basic", module.stem == "conv3"
    gates = [width * 2**i * (1 if basic else 4) // 16 for i in range(4)]
    if (
        len(module.depths) != 4
        or not (deep or (module.stem == "conv7" and stem == 64))
        or stem % 2
        or width * module.group_width % 64
        or (basic and (module.groups, module.group_width) != (1, 64))
        or (module.se and any(n % 8 for n in gates))  # rounded there
    ):
        return None
    arguments: dict[str, Any] = {
        "channels": [width * 2**i for i in range(4)],
        "cardinality": module.groups,
        "base_width": module.group_width,
        "stem_width": stem // 2 if deep else stem,
    }
    arguments = {key: value for key, value in arguments.items() if value != DEFAULTS[key]}
    if (kind, module.depths) not in DEPTHS:
        arguments["layers"] = list(module.depths)
    if deep:
        arguments["stem_type"] = "deep"
    if module.mean_short:
        arguments["avg_down"] = True
    if module.se:
        arguments["block_args"] = {"attn_layer": "se"}
    return DEPTHS.get((kind, module.depths), "resnet18" if basic else "resnet50"), arguments


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    if module.conv != "plain":
        raise ValueError("ACNet is not in timm or torchvision")
    first = {}
    if module.block.__name__ == "Basic":
        first = {
            "needs": {"project_first": False},
            "differs": "no convolution in the shortcut of stage1",
        }
    return (
        engine.Source(
            "timm's and torchvision's resnet*, resnext* and seresnet*",
            torch,
            sides={r".*\.se\.fc\d": 1},
            timm=timm,
            **first,
        ),
        engine.Source(
            "timm's legacy_se*",
            legacy,
            refused="their first pool rounds up where this one is padded: convert those of "
            "seresnet*, seresnext* or PaddleClas's",
        ),
    )
