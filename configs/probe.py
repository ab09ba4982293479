"""A linear probe, in minutes: python -m jaxcls.main --config=configs/probe.py \\
    --config.init.checkpoint=RUN --config.data.root=IMAGES --workdir=DIR

RUN and IMAGES are as in configs/finetune.py. The network stays as it is and sees every image once,
as in evaluation; a linear classifier is trained on its features for each of the weight decays, the
best one on held-out training images is evaluated, and network and classifier are what DIR has: for
--mode=eval, and for fine-tuning with --config.init.checkpoint=DIR. It takes a forward pass of each
image and some seconds: a few minutes for a few thousand images of ResNet50 on two cores. Larger
images may help: --config.image.eval_size=256 --config.image.eval_resize=292.
"""

from configs import base
from jaxcls.config import OPEN


def get_config(arg=None):
    """Returns the recipe; network and images are those of the checkpoint."""
    c = base.get_config(arg)
    c.update_from_flattened_dict(dict.fromkeys(OPEN))
    c.data.source = "folder"
    c.probe.decays = (1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
    return c
