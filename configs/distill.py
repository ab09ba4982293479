"""Distillation: a network learns from a larger one, also from images without labels (SSLD).

    python -m jaxcls.main --config=configs/distill.py:MobileNetV1_from_ResNet50_vd_ssld \\
        --config.teacher.checkpoints=TEACHER --config.data.unlabelled=IMAGES --workdir=DIR
    python -m jaxcls.main --config=configs/distill.py:MobileNetV1_from_ResNet50_vd_ssld-finetune \\
        --config.teacher.checkpoints=TEACHER --config.init.checkpoint=DIR --workdir=DIR-finetune

STUDENT_from_TEACHER may be any two networks. Without --config.teacher.checkpoints the teacher is
looked for in a folder of its name, where `python -m jaxcls.convert NAME --from FILE --to NAME` puts
published weights; a run will do, too. It gets images of its own size.

The first command learns what the teacher says of labelled and unlabelled images, by SSLD's loss
(the symmetric KL that PaddleClas calls JS), labels aside: no smoothing, no mixing. SSLD had four
million images of ImageNet-22k beside ImageNet's; without data.unlabelled it is ImageNet alone. The
second command goes on with the labelled images only, at a hundredth of the learning rate, still by
the teacher. Published top-1 on ImageNet, %, after the first and the second:

    from ResNeXt101_32x16d_wsl    ResNet50_vd 82.07, 82.39    ResNet101_vd 83.41, 83.73
    from ResNet50_vd_ssld         MobileNetV1 77.65, 77.89    MobileNetV2 76.34, 76.73
                                  MobileNetV3_large_x1_0 78.54, 78.96    _small_x1_0 70.11, 71.28

These six have SSLD's recipe (360 epochs of five million images: 32 V100s for ResNet50_vd), other
students that of configs/imagenet.py, and 30 epochs then. "digits" tries it in a minute on a CPU:

    python -m jaxcls.main --config=configs/digits.py --workdir=/tmp/digits
    python -m jaxcls.main --config=configs/distill.py:digits \\
        --config.teacher.checkpoints=/tmp/digits --workdir=/tmp/small
"""

from configs import base, digits, imagenet

FINETUNE = "-finetune"
# SSLD's students: L2, then batch, learning rate of the first stage; batch, learning rate and epochs
# of the second.
SSLD = {
    "ResNet50_vd": (7e-5, (1024, 0.4), (1024, 0.004, 60)),
    "ResNet101_vd": (7e-5, (1024, 0.4), (1024, 0.004, 30)),
    "MobileNetV1": (3e-5, (4096, 1.6), (4096, 0.016, 30)),
    "MobileNetV2": (1e-5, (3072, 0.54), (3072, 0.0054, 30)),
    "MobileNetV3_large_x1_0": (1e-5, (5760, 3.65625), (2048, 0.008, 30)),
    "MobileNetV3_small_x1_0": (1e-5, (5760, 3.65625), (6400, 0.025, 30)),
}
PAIRS = tuple(
    f"{student}_from_{'ResNeXt101_32x16d_wsl' if student[:3] == 'Res' else 'ResNet50_vd_ssld'}"
    for student in SSLD
)
NAMES = (  # of the arguments, those that tests try
    "digits",
    *PAIRS,
    *(pair + FINETUNE for pair in PAIRS),
    "ResNet18_from_ResNet34",
    "ResNet18_from_ResNet34" + FINETUNE,
)


def get_config(arg=None):
    """Returns the recipe of STUDENT_from_TEACHER, of its second stage, or of "digits"."""
    if arg == "digits":
        return of_digits()
    pair = (arg or "").removesuffix(FINETUNE)
    second = pair != arg
    student, _, teacher = pair.partition("_from_")
    if not student or not teacher:
        raise ValueError(
            "write --config=configs/distill.py:STUDENT_from_TEACHER, such as "
            f'ResNet50_vd_from_ResNet152_vd, that with "{FINETUNE}", or digits'
        )
    c = imagenet.get_config(student)
    c.teacher.checkpoints = (teacher,)
    c.loss.name = "symmetric_kl"
    c.loss.label_smoothing = 0.0
    c.mix = base.get_config().mix
    if student in SSLD:
        c.optim.l2, (c.batch_size, c.lr.peak), stage2 = SSLD[student]
        c.duration = "360 epochs"
        c.augment.policy = ""
        c.lr.schedule, c.lr.milestones = "cosine", ()
    else:
        stage2 = c.batch_size, c.lr.peak / 100, 30
    c.lr.warmup = "5 epochs"
    if second:
        c.batch_size, c.lr.peak, epochs = stage2
        c.duration = f"{epochs} epochs"
        c.lr.schedule, c.lr.milestones = "cosine", ()
    c.lr.batch, c.lr.warmup_if_scaled = c.batch_size, "5 epochs"
    c.model.bn_group = 64 if c.batch_size % 64 == 0 else 50
    return c


def of_digits():
    """Returns the config of a student with a sixteenth of the parameters of configs/digits.py."""
    c = digits.get_config()
    c.model.options = (("stem", "small"), ("depths", (1, 1, 1)), ("width", 8))
    c.loss.name = "kl"
    c.loss.label_smoothing = 0.0
    return c
