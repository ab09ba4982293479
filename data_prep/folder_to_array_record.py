"""Writes a folder of images, or list files, as ArrayRecord: few large files, read at random.

    python data_prep/folder_to_array_record.py IMAGES RECORDS --short-side 400
    python -m jaxcls.main --config=... --config.data.source=array_record --config.data.root=RECORDS

IMAGES has train/CLASS/*.jpg and val/CLASS/*.jpg, or one folder for each class with --eval-fraction,
or, with --source list, the lists train_list.txt and val_list.txt. RECORDS gets
train-00000-of-00016.array_record, ..., val-..., and classes.txt. A file has its name only once all
of its split is written. The format of a record stands in jaxcls/data/records.py.
"""

import argparse
import contextlib
import itertools
import os
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg

from jaxcls.data.decode import BadImage, decode
from jaxcls.data.folders import CLASSES_FILE, Files, open_folder, printable
from jaxcls.data.lists import open_list
from jaxcls.data.records import array_record_module, pack_record

# encoded image or pixels, label, name, maybe the outputs of a teacher
Example = tuple[bytes | np.ndarray, int, str, *tuple[Any, ...]]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("records", type=Path)
    parser.add_argument("--source", choices=("folder", "list"), default="folder")
    parser.add_argument("--train", default="", help="as config.data.train")
    parser.add_argument("--eval", default="", help="as config.data.eval")
    parser.add_argument("--eval-fraction", type=float, default=0.0, help="folder")
    parser.add_argument("--delimiter", default=" ", help="list")
    add_record_arguments(parser)
    args = parser.parse_args(argv)

    if args.source == "folder":
        train, val = open_folder(
            root=str(args.images),
            train=args.train,
            eval=args.eval,
            eval_fraction=args.eval_fraction,
        )
    else:
        train, val = open_list(
            root=str(args.images),
            train=args.train,
            eval=args.eval,
            delimiter=args.delimiter,
            num_classes=0,
            multi_label=False,
            class_names=(),
            allowed=sys.maxsize if args.skip_bad else None,
        )
    for split, files in (("train", train), ("val", val)):
        if files is not None:
            shards = min(args.shards, len(files))
            write_split(read(files, skip_bad=args.skip_bad), args, args.records, split, shards)
    write_classes(args.records, train.class_names)


def add_record_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shards", type=int, default=16, help="files for each split")
    parser.add_argument("--short-side", type=int, default=0, help="shrink to it; 0: leave as it is")
    parser.add_argument("--quality", type=int, default=90, help="JPEG quality after shrinking")
    parser.add_argument(
        "--raw", action="store_true", help="write pixels: 5 to 10 times the size, nothing to decode"
    )
    parser.add_argument("--skip-bad", action="store_true", help="leave out unreadable images")


def read(files: Files, *, skip_bad: bool) -> Iterator[Example]:
    for index in range(len(files)):
        try:
            item = files[index]
        except BadImage as error:
            if not skip_bad:
                raise
            print(f"skipped: {error}", file=sys.stderr)
            continue
        yield item["image"], item["label"], printable(files.paths[index])


def write_split(
    examples: Iterable[Example], args: argparse.Namespace, folder: Path, split: str, shards: int
) -> int:
    """Writes examples to SPLIT-00000-of-SHARDS.array_record, ... in turn; returns how many.

    Raises:
      ValueError: there are such files already, an unreadable image (with --short-side or --raw), or
        no examples at all. Nothing is left behind then.
    """
    writer_class = array_record_module("array_record_module").ArrayRecordWriter
    if shards < 1 or args.short_side < 0 or not 1 <= args.quality <= 100:
        raise ValueError("write --shards above 0, --short-side from 0, --quality from 1 to 100")
    folder.mkdir(parents=True, exist_ok=True)
    old = sorted(folder.glob(f"{split}-*.array_record"))
    if old:
        raise ValueError(f"{old[0]} exists already: remove it or write to another folder")
    names = [f"{split}-{i:05d}-of-{shards:05d}.array_record" for i in range(shards)]
    unfinished = [folder / f".{name}.{os.getpid()}" for name in names]
    # JPEG does not become smaller, pixels hardly, and reading them would take much longer.
    writers = [writer_class(str(path), "group_size:1,uncompressed") for path in unfinished]
    count = 0
    try:
        for example in _shrink_all(examples, args):
            writers[count % shards].write(pack_record(*example))
            count += 1
        if not count:
            raise ValueError(f"{split}: no images")
        for writer in writers:
            writer.close()
        for path, name in zip(unfinished, names, strict=True):
            os.replace(path, folder / name)
    except RuntimeError as error:  # a full disk, in ArrayRecord's words
        raise ValueError(f"{folder}: {error}") from error
    finally:
        for writer, path in zip(writers, unfinished, strict=True):
            with contextlib.suppress(RuntimeError):
                writer.close()
            path.unlink(missing_ok=True)
    print(f"{split}: {count} images in {shards} files")
    return count


def write_classes(folder: Path, class_names: Iterable[str]) -> None:
    unfinished = folder / f".{CLASSES_FILE}.{os.getpid()}"
    unfinished.write_text("".join(f"{name}\n" for name in class_names), encoding="utf-8")
    os.replace(unfinished, folder / CLASSES_FILE)


def _shrink_all(examples: Iterable[Example], args: argparse.Namespace) -> Iterator[Example]:
    if not (args.short_side or args.raw):
        yield from examples
        return

    def shrunk(example: Example) -> Example | BadImage:
        try:
            image = shrink(example[0], args.short_side, args.quality, args.raw, example[2])
        except BadImage as error:
            return error
        return image, *example[1:]

    examples = iter(examples)
    with ThreadPoolExecutor() as pool:
        while chunk := list(itertools.islice(examples, 256)):  # so many are in memory at a time
            for result in pool.map(shrunk, chunk):
                if not isinstance(result, BadImage):
                    yield result
                elif args.skip_bad:
                    print(f"skipped: {result}", file=sys.stderr)
                else:
                    raise result


def shrink(data: bytes, short_side: int, quality: int, raw: bool, name: str) -> bytes | np.ndarray:
    """Returns the image as JPEG with this short side, or as it is if that is not shorter (or 0).

    With `raw` it is pixels in both cases, uint8 [H, W, 3].

    Raises:
      BadImage: it cannot be decoded.
    """
    image = decode(data, name=name)
    height, width = image.shape[:2]
    factor = short_side / min(height, width)
    if not short_side or factor >= 1:
        return image if raw else data
    size = (round(width * factor), round(height * factor))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if raw:
        return small
    return simplejpeg.encode_jpeg(small, quality=quality, colorspace="RGB", colorsubsampling="420")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
