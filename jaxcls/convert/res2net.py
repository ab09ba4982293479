"""Names of the layers of Res2Net in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas, which writes a slice's place twice."""
    if layer[0] == "head":
        return "out"
    part = engine.PADDLE_PARTS[layer[-1]]
    if layer[0] == "stem":
        place = f"_{engine.number(layer[1])}" if module.stem == "conv3" else ""
        return f"conv1{place}.{part}"
    (stage, block), role = engine.numbers(*layer[:2]), layer[2]
    if stage == 3 and module.depths[2] > 6:
        letter = f"b{block - 1}" if block > 1 else "a"
    else:
        letter = "abcdefghijklmnopqrstuvwxyz"[block - 1]
    theirs = {"conv1": "conv0", "conv3": "conv2", "short": "short"}.get(role)
    theirs = theirs or f"res{stage + 1}{letter}_branch2b_{engine.number(role)}"
    return f"bb_{stage - 1}_{block - 1}.{theirs}.{part}"


def timm(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in timm, as in the authors' code."""
    if layer[0].startswith("stage") and layer[2].startswith("slice"):
        return f"{engine.torch_block(layer)}.{layer[-1]}s.{engine.number(layer[2]) - 1}"
    return engine.torch_residual(layer, module)


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (
        engine.Source(
            "timm's res2net*",
            timm,
            timm={
                "Res2Net50_26w_4s": "res2net50_26w_4s",
                "Res2Net50_14w_8s": "res2net50_14w_8s",
                "Res2Net50_vd_26w_4s": "res2net50d",
                "Res2Net101_vd_26w_4s": "res2net101d",
            },
            needs={"original": True},
            differs="the chain of the first block of stage1 is cut too, and means at the border "
            "are over zeros beyond it",
        ),
    )
