"""Tables of images: CSV, Parquet and Arrow files, folders of Hugging Face's datasets."""

import io
import json
import os
import pickle
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from transforms import first_bytes

from configs import base
from jaxcls.data import columns, identity, loader, sources
from jaxcls.data.decode import BadImage, decode


def png(grey):
    out = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), grey, np.uint8)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def root(tmp_path):
    for i in range(6):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    return tmp_path


def opened(root, source="table", needs_labels="supervised", **changes):
    config = base.get_config()
    config.data.update(source=source, root=str(root), **changes)
    return sources.open(**config.data, needs_labels=needs_labels)


def greys(source):
    return [int(decode(source[i]["image"])[0, 0, 0]) for i in range(len(source))]


def parquet(path, columns, rows=2, features=None):
    table = pa.table(columns)
    if features:
        told = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": told})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)


# -- CSV ---------------------------------------------------------------------------------------


def test_csv_by_the_names_of_its_columns(root):
    (root / "a, b.png").write_bytes(png(9))
    text = '\ufeffid,image,label\r\n7,0.png,dog\r\n\r\n8,"a, b.png","cat"\r\n9,1.png,"d\n1"\r\n'
    (root / "train.csv").write_text(text)
    (root / "val.csv").write_text("image,label\n2.png,cat\n")
    data = opened(root)
    assert data.class_names == ("cat", "d\\n1", "dog")
    assert data.train.labels.tolist() == [2, 0, 1]
    assert (greys(data.train), greys(data.eval)) == ([0, 9, 1], [2])
    assert [data.train.name(i).rpartition(":")[2] for i in range(3)] == ["2)", "4)", "5)"]
    assert data.eval.labels.tolist() == [0]
    assert pickle.loads(pickle.dumps(data.train))[1]["image"] == png(9)


@pytest.mark.parametrize(("name", "text", "changes"), [
    ("train.tsv", "file\tkind\n0.png\t1\n1.png\t0\n", {"label_columns": ("kind",)}),
    ("list.csv", "path;label\n0.png;1\n1.png;0\n", {"train": "list.csv", "delimiter": ";"}),
    ("train.jsonl", '{"image": "0.png", "label": 1}\n\n{"image": "1.png", "label": 0}\n', {}),
])  # fmt: skip
def test_other_texts(root, name, text, changes):
    (root / name).write_text(text)
    data = opened(root, **changes)
    assert data.train.labels.tolist() == [1, 0]
    assert (data.class_names, data.eval) == (("0", "1"), None)
    assert greys(data.train) == [0, 1]


def test_a_column_of_splits(root, caplog):
    (root / "train.csv").write_text(
        "image,label,split\n0.png,a,train\n1.png,b,Test\n2.png,b,train\n3.png,a,x\n4.png,a,val\n"
    )
    data = opened(root, split_column="split")
    assert (greys(data.train), greys(data.eval)) == ([0, 2], [4])
    assert "2 rows are neither train nor val in the column split, and left out" in caplog.text
    data = opened(root, split_column="split", eval="Test")
    assert (greys(data.eval), data.eval.labels.tolist()) == ([1], [1])
    with pytest.raises(ValueError, match="'split' has no 'y', but Test, train, val, x"):
        opened(root, split_column="split", eval="y")
    with pytest.raises(ValueError, match="the column 'label' has no 'train', but a, b"):
        opened(root, split_column="label")


def test_names_and_numbers_of_classes(root):
    (root / "train.csv").write_text("image,label\n0.png,dog\n1.png,ant\n")
    assert opened(root, class_names=("bee", "dog", "ant")).train.labels.tolist() == [1, 2]
    (root / "val.csv").write_text("image,label\n0.png,dug\n")
    with pytest.raises(ValueError, match=r"val.csv:2: the label 'dug' is no class .*mean dog"):
        opened(root)
    (root / "classes.txt").write_text("bee\ndog\n")
    with pytest.raises(ValueError, match=r"train.csv:3: the label 'ant' is no class"):
        opened(root)
    (root / "train.csv").write_text("image,label\n0.png,1\n1.png,2\n")
    (root / "val.csv").unlink()
    (root / "classes.txt").unlink()
    assert opened(root).class_names == ("0", "1", "2")
    assert opened(root, num_classes=5).class_names == ("0", "1", "2", "3", "4")
    with pytest.raises(ValueError, match=r"train.csv:3: the label 2 in 'label' is out of range"):
        opened(root, num_classes=2)


