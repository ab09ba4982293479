"""Names of the layers of TNT in PaddleClas and timm."""

from typing import Any

import numpy as np

from jaxcls.convert import engine

TIMM = {"TNT_small": "tnt_s_patch16_224", "TNT_base": "tnt_b_patch16_224"}
STEM = {"conv1": "pixel_embed.proj", "pos_embed": "patch_pos"}
PROJECTION = {"norm1": "norm1_proj", "fc": "proj", "norm2": "norm2_proj"}
BLOCK = {"norm_attn_in": "norm_in", "norm_attn_out": "norm_out", "norm_mlp_out": "norm_mlp"}
BLOCK |= {"mlp_out": "mlp"}


def paddle(layer: tuple[str, ...], module: Any) -> str:
    """Returns the layer's name in PaddleClas."""
    if layer[0] in ("head", "neck"):
        return {"head": "head", "neck": "norm"}[layer[0]]
    if "proj" in layer and layer[-1] in PROJECTION:
        layer = (*layer[:-2], PROJECTION[layer[-1]])
    if layer[0] == "stem":
        return STEM.get(layer[1], layer[1])
    return engine.column_block(
        (*layer[:2], BLOCK.get(layer[2], layer[2]), *layer[3:]), module.depth
    )


def one_row(arrays: engine.Arrays) -> engine.Arrays:
    """Returns the tensors with the embeddings of inner places in a row, not as 4 x 4."""
    arrays = dict(arrays)
    if np.ndim(arrays.get("pixel_pos")) == 4:
        _, features, h, w = arrays["pixel_pos"].shape
        grid = np.asarray(arrays["pixel_pos"]).reshape(1, features, h * w)
        arrays["pixel_pos"] = grid.transpose(0, 2, 1)
    return arrays


def as_grid(arrays: engine.Arrays) -> engine.Arrays:
    """Returns the inverse of `one_row`."""
    row = np.asarray(arrays["pixel_pos"])
    side = int(row.shape[1] ** 0.5)
    grid = row.transpose(0, 2, 1).reshape(1, row.shape[2], side, side)
    return dict(arrays) | {"pixel_pos": np.ascontiguousarray(grid)}


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (engine.Source("timm's tnt_*", paddle, prepare=one_row, complete=as_grid, timm=TIMM),)
