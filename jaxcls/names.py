"""Names that a config may say, checked before images are looked at, which may take long."""

from ml_collections import ConfigDict

from jaxcls import models, objectives, optim, precision, schedules
from jaxcls.config import choose, consume, flatten
from jaxcls.data import augment, ops

# What keys that are names may be; others are checked by what they choose.
NAMES = {
    "model.name": models.MODELS,
    "optim.name": optim.OPTIMIZERS,
    "lr.schedule": schedules.SCHEDULES,
    "loss.name": objectives.OBJECTIVES,
    "crop.name": ops.CROPS,
    "precision.name": (*precision.DTYPES, "auto"),
    "precision.loss_scale": (*precision.LOSS_SCALES, "auto"),
    "checkpoint.best": {*objectives.METRICS, *objectives.OF_SEVERAL},
    "checkpoint.changed_data": ("refuse", "accept"),
}


def check(config: ConfigDict) -> None:
    """Refuses names that mean nothing.

    Raises:
      ValueError: there is one; the message has the closest that there are.
    """
    values = flatten(config)
    for key, names in NAMES.items():
        if values[key] is not None:
            choose(f"config.{key}", values[key], names)
    consume(config, "augment", augment.make)
