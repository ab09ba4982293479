"""Hostile files for jaxcls.convert.readers: python tests/fuzz_readers.py --mutations=20000

Every file is read in a process of its own, of limited memory and time. What has to come out is
arrays, or one line; no signal, no changed module, no file, no process. The counts are printed as
JSON; a file that is a problem is made again by its name or number, with --only=NUMBER --keep=FILE.
"""

import argparse
import builtins
import codecs
import collections
import contextlib
import copyreg
import gc
import io
import itertools
import json
import os
import pickle
import pickletools
import random
import resource
import signal
import struct
import sys
import tempfile
import types
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jaxcls.convert import readers, torch_files
from jaxcls.convert.arrays import NUMBERS

WEIGHTS = Path(__file__).parent / "golden" / "weights"
MEMORY = 768 << 20  # bytes that reading may map: 300,000 values and a few times the file
SECONDS = 30  # of the clock, on a busy machine


class Case(NamedTuple):
    """A file by its suffix and content."""

    suffix: str
    data: bytes


# -- An assembler of pickles ---------------------------------------------------------------------

NONE, TRUE, MARK, STOP = b"N", b"\x88", b"(", b"."
DICT, LIST, TUPLE = b"}", b"]", b")"
REDUCE, BUILD, PERSISTENT, NEWOBJ, NEWOBJ_EX = b"R", b"b", b"Q", b"\x81", b"\x92"


def text(value: str) -> bytes:
    data = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(data)) + data


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    data = pickle.encode_long(value)
    return b"\x8b" + struct.pack("<i", len(data)) + data


def many(*parts: bytes) -> bytes:
    return MARK + b"".join(parts) + b"t"


def numbers(*values: int) -> bytes:
    return many(*map(number, values))


def name(path: str) -> bytes:
    module, _, symbol = path.rpartition(".")
    return f"c{module}\n{symbol}\n".encode()


def call(path: str, *parts: bytes) -> bytes:
    return name(path) + many(*parts) + REDUCE


def table(**items: bytes) -> bytes:
    return DICT + MARK + b"".join(text(k) + v for k, v in items.items()) + b"u"


def dtype(code: str = "f4", state: bytes = b"") -> bytes:
    made = call("numpy.dtype", text(code), b"\x89", TRUE)
    return made + (state + BUILD if state else b"")


def array(shape: bytes, kind: bytes, data: bytes, fortran: bytes = b"\x89") -> bytes:
    empty = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), numbers(0), raw(b"b"))
    return empty + many(number(1), shape, kind, fortran, data) + BUILD


ARRAY = array(numbers(2), dtype(), raw(bytes(8)))


def storage(key: str = "0", kind: str = "torch.FloatStorage", count: int = 4) -> bytes:
    return many(text("storage"), name(kind), text(key), text("cpu"), number(count)) + PERSISTENT


def tensor(*parts: bytes) -> bytes:
    return call("torch._utils._rebuild_tensor_v2", *parts)


def whole_tensor(shape: bytes, strides: bytes, offset: bytes = number(0), **kind: Any) -> bytes:
    return tensor(storage(**kind), offset, shape, strides, b"\x89", DICT)


TENSOR = whole_tensor(numbers(2, 2), numbers(2, 1))


def pdparams(program: bytes) -> Case:
    return Case(".pdparams", b"\x80\x02" + program + STOP)


def weights(value: bytes) -> Case:
    """Returns a file with one good array and a value."""
    return pdparams(table(good=ARRAY, w=value))


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for member, data in members.items():
            archive.writestr(zipfile.ZipInfo(member), data, method)
    return file.getvalue()


def torch_members(program: bytes, **storages: bytes) -> dict[str, bytes]:
    data = {f"a/data/{key}": numbers for key, numbers in storages.items()}
    return {"a/data.pkl": b"\x80\x02" + program + STOP, "a/byteorder": b"little"} | data


def torch_zip(value: bytes, numbers: bytes = bytes(16)) -> Case:
    return Case(".pth", zipped(torch_members(table(good=TENSOR, w=value), **{"0": numbers})))


def torch_legacy(value: bytes, keys: bytes, rest: bytes) -> Case:
    pickles = (number(torch_files.LEGACY_MAGIC), number(1001), table(little_endian=TRUE))
    pickles += (table(w=value), keys)
    return Case(".pth", b"".join(b"\x80\x02" + p + STOP for p in pickles) + rest)


# -- Files made by hand --------------------------------------------------------------------------

TARGETS = """
os.system posix.system os.mkdir os.remove os.execv subprocess.Popen subprocess.call pty.spawn
builtins.eval builtins.exec builtins.getattr builtins.setattr builtins.__import__ builtins.open
builtins.print builtins.type builtins.object builtins.bytearray builtins.memoryview builtins.dict
builtins.list builtins.map builtins.range __builtin__.eval importlib.import_module runpy.run_path
numpy.load numpy.fromfile numpy.save numpy.memmap numpy.zeros numpy.ones numpy.frompyfunc
numpy.core.multiarray.fromfile numpy.lib.format.open_memmap numpy.core.numeric.zeros
numpy.testing._private.utils.runstring ctypes.string_at ctypes.CDLL functools.partial
operator.attrgetter operator.methodcaller _codecs.decode codecs.open pickle.loads marshal.loads
types.CodeType types.FunctionType copyreg._reconstructor copyreg.__newobj__ code.interact
torch.load torch.hub.load torch.storage._load_from_bytes jax.numpy.load jax.numpy.bfloat16
ml_dtypes.bfloat16 jaxcls.convert.readers.read jaxcls.convert.readers.KNOWN collections.Counter
collections.namedtuple collections.defaultdict webbrowser.open socket.socket shutil.rmtree
signal.raise_signal os.abort sys.exit sys.setrecursionlimit gc.get_objects time.sleep
""".split()  # noqa: SIM905

KNOWN = """
builtins.bytes builtins.tuple builtins.set builtins.frozenset collections.OrderedDict _codecs.encode
numpy.dtype numpy.ndarray numpy.core.multiarray._reconstruct numpy._core.multiarray.scalar
numpy.core.numeric._frombuffer torch.FloatStorage torch.BFloat16Storage torch.Size
torch._utils._rebuild_tensor_v2 torch._utils._rebuild_parameter
""".split()  # noqa: SIM905

