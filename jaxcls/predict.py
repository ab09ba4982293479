"""python -m jaxcls.predict RUN IMAGES... [--json | --csv] [--top=5] [--tta=flip] [--fuse=RUN2] \\
    [--features=pre_logits --out=FILE.npy] [--explain=DIR] [--threshold=0.9]

Says what images show. RUN is a run, a checkpoint, converted weights, or an export and its files;
IMAGES are files, folders, patterns such as 'photos/*.jpg', lists of paths (FILE.txt) and "-", paths
on standard input. Prints a table, with --json an object for each image, in their order:

    {"image": PATH, "classes": [...], "probabilities": [...], "decision": ...}
    {"image": PATH, "error": ...}

where the likeliest comes first, and the decision is the first class, null if it is not likely
enough or the background; of several classes a list. --explain=DIR writes where the network looked.

--engine=ray answers millions on the machines of a Ray cluster (https://docs.ray.io), or on this
one: IMAGES are also Parquet files with images or paths, and URLs, s3://... and gs://...; --out=DIR
is a directory of Parquet files, a shard of the images each. The same command goes on where it was
killed. All machines reach RUN, the images and DIR under the same names.

Exit codes: 0; 1: some images could not be read; 2: a mistake in command or data.
"""

import argparse
import contextlib
import functools
import glob
import itertools
import json
import os
import re
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxcls import predictor
from jaxcls.command import Arguments, exit_with, start_jax, told
from jaxcls.data import lists
from jaxcls.data.folders import read_text
from jaxcls.files import csv_of
from jaxcls.output import visible
from jaxcls.predictor import Answer, Predictor, Row

LISTS = (".txt", ".lst", ".list")
BAR = 100  # images from which on progress is shown


@told
def main(argv: Sequence[str] | None = None) -> int:
    """Says what images show; returns the exit code."""
    usage, _, description = __doc__.partition("\n\n")
    parser = Arguments(
        prog="python -m jaxcls.predict",
        usage=usage,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", metavar="RUN", help="a run, a checkpoint, weights or an export")
    parser.add_argument("images", metavar="IMAGES", nargs="+", help="files, folders, patterns, -")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="an object a line")
    how.add_argument("--csv", action="store_true", help="image,rank,class,probability")
    parser.add_argument("--top", type=int, default=5, help="classes of each image, at most; 5")
    parser.add_argument("--out", help="file to write, in place of standard output")
    parser.add_argument("--tta", default="", help="views: flip, five_crop, ten_crop, with commas")
    parser.add_argument("--scales", default="", help="sizes of views, such as 0.875,1,1.125")
    parser.add_argument("--fuse", default="", help="further runs, with commas")
    parser.add_argument("--weights", default="", help="of RUN and of each of --fuse, with commas")
    parser.add_argument("--mean", default="probabilities", help="of probabilities, or of logits")
    parser.add_argument("--average", help='weights to take: "ema", "swa", or "" as trained')
    parser.add_argument("--threshold", type=float, help="least probability of a decision")
    parser.add_argument("--features", help="pre_logits, stage1, ...: into --out=FILE.npy")
    parser.add_argument("--explain", metavar="DIR", help="pictures of where the network looked")
    parser.add_argument("--batch-size", type=int, default=predictor.BATCH, help="of a device; 32")
    parser.add_argument(
        "--engine", choices=("local", "ray"), default="local", help="ray: a cluster"
    )
    parser.add_argument("--shard-size", type=int, help="with ray: images of a file; 8192")
    parser.add_argument("--column", default="", help="with ray: of Parquet, the one with images")
    args = parser.parse_args(argv)
    for name in ("top", "batch_size", "shard_size"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag}={getattr(args, name)}: write at least 1")
    start_jax()
    if args.engine == "ray":
        return _with_ray(args)
    for name in ("shard_size", "column"):
        if getattr(args, name):
            raise ValueError(f"--{name.replace('_', '-')} is for --engine=ray")
    if args.features:
        if not (args.out or "").endswith(".npy"):
            raise ValueError("--features writes arrays: add --out=FILE.npy")
        for name in ("json", "csv", "tta", "scales", "fuse", "explain"):
            if getattr(args, name):
                raise ValueError(f"--features is of RUN and the image as it is: leave out --{name}")
    if args.out:
        out = Path(args.out).expanduser()
        if not out.parent.is_dir():
            raise ValueError(f"--out={args.out}: {out.parent} is no folder")
        if out.is_dir():
            raise ValueError(f"--out={args.out} is a folder: give a file")
    found = [*images(args.images)]
    model = _loaded(_loader(args))
    readers = map(predictor.readable, found)
    # where answers are shown as they come they say enough
    shown = not args.out and sys.stdout.isatty()
    bar = functools.partial(
        tqdm, total=len(found), unit="image", disable=shown or len(found) <= BAR or None
    )
    if args.features:
        rows = bar(model.features(readers, args.features))
        return _features(rows, args.features, args.out, len(found))
    answers = model.answers(readers, args.top)
    if args.explain:
        answers = _explained(model, answers, Path(args.explain).expanduser())
    answers = bar(answers)
    kind = "json" if args.json else "csv" if args.csv else "table"
    with _opened(args.out) as file:
        unread = WRITERS[kind](answers, file)
    return 1 if unread else 0