def test_numbers_in_a_text_with_names_beside_it(root):
    (root / "classes.txt").write_text("bee\ndog\nant\n")
    (root / "train.csv").write_text("image,label\n0.png,2\n1.png,0\n")
    data = opened(root)
    assert (data.class_names, data.train.labels.tolist()) == (("bee", "dog", "ant"), [2, 0])
    (root / "classes.txt").write_text("0\n2\n4\n")  # these are names
    assert opened(root).train.labels.tolist() == [1, 0]
    (root / "train.csv").write_text("image,label\n0.png,2\n1.png,1\n")
    with pytest.raises(ValueError, match="train.csv:3: the label '1' is no class"):
        opened(root)


def test_evaluation_by_numbers_of_classes_that_have_names(root):
    (root / "train.csv").write_text("image,label\n0.png,dog\n1.png,ant\n")
    (root / "val.csv").write_text("image,label\n0.png,1\n")
    with pytest.raises(ValueError, match="val.csv:2: the label '1' is no class"):
        opened(root)
    (root / "val.csv").unlink()
    (root / "val.jsonl").write_text('{"image": "0.png", "label": 1}')
    with pytest.raises(ValueError, match="'label' has numbers, that of the training .* has names"):
        opened(root)
    assert opened(root, class_names=("ant", "dog")).eval.labels.tolist() == [1]
    with pytest.raises(ValueError, match="2 names of classes, config.data.num_classes = 3"):
        opened(root, num_classes=3)


@pytest.mark.parametrize("text", [
    "image,label\n0.png,2.0\n1.png,10.0\n2.png,\n3.png,0.0\n",
    "image,label\n0.png,2\n1.png,10\n2.png,NaN\n3.png,0\n",
    "image , label\n0.png, 2\n1.png, 10\n2.png, \n3.png, 0 \n",
    '{"image": "0.png", "label": 2}\n{"image": "1.png", "label": 10.0}\n'
    '{"image": "2.png", "label": NaN}\n{"image": "3.png", "label": 0}\n',
])  # fmt: skip
def test_numbers_as_programs_write_them_where_some_are_missing(root, text):
    name = f"train.{'jsonl' if text[0] == '{' else 'csv'}"
    (root / name).write_text(text)
    data = opened(root, needs_labels="")
    assert data.train.labels.tolist() == [2, 10, -1, 0]
    assert data.class_names == tuple(map(str, range(11)))
    with pytest.raises(ValueError, match=rf"{name}:\d: no label in the column 'label'"):
        opened(root)
    (root / name).write_text(text.replace("10.0", "1.5").replace("10", "1.5"))
    if name == "train.jsonl":
        with pytest.raises(ValueError, match=r"jsonl:2: the label 1.5 in 'label' is no number"):
            opened(root, needs_labels="")
    else:
        assert "1.5" in opened(root, needs_labels="").class_names


def test_spaces_around_names(root):
    (root / "train.csv").write_text('image, label\n0.png, dog\n1.png, "a, cat"\n2.png,dog \n')
    data = opened(root)
    assert (data.class_names, data.train.labels.tolist()) == (("a, cat", "dog"), [1, 0, 1])
    parquet(root / "val.parquet", {"image": ["0.png"], "label": ["dog "]})
    assert opened(root).eval.labels.tolist() == [1]


def test_names_of_files_in_capitals(root):
    (root / "A.JSONL").write_text('{"image": "0.png", "label": 0}\n{"image": "1.png", "label": 1}')
    assert opened(root, train="A.JSONL").train.labels.tolist() == [0, 1]
    parquet(root / "A.PARQUET", {"image": [png(4), png(2)], "label": [0, 1]})
    assert greys(opened(root, train="A.PARQUET").train) == [4, 2]


