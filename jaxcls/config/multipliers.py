"""Rules for `optim.lr_mults`, for config files."""


def stage_mults(*factors: float) -> tuple[tuple[str, float], ...]:
    """Returns learning-rate factors for the stem and each stage, for `optim.lr_mults`.

    `stage_mults(0.1, 0.1, 0.2, 0.2, 0.3)` gives the stem 0.1, stage1 0.1, ..., stage4 0.3; neck and
    head keep 1. (PaddleClas's `lr_mult_list`.)
    """
    names = ("stem", *(f"stage{i}" for i in range(1, len(factors))))
    return tuple((f"^{name}/", factor) for name, factor in zip(names, factors, strict=True))
