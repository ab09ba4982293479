"""Weights of timm by name, from where timm keeps them: https://huggingface.co/timm."""

import dataclasses
import functools
import json
import math
import os
import re
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from jaxcls import convert, files, models
from jaxcls.config import closest
from jaxcls.data import ops
from jaxcls.network import published_image

OWNER = "timm"
FILES = ("model.safetensors", "pytorch_model.bin")
SHA256 = re.compile(r"[0-9a-f]{64}")  # the ETag of a large file; of a small one it is git's


@dataclasses.dataclass(frozen=True)
class Found:
    """What was downloaded, and how it is converted."""

    file: Path
    url: str
    licence: str
    name: str  # of ours
    options: Mapping[str, Any]  # with which ours computes the same
    num_classes: int
    image: Mapping[str, Any]  # of `ops.Image`


def download(name: str, folder: Path, report: Callable[[str], None]) -> Found:
    """Downloads the weights `name`, ARCHITECTURE.TAG, into a folder.

    HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and the variables of proxies count, as the package
    huggingface_hub reads them. Nothing large is downloaded for a network that is not ours.

    Raises:
      ValueError: why not, in one line.
    """
    candidates = ours(name.partition(".")[0])
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import huggingface_hub
    except ImportError as e:
        raise ValueError(f"timm:{name} needs huggingface_hub: pip install 'jaxcls[hub]'") from e
    try:
        return _download(huggingface_hub, name, candidates, folder, report)
    except ValueError:
        raise
    except OSError as e:  # requests' and the hub's own errors are also of this type
        if e.errno is not None and e.filename is not None:
            raise
        raise ValueError(_told(name, e)) from e
    except Exception as e:  # httpx's have nothing in common with the others
        raise ValueError(_told(name, e)) from e


def _told(name: str, error: Exception) -> str:
    kind = type(error).__name__
    if kind in ("RepositoryNotFoundError", "EntryNotFoundError", "RemoteEntryNotFoundError"):
        where = f"https://huggingface.co/{OWNER} has no weights of that name"
        return f"timm:{name}: {where}{_others(name)}"
    return f"timm:{name}: {kind}: {files.line(error)}"


def _others(name: str) -> str:
    """Returns names of the same architecture, where the hub can be asked."""
    try:
        import huggingface_hub

        architecture = name.partition(".")[0]
        found = huggingface_hub.list_models(author=OWNER, search=f"{architecture}.", limit=50)
        there = [model.id.partition("/")[2] for model in found]
        there = [other for other in there if other.partition(".")[0] == architecture]
    except Exception:  # it is only a help
        there = []
    if not there:
        return ": names are ARCHITECTURE.TAG, such as resnet50.a1_in1k"
    return f": it has {', '.join(there[:10])}"


def _download(
    hub: Any, name: str, candidates: Mapping[str, Any], folder: Path, report: Callable[[str], None]
) -> Found:
    repository = f"{OWNER}/{name}"
    get = functools.partial(
        hub.hf_hub_download, repository, local_dir=folder, library_name="jaxcls"
    )
    known = json.loads(Path(get("config.json")).read_text())
    if not isinstance(known, dict) or not isinstance(known.get("pretrained_cfg"), dict):
        raise ValueError(f"timm:{name}: its config.json is none of timm's")
    cfg = known["pretrained_cfg"]
    if known.get("architecture") != name.partition(".")[0] or known.get("model_args"):
        told = {key: known.get(key) for key in ("architecture", "model_args")}
        raise ValueError(f"timm:{name}: its network is made by other arguments, {told}")
    filename = FILES[0] if hub.file_exists(repository, FILES[0]) else FILES[1]
    url = hub.hf_hub_url(repository, filename)
    told = hub.get_hf_file_metadata(url)
    report(f"fetching {url}" + (f": {told.size / 1e6:,.1f} MB" if told.size else ""))
    file = Path(get(filename, revision=told.commit_hash))
    _check(file, name, told)
    sizes = cfg.get("test_input_size") or cfg["input_size"], cfg["input_size"]
    size = sizes[1][1]
    best = min(candidates, key=lambda ours: abs(models.MODELS[ours].size - size))
    return Found(
        file=file,
        url=url,
        licence=_licence(get, cfg),
        name=best,
        options=dict(candidates[best]),
        num_classes=int(known.get("num_classes") or cfg["num_classes"]),
        image=_image(best, cfg, report),
    )


