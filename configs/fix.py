"""Fix training, for images larger than in training: \\
    python -m jaxcls.main --config=configs/fix.py:320 --config.init.checkpoint=RUN \\
    --config.data.root=IMAGES --workdir=DIR

RUN and IMAGES are as in configs/finetune.py; the argument is the number of pixels, 320 for networks
that were trained at 224. Objects in random crops look larger than in evaluation: a network sees
more at about 1.15 times its training size (--mode=eval --config.image.eval_size=256
--config.image.eval_resize=292 takes no training), and still more once its classifier knows what its
features are there (Touvron et al. 2019, "Fixing the train-test resolution discrepancy",
arXiv:1906.06423). So only the classifier trains, on images as evaluation sees them. PaddleClas's
ResNet50_vd_ssld_v2 has 83.0 % at 224 pixels and 83.7 % at 320, Fix_ResNet50_vd_ssld_v2 84.0 %.

Rates and lengths are those of jaxcls/choices.py. The published ones, for ImageNet on an
accelerator: --config.duration="56 epochs" --config.batch_size=512 --config.lr.peak=0.008 \\
    --config.lr.schedule=piecewise --config.lr.milestones='("30 epochs",)' --config.optim.l2=1e-4

The paper's last BatchNorm trains too if the pattern leaves it out, in ResNet50:
--config.optim.frozen='(r"^(?!head/|stage4/block3/conv3/bn/)",)'
"""

from configs import base
from jaxcls.config import OPEN

NAMES = ("320",)  # of the arguments, those that tests try


def get_config(arg=None):
    """Returns the recipe for images of `arg` pixels."""
    if not (arg and arg.isdecimal() and int(arg)):
        raise ValueError(
            "configs/fix.py needs the size of the images, in pixels: --config=configs/fix.py:320"
        )
    c = base.get_config()
    c.update_from_flattened_dict(dict.fromkeys(OPEN))
    c.data.source = "folder"
    c.image.size = c.image.eval_resize = int(arg)  # the whole image, as far as it is square
    c.image.eval_size = 0
    c.crop.name = "eval"
    c.crop.shift = 0
    c.crop.flip = 0.0
    c.optim.frozen = (r"^(stem|stage\d+|neck)/",)
    c.optim.lr_mults = ()
    return c
