"""Predictions of millions of images, on the machines of a Ray cluster, in shards.

A shard is some of the images, in their order, and a Parquet file of its answers. Ray Data hands
shards to actors, one for each GPU, TPU host or, without these, machine; an actor reads, decodes and
computes its shards as one machine does, with the same code in the same batches, and writes each
when it is whole. What is there stays: a command that was killed goes on with the shards that are
missing. All machines reach RUN, the images and DIR under the same names: shared storage or URLs of
what Arrow reads, s3:// and gs:// among them.
"""

import contextlib
import dataclasses
import glob
import hashlib
import json
import logging
import os
import sys
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs
from tqdm import tqdm

from jaxcls import files, predictor
from jaxcls.command import start_jax
from jaxcls.config import choose
from jaxcls.data import columns
from jaxcls.data.decode import SUFFIXES, BadImage
from jaxcls.data.folders import MAX_BYTES
from jaxcls.exported import Exported
from jaxcls.network import Network
from jaxcls.predictor import Predictor

PLAN = "plan.json"
SIZE = 8192  # images of a shard
Readable = tuple[str, Callable[[], predictor.Encoded]]


class Shard(NamedTuple):
    """Images that are answered together."""

    paths: tuple[str, ...] = ()
    table: str = ""  # or rows of a Parquet file
    column: str = ""
    start: int = 0
    rows: int = 0

    @property
    def count(self) -> int:
        """How many they are."""
        return len(self.paths) or self.rows


# -- Which images ----------------------------------------------------------------------------------


def storage(place: str) -> tuple[fs.FileSystem, str]:
    """Returns what reads a path or a URL, and what it is called there.

    Raises:
      ValueError: there is no such storage.
    """
    if "://" not in place:
        return fs.LocalFileSystem(), str(Path(place).expanduser().absolute())
    try:
        return fs.FileSystem.from_uri(place)
    except (pa.ArrowException, OSError) as e:
        raise ValueError(f"{place}: {columns.reason(e)}") from e


def url(place: str, path: str) -> str:
    """Returns what a path in the storage of a place is called: with its scheme and its query."""
    if "://" not in place:
        return path
    query = place.partition("?")[1:]
    return f"{place.partition('://')[0]}://{path}{''.join(query)}"


def shards(
    given: Sequence[str], size: int, column: str, found: Callable[[str], Iterable[str]]
) -> Iterator[Shard]:
    """Yields the shards of images, in their order.

    Args:
      given: files, folders, lists, patterns, Parquet files and folders of them; paths or URLs.
      size: images of a shard, at most.
      column: of tables; "": the one with images.
      found: place on this machine -> paths of its images.

    Raises:
      ValueError: there are none, or a place cannot be read.
    """
    paths: list[str] = []
    for place in given:
        tables = _tables(place)
        for path in () if tables else _remote(place) if "://" in place else found(place):
            paths.append(path if "://" in path else str(Path(path).absolute()))
            if len(paths) == size:
                yield Shard(tuple(paths))
                paths = []
        if tables and paths:  # the order is that of the command
            yield Shard(tuple(paths))
            paths = []
        for table in tables:
            name, count = _opened(table, column)
            for start in range(0, count, size):
                yield Shard((), table, name, start, min(size, count - start))
    if paths:
        yield Shard(tuple(paths))


def _tables(place: str) -> list[str]:
    """Returns the Parquet files of a place; none where there are images of their own."""
    if place == "-" or ("://" not in place and glob.has_magic(place)):
        return []
    at, path = storage(place)
    if path.endswith(".parquet"):
        return [place]
    if "://" not in place and not any(Path(path).glob("*.parquet")):
        return []  # a folder of images, which one machine reads faster
    if at.get_file_info(path).type != fs.FileType.Directory:
        return []
    return [url(place, name) for name in _below(at, path) if name.endswith(".parquet")]


def _remote(place: str) -> list[str]:
    """Returns the images of a URL: a folder, a list or a file."""
    at, path = storage(place)
    if path.endswith(".txt"):
        with at.open_input_stream(path) as file:
            lines = file.read().decode(errors="replace").split("\n")
        base = path.rpartition("/")[0]
        names = [line.strip() for line in lines if line.strip()]
        return [name if "://" in name else url(place, f"{base}/{name}") for name in names]
    if at.get_file_info(path).type != fs.FileType.Directory:
        return [place]
    names = [name for name in _below(at, path) if name.lower().endswith(SUFFIXES)]
    if not names:
        raise ValueError(f"{place} has no images")
    return [url(place, name) for name in names]


def _below(at: fs.FileSystem, path: str) -> list[str]:
    every = at.get_file_info(fs.FileSelector(path, recursive=True))
    return sorted(it.path for it in every if it.is_file and it.base_name[:1] not in "._")