DEPTH = 2_000  # of values as arguments
DEEP_TUPLE = TUPLE + b"\x85" * DEPTH
DEEP_LIST = LIST * DEPTH + b"a" * (DEPTH - 1)
DEEP_DICT = (DICT + text("k")) * DEPTH + NONE + b"s" * DEPTH
SELF_LIST = LIST + b"q\0h\0a"  # a list that holds itself
LAUGHS = TUPLE + b"\x94" + b"".join(b"h%c" % i * 2 + b"\x86\x94" for i in range(60))  # 2 ** 60
ODD = {
    "none": NONE,
    "true": TRUE,
    "float": b"G" + struct.pack(">d", float("nan")),
    "negative": number(-1),
    "large": number(1 << 62),
    "larger": number(1 << 100),
    "huge": number(1 << 200_000),
    "text": text("x"),
    "bytes": raw(b"\xff" * 9),
    "bytearray": b"\x96" + struct.pack("<Q", 4) + bytes(4),
    "empty": TUPLE,
    "list": LIST,
    "dict": DICT,
    "name": name("torch.FloatStorage"),
    "dtype": dtype(),
    "array": ARRAY,
    "negatives": numbers(-1, -1),
    "zeros": numbers(0, 0),
    "larges": numbers(1 << 62, 1 << 62),
    "largers": numbers(1 << 100, 1),
    "many": numbers(*[1] * 100),
    "nested": many(many(number(1))),
    "deep": DEEP_TUPLE,
    "deep list": DEEP_LIST,
    "laughs": LAUGHS,
    "self": SELF_LIST,
}


def hostile() -> Iterator[tuple[str, Case]]:
    """Yields names and files; each does harm to a reader that trusts it, or did to some reader."""
    for made in (calls, states, arguments, opcodes, structures, lengths, legacy, zips, headers):
        yield from ((f"{made.__name__}: {what}", case) for what, case in made())


def calls() -> Iterator[tuple[str, Case]]:
    """Every way to call or to make something, of functions and classes that do harm."""
    harm = many(text("touch harm"))
    for target in TARGETS:
        module, _, symbol = target.rpartition(".")
        stack = text(module) + text(symbol) + b"\x93"
        inst = f"i{module}\n{symbol}\n".encode()
        ways = {
            "REDUCE": name(target) + harm + REDUCE,
            "STACK_GLOBAL": stack + harm + REDUCE,
            "INST": MARK + text("touch harm") + inst,
            "OBJ": MARK + name(target) + text("touch harm") + b"o",
            "NEWOBJ": stack + harm + NEWOBJ,
            "NEWOBJ_EX": stack + harm + DICT + NEWOBJ_EX,
            "BUILD": name(target) + many(NONE, table(harm=text("x"))) + BUILD,
        }
        for way, program in ways.items():
            yield f"{way} {target}", weights(program)
    for target in KNOWN:
        for way, end in {"NEWOBJ": NEWOBJ, "NEWOBJ_EX": DICT + NEWOBJ_EX, "REDUCE": REDUCE}.items():
            yield f"{way} {target}", torch_zip(name(target) + TUPLE + end)
    dotted = text("collections") + text("OrderedDict.update") + b"\x93"
    yield "a dotted name", weights(dotted + many(DICT) + REDUCE)
    yield "a name of line ends", weights(text("os\nx") + text("\x1b[2Jsystem") + b"\x93")
    yield "a name that is no text", weights(NONE + NONE + b"\x93")
    yield "a name that is deep", weights(DEEP_TUPLE * 2 + b"\x93")
    yield "a long name", weights(text("x" * 100_000) + text("y") + b"\x93")
    yield "a call of text", weights(text("os.system") + harm + REDUCE)
    yield "a call of a value", weights(DICT + harm + REDUCE)
    yield "a call of a made array", weights(ARRAY + harm + REDUCE)
    yield "arguments that are no tuple", weights(name("builtins.tuple") + LIST + REDUCE)


def states() -> Iterator[tuple[str, Case]]:
    """BUILD of everything that a pickle can hold, which would set attributes."""
    attributes = {
        "slots": many(NONE, table(harm=text("x"))),
        "dict": table(harm=text("x"), __class__=NONE, update=NONE),
        "dtype": many(number(3), text("|"), NONE, NONE, NONE, number(8), number(8), number(0)),
        "array": many(number(1), numbers(1), dtype(), b"\x89", raw(bytes(4))),
    }
    for target in KNOWN:
        for kind, state in attributes.items():
            yield f"{kind} of {target}", torch_zip(name(target) + state + BUILD)
    for value in ("none", "text", "list", "dict", "empty", "true", "dtype", "array", "self"):
        for kind, state in attributes.items():
            yield f"{kind} of {value}", weights(ODD[value] + state + BUILD)
    for what, state in ODD.items():
        yield f"dtype of {what}", weights(array(numbers(1), dtype("f4", state), raw(bytes(4))))
        made = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), numbers(0))
        yield f"array of {what}", weights(made + state + BUILD)
    order = lambda *rest: many(number(3), *rest, number(-1), number(-1), number(0))
    for what, rest in {
        "fields": [text("<"), NONE, many(text("a")), table(a=many(dtype(), number(0)))],
        "parts": [text("<"), many(dtype(), numbers(9)), NONE, NONE],
        "no order": [text("?"), NONE, NONE, NONE],
    }.items():
        yield f"dtype with {what}", weights(array(numbers(1), dtype("f4", order(*rest)), raw(b"")))
    pointer = raw(struct.pack("<Q", 0x41414141))
    for code in ("O", "O8", "V8", "U2", "S8", "M8", "m8", "c8", "f4,f4", "(2,2)f4", "V2147483647"):
        yield f"dtype {code}", weights(array(numbers(1), dtype(code), pointer))
        yield (
            f"buffer of {code}",
            weights(
                call("numpy.core.numeric._frombuffer", pointer, dtype(code), numbers(1), text("C"))
            ),
        )
        yield (
            f"scalar of {code}",
            weights(call("numpy.core.multiarray.scalar", dtype(code), pointer)),
        )
        yield f"ndarray of {code}", weights(call("numpy.ndarray", numbers(1), dtype(code), pointer))
    flags = many(number(3), text("|"), NONE, NONE, NONE, number(8), number(8), number(0))
    yield "dtype whose flags lie", weights(array(numbers(1), dtype("O8", flags), pointer))
    yield (
        "ndarray whose flags lie",
        weights(call("numpy.ndarray", numbers(1), dtype("O8", flags), pointer)),
    )
    twice = array(numbers(1), dtype(), raw(bytes(4))) + many(*[number(1)] * 5) + BUILD
    yield "array twice", weights(twice)


