"""Names of the layers of VAN in PaddleClas."""

from typing import Any

from jaxcls.convert import engine

ROLES = {
    "conv0": "spatial_gating_unit.conv0",
    "conv_spatial": "spatial_gating_unit.conv_spatial",
    "conv1": "spatial_gating_unit.conv1",
    "dwconv": "dwconv.dwconv",
}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    if layer[0] == "head":
        return "head"
    if layer[0] == "neck":
        return f"norm{len(module.depths)}"
    stage, block = (1, 1) if layer[0] == "stem" else engine.numbers(*layer[:2])
    if "embed" in layer or layer[0] == "stem":
        if layer[-1] == "norm":
            return f"norm{stage - 1}"
        return f"patch_embed{stage}.{ {'proj': 'proj', 'bn': 'norm'}[layer[-1]] }"
    return ".".join((f"block{stage}.{block - 1}", *(ROLES.get(name, name) for name in layer[2:])))


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Raises ValueError: there is no such PyTorch network."""
    raise ValueError("VAN is not in timm or torchvision: convert PaddleClas's weights")
