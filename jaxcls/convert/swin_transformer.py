"""Names of the layers of Swin Transformer in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine

SIZES = (
    "tiny_patch4_window7_224",
    "small_patch4_window7_224",
    "base_patch4_window7_224",
    "base_patch4_window12_384",
    "large_patch4_window7_224",
    "large_patch4_window12_384",
)


paddle, timm = engine.shifted_windows(merged=1), engine.shifted_windows(merged=0, head="head.fc")


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (
        engine.Source(
            "timm's swin_*",
            timm,
            needs={"shift_whole": False},
            differs="windows that are the whole grid are not shifted",
            timm={f"SwinTransformer_{size}": f"swin_{size}" for size in SIZES},
        ),
    )