def arguments() -> Iterator[tuple[str, Case]]:
    """Calls of what is known with one argument after the other that is not what it should be."""
    good = [storage(), number(0), numbers(2, 2), numbers(2, 1), b"\x89", DICT]
    for i, argument in enumerate(("storage", "offset", "shape", "strides")):
        for what, odd in ODD.items():
            yield f"tensor, {argument} {what}", torch_zip(tensor(*good[:i], odd, *good[i + 1 :]))
    identity = [text("storage"), name("torch.FloatStorage"), text("0"), text("cpu"), number(4)]
    for i in range(5):
        for what, odd in ODD.items():
            pid = many(*identity[:i], odd, *identity[i + 1 :]) + PERSISTENT
            changed = tensor(pid, *good[1:])
            yield f"storage, part {i} {what}", torch_zip(changed)
    for what, odd in ODD.items():
        yield f"storage {what}", torch_zip(tensor(odd + PERSISTENT, *good[1:]))
        yield f"view {what}", torch_zip(tensor(many(*identity, odd) + PERSISTENT, *good[1:]))
        yield f"parameter {what}", torch_zip(call("torch._utils._rebuild_parameter", odd))
        yield f"size {what}", torch_zip(call("torch.Size", odd))
        yield f"dtype {what}", weights(call("numpy.dtype", odd))
        yield f"shape {what}", weights(array(odd, dtype(), raw(bytes(8))))
        yield f"data {what}", weights(array(numbers(2), dtype(), odd))
        yield f"kind {what}", weights(array(numbers(2), odd, raw(bytes(8))))
        yield f"order {what}", weights(array(numbers(2), dtype(), raw(bytes(8)), odd))
        yield (
            f"class {what}",
            weights(call("numpy.core.multiarray._reconstruct", odd, numbers(0), raw(b"b"))),
        )
        buffer = [raw(bytes(8)), dtype(), numbers(2), text("C"), NONE]
        for i in range(5):
            changed = [*buffer[:i], odd, *buffer[i + 1 :]]
            yield (
                f"buffer, part {i} {what}",
                weights(call("numpy.core.numeric._frombuffer", *changed)),
            )
        yield f"encode {what}", weights(call("_codecs.encode", odd, text("latin1")))
        yield f"encoding {what}", weights(call("_codecs.encode", text("x"), odd))
        yield f"scalar {what}", weights(call("numpy.core.multiarray.scalar", dtype(), odd))
        yield f"dictionary {what}", weights(call("collections.OrderedDict", odd))
        yield f"pairs {what}", weights(call("collections.OrderedDict", LIST + odd + b"a"))
        yield f"set {what}", weights(call("builtins.set", odd))
        yield f"key {what}", pdparams(table(good=ARRAY) + odd + NONE + b"s")
        yield f"content {what}", pdparams(odd)
        cut = {"UnpackBigParamInfor@@": odd}
        yield f"cuts {what}", pdparams(table(good=ARRAY, **cut))
        cut = {"UnpackBigParamInfor@@": table(w=odd)}
        yield f"cut {what}", pdparams(table(good=ARRAY, **cut))
        for key, other in (("slices", "OriginShape"), ("OriginShape", "slices")):
            rest = LIST + text("good") + b"a" if other == "slices" else numbers(2)
            cut = {"UnpackBigParamInfor@@": table(w=table(**{key: odd, other: rest}))}
            yield f"{key} {what}", pdparams(table(good=ARRAY, **cut))
        cut = {"UnpackBigParamInfor@@": table(w=table(slices=LIST + odd + b"a"))}
        yield f"part {what}", pdparams(table(good=ARRAY, **cut))
    yield "no arguments", torch_zip(tensor())
    yield "an encoding that is a program", weights(call("_codecs.encode", text("x"), text("zip")))
    yield "zero strides", torch_zip(whole_tensor(numbers(1 << 40), numbers(0)))
    yield "many zero strides", torch_zip(whole_tensor(numbers(*[1 << 8] * 8), numbers(*[0] * 8)))
    yield "overlap", torch_zip(whole_tensor(numbers(1 << 20, 4), numbers(0, 1)))
    yield (
        "no numbers, but much of them",
        torch_zip(whole_tensor(numbers(0, 1 << 62), numbers(1, 1))),
    )
    yield "more dimensions than strides", torch_zip(whole_tensor(numbers(2, 2), numbers(1)))
    yield "offset beyond", torch_zip(whole_tensor(numbers(4), numbers(1), number(1)))
    yield "another key", torch_zip(whole_tensor(numbers(4), numbers(1), key="../../etc/passwd"))
    yield "half a number", torch_zip(whole_tensor(numbers(4), numbers(1)), bytes(15))


def opcodes() -> Iterator[tuple[str, Case]]:
    """Each opcode where nothing, a mark or a few values are before it."""
    before = {"nothing": b"", "a mark": MARK, "values": NONE * 4 + MARK + NONE * 3, "a dict": DICT}
    for opcode in pickletools.opcodes:
        for what, program in before.items():
            code = opcode.code.encode("latin-1")
            yield (
                f"{opcode.name} after {what}",
                pdparams(program + code + bytes(9) + b"\n\n" + NONE),
            )
    yield "an unknown opcode", pdparams(b"\xff")
    yield "nothing", Case(".pdparams", b"")
    yield "no end", Case(".pdparams", b"\x80\x02" + DICT)
    yield "only an end", pdparams(b"")
    yield "a protocol of the future", Case(".pdparams", b"\x80\xff" + DICT + STOP)


