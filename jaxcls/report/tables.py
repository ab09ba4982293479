"""Predictions of every image as a table: CSV, and Parquet with all probabilities."""

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from jaxcls import files
from jaxcls.data.access import Source, in_threads, item_of
from jaxcls.data.arrays import Subset, WithBackground
from jaxcls.data.folders import Files
from jaxcls.report import measures
from jaxcls.report.figures import Evaluation

COLUMNS = ("image", "label", "prediction", "probability")


def image_names(source: Source, numbers: np.ndarray) -> list[str]:
    """Returns the paths of these images, or what those that are no files are called.

    Records are read for it.
    """
    while isinstance(source, (Subset, WithBackground)):
        numbers = source.indices[numbers] if isinstance(source, Subset) else numbers
        source = source.source
    if isinstance(source, Files):
        return [source.path(i) for i in numbers.tolist()]
    return in_threads(lambda i: item_of(source, i)["name"], numbers.tolist())


def rows(evaluation: Evaluation) -> list[tuple[str, str, float]]:
    """Returns label, prediction and its probability of each image.

    Of images of several classes the names are joined by ";", the prediction is all classes that
    `Network.decide` says, and the probability is the largest. Of images of one class it is the most
    likely one, whatever the threshold.
    """
    scores, names = evaluation.scores, evaluation.names
    if scores.labels.ndim == 1:
        found = evaluation.predictions
        columns = (x.tolist() for x in (found.labels, found.predictions, found.probability))
        return [(names[y] if y >= 0 else "", names[k], p) for y, k, p in zip(*columns)]
    probability = measures.sigmoid(scores.logits)
    joined = lambda marks: ";".join(names[k] for k in np.flatnonzero(marks).tolist())
    shown, largest = evaluation.network.decide(probability), probability.max(1).tolist()
    return [(joined(y > 0), joined(p), q) for y, p, q in zip(scores.labels, shown, largest)]


def as_csv(images: Sequence[str], rows: Sequence[tuple[str, str, float]]) -> str:
    """Returns the text of predictions.csv."""
    found = zip(images, rows, strict=True)
    return files.csv_of(
        [COLUMNS, *((image, label, said, f"{p:.6g}") for image, (label, said, p) in found)]
    )


def check(path: str) -> None:
    """Refuses `config.eval.predictions` that cannot be written.

    Raises:
      ValueError: what is wrong.
    """
    if not path.endswith(".parquet"):
        raise ValueError(
            f"config.eval.predictions = {path!r}: write the name of a Parquet file, such as "
            "predictions.parquet; predictions.csv is in the report"
        )
    if not Path(path).expanduser().absolute().parent.is_dir():
        raise ValueError(f"config.eval.predictions = {path!r}: there is no such folder")


def write_parquet(path: str, evaluation: Evaluation, source: Source) -> None:
    """Writes the columns of predictions.csv and `probabilities`, a list of float32 for each image.

    The names of the classes, in the order of the lists, are in the schema's metadata as
    "class_names", in JSON. The file is there whole or not at all.
    """
    import pyarrow as pa  # only where it is asked for
    import pyarrow.parquet as pq

    scores = evaluation.scores
    classes = scores.logits.shape[1]
    labels, predictions, probability = zip(*rows(evaluation))
    parts = (
        measures.softmax(z, evaluation.network.temperature) if scores.labels.ndim == 1
        else measures.sigmoid(z)
        for (z,) in measures.chunks(scores.logits)
    )  # fmt: skip
    schema = pa.schema(
        [
            *((name, pa.string()) for name in COLUMNS[:3]),
            ("probability", pa.float64()),
            ("probabilities", pa.list_(pa.float32(), classes)),
        ],
        metadata={"class_names": json.dumps(evaluation.names)},
    )
    images = image_names(source, scores.numbers)
    target = Path(path).expanduser()
    temporary = target.with_name(target.name + ".tmp")
    try:
        with pq.ParquetWriter(temporary, schema) as writer:
            start = 0
            for p in parts:
                at = slice(start, start + len(p))
                flat = pa.array(p.astype(np.float32).ravel())
                columns = [images[at], labels[at], predictions[at], probability[at]]
                columns.append(pa.FixedSizeListArray.from_arrays(flat, classes))
                writer.write_batch(pa.record_batch(columns, schema=schema))
                start += len(p)
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        code = e.errno or errno.EIO
        raise OSError(code, os.strerror(code), str(target)) from e