def test_rows_without_a_label(root):
    (root / "train.csv").write_text("image,label\n0.png,dog\n1.png,\n2.png,ant\n")
    with pytest.raises(ValueError, match=r"train.csv:3: no label in the column 'label'"):
        opened(root)
    data = opened(root, needs_labels="", unlabelled_share=0.5)
    assert data.train.labels.tolist() == [1, -1, 0]
    assert data.num_train == 2
    (root / "train.csv").write_text("image\n0.png\n1.png\n")
    with pytest.raises(ValueError, match=r"no column label, labels, .*the columns are image \("):
        opened(root)
    with pytest.raises(ValueError, match="no image has a label, and nothing names the classes"):
        opened(root, needs_labels="")
    data = opened(root, needs_labels="", class_names=("a", "b"))
    assert data.train.labels.tolist() == [-1, -1]


MARKS = "image,cat,dog,tail\n0.png,1,0,1\n1.png,0,0,0\n2.png,{},1,1\n"


def test_columns_of_marks(root):
    columns = {"label_columns": ("cat", "dog", "tail")}
    (root / "train.csv").write_text(MARKS.format("0"))
    data = opened(root, **columns)
    assert data.class_names == ("cat", "dog", "tail")
    assert (data.train.labels.dtype, data.train.marks) == (np.int8, 3)
    assert data.train.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 1]]
    (root / "train.csv").write_text(MARKS.format("0.25"))
    assert opened(root, **columns).train.labels.tolist()[2] == [0.25, 1, 1]
    (root / "train.csv").write_text("image,cat,dog\n0.png,True,FALSE\n1.png,false,true\n2.png,,\n")
    data = opened(root, label_columns=("cat", "dog"), needs_labels="")
    assert data.train.labels.tolist() == [[1, 0], [0, 1], [-1, -1]]
    marks = {"cat": [1.0, 0.0, float("nan")], "dog": [0.0, 1.0, float("nan")]}
    parquet(root / "marks.parquet", {"image": ["0.png", "1.png", "2.png"], **marks})
    data = opened(root, train="marks.parquet", label_columns=("cat", "dog"), needs_labels="")
    assert data.train.labels.tolist() == [[1, 0], [0, 1], [-1, -1]]
    for cell, message in (("2", "is no mark"), ("x", "is no mark"), ("", "no mark in the column")):
        (root / "train.csv").write_text(MARKS.format(cell))
        with pytest.raises(ValueError, match=rf"train.csv:4: .*{message}.*|.*'cat'.*{message}"):
            opened(root, **columns)


@pytest.mark.parametrize(("cells", "names", "marks"), [
    (['"0,1,1"', '"1,0,0"', '"0,0,0"'], "012", [[0, 1, 1], [1, 0, 0], [0, 0, 0]]),
    (['"cat, dog"', "cat", '"eel,cat"'], None, [[1, 1, 0], [1, 0, 0], [1, 0, 1]]),
    (['"0,2"', "2", '"1,0"'], "012", [[1, 0, 1], [0, 0, 1], [1, 1, 0]]),
    (['"0,1"', "-1", '"1, 0"', ""], "01", [[0, 1], [-1, -1], [1, 0], [-1, -1]]),
    (["-1", "2", '"0,2"'], "012", [[-1] * 3, [0, 0, 1], [1, 0, 1]]),
])  # fmt: skip
def test_a_column_of_several_classes(root, cells, names, marks):
    rows = "".join(f"{i}.png,{cell}\n" for i, cell in enumerate(cells))
    (root / "train.csv").write_text(f"image,label\n{rows}")
    data = opened(root, multi_label=True, needs_labels="" if "-1" in cells else "bce")
    assert data.train.labels.tolist() == marks
    assert data.class_names == (tuple(names) if names else ("cat", "dog", "eel"))