def structures() -> Iterator[tuple[str, Case]]:
    """Depth, circles, doubling, collisions: small for a file, large for who walks through it."""
    for what in ("deep", "deep list", "laughs", "self"):
        yield f"{what} as a value", weights(ODD[what])
        yield f"{what} as a state", weights(call("collections.OrderedDict") + ODD[what] + BUILD)
        yield f"{what} as a function", weights(ODD[what] + TUPLE + REDUCE)
        yield f"{what} to append to", weights(ODD[what] + NONE + b"a")
        yield f"{what} to set items of", weights(ODD[what] + text("k") + NONE + b"s")
    yield "deep dict", pdparams(DEEP_DICT)
    deeper = TUPLE + b"\x85" * 200_000  # too deep for the stack of who hashes or compares it
    yield "deeper key", pdparams(DICT + deeper + NONE + b"s")
    yield "deeper key of a state", pdparams(DICT + deeper + DICT + b"s" + BUILD)
    yield "deeper name of a call", pdparams(deeper + TUPLE + REDUCE)
    yield "deeper dtype", weights(call("numpy.dtype", deeper))
    yield "deeper storage", torch_zip(deeper + PERSISTENT)
    part = {"UnpackBigParamInfor@@": table(w=table(slices=LIST + deeper + b"a"))}
    yield "deeper part", pdparams(table(good=ARRAY, **part))
    yield "self dict", pdparams(DICT + b"q\0" + text("k") + b"h\0s")
    circle = DICT + b"q\0" + call("collections.OrderedDict") + b"q\1" + text("k") + b"h\0s"
    yield "two dicts in a circle", pdparams(b"h\0".join([circle + b"0", text("k") + b"h\1s"]))
    yield "100,000 lists", pdparams(MARK + LIST * 100_000 + b"l")
    yield "100,000 dicts", pdparams(MARK + DICT * 100_000 + b"l")
    yield "a million steps", pdparams(NONE * 1_000_001)
    yield "100,000 marks", pdparams(MARK * 100_000)
    yield "100,000 tuples", pdparams(NONE + b"\x85" * 100_000)
    yield "appended to itself", pdparams(LIST + b"q\0" + b"(h\0h\0e" * 50_000)
    yield "doubled by DUP", pdparams(LIST + b"2" * 50_000 + b"a" * 40_000)
    half = MARK + NONE * 100_000 + b"lq\0"
    again = name("builtins.tuple") + b"q\1" + MARK + b"h\1h\0\x85R" * 50_000 + b"l"
    yield "a long list copied", pdparams(half + again)
    pairs = half + MARK + (name("collections.OrderedDict") + b"h\0\x85R") * 1000 + b"l"
    yield "pairs copied", pdparams(pairs)
    long = MARK + text("x" * 1_000_000) + b"q\0" + text("latin1") + b"q\1"
    yield "text encoded again", pdparams(long + (name("_codecs.encode") + b"h\0h\1\x86R") * 9000)
    key = (1 << 61) - 1  # a modulus of Python's: its multiples have one hash
    collide = b"".join(number(i * key << 61) + NONE for i in range(20_000))
    yield "keys that collide", pdparams(MARK + collide + b"d")
    collide = b"".join(number((i * key) % (1 << 250)) + NONE for i in range(20_000))
    yield "shorter keys that collide", pdparams(MARK + collide + b"d")
    one = table(**{str(i): NONE for i in range(20_000)}) + b"q\0"
    nest = one + DICT + MARK + b"".join(text(str(i)) + b"h\0" for i in range(20_000)) + b"u"
    yield "one dictionary in many places", pdparams(nest)
    big = table(a=array(numbers(1 << 18), dtype(), raw(bytes(1 << 20))) + b"q\0")
    shared = b"".join(text(f"p{i}") + b"h\0" for i in range(4000))
    parts = LIST + MARK + b"".join(text(f"p{i}") for i in range(4000)) + b"e"
    cut = table(w=table(slices=parts, OriginShape=numbers(4000 << 18)))
    cuts = MARK + shared + text("UnpackBigParamInfor@@") + cut + b"u"
    yield "one array in many parts", pdparams(big + cuts)
    yield "one array of many names", pdparams(big + MARK + shared + b"u")
    state = many(number(1), numbers(1 << 17), dtype(), b"\x89", text("\0" * (1 << 19)) + b"q\0")
    made = call("numpy.core.multiarray._reconstruct", name("numpy.ndarray"), numbers(0))
    again = many(number(1), numbers(1 << 17), dtype(), b"\x89", b"h\0")
    copies = b"".join(text(f"p{i}") + made + again + BUILD for i in range(4000))
    yield (
        "one text as many arrays",
        pdparams(table(a=made + state + BUILD) + MARK + copies + b"u"),
    )
    for what, odd in {
        "a terminal's command": "\x1b]0;harm\x07\x1b[2J",
        "line ends": "a\r\nb\n" * 10,
        "other direction": "a\u202eb",
        "half a character": "\udc80",
        "length": "x" * 1_000_000,
        "nothing": "",
        "zero": "\0",
    }.items():
        yield f"name with {what}", pdparams(table(**{odd: ARRAY, "good": ARRAY}))
        yield f"sets with {what}", pdparams(table(**{odd: table(a=ARRAY), "b": table(a=ARRAY)}))
    yield "many sets", pdparams(table(**{f"set {i}": table(a=ARRAY) for i in range(5000)}))