def _check(file: Path, name: str, told: Any) -> None:
    """Refuses a file whose size or SHA-256 is not what the hub says."""
    size = file.stat().st_size
    if told.size and size != told.size:
        file.unlink()
        raise ValueError(f"timm:{name}: {size:,} of {told.size:,} bytes came: try again")
    if told.etag and SHA256.fullmatch(told.etag) and (found := files.digest(file)) != told.etag:
        file.unlink()
        raise ValueError(
            f"timm:{name}: the file's SHA-256 is {found}, not {told.etag} as its server says: "
            "it was removed, try again"
        )


def _licence(get: Callable[[str], str], cfg: Mapping[str, Any]) -> str:
    if isinstance(cfg.get("license"), str):
        return cfg["license"]
    try:
        card = Path(get("README.md")).read_text(errors="replace")
    except Exception:  # there is no card
        card = ""
    found = re.search(r"\A---\n(?:.*\n)*?license: *(\S+)", card)
    return found[1] if found else "not told"


def _image(name: str, cfg: Mapping[str, Any], report: Callable[[str], None]) -> dict[str, Any]:
    """Returns how timm's own transform shows images to these weights."""
    size, shown = cfg["input_size"][1], (cfg.get("test_input_size") or cfg["input_size"])[1]
    share = cfg.get("test_crop_pct") or cfg.get("crop_pct") or 0.875
    if (mode := cfg.get("crop_mode", "center")) != "center":
        report(f"timm shows these weights images of crop_mode = {mode!r}, here they see the centre")
    interpolation = cfg.get("interpolation", "bicubic")
    return published_image(name) | {
        "size": size,
        "eval_size": shown if shown != size else 0,
        "eval_resize": math.floor(shown / share),
        "interpolation": interpolation if interpolation in ops.INTERPOLATION else "bicubic",
        "mean": tuple(map(float, cfg["mean"])),
        "std": tuple(map(float, cfg["std"])),
    }


def ours(architecture: str) -> dict[str, Mapping[str, Any]]:
    """Returns our networks, and the options with which they compute what one of timm's does.

    Raises:
      ValueError: there are none; the message says why, or which names there are.
    """
    known, reasons = _architectures()
    if architecture in known:
        return known[architecture]
    for reason in reasons:
        words = re.findall(r"\w+\*?", reason.replace("timm's", ""))
        if any(fnmatchcase(architecture, word) for word in words if len(word) > 5):
            raise ValueError(f"timm:{architecture}: {reason}")
    hint = closest(architecture, known)
    raise ValueError(
        f"timm:{architecture} is none of the {len(known)} networks that are here{hint}"
    )


@functools.cache
def _architectures() -> tuple[dict[str, dict[str, Mapping[str, Any]]], list[str]]:
    """Returns our names and options by timm's, and what is said of those that are not the same."""
    known: dict[str, dict[str, Mapping[str, Any]]] = {}
    reasons = []
    for name in (name for name, spec in models.MODELS.items() if not spec.alias_of):
        rules = convert.rules(name)
        try:
            sources = rules.torch_sources(models.build(name))
        except ValueError as e:
            reasons.append(str(e))
            continue
        for source in (source for source in sources if "timm" in source.names):
            if source.refused:
                reasons.append(f"{source.names}: {source.refused}")
                continue
            if callable(source.timm):
                found = source.timm(models.build(name, **source.needs))
                plain = found[0] if found and not found[1] else None
                theirs = getattr(rules, "TIMM_NAMES", {}).get(name, plain)
            else:
                theirs = source.timm.get(name)
            if theirs:
                known.setdefault(theirs, {})[name] = source.needs
    return known, list(dict.fromkeys(reasons))
