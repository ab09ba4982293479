"""Lets exports for timm be run where torchvision's compiled part is for another PyTorch.

The networks do not need it, but timm imports torchvision.
"""

import contextlib
from collections.abc import Iterator

import pytest

from jaxcls.export import agreement

OPERATORS = """\
import torch
try:
    import torchvision
except RuntimeError:
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


@contextlib.contextmanager
def torchvision_there() -> Iterator[None]:
    """Until it ends, what runs timm elsewhere defines those operators first, if it has to."""
    with pytest.MonkeyPatch.context() as patch:
        # the text is a template
        operators = OPERATORS.replace("{", "{{").replace("}", "}}")
        patch.setattr(agreement, "APART", operators + agreement.APART)
        yield