def lengths() -> Iterator[tuple[str, Case]]:
    """Lengths and numbers in opcodes that are not those of what follows."""
    eight = lambda code, size: code + struct.pack("<Q", size) + b"x"
    four = lambda code, size: code + struct.pack("<I", size) + b"x"
    for what, code in {"BINBYTES8": b"\x8e", "BINUNICODE8": b"\x8d", "BYTEARRAY8": b"\x96"}.items():
        for size in (2, 1 << 31, 1 << 34, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
            yield f"{what} of {size}", weights(eight(code, size))
    for what, code in {
        "BINBYTES": b"B",
        "BINUNICODE": b"X",
        "BINSTRING": b"T",
        "LONG4": b"\x8b",
    }.items():
        for size in (2, (1 << 31) - 1, 1 << 31, (1 << 32) - 1):
            yield f"{what} of {size}", weights(four(code, size))
    for size in (0, 1 << 31, 1 << 62, (1 << 64) - 1):
        yield (
            f"FRAME of {size}",
            Case(".pdparams", b"\x80\x04" + eight(b"\x95", size)[:-1] + DICT + STOP),
        )
    for size in (1, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1):
        yield f"LONG_BINPUT {size}", weights(NONE + b"r" + struct.pack("<I", size))
        yield f"LONG_BINGET {size}", weights(b"j" + struct.pack("<I", size))
    for digits in (b"-1", b"9" * 19, b"9" * 5000, b"x", b"0x10", b"1_0", b" 1", b"", b"01", b"1L"):
        for code in (b"p", b"g", b"I", b"L", b"F"):
            shown = f"{code.decode()}{digits.decode()[:20]}"
            yield f"digits {shown}", weights(NONE + code + digits + b"\n")
    for line in (b"nan", b"inf", b"1e999", b"-0"):
        yield f"float {line.decode()}", weights(b"F" + line + b"\n")
    for line in (b"'x", b"x'", b"'\\", b"'\\x'", b"'\\xff'", b"''", b"'\\N{LATIN}'"):
        yield f"string {line!r}", weights(b"S" + line + b"\n")
    for line in (b"\\u12", b"\\U00110000", b"\\ud800", b"\xff", b"\\"):
        yield f"unicode {line!r}", weights(b"V" + line + b"\n")
    yield "invalid UTF-8", weights(b"X\x02\0\0\0\xff\xfe")
    for code in (b"\x82\1", b"\x83\1\0", b"\x84\1\0\0\0", b"\x84\xff\xff\xff\xff"):
        yield f"EXT {code!r}", weights(code)
    yield "PERSID", weights(b"P0\n")
    yield "PERSID of PyTorch", torch_zip(b"Pstorage\n")
    yield "a buffer outside", weights(b"\x97")
    yield "a buffer outside, read only", weights(b"\x97\x98")


def legacy() -> Iterator[tuple[str, Case]]:
    """PyTorch's files before 1.6."""
    good = whole_tensor(numbers(2, 2), numbers(2, 1))
    keys = LIST + text("0") + b"a"
    for count in (4, 3, 0, -1, -(1 << 63), 1 << 31, 1 << 40, 1 << 61, 1 << 62, (1 << 63) - 1):
        rest = struct.pack("<q", count) + bytes(16)
        yield f"count {count}", torch_legacy(good, keys, rest)
    rest = struct.pack("<q", 4) + bytes(16)
    for what, odd in ODD.items():
        yield f"keys {what}", torch_legacy(good, odd, rest)
        yield f"key {what}", torch_legacy(good, LIST + odd + b"a", rest)
        yield f"magic {what}", Case(".pth", b"\x80\x02" + odd + STOP)
        magic = b"\x80\x02" + number(torch_files.LEGACY_MAGIC) + STOP
        yield f"system {what}", Case(".pth", magic + (b"\x80\x02" + odd + STOP) * 5)
    yield (
        "one storage twice",
        torch_legacy(good, LIST + text("0") + b"a" + text("0") + b"a", rest * 2),
    )
    yield "an unknown storage", torch_legacy(good, LIST + text("1") + b"a", rest)
    yield "no storage", torch_legacy(good, LIST, rest)
    yield (
        "two dtypes",
        torch_legacy(
            many(good, whole_tensor(numbers(8), numbers(1), kind="torch.DoubleStorage")), keys, rest
        ),
    )
    yield "nothing after the pickles", torch_legacy(good, keys, b"")
    yield "zeros", Case(".pth", bytes(1000))
    yield "a tar file", Case(".pth", b"storages".ljust(512, b"\0") * 4)


def zips() -> Iterator[tuple[str, Case]]:
    """Zip files whose sizes lie, or whose members are many, large or not what they seem."""
    deflated, large = zipfile.ZIP_DEFLATED, bytes(16 << 20)
    good = torch_members(table(w=TENSOR), **{"0": bytes(16)})
    bomb = zipped({"w.npy": npy("(4194304,)") + large}, deflated)
    yield "bomb .npz", Case(".npz", bomb)
    yield "bomb storage", Case(".pth", zipped(good | {"a/data/0": large}, deflated))
    yield "bomb pickle", Case(".pth", zipped(good | {"a/data.pkl": b"]" * (16 << 20)}, deflated))
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield f"bomb of method {method}", Case(".npz", zipped({"w.npy": large}, method))
    lie = lambda data, at, value: lies(data, b"PK\1\2", at, value)
    for size in (0, 1, 100, 1 << 20, (1 << 31) - 1, (1 << 32) - 1):
        packed = struct.pack("<I", size)
        yield f"claims {size} unpacked", Case(".npz", lie(bomb, 24, packed))
        yield f"claims {size} packed", Case(".npz", lie(bomb, 20, packed))
        stored = zipped(good)
        yield f"stored, claims {size}", Case(".pth", lie(stored, 24, packed))
        yield f"stored, claims both {size}", Case(".pth", lie(lie(stored, 24, packed), 20, packed))
        yield f"begins at {size}", Case(".pth", lie(stored, 42, packed))
        yield f"directory of {size}", Case(".pth", lies(stored, b"PK\5\6", 12, packed))
        yield f"directory at {size}", Case(".pth", lies(stored, b"PK\5\6", 16, packed))
    for flags in (1, 8, 32, 64, 0x800, 0xFFFF):
        yield f"flags {flags}", Case(".pth", lie(zipped(good), 8, struct.pack("<H", flags)))
    for method in (1, 8, 9, 12, 14, 93, 99):
        yield f"method {method}", Case(".pth", lie(zipped(good), 10, struct.pack("<H", method)))
    for count in (0, 1, 0xFFFF):
        packed = struct.pack("<HH", count, count)
        yield f"claims {count} files", Case(".pth", lies(zipped(good), b"PK\5\6", 8, packed))
    for size in (1 << 32, 1 << 40, 1 << 62, (1 << 64) - 1):
        yield f"ZIP64 of {size}", Case(".npz", zip64(size))
        yield f"ZIP64 directory of {size}", Case(".npz", zip64_end(size))
    extra = b"\1\0\x20\0" + struct.pack("<4Q", *[(1 << 64) - 1] * 4)
    for what, field in {
        "ZIP64": extra,
        "short": extra[:7],
        "long": b"\2\0\xff\xff",
        "many": b"\2\0\0\0" * 16_000,
    }.items():
        yield f"extra field {what}", Case(".npz", with_extra(field))
    member = b"x" * 4000
    yield "members that overlap", Case(".npz", overlapping(member, 2000))
    yield "100,000 members", Case(".npz", overlapping(b"", 100_000))
    yield "40,000 members", Case(".npz", overlapping(b"", 40_000))
    two = zipped(good | {"b/data.pkl": good["a/data.pkl"]})
    yield "one name twice", Case(".pth", two.replace(b"b/data.pkl", b"a/data.pkl"))
    yield "two pickles", Case(".pth", zipped(good | {"b/data.pkl": b"\x80\x02}."}))
    yield "no pickle", Case(".pth", zipped({"a/x": b""}))
    yield "nothing", Case(".npz", zipped({}))
    yield "a program", Case(".pth", zipped(good | {"a/constants.pkl": b"."}))
    yield "big-endian", Case(".pth", zipped(good | {"a/byteorder": b"big"}))
    for what in ("../../harm", "/tmp/harm", "a\0b", "\x1b[2J", "con", "a" * 60_000, "é", ""):
        yield f"member {what[:20]!r}", Case(".npz", zipped({f"{what}.npy": npy("(1,)") + bytes(4)}))
    yield "a comment that is an end", Case(".pth", zipped(good) + zipped({}))
    yield "a zip in a zip", Case(".npz", zipped({"w.npy": zipped(good)}))


def npy(
    shape: str, descr: str = "'<f4'", fortran: str = "False", version: bytes = b"\1\0"
) -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    size = struct.pack("<H" if version[0] == 1 else "<I", len(header) + 1)
    return b"\x93NUMPY" + version + size + header + b"\n"


def lies(data: bytes, signature: bytes, at: int, value: bytes) -> bytes:
    """Returns a zip file with another value in the last of its headers of one kind."""
    changed = bytearray(data)
    at += data.rindex(signature)
    changed[at : at + len(value)] = value
    return bytes(changed)


def with_extra(extra: bytes, size: int = 4) -> bytes:
    file = io.BytesIO()
    info = zipfile.ZipInfo("w.npy")
    info.extra = b"\2\0\0\0" * (len(extra) // 4)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(info, npy("(1,)") + bytes(size))
    data = file.getvalue()
    at = data.rindex(b"PK\1\2") + 46 + len("w.npy")
    return data[:at] + extra[: len(info.extra)] + data[at + len(extra[: len(info.extra)]) :]


def zip64(size: int) -> bytes:
    """Returns an .npz whose only member claims a size that needs ZIP64."""
    data = with_extra(b"\1\0\x10\0" + struct.pack("<2Q", size, size))
    return lies(data, b"PK\1\2", 20, b"\xff" * 8)


def zip64_end(size: int) -> bytes:
    data = zipped({"w.npy": npy("(1,)") + bytes(4)})
    at = data.rindex(b"PK\5\6")
    end = struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 45, 45, 0, 0, 1, 1, size, 0)
    locator = struct.pack("<IIQI", 0x07064B50, 0, at, 1)
    return data[:at] + end + locator + lies(data[at:], b"PK\5\6", 8, b"\xff" * 12)


def overlapping(member: bytes, count: int) -> bytes:
    """Returns an .npz with many entries of one member."""
    whole = zipped({"00000000.npy": npy("(1000,)") + member if member else b""})
    start, end = whole.index(b"PK\1\2"), whole.rindex(b"PK\5\6")
    entry = whole[start:end]
    entries = b"".join(entry.replace(b"00000000", b"%08d" % i) for i in range(count))
    tail = struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, 0xFFFF, 0xFFFF, len(entries), start, 0)
    return whole[:start] + entries + tail