@contextlib.contextmanager
def _opened(path: str | None) -> Iterator[Any]:
    """Yields the file that is written; without one standard output."""
    if not path:
        yield sys.stdout
        return
    with (
        _named(path),
        open(
            Path(path).expanduser(), "w", encoding="utf-8", errors="backslashreplace", newline=""
        ) as file,
    ):
        yield file


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Lets errors of storage say where: a full disk does not."""
    try:
        yield
    except OSError as e:
        e.filename = e.filename or path
        raise


def images(given: Sequence[str]) -> Iterator[str]:
    """Yields the paths of the images of files, folders, patterns, lists and "-".

    Raises:
      ValueError: there are none.
    """
    for place in given:
        path = Path(_local(place)).expanduser()
        if not place:
            raise ValueError("IMAGES: one of them has no name")
        if place == "-":
            yield from _listed(sys.stdin.read(), Path(), "standard input")
        elif os.path.isdir(path):
            try:
                its = lists.open_unlabelled(str(path), root="", delimiter=" ", allowed=None)
            except ValueError as e:
                raise ValueError(str(e).replace(" (config.data.unlabelled)", "")) from e
            yield from (str(path / name) for name in its.paths)
        elif path.suffix.lower() in LISTS and os.path.isfile(path):
            yield from _listed(read_text(path), path.parent, place)
        elif not os.path.exists(path) and glob.has_magic(str(path)):
            matches = sorted(glob.iglob(str(path), recursive=True))
            if not matches:
                raise ValueError(f"{place}: no file has such a name")
            yield from matches
        else:
            yield str(path)  # one that is not there is told in its turn


def _listed(text: str, folder: Path, name: str) -> Iterator[str]:
    path_of = lists.unlabelled_path(" ")
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        raise ValueError(f"{name}: there are no paths in it")
    yield from (str(folder / path_of(line.rstrip())) for line in lines)


def _local(place: str) -> str:
    """Returns the path of a URL of this machine; others are refused."""
    url = urllib.parse.urlsplit(place) if "://" in place else None
    if url is None:
        return place
    if url.scheme != "file" or url.netloc not in ("", "localhost"):
        raise ValueError(f"{place}: not on this machine: download it, or use --engine=ray")
    return urllib.request.url2pathname(url.path)


def _loader(args: Any) -> Callable[[], Predictor]:
    """Returns what loads the network, here or on another machine."""

    def numbers(flag: str, text: str) -> tuple[float, ...]:
        try:
            return tuple(map(float, text.split(","))) if text else ()
        except ValueError:
            raise ValueError(f"--{flag}={text}: write numbers with commas") from None

    if args.threshold is not None and not 0 <= args.threshold <= 1:
        raise ValueError(f"--threshold={args.threshold:g}: write a probability, from 0 to 1")
    return functools.partial(
        predictor.load,
        args.run,
        fuse=tuple(filter(None, args.fuse.split(","))),
        tta=tuple(filter(None, args.tta.split(","))),
        tta_scales=numbers("scales", args.scales),
        weights=numbers("weights", args.weights),
        mean=args.mean,
        average=args.average,
        threshold=args.threshold,
        batch_size=args.batch_size,
        report=functools.partial(print, file=sys.stderr),
    )


def _loaded(load: Callable[[], Predictor]) -> Predictor:
    try:
        return load()
    except ValueError as e:  # here they are flags
        text = str(e).replace("config.eval.tta_scales", "--scales")
        raise ValueError(re.sub(r"config\.eval\.(?=fuse|tta|weights|mean)", "--", text)) from e


def _with_ray(args: Any) -> int:
    """Answers on the machines of a cluster; returns the exit code."""
    for name in ("json", "csv", "features", "explain"):
        if getattr(args, name):
            raise ValueError(f"--engine=ray writes Parquet: leave out --{name}")
    if not args.out:
        raise ValueError("--engine=ray writes a directory of Parquet files: add --out=DIR")
    try:
        import ray.data  # noqa: F401
    except ImportError as e:
        raise ValueError("--engine=ray needs Ray: pip install 'jaxcls[ray]'") from e
    import jax

    from jaxcls import predict_ray

    jax.config.update("jax_platforms", "cpu")  # devices are for those who compute
    whole = lambda path: path if "://" in path else os.path.abspath(os.path.expanduser(path))
    args.run, args.fuse = whole(args.run), ",".join(map(whole, filter(None, args.fuse.split(","))))
    load = _loader(args)
    size = args.shard_size or predict_ray.SIZE
    every = [*predict_ray.shards(args.images, size, args.column, lambda place: images([place]))]
    model = _loaded(load)
    keys = ("top", "tta", "scales", "weights", "mean", "batch_size")
    told = {key: getattr(args, key) for key in keys} | {"shard_size": size}
    out = whole(args.out)
    elsewhere = functools.partial(load, report=print)  # streams stay here
    unread = predict_ray.run(elsewhere, model, every, top=args.top, out=out, told=told)
    count = sum(shard.count for shard in every)
    print(f"{args.out}: {count} images, {unread} of them cannot be read", file=sys.stderr)
    return 1 if unread else 0


# -- What is written -------------------------------------------------------------------------------


def as_json(answer: Answer) -> dict[str, Any]:
    """Returns an answer as other tools read it."""
    if answer.error:
        return {"image": answer.image, "error": answer.error}
    return {
        "image": answer.image,
        "classes": list(answer.classes),
        "probabilities": list(answer.probabilities),
        "decision": answer.decision,
    }


def _complain(error: str) -> None:
    tqdm.write(visible(error), file=sys.stderr)  # around the bar


def _json(answers: Iterable[Answer], out: Any) -> int:
    unread = 0
    for answer in answers:
        unread += bool(answer.error)
        print(json.dumps(as_json(answer)), file=out, flush=True)
    return unread


def _csv(answers: Iterable[Answer], out: Any) -> int:
    unread, write = 0, lambda rows: out.write(csv_of(rows))
    write([["image", "rank", "class", "probability", "decided"]])
    for answer in answers:
        if answer.error:
            _complain(answer.error)
            unread += 1
        pairs, decided = zip(answer.classes, answer.probabilities), _decided(answer)
        write(
            [answer.image, i, name, p, int(name in decided)] for i, (name, p) in enumerate(pairs, 1)
        )
    return unread


def _decided(answer: Answer) -> tuple[str, ...]:
    """Returns the classes that are decided for."""
    found = answer.decision
    return () if found is None else (found,) if isinstance(found, str) else found


def _table(answers: Iterable[Answer], out: Any) -> int:
    unread = 0
    for answer in answers:
        if answer.error:
            _complain(answer.error)
            unread += 1
            continue
        pairs = zip(answer.classes, answer.probabilities)
        said = [f"{name} {100 * p:.1f} %" for name, p in pairs]
        if _decided(answer) != answer.classes[:1]:
            said.insert(0, f"{' + '.join(_decided(answer)) or 'none of these'}:")
        # a line each, whatever the name is
        print(visible("   ".join([answer.image, *said])), file=out)
    return unread


WRITERS = {"json": _json, "csv": _csv, "table": _table}


def _features(rows: Iterable[Row], name: str, out: str, count: int) -> int:
    """Writes the features of images, each when it is there: however many, they need no memory."""
    path = Path(out).expanduser()
    scratch, shape, unread = path.with_name(f".{path.name}.unfinished"), None, 0
    try:
        with _named(out), open(scratch, "wb") as file:
            for i, row in enumerate(rows):
                if row.error:
                    _complain(row.error)
                    unread += 1
                elif shape is None:
                    shape = row.outputs[name].shape
                    about = {"descr": "<f4", "fortran_order": False, "shape": (count, *shape)}
                    np.lib.format.write_array_header_1_0(file, about)
                    file.write(np.full((i, *shape), np.nan, "<f4"))
                if shape is not None:
                    # what cannot be read is not a number, so that rows stay where the images are
                    its = np.full(shape, np.nan) if row.error else row.outputs[name]
                    file.write(np.ascontiguousarray(its, "<f4"))
        if shape is None:
            raise ValueError("none of the images can be read")
        scratch.rename(path)
    finally:
        scratch.unlink(missing_ok=True)
    print(f"{out}: float32{[count, *shape]}", file=sys.stderr)
    return 1 if unread else 0


def _explained(model: Predictor, answers: Iterable[Answer], folder: Path) -> Iterator[Answer]:
    """Yields the answers; writes a picture for each, NUMBER_CLASS.jpg: why this class."""
    from jaxcls.report import grad_cam

    folder.mkdir(parents=True, exist_ok=True)
    answers, number = iter(answers), itertools.count(1)
    indices = {name: i for i, name in enumerate(model.class_names)}
    while some := [*itertools.islice(answers, grad_cam.BATCH)]:
        images = []
        for at, answer in enumerate(some):
            try:  # once more, and it may be gone
                if not answer.error:
                    image = predictor.readable(answer.image)[1]()
                    model.views(image, answer.image)
                    images.append(image)
            except ValueError as e:
                some[at] = Answer(answer.image, error=str(e))
        classes = np.array([indices[answer.classes[0]] for answer in some if not answer.error])
        pictures = iter(model.pictures(images, classes) if images else ())
        for answer, i in zip(some, number):
            if not answer.error:
                name = "".join(c if c.isalnum() else "_" for c in answer.classes[0])[:40]
                path = folder / f"{i:04d}_{name}.jpg"
                with _named(str(path)):
                    path.write_bytes(next(pictures))
            yield answer


if __name__ == "__main__":
    exit_with(main)
