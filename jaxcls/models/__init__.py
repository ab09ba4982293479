"""The registry: names to models. A name is a row in its family's `SPECS`."""

import dataclasses
import fnmatch
import importlib
from typing import Any

import flax.linen as nn

from jaxcls.config import choose, short
from jaxcls.models.spec import CTX_FIELDS, Ctx, Spec

# A family: its networks in models/NAME.py, rules for weights in convert/NAME.py, and a row here.
FAMILIES = (
    "resnet",
    "res2net",
    "hrnet",
    "resnest",
    "rednet",
    "dla",
    "darknet",
    "cspnet",
    "pphgnet",
    "convnext",
    "van",
    "dsnet",
    "nextvit",
    "uniformer",
    "mobilenet_v1",
    "mobilenet_v2",
    "mobilenet_v3",
    "googlenet",
    "inception",
    "xception",
    "dpn",
    "densenet",
    "hardnet",
    "peleenet",
    "shufflenet_v2",
    "efficientnet",
    "efficientnet_v2",
    "mixnet",
    "rexnet",
    "ghostnet",
    "mobilenext",
    "mobilenet_v4",
    "pplcnet",
    "pplcnet_v2",
    "esnet",
    "micronet",
    "repvgg",
    "regnet",
    "fasternet",
    "starnet",
    "squeezenet",
    "alexnet",
    "vgg",
    "vision_transformer",
    "swin_transformer",
    "swin_transformer_v2",
    "twins",
    "tnt",
    "levit",
    "pvt_v2",
    "cswin_transformer",
    "cvt",
    "foundation_vit",
    "mobilevit",
)
MODELS: dict[str, Spec] = {}
_FAMILY: dict[str, str] = {}  # of each name
for family in FAMILIES:
    specs = importlib.import_module(f"jaxcls.models.{family}").SPECS
    if twice := MODELS.keys() & specs.keys():
        raise ValueError(f"{family}: names that another family has: {sorted(twice)}")
    MODELS |= specs
    _FAMILY |= dict.fromkeys(specs, family)


def names(pattern: str = "*") -> list[str]:
    """Returns the names that match a shell pattern such as "resnet*_vd", in the table's order.

    Case counts for nothing.
    """
    pattern = pattern.lower()
    return [name for name in MODELS if fnmatch.fnmatchcase(name.lower(), pattern)]


def family_of(name: str) -> str:
    """Returns the family's name: that of its files."""
    return _FAMILY[name]


def arguments(name: str) -> frozenset[str]:
    """Returns what `build` takes besides the number of classes."""
    fields = {f.name for f in dataclasses.fields(MODELS[name].cls)}
    return CTX_FIELDS | fields - {"c", "num_classes", "parent", "name"}


def build(name: str, *, num_classes: int = 1000, **overrides) -> nn.Module:
    """Returns the network as an uninitialised Flax module.

    `module.apply(variables, images, train=False)` takes normalised images [B, H, W, C] and returns
    {"logits": float32 [B, num_classes], "pre_logits": [B, D], "stage1": features, ...}.

    Args:
      name: one of `names()`.
      num_classes: width of the classifier.
      **overrides: fields of `Ctx` (`dtype`, `bn_group`, ...) or of the family's class.

    Raises:
      ValueError: an unknown name (with the closest ones), an argument that the family lacks, or
        `drop_path` for a network without residual branches. The module itself raises one for images
        that are too small for it.
    """
    spec = MODELS[choose("model", name, MODELS)]
    kwargs = {**spec.kwargs, **overrides}
    c = Ctx(**{k: kwargs.pop(k) for k in CTX_FIELDS & kwargs.keys()})
    takes = arguments(name)
    if unknown := sorted(kwargs.keys() - takes):
        raise ValueError(
            f"{name} takes no argument {', '.join(unknown)}; it takes {', '.join(sorted(takes))}"
        )
    for key in ("dropout", "drop_path", "bn_momentum", "bn_epsilon"):
        check(key, getattr(c, key))
    if c.drop_path and not getattr(spec.cls, "residual", True):
        raise ValueError(f"drop_path = {c.drop_path}: {name} has no residual branch to drop")
    return spec.cls(c, num_classes, **kwargs)


def check(key: str, value: Any, section: str = "") -> None:
    """Refuses a value of `Ctx` that has to be a number below 1, or None.

    Raises:
      ValueError: it is not; the message says what to write.
    """
    positive = key == "bn_epsilon"
    if isinstance(value, (int, float)) and 0 <= value < 1 and (value or not positive):
        return
    if value is not None:
        least = "above 0 and" if positive else "from 0 to"
        raise ValueError(
            f"{section}{key} = {short(value)}: write a number {least} below 1, or None"
        )