def headers() -> Iterator[tuple[str, Case]]:
    """Headers of .npy and .safetensors."""
    one = lambda header, data=bytes(4): Case(".npz", zipped({"w.npy": header + data}))
    huge = "9" * 5000
    for shape in (
        "()", "(1,)", "(0,)", "(-1,)", "(1.0,)", "(True,)", "(1,2,3)", "(1L,)", "1", "[1]", "None",
        f"({1 << 62},)", f"({1 << 62},{1 << 62})", f"({huge},)", f"(0,{1 << 62},{1 << 62})",
        "(" + "1," * 33 + ")", "(" + "1," * 20_000 + ")", "(" * 10_000, "-" * 60_000,
        "(__import__('os').system('touch harm'),)", "(,)", "(1 1)", "(1,,1)", "(\n1,)",
    ):  # fmt: skip
        yield f"shape {shape[:40]}", one(npy(shape))
        yield f"Fortran, shape {shape[:40]}", one(npy(shape, fortran="True"))
    for descr in (
        "'O'", "'|O'", "'|O8'", "'<U9'", "'|S4'", "'|V4'", "'<V2'", "'<M8[s]'", "'<c8'", "'<f3'",
        "[('a', '<f4')]", "[('a', '|O')]", "('<f4', (2,))", "'<f4,<f4'", "'>f4'", "'f4'", "4", "''",
        "'V2147483647'", "[" * 5000, "{}", "None",
    ):  # fmt: skip
        yield f"descr {descr[:40]}", one(npy("(1,)", descr))
    for fortran in ("1", "None", "'x'", "[]", "truth"):
        yield f"order {fortran}", one(npy("(1,)", fortran=fortran))
    for version in (b"\0\0", b"\2\0", b"\3\0", b"\4\0", b"\xff\xff"):
        yield f"version {version!r}", one(npy("(1,)", version=version))
    whole = npy("(1,)")
    for size in (0, 1, 0xFFFF):
        changed = whole[:8] + struct.pack("<H", size) + whole[10:]
        yield f"header of {size}", one(changed)
    yield "header of 4 GB", one(b"\x93NUMPY\2\0" + b"\xff" * 4 + whole[10:])
    yield "header twice", one(whole + whole[10:])
    yield "a key twice", one(whole.replace(b", }", b", 'shape': (2,)}"))
    yield "no magic", one(b"")
    yield "half a header", one(whole[:20], b"")
    yield "too few numbers", one(npy("(2,)"))
    yield "too many numbers", one(whole, bytes(8))
    yield "objects", one(npy("(1,)", "'|O'"), pickle.dumps(np.array([1], object)))
    yield "a pickle as a member", one(b"", b"cos\nsystem\n(S'touch harm'\ntR.")
    yield "a pickle as .npz", Case(".npz", b"cos\nsystem\n(S'touch harm'\ntR.")

    def safetensors(header: Any, data: bytes = bytes(16), size: int | None = None) -> Case:
        encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
        size = len(encoded) if size is None else size
        return Case(".safetensors", struct.pack("<Q", size) + encoded + data)

    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}
    for size in (
        0,
        1,
        7,
        1 << 20,
        1 << 25,
        1 << 31,
        1 << 40,
        1 << 62,
        (1 << 63) - 1,
        (1 << 64) - 1,
    ):
        yield f"safetensors header of {size}", safetensors({"w": entry}, size=size)
    for shape in (
        [], [4], [0], [-1], [1.5], ["4"], [True, 4], [1 << 62] * 2, [1 << 63], [1 << 64],
        [1 << 32] * 3, [1 << 100], [1] * 1000, None, 4, [[4]], [0, 1 << 62, 1 << 62],
    ):  # fmt: skip
        yield f"safetensors shape {shape!s:.40}", safetensors({"w": entry | {"shape": shape}})
    for offsets in (
        [0, 15], [0, 17], [16, 0], [-16, 0], [0], [], None, [0, 1 << 62], [1 << 63, 1 << 63],
        [0.0, 16.0], [1 << 64, (1 << 64) + 16], [8, 24],
    ):  # fmt: skip
        changed = entry | {"data_offsets": offsets}
        yield f"safetensors offsets {offsets!s:.40}", safetensors({"w": changed})
    for kind in ("F16", "BF16", "F8_E4M3", "F4", "C64", "U64", "OBJ", "f32", "", None, 1, []):
        yield f"safetensors dtype {kind}", safetensors({"w": entry | {"dtype": kind}})
    yield "safetensors, overlap", safetensors({"w": entry, "v": entry})
    hole = entry | {"data_offsets": [16, 32]}
    yield "safetensors, hole", safetensors({"w": hole}, bytes(32))
    yield "safetensors, nothing", safetensors({})
    yield "safetensors, list", safetensors([entry])
    yield "safetensors, deep", safetensors(b"[" * 100_000)
    yield "safetensors, deep metadata", safetensors(b'{"__metadata__":' + b'{"a":' * 100_000)
    yield (
        "safetensors, a name twice",
        safetensors(b'{"w":%s,"w":%s}' % ((json.dumps(entry).encode(),) * 2)),
    )
    yield "safetensors, no JSON", safetensors(b"\xff" * 100)
    yield "safetensors, half a number", safetensors(b'{"w":' + b"1" * 100_000)
    none = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    yield "safetensors, 5,000 of nothing", safetensors({str(i): none for i in range(5000)}, b"")
    for odd in ("\x1b[2J", "a\nb", "\u202e", "x" * 100_000, "\0"):
        yield f"safetensors name {odd[:10]!r}", safetensors({odd: entry})
    yield "safetensors, empty file", Case(".safetensors", b"")