def _opened(table: str, column: str) -> tuple[str, int]:
    """Returns the column of images of a Parquet file, and its number of rows."""
    at, path = storage(table)
    try:
        with at.open_input_file(path) as file:
            about = pq.ParquetFile(file)
            schema, count = about.schema_arrow, about.metadata.num_rows
    except (pa.ArrowException, OSError) as e:
        raise ValueError(f"{table}: {columns.reason(e)}") from e
    if column:
        choose(f"{table}: --column", column, schema.names)
    else:
        images = [field.name for field in schema if columns.is_bytes(field.type)]
        usual = [name for name in columns.IMAGES if name in schema.names]
        column = next(iter([*images, *usual]), "")
        if not column or len(images) > 1:
            raise ValueError(
                f"{table}: which column has the images? --column=NAME, of {', '.join(schema.names)}"
            )
    return column, count


# -- What is done with them ------------------------------------------------------------------------


def readers(shard: Shard) -> Iterator[Readable]:
    """Yields name and reader of the images of a shard."""
    if not shard.table:
        yield from map(_reader, shard.paths)
        return
    at, path = storage(shard.table)
    base = url(shard.table, path.rpartition("/")[0])
    with at.open_input_file(path) as file:
        table, row = pq.ParquetFile(file), 0
        for group in range(table.num_row_groups):
            count = table.metadata.row_group(group).num_rows
            first, last = max(shard.start, row), min(shard.start + shard.rows, row + count)
            if first < last:
                cells = table.read_row_group(group, columns=[shard.column])[shard.column]
                for number in range(first, last):
                    name = f"{shard.table.partition('?')[0]}: row {number}"
                    yield _of_cell(cells[number - row].as_py(), name, base)
            row += count


def _of_cell(cell: Any, name: str, base: str) -> Readable:
    if isinstance(cell, dict):
        cell = cell.get("bytes") or cell.get("path")
    if isinstance(cell, str):
        if "://" not in cell and not cell.startswith("/"):
            cell = url(base, f"{storage(base)[1]}/{cell}")
        return _reader(cell)

    def read() -> bytes:
        if not isinstance(cell, bytes):
            raise BadImage(f"{name}: there is no image")
        return cell

    return name, read


def _reader(path: str) -> Readable:
    if "://" not in path:
        return predictor.readable(path)

    def read() -> bytes:
        at, name = storage(path)
        try:
            with at.open_input_file(name) as file:
                if file.size() > MAX_BYTES:
                    raise BadImage(f"{path}: {file.size():,} bytes are no image")
                return file.read()
        except FileNotFoundError as e:
            raise BadImage(f"{path}: no such file") from e
        except (OSError, pa.ArrowException) as e:
            raise BadImage(f"{path}: {columns.reason(e)}") from e

    return path.partition("?")[0], read


def answer(model: Predictor, shard: Shard, top: int, to: str) -> int:
    """Writes the answers of a shard, all of them or nothing; returns how many cannot be read."""
    found = [*model.answers(readers(shard), top)]
    several = model.network.multi_label
    decision = pa.list_(pa.string()) if several else pa.string()
    table = pa.table(
        {
            "image": pa.array([it.image for it in found], pa.string()),
            "classes": pa.array([it.classes for it in found], pa.list_(pa.string())),
            "probabilities": pa.array([it.probabilities for it in found], pa.list_(pa.float32())),
            "decision": pa.array([it.decision for it in found], decision),
            "error": pa.array([it.error or None for it in found], pa.string()),
        }
    )
    at, path = storage(to)
    folder, _, name = path.rpartition("/")
    scratch = f"{folder}/.{name}.{uuid.uuid4().hex}"
    pq.write_table(table, scratch, filesystem=at)
    at.move(scratch, path)
    return sum(bool(it.error) for it in found)


class Worker:
    """What an actor is: a network, and the shards that come to it."""

    def __init__(self, load: Callable[[], Predictor], top: int):
        """Loads the network."""
        start_jax()
        self.model, self.top = load(), top

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Answers shards; returns how many images they have, and how many cannot be read."""
        done = [(Shard(*json.loads(text)), to) for text, to in zip(batch["shard"], batch["to"])]
        unread = [answer(self.model, shard, self.top, to) for shard, to in done]
        return {"images": np.array([shard.count for shard, _ in done]), "unread": np.array(unread)}


# -- The command -----------------------------------------------------------------------------------


def plan(model: Predictor, told: Mapping[str, Any], all: Sequence[Shard]) -> dict[str, Any]:
    """Returns what the answers of a directory are of: two plans are equal if they would be."""
    weights, names = hashlib.sha256(), hashlib.sha256()
    fields = [field.name for field in dataclasses.fields(Network) if field.name != "version"]
    networks = [model.network, *model.networks[1:]]  # the first decides, by its threshold
    for net, variables in zip(networks, model.variables, strict=True):
        weights.update(repr([getattr(net, name) for name in fields]).encode())
        if isinstance(net, Exported):
            for part in net.files:
                weights.update(part.read_bytes())
        for leaf in jax.tree.leaves(variables):
            weights.update(np.asarray(leaf).tobytes())
    for shard in all:
        names.update(json.dumps(shard).encode())
    return {
        **told,
        "images": sum(shard.count for shard in all),
        "shards": len(all),
        "names": names.hexdigest(),
        "weights": weights.hexdigest(),
    }


def file_of(number: int) -> str:
    """Returns the name of a shard's file."""
    return f"part-{number:06d}.parquet"


