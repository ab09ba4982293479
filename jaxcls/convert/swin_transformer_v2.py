"""Names of the layers of Swin Transformer V2 in PaddleClas and timm."""

from typing import Any

from jaxcls.convert import engine

TIMM = {
    "tiny_patch4_window8_256": "tiny_window8_256",
    "tiny_patch4_window16_256": "tiny_window16_256",
    "small_patch4_window8_256": "small_window8_256",
    "small_patch4_window16_256": "small_window16_256",
    "base_patch4_window8_256": "base_window8_256",
    "base_patch4_window16_256": "base_window16_256",
    "base_patch4_window24_384": "base_window12to24_192to384",
    "large_patch4_window16_256": "large_window12to16_192to256",
    "large_patch4_window24_384": "large_window12to24_192to384",
}
TIMM = {f"SwinTransformerV2_{ours}": f"swinv2_{theirs}" for ours, theirs in TIMM.items()}


paddle, timm = engine.shifted_windows(merged=1), engine.shifted_windows(merged=0, head="head.fc")


def learnt(arrays: engine.Arrays) -> engine.Arrays:
    """Returns the tensors without the biases of keys, which timm stores as zeros."""
    return {key: array for key, array in arrays.items() if not key.endswith(".k_bias")}


def torch_sources(module: Any) -> tuple[engine.Source, ...]:
    """Returns the PyTorch networks that have these tensors."""
    del module
    return (engine.Source("timm's swinv2_*", timm, prepare=learnt, timm=TIMM),)