# -- Mutations of real files ---------------------------------------------------------------------

INTERESTING = (
    b"\0",
    b"\xff",
    b"\x7f",
    b"\x80",
    b"\1",
    *(o.code.encode("latin-1") for o in pickletools.opcodes),
)
WORDS = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)


def golden() -> list[Case]:
    """Returns the real files."""
    found = sorted(p for p in WEIGHTS.iterdir() if p.suffix in readers.READERS)
    return [Case(path.suffix, path.read_bytes()) for path in found]


def mutation(files: list[Case], seed: int) -> Case:
    """Returns one of the files, changed; a seed gives the same every time."""
    rng = random.Random(seed)
    case = rng.choice(files)
    if case.data[:2] == b"PK" and rng.random() < 0.7:  # inside a member, whose checksum stays right
        with zipfile.ZipFile(io.BytesIO(case.data)) as archive:
            members = {info.filename: archive.read(info) for info in archive.infolist()}
        kinds = [m for m in members if m.endswith((".pkl", ".npy"))] or list(members)
        member = rng.choice(kinds if rng.random() < 0.9 else list(members))
        members[member] = mutate(members[member], rng, files)
        return Case(case.suffix, zipped(members, rng.choice((0, 0, 0, zipfile.ZIP_DEFLATED))))
    return Case(case.suffix, mutate(case.data, rng, files))


def mutate(data: bytes, rng: random.Random, files: list[Case]) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(len(changed) + 1)
        end = min(len(changed), at + rng.choice((1, 1, 2, 4, 8, 30, 200)))
        other = rng.choice(files).data if rng.random() < 0.3 else data
        start = rng.randrange(len(other) + 1)
        old, size = bytes(changed[at:end]), rng.choice((1, 2, 4, 8))
        match rng.randrange(9):
            case 0:
                new = bytes([rng.randrange(256)])
            case 1:
                new = rng.choice(INTERESTING)
            case 2:
                new = struct.pack("<Q", rng.choice(WORDS))[:size]
            case 3:
                new = bytes([old[0] ^ 1 << rng.randrange(8)]) if old else b""
            case 4:
                end, new = at, rng.choice(INTERESTING)
            case 5:
                new = other[start : start + rng.choice((1, 8, 60, 400))]
            case 6:
                new = old * rng.choice((2, 2, 3, 50))
            case 7:
                new = b""
            case _:
                end, new = len(changed), b""
        changed[at : max(end, at + len(new)) if end == at + 1 else end] = new
    return bytes(changed)


# -- A process for each file ---------------------------------------------------------------------

WATCHED = (
    np, np.dtypes, jax, jnp, ml_dtypes, collections, builtins, codecs, copyreg, pickle, pickletools,
    struct, io, os, zipfile, types, readers,
)  # fmt: skip
DTYPES = {*NUMBERS.values(), *torch_files.TORCH_STORAGES.values()}
QUIET = (
    "builtins.id",
    "array.__new__",
    "object.__getattr__",
)  # what readers do, and changes nothing