def test_many_rows_take_little_memory(root):
    with (root / "train.csv").open("w") as file:
        file.write("image,label,more\n")
        file.writelines(f"0.png,class{i % 7},{'x' * 20}\n" for i in range(100_000))
    data = opened(root)
    assert len(data.train) == 100_000
    paths = data.train.paths
    assert paths._data.nbytes + paths._ends.nbytes + data.train.labels.nbytes < 100_000 * 20
    assert (paths[99_999], paths[-1], len(paths[5:8])) == ("0.png", "0.png", 3)
    with pytest.raises(IndexError):
        paths[100_000]


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        (None, {}, r"no train.csv, .tsv, .jsonl, .parquet or .arrow: name the file in config"),
        (None, {"train": "x.csv"}, r"x.csv: no such file \(config.data.train, relative to root\)"),
        (None, {"train": "0.png"}, r"0.png: a table is a file of one of .csv, .tsv"),
        ("", {}, r"train.csv:1: the first line names the columns, each once; it has nothing"),
        ("a,a\n1,2\n", {}, r"train.csv:1: .* each once; it has 'a', 'a'"),
        ("image,label\n", {}, r"train.csv: there are no rows below the names"),
        ("image,label\n0.png\n", {}, r"train.csv:2: 1 cells, there are 2 columns"),
        ('image,label\n0.png,"a\n', {}, r"train.csv:2: no row of a CSV: unexpected end"),
        (
            "a,b\n0.png,1\n",
            {},
            r"train.csv: no column image, .* the columns are a, b \(config.data",
        ),
        (
            "image,lable\n0.png,1\n",
            {"label_columns": ("label",)},
            r"no column 'label', the columns are image, lable \(config.data.label_columns: did you "
            r"mean lable\)",
        ),
        ("image;label\n0.png;1\n", {}, "are image;label .*or config.data.delimiter, is it ';'"),
        ("image,label\n0.png,1\n", {"split_column": "x"}, "no column 'x', .*config.data.split_col"),
        ("image,label\nx.png,0\n0.png,1\n", {}, r"x.png \(.*train.csv:2\): no such file"),
        ("image,label\n0.png,0\n1.png,900\n", {}, r"csv:3: the label 900 makes 901 classes of 2"),
        ("image,label\n0.png,a\n1.png,a\n", {}, "one class only, 'a', .* there is one label only"),
        ("image,label\n0.png,0\n", {"delimiter": "::"}, "config.data.delimiter = '::': write one"),
        ("image,label\n0.png,0\n", {"label_columns": (1,)}, "label_columns = .*: write names of"),
    ],
)
def test_mistakes_in_a_csv(root, text, changes, message):
    if text is not None:
        (root / "train.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        opened(root, **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"image": "x\\u0000/0.png", "label": 0}\n', r"x\\x00/0.png \(.*jsonl:1\): no such file"),
        ('{"image": "0.png", "label": 0, "\\ud800": 1}\n', "jsonl:1: no object of JSON: 'utf-8' "),
        ('{"image": "0.png", "label": %s}\n' % (9**30), "'label' is of no one type: .* too large"),
        (
            '{"image": "0.png", "label": "\0"}\n',
            r"jsonl is not a text file in UTF-8: .* zero bytes",
        ),
        ('{"image": null, "label": 0}\n', "jsonl:1: no path in the column 'image', as in 1 of 1"),
    ],
)
def test_hostile_lines_of_json(root, text, message):
    (root / "train.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        opened(root)


def test_what_is_no_file(root):
    os.mkfifo(root / "a.csv")
    (root / "b.parquet").mkdir()
    (root / "c.csv").symlink_to("c.csv")
    for name, message in (("a.csv", "no such file"), ("b.parquet", "a folder: name its files"),
                          ("c.csv", "no such file")):  # fmt: skip
        with pytest.raises(ValueError, match=rf"{name}.* {message} \(config.data.train"):
            opened(root, train=name)


def test_text_that_is_none(root):
    (root / "train.csv").write_bytes(b"image,label\n0.png,a\n1.png,\xff\n")
    with pytest.raises(ValueError, match=r"train.csv: the column 'label' is not text in UTF-8"):
        opened(root)
    (root / "train.csv").write_bytes("image,label,größe\n0.png,a,1\n1.png,b,2\n".encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"train.csv:1: the names of the columns are no text in UTF"
    ):
        opened(root)


# -- Parquet -----------------------------------------------------------------------------------


def cell(i):
    return {"bytes": png(i), "path": f"{i}.png"}


@pytest.mark.parametrize("image", [
    [cell(0), cell(1), cell(2), cell(3), cell(4)],
    [{"bytes": None, "path": f"{i}.png"} for i in range(5)],
    [png(i) for i in range(5)],
    [f"{i}.png" for i in range(5)],
])  # fmt: skip
def test_parquet(root, image, caplog):
    kinds = ["b", "a", "b", "c", "a"]
    parquet(root / "train-0.parquet", {"image": image[:3], "label": kinds[:3]})
    parquet(root / "train-1.parquet", {"image": image[3:], "label": kinds[3:]})
    parquet(root / "val.parquet", {"image": image[:1], "label": kinds[:1]})
    data = opened(root)
    assert caplog.messages == ["2 of 3 classes have no evaluation images: a, c"]
    assert data.class_names == ("a", "b", "c")
    assert data.train.labels.tolist() == [1, 0, 1, 2, 0]
    assert greys(data.train) == [0, 1, 2, 3, 4]
    again = pickle.loads(pickle.dumps(data.train))
    assert greys(again) == [0, 1, 2, 3, 4]
    first = identity.of(data)
    parquet(root / "train-1.parquet", {"image": image[3:], "label": kinds[3:]})
    assert identity.differences(first, identity.of(opened(root))) == []
    parquet(root / "train-1.parquet", {"image": image[3:], "label": ["c", "b"]})
    found = identity.differences(first, identity.of(opened(root)))
    assert found[0].startswith(("other labels of the training", "other training images"))
    if not isinstance(image[0], str):
        assert data.train[3]["name"].startswith(f"{root}/train-1.parquet: row 0")


def test_groups_of_rows_are_read_once_and_dropped(root, monkeypatch):
    """By several threads, and in worker processes, with the batches that one thread makes."""
    monkeypatch.setattr(columns, "GROUP_BYTES", 3000)
    rng = np.random.default_rng(0)
    blobs = [rng.bytes(800) for _ in range(40)]
    parquet(root / "train.parquet", {"image": blobs, "label": [i % 4 for i in range(40)]}, rows=2)
    data = opened(root)
    read, original = [], pq.ParquetFile.read_row_group

    def counted(self, group, *arguments, **options):
        read.append(group)
        return original(self, group, *arguments, **options)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    assert [data.train[i]["image"] for i in range(40)] == blobs
    assert read == list(range(20))
    held = [e[1].nbytes for e in columns._groups._entries.values()]
    assert sum(held) <= 3000
    wrong = []

    def look():
        for i in np.random.default_rng(1).permutation(40).tolist():
            if data.train[i]["image"] != blobs[i]:
                wrong.append(i)

    threads = [threading.Thread(target=look) for _ in range(6)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not wrong


@pytest.mark.parametrize("kind", ["parquet", pytest.param("arrow", marks=pytest.mark.ci)])
def test_batches_from_worker_processes(root, kind):
    rng = np.random.default_rng(0)
    table = pa.table({"image": [rng.bytes(99) for _ in range(20)], "label": [0, 1] * 10})
    if kind == "parquet":
        pq.write_table(table, root / "train.parquet", row_group_size=3)
    else:
        with pa.ipc.new_stream(root / "train.arrow", table.schema) as out:
            out.write_table(table, max_chunksize=3)
    data = opened(root)
    how = {"batch_size": 4, "seed": 0, "start_step": 0, "num_steps": 7}
    batches = []
    for workers in (0, 1):
        options = loader.Options(threads=2, workers=workers, prefetch=1)
        with loader.train_batches(data.train, first_bytes, **how, options=options) as made:
            batches.append([b["image"] for b in made])
    np.testing.assert_array_equal(*batches)


def test_lists_of_classes_and_soft_labels(root):
    image = [png(i) for i in range(3)]
    parquet(root / "train.parquet", {"image": image, "label": [["b", "a"], [], ["c"]]})
    data = opened(root, multi_label=True)
    assert data.class_names == ("a", "b", "c")
    assert data.train.labels.tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    parquet(root / "train.parquet", {"image": image, "label": [[0, 2], None, [1]]})
    data = opened(root, multi_label=True, needs_labels="")
    assert data.train.labels.tolist() == [[1, 0, 1], [-1] * 3, [0, 1, 0]]
    parquet(root / "train.parquet", {"image": image, "label": [[0.5, 0.5], [1, 0], [0, 0.25]]})
    data = opened(root, multi_label=True, class_names=("x", "y"))
    assert data.train.labels.dtype == np.float32
    assert data.train.labels.tolist() == [[0.5, 0.5], [1, 0], [0, 0.25]]
    parquet(root / "train.parquet", {"image": image, "label": [[0.5, 0.5], [1.5, 0], [0, 1]]})
    with pytest.raises(
        ValueError, match=r"train.parquet: row 1: what is in the column 'label' are"
    ):
        opened(root, multi_label=True)
    parquet(root / "train.parquet", {"image": image, "label": [["a"], ["b"], ["c", "d"]]})
    with pytest.raises(ValueError, match=r"train.parquet: row 1: the label 'b' is no class"):
        opened(root, multi_label=True, class_names=("a", "c"))
    with pytest.raises(ValueError, match=r"'label' holds list<.*config.data.multi_label"):
        opened(root)


def test_delimiters_are_for_texts_with_some(root):
    parquet(root / "train.parquet", {"image": ["0.png", "1.png"], "label": [0, 1]})
    with pytest.raises(ValueError, match="delimiter = ';': .*train.parquet has none: leave it out"):
        opened(root, delimiter=";")


def test_damaged_and_missing_files(root):
    parquet(root / "train.parquet", {"image": [png(0), None, png(1)], "label": [0, 1, 1]})
    data = opened(root)
    with pytest.raises(BadImage, match=r"train.parquet: row 1: there is no image in the column"):
        data.train[1]
    size = (root / "train.parquet").stat().st_size
    parquet(root / "train.parquet", {"image": [1, 2], "label": [0, 1]})
    with pytest.raises(ValueError, match="the column 'image' holds int64, no images"):
        opened(root)
    with (root / "train.parquet").open("r+b") as file:
        file.truncate(size // 2)
    with pytest.raises(ValueError, match=r"train.parquet: no Parquet file: "):
        opened(root)
    (root / "train.parquet").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
    )
    with pytest.raises(ValueError, match=r"Git has not fetched this file: run `git lfs pull`"):
        opened(root)
    (root / "train.parquet").unlink()
    parquet(root / "train-00000-of-00002.parquet", {"image": [png(0)], "label": [0]})
    with pytest.raises(
        ValueError, match=r"train-00001-of-00002.\* is missing \(1 of 2 files are\)"
    ):
        opened(root)
    parquet(root / "train-00001-of-00002.parquet", {"image": [png(0)], "class": [0]})
    with pytest.raises(ValueError, match=r"its columns are image, class, those of .* image, label"):
        opened(root)


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_hostile_files_are_refused_in_a_line(root, kind):
    """Cells that would lie outside of a mapped file too: reading them would end the process."""
    table = pa.table({"image": [cell(i) for i in range(6)], "label": [0, 1] * 3})
    good = root / f"good.{kind}"
    if kind == "parquet":
        pq.write_table(table, good, row_group_size=4)
    else:
        with pa.ipc.new_stream(good, table.schema) as out:
            out.write_table(table, max_chunksize=4)
    rng, whole, said = np.random.default_rng(0), good.read_bytes(), {}
    for number in range(120):
        data = bytearray(whole)
        for at in rng.integers(len(data), size=3).tolist():
            data[at] = rng.integers(256)
        name = f"{number}.{kind}"
        (root / name).write_bytes(data[: -int(rng.integers(1, 99)) if number % 4 == 0 else None])
        try:
            train = opened(root, train=name).train
            for i in range(len(train)):
                train[i]
        except ValueError as error:  # BadImage is one
            said[name] = str(error)
    assert 30 < len(said) < 120
    for name, message in said.items():
        assert message.isprintable()
        assert name in message or "one class only" in message


def test_opening_reads_no_image(root, monkeypatch):
    """It would be all of them, at once in memory."""
    parquet(root / "train.parquet", {"image": [png(0), png(1)], "label": [0, 1]})
    read, original = [], pq.ParquetFile.read

    def counted(self, columns):
        read.extend(columns)
        return original(self, columns)

    monkeypatch.setattr(pq.ParquetFile, "read", counted)
    opened(root)
    assert read == ["label"]


@pytest.mark.parametrize("text", [pa.string(), pa.large_string(), pa.string_view()])
@pytest.mark.parametrize("coded", [False, True])
def test_types_of_arrow(root, text, coded):
    """What pandas, polars and Arrow itself have for the same values."""

    def of(values, kind):
        array = pa.array(values, kind)
        if not coded:
            return array
        numbers = pa.array([values.index(v) if v is not None else None for v in values])
        return pa.DictionaryArray.from_arrays(numbers, pa.array(values, kind))

    image = of(["0.png", "1.png", "2.png"], text)
    several = pa.array([["b"], [], None], pa.list_(text))
    columns = {
        "image": image,
        "name": of(["b", "a", None], text),
        "number": of([4, 0, None], pa.uint8()),
        "list": several if text != pa.string_view() else several.cast(pa.large_list(text)),
        "bytes": pa.array([png(3), png(2), png(1)], pa.binary_view()),
    }
    table = pa.table(columns)
    with pa.ipc.new_file(root / "train.arrow", table.schema) as out:
        out.write_table(table)
    open_ = lambda column, **keys: opened(root, needs_labels="", label_columns=(column,), **keys)
    assert open_("name").train.labels.tolist() == [1, 0, -1]
    assert greys(open_("name").train) == [0, 1, 2]
    assert greys(open_("name", image_column="bytes").train) == [3, 2, 1]
    assert open_("number").train.labels.tolist() == [4, 0, -1]
    found = open_("list", multi_label=True, class_names=("a", "b")).train.labels
    assert found.tolist() == [[0, 1], [0, 0], [-1, -1]]


def test_shards_of_other_types(root):
    """A column has the type of what is in it, and nothing need be there in the first shard."""
    for number, label in enumerate(([None], pa.array([3], pa.int8()), [1000])):
        parquet(root / f"train-{number}.parquet", {"image": [f"{number}.png"], "label": label})
    data = opened(root, needs_labels="", num_classes=1001)
    assert data.train.labels.tolist() == [-1, 3, 1000]
    parquet(root / "train-2.parquet", {"image": ["2.png"], "label": ["x"]})
    with pytest.raises(ValueError, match="the column 'label' is of no one type"):
        opened(root, needs_labels="")


def test_columns_of_the_same_name(root):
    pq.write_table(
        pa.table([["0.png"], [0], [1]], names=["image", "label", "label"]), root / "train.parquet"
    )
    with pytest.raises(ValueError, match="train.parquet: there are several columns 'label'"):
        opened(root)


@pytest.mark.parametrize("label", [
    [[True, False], [False, True], None, [True, True]],
    [[1, 0], [0, 1], None, [1, 1]],
    [[1.0, 0.0], [0.0, 1.0], None, [1.0, 1.0]],
])  # fmt: skip
def test_lists_of_marks(root, label):
    """Not of classes, of which nobody writes the same twice."""
    image = [f"{i}.png" for i in range(4)]
    parquet(root / "train.parquet", {"image": image, "label": label})
    train = opened(root, multi_label=True, needs_labels="").train
    assert train.labels.tolist() == [[1, 0], [0, 1], [-1, -1], [1, 1]]
    assert train.labels.dtype == np.int8
    kind = {"label": {"feature": {"names": ["a", "b", "c"], "_type": "ClassLabel"}}}
    if label[0] == [1, 0]:  # with names of classes it is these that are listed
        parquet(root / "train.parquet", {"image": image, "label": label}, features=kind)
        train = opened(root, multi_label=True, needs_labels="").train
        assert train.labels.tolist() == [[1, 1, 0], [1, 1, 0], [-1] * 3, [0, 1, 0]]


# -- Hugging Face's datasets -------------------------------------------------------------------

FEATURES = {
    "picture": {"_type": "Image"},
    "kind": {"names": ["cat", "dog", "eel"], "_type": "ClassLabel"},
}


def saved(folder, greys, kinds, *, files=2):
    """Writes what `Dataset.save_to_disk` does."""
    folder.mkdir(parents=True, exist_ok=True)
    table = pa.table({"picture": [cell(g) for g in greys], "kind": pa.array(kinds, pa.int64())})
    told = json.dumps({"info": {"features": FEATURES}})
    table, names = table.replace_schema_metadata({"huggingface": told}), []
    for i, part in enumerate(np.array_split(np.arange(len(greys)), files)):
        names.append({"filename": f"data-{i:05d}-of-{files:05d}.arrow"})
        with pa.ipc.new_stream(folder / names[-1]["filename"], table.schema) as out:
            out.write_table(table.take(pa.array(part)), max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": names, "_split": folder.name}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


def check(data):
    assert data.class_names == ("cat", "dog", "eel")
    assert (greys(data.train), greys(data.eval)) == ([0, 1, 2, 3, 4], [5, 0])
    assert data.train.labels.tolist() == [0, 2, 1, 1, 0]
    assert data.eval.labels.tolist() == [2, 0]
    assert pickle.loads(pickle.dumps(data.train))[4]["image"] == png(4)


def test_what_save_to_disk_writes(root):
    saved(root / "set/train", range(5), [0, 2, 1, 1, 0])
    saved(root / "set/test", [5, 0], [2, 0], files=1)
    (root / "set/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    check(opened(root / "set", "huggingface"))
    alone = opened(root / "set/train", "huggingface")
    assert (len(alone.train), alone.eval) == (5, None)
    with pytest.raises(
        ValueError, match=r"no split 'x', there are train, test \(config.data.eval\)"
    ):
        opened(root / "set", "huggingface", eval="x")
    (root / "set/train/data-00001-of-00002.arrow").unlink()
    with pytest.raises(ValueError, match=r"data-00001-of-00002.arrow is missing \(1 of 2 files"):
        opened(root / "set", "huggingface")
    (root / "set/test/data-00000-of-00001.arrow").write_bytes(b"12345678")
    with pytest.raises(ValueError, match=r"data-00000-of-00001.arrow: no Arrow file: "):
        opened(root / "set", "huggingface", train="test", eval="")
    (root / "set/test/state.json").write_text("[")
    with pytest.raises(ValueError, match=r"test/state.json: cannot read it: "):
        opened(root / "set", "huggingface", train="test")


@pytest.mark.parametrize("place", ["data/{}-{}.parquet", "{}-{}.parquet", "{0}/{0}-{1}.parquet"])
def test_clones_from_the_hub(root, place):
    def write(split, number, greys, kinds):
        columns = {"picture": [cell(g) for g in greys], "kind": pa.array(kinds, pa.int64())}
        parquet(root / "set" / place.format(split, number), columns, features=FEATURES)

    write("train", "00000-of-00002-ab12", range(3), [0, 2, 1])
    write("train", "00001-of-00002-ab12", [3, 4], [1, 0])
    write("test", "00000-of-00001", [5, 0], [2, 0])
    check(opened(root / "set", "huggingface"))


def test_the_cache_of_a_set(root):
    for split, greys_of, kinds in (
        ("train", range(5), [0, 2, 1, 1, 0]),
        ("validation", [5, 0], [2, 0]),
    ):
        saved(root / "x", greys_of, kinds, files=1)
        (root / "set").mkdir(exist_ok=True)
        (root / "x/data-00000-of-00001.arrow").rename(root / f"set/the_set-{split}.arrow")
    check(opened(root / "set", "huggingface"))


def test_images_with_metadata(root):
    for split, rows in (("train", [(0, "cat"), (1, "eel")]), ("validation", [(2, "cat")])):
        lines = ["file_name,text,label"]
        for grey, kind in rows:
            path = root / "set" / split / "some" / f"{grey}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(grey))
            lines.append(f"some/{grey}.png,x,{kind}")
        (root / "set" / split / "metadata.csv").write_text("\n".join(lines))
    data = opened(root / "set", "huggingface")
    assert (greys(data.train), greys(data.eval)) == ([0, 1], [2])
    assert (data.class_names, data.train.labels.tolist()) == (("cat", "eel"), [0, 1])
    (root / "set/train/metadata.csv").unlink()
    rows = [{"file_name": f"some/{i}.png", "kinds": [i]} for i in range(2)]
    (root / "set/train/metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (root / "set/validation/metadata.csv").unlink()
    data = opened(root / "set", "huggingface", label_columns=("kinds",), multi_label=True)
    assert data.train.labels.tolist() == [[1, 0], [0, 1]]


def test_what_is_no_folder_of_datasets(root):
    with pytest.raises(
        ValueError, match=r"no folder of Hugging Face's datasets: there is no state"
    ):
        opened(root, "huggingface")
    for name in ("one", "two"):
        parquet(root / name / "train-00000-of-00001.parquet", {"image": [png(0)], "label": [0]})
    with pytest.raises(
        ValueError, match=r"the split 'train' is in .*one and in .*two: name one of"
    ):
        opened(root, "huggingface")