def missing(out: str, made: Mapping[str, Any]) -> list[int]:
    """Returns the numbers of the shards that are not there; DIR is begun where it is new.

    Raises:
      ValueError: DIR has something else.
    """
    at, path = storage(out)
    at.create_dir(path, recursive=True)
    every = at.get_file_info(fs.FileSelector(path))
    names = {it.base_name for it in every if it.base_name[0] != "."}
    if PLAN in names:
        with at.open_input_stream(f"{path}/{PLAN}") as file:
            text = file.read()
        try:
            there = json.loads(text)
            if not isinstance(there, dict):
                raise ValueError("it is no JSON object")
        except (ValueError, RecursionError) as e:
            raise ValueError(
                f"{url(out, path)}/{PLAN} cannot be read ({files.line(e)}): choose another "
                "directory, or remove it"
            ) from e
        if differing := [key for key in made if there.get(key) != made[key]]:
            raise ValueError(
                f"--out={out} has answers of another command ({', '.join(differing)} differ): "
                "choose another directory, or remove it"
            )
    elif names:
        raise ValueError(f"--out={out} is not empty: choose another directory")
    else:
        with at.open_output_stream(f"{path}/.{PLAN}") as file:
            file.write(json.dumps(made, indent=1).encode())
        at.move(f"{path}/.{PLAN}", f"{path}/{PLAN}")
    return [number for number in range(made["shards"]) if file_of(number) not in names]


def run(
    load: Callable[[], Predictor],
    model: Predictor,
    all: Sequence[Shard],
    *,
    top: int,
    out: str,
    told: Mapping[str, Any],
) -> int:
    """Answers the shards that are not there yet; returns how many images cannot be read, of all.

    Args:
      load: returns the network, on another machine.
      model: the same, here.
      all: shards.
      top: classes of each answer, at most.
      out: the directory, DIR.
      told: what answers depend on besides, for `plan`.

    Raises:
      ValueError: DIR has something else, or a machine fails.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # an error comes as an exception
    import ray.data

    todo = missing(out, plan(model, told, all))
    at, path = storage(out)
    items = [{"shard": json.dumps(all[i]), "to": url(out, f"{path}/{file_of(i)}")} for i in todo]
    if len(todo) < len(all):
        print(f"{out}: {len(all) - len(todo)} of {len(all)} shards are there", file=sys.stderr)
    if items:
        with _quiet():
            ray.init(log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        needs, actors = resources([n["Resources"] for n in ray.nodes() if n["Alive"]])
        done = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            Worker,
            fn_constructor_args=(load, top),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=min(actors, len(items))),
            **needs,
        )
        total = sum(all[i].count for i in todo)
        try:
            with tqdm(total=total, unit="image", disable=None) as bar:
                for row in done.iter_rows():
                    bar.update(int(row["images"]))
        except ray.exceptions.RayError as e:
            cause = getattr(e, "cause", None) or e
            raise ValueError(f"--engine=ray: a machine failed: {files.line(cause)}") from e
    for it in at.get_file_info(fs.FileSelector(path)):
        if it.base_name.startswith(".part-"):  # of what was killed
            at.delete_file(it.path)
    places = [f"{path}/{file_of(i)}" for i in range(len(all))]
    errors = [pq.read_table(place, columns=["error"], filesystem=at)["error"] for place in places]
    return sum(len(column) - column.null_count for column in errors)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps off stderr what Ray's C code says as it starts, and JAX of a fork before an exec."""
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


def resources(nodes: Sequence[Mapping[str, float]]) -> tuple[dict[str, Any], int]:
    """Returns what an actor takes, and how many there may be: of GPUs, TPU hosts or machines."""
    if gpus := sum(int(node.get("GPU", 0)) for node in nodes):
        return {"num_gpus": 1}, gpus
    if tpus := [node["TPU"] for node in nodes if node.get("TPU")]:
        return {"resources": {"TPU": min(tpus)}}, len(tpus)
    cpus = [int(node["CPU"]) for node in nodes if node.get("CPU")]
    return {"num_cpus": min(cpus)}, sum(n // min(cpus) for n in cpus)