def snapshot() -> dict[str, Any]:
    """Returns what there is in the modules, and in the classes and functions of theirs."""
    found: dict[str, Any] = {}
    for module in WATCHED:
        for name, value in list(vars(module).items()):
            if name == "__warningregistry__":
                continue
            found[f"{module.__name__}.{name}"] = id(value)
            if isinstance(value, type | types.FunctionType) and (inner := vars(value)):
                found[f"{module.__name__}.{name}.*"] = tuple((k, id(v)) for k, v in inner.items())
    for kind in (*map(np.dtype, DTYPES), np.dtype("O"), np.dtype("O8")):
        state = (kind.str, kind.flags, kind.itemsize, kind.hasobject, kind.names)
        found[f"dtype {kind}"] = (id(kind), *state)
    return found


def memory(kind: str) -> int:
    """Returns bytes of memory of this process: VmSize, what is mapped; VmHWM, the most used."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(kind))


def read(path: Path, events: list[str]) -> str:
    """Returns what came out of a file: "arrays", "refused", or what went wrong."""
    events.clear()
    try:
        arrays = readers.read(path)
        for name, array in arrays.items():
            if type(name) is not str or type(array) is not np.ndarray:
                return f"{name!r:.50} is {type(array)}"
            if array.dtype.newbyteorder("=") not in DTYPES:
                return f"{name!r:.50} is of {array.dtype}"
        for array in {id(array.base): array for array in arrays.values()}.values():
            array.tobytes()  # touches all of it
        ended = "arrays"
    except ValueError as error:
        message, ended = str(error), "refused"
        if not (message.startswith(str(path)) and message.isprintable() and len(message) < 2000):
            ended = f"message {message!r:.300}"
    except BaseException as error:
        ended = f"{type(error).__name__}: {error!s:.200}"
    return "; ".join([ended, *events])


def child(paths: list[Path], before: dict[str, Any], pipe: int) -> None:
    """Reads files one after the other and writes a line about each."""
    events: list[str] = []
    allowed = set(map(str, paths))

    def audit(event: str, values: tuple[Any, ...]) -> None:
        reads = event == "open" and str(values[0]) in allowed and values[1] in ("r", "rb")
        if not reads and event not in QUIET:
            events.append(f"{event} {values!r:.100}")

    limit = memory("VmSize") + MEMORY
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 1)
    os.dup2(silent, 2)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
    start = memory("VmHWM")
    sys.addaudithook(audit)
    for path in paths:
        signal.alarm(SECONDS)
        ended = read(path, events)
        if path == paths[-1]:
            after = snapshot()
            changed = [key for key in before | after if before.get(key) != after.get(key)]
            left = os.listdir()
            ended = "; ".join(
                [ended, *(f"changed {x}" for x in changed), *(f"left {x}" for x in left)]
            )
            ended += f"\0{memory('VmHWM') - start}"
        os.write(
            pipe, ended[:2000].encode("utf-8", "backslashreplace").replace(b"\n", b" ") + b"\n"
        )


def outcomes(cases: list[Case], folder: Path, before: dict[str, Any]) -> tuple[list[str], int]:
    """Returns how reading each file ended, in one process for all, and the most bytes it took."""
    paths = [folder / f"w{i}{case.suffix}" for i, case in enumerate(cases)]
    for path, case in zip(paths, cases, strict=True):
        path.write_bytes(case.data)
    receive, send = os.pipe()
    process = os.fork()
    if not process:
        try:
            os.chdir(folder / "empty")
            child(paths, before, send)
        finally:
            os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        content, _, most = pipe.read().partition(b"\0")
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    ended = content.decode().splitlines()
    if len(ended) < len(cases):
        ended.append(f"ended by {signal.Signals(-status).name}" if status < 0 else "no outcome")
    return ended, int(most or 0)


def warm(folder: Path) -> None:
    """Imports all codecs that a file can need, so that no import is left for the processes."""
    for codec in ("cp437", "ascii", "latin-1", "utf-8", "raw_unicode_escape", "unicode_escape"):
        "x".encode(codec).decode(codec)
    for case in golden():
        path = folder / f"w{case.suffix}"
        path.write_bytes(case.data)
        with contextlib.suppress(ValueError):
            readers.read(path)


def run(
    cases: Iterator[tuple[str, Case]], batch: int, folder: Path, before: dict[str, Any]
) -> dict[str, Any]:
    """Returns how many files ended how, and which of them are problems."""
    counts: dict[str, Any] = {"arrays": 0, "refused": 0, "problems": {}, "most MiB": 0}
    while group := list(itertools.islice(cases, batch)):
        ended, most = outcomes([case for _, case in group], folder, before)
        if len(ended) < len(group) or not {"arrays", "refused"} >= set(ended):
            ended = []  # which of them it is shows one at a time
            for _, case in group:
                (one,), most = outcomes([case], folder, before)
                ended.append(one)
        counts["most MiB"] = max(counts["most MiB"], most >> 20)
        for (what, _), one in zip(group, ended, strict=True):
            if one in ("arrays", "refused"):
                counts[one] += 1
            else:
                counts["problems"][what] = one
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mutations", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--batch", type=int, default=1, help="files that are read by one process")
    parser.add_argument("--only", help="number of a mutation, or a part of the names of others")
    parser.add_argument("--keep", help="file to write the last of them to")
    args = parser.parse_args()
    files = golden()
    span = range(args.first, args.first + args.mutations)
    sources = {
        "by hand": ((what, case) for what, case in hostile() if not args.only or args.only in what),
        "mutations": ((f"mutation {i}", mutation(files, i)) for i in span),
    }
    if args.only and args.only.isdecimal():
        i = int(args.only)
        sources = {"mutations": iter([(f"mutation {i}", mutation(files, i))])}
    elif args.only:
        del sources["mutations"]
    if args.keep:
        *_, (_, case) = itertools.chain(*sources.values())
        Path(args.keep).with_suffix(case.suffix).write_bytes(case.data)
        return 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "empty").mkdir()
        warm(folder)
        gc.collect()
        gc.freeze()
        before = snapshot()
        counts = {kind: run(cases, args.batch, folder, before) for kind, cases in sources.items()}
    print(json.dumps(counts, indent=1))
    return any(count["problems"] for count in counts.values())


if __name__ == "__main__":
    sys.exit(main())
