"""Rules for `optim.lr_mults`, for config files."""

from collections.abc import Sequence

Rules = tuple[tuple[str, float], ...]  # (pattern of parameters, factor)


def stage_mults(*factors: float | None) -> Rules:
    """Returns learning-rate factors for the stem and each stage, for `optim.lr_mults`.

    `stage_mults(0.1, 0.1, 0.2, 0.2, 0.3)` gives the stem 0.1, stage1 0.1, ..., stage4 0.3; neck and
    head keep 1. (PaddleClas's `lr_mult_list`.) None leaves one out: VGG, for example, has no stem.
    More rules may follow: `stage_mults(0.1, 0.1, 0.2, 0.2, 0.3) + (("^head/", 10.0),)`.
    """
    names = ("stem", *(f"stage{i}" for i in range(1, len(factors))))
    pairs = zip(names, factors, strict=True)
    return tuple((f"^{name}/", factor) for name, factor in pairs if factor is not None)


def block_mults(*factors: float, blocks: Sequence[int], every: int = 3) -> Rules:
    """Returns learning-rate factors for groups of `every` blocks, whatever their stages are.

    `block_mults(0.25, 0.25, 0.5, 0.5, 0.75, blocks=(1, 2, 3, 6, 3))` is the list of PaddleClas for
    MobileNetV3_large: of its 15 blocks three share a factor. The stem has the first factor; the
    neck, and blocks that are left over, the last one; the head keeps 1.

    Args:
      *factors: of the groups, from the bottom.
      blocks: the number of blocks in each stage; WORKDIR/parameters.txt of a run lists them.
      every: size of a group.

    Raises:
      ValueError: there are more factors than groups.
    """
    names = [f"stage{i}/block{j}" for i, n in enumerate(blocks, 1) for j in range(1, n + 1)]
    groups = [names[i : i + every] for i in range(0, len(names), every)]
    if not 0 < len(factors) <= len(groups):
        raise ValueError(
            f"block_mults: {len(factors)} factors for {len(names)} blocks, which are "
            f"{len(groups)} groups of {every}: write as many factors, or fewer"
        )
    last = len(factors) - 1
    parts: list[list[str]] = [["stem"], *([] for _ in range(last))]
    for number, group in enumerate(groups):
        parts[min(number, last)] += group
    parts[last].append("neck")
    return tuple((f"^({'|'.join(part)})/", f) for part, f in zip(parts, factors, strict=True))
