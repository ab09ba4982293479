"""What the text of a compiled program tells: collectives, bytes moved, what is kept in memory.

XLA's own figures leave open what is wanted here: of collectives it says nothing, its bytes count
what passes between a TPU's memory and its scratchpad twice, once at either side, and its peak does
not say what the forward pass leaves for the backward pass. The program is read as scheduled, after
`compiled.as_text()`; a loop counts as often as it runs.
"""

import collections
import math
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jaxcls import products

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
OPERATIONS = {  # of a fusion the first that it has; TPUs compute matrix products as convolutions
    "collective": {*KINDS},
    "convolution": {"convolution", "dot"},
    "pooling": {"reduce-window", "select-and-scatter"},
    "reduction": {"reduce"},
    "copy": {"copy", "slice", "dynamic-slice", "dynamic-update-slice", "transpose", "concatenate"},
}
# Of these the result is an operand in another form, or no buffer at all.
ALIASES = {
    "tuple", "get-tuple-element", "bitcast", "optimization-barrier", "after-all", "parameter",
    "constant", "partition-id", "replica-id", "domain", "while", "conditional", "async-done",
    "async-update",
}  # fmt: skip
BRANCHES = ("branch_computations", "true_computation", "false_computation")  # of a condition
SLICES = {"slice", "dynamic-slice", "gather"}  # read no more of an operand than they return
BITS = re.compile(r"[a-z]+(\d+)")
SHAPE = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
LINE = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (.*)")
NAME = re.compile(r"%([\w.\-]+)")
SCRATCHPAD = re.compile(r"S\([1-9]")  # a memory space in a layout: not the device's memory


class Instruction(NamedTuple):
    """A line of a program."""

    name: str
    type: str
    op: str
    operands: tuple[str, ...]
    attributes: str
    root: bool

    def called(self, *keys: str) -> list[str]:
        """Returns the computations that it names under these attributes."""
        found = []
        for key in keys:
            if match := re.search(rf"\b{key}=(\{{[^}}]*\}}|%?[\w.\-]+)", self.attributes):
                found += [name.strip("% ") for name in match[1].strip("{}").split(",")]
        return found

    @property
    def alias(self) -> bool:
        """Whether the result is in the operands' place."""
        known = self.op in ALIASES or self.op.endswith("-done")
        return known or 'custom_call_target="ConcatBitcast"' in self.attributes

    @property
    def part(self) -> str:
        """The part of a step that asked for it: "forward", "backward", "update" and all others."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        name = match[1] if match else ""
        return "backward" if "transpose(" in name else "forward" if "jvp(" in name else "update"

    @property
    def forward(self) -> bool | None:
        """Whether the forward pass of a gradient computes it; None: it is the compiler's own."""
        match = re.search(r'op_name="([^"]*)"', self.attributes)
        return match and "jvp(" in match[1] and "transpose(" not in match[1]


class Reading(NamedTuple):
    """Of one device in one step."""

    collectives: dict[str, dict[str, int]]  # kind: {"count", "bytes"}, bytes of its operands
    sent: float  # bytes, by the best algorithm for rings
    bytes: float  # moved from and to the device's memory
    kinds: dict[str, float]  # those by operation and part of the step: "convolution, backward"
    activations: float  # bytes that the forward pass has left, when most is in memory
    temporaries: float  # and other bytes, without the program's arguments and results
    flops: float  # of matrix products and convolutions, of a condition's branches the most


def read(text: str, devices: int) -> Reading:
    """Returns what a program tells.

    Args:
      text: `compiled.as_text()`.
      devices: that it is for.
    """
    return Program(text, devices).read()


def sizes(type: str) -> list[tuple[int, bool]]:
    """Returns bytes, and whether it is in the device's memory, of each array of a type."""
    found = []
    for dtype, dims, layout in SHAPE.findall(type):
        bits = 8 if dtype == "pred" else int((BITS.match(dtype) or [0, 0])[1])
        count = math.prod(int(n) for n in dims.split(",") if n)
        found.append((-(-bits * count // 8), not SCRATCHPAD.search(layout)))
    return found


def in_memory(type: str) -> int:
    """Returns the bytes of a type in the device's memory."""
    return sum(size for size, here in sizes(type) if here)


def group_size(attributes: str, devices: int) -> int:
    """Returns how many devices take part in each group of a collective."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", attributes):
        moves = [pair.split(",") for pair in re.findall(r"\d+,\d+", pairs[1])]
        return 2 if any(a != b for a, b in moves) else 1
    if groups := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
        return groups[1].count(",") + 1
    if groups := re.search(r"replica_groups=\[([\d,]+)\]<=", attributes):
        return int(groups[1].split(",")[-1])
    if groups := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", attributes):
        axes = dict(re.findall(r"'([^']+)'=(\d+)", groups[1]))
        return math.prod(int(axes[axis]) for axis in re.findall(r"'([^']+)'", groups[2]))
    return devices


def sent(kind: str, size: float, group: int) -> float:
    """Returns the bytes that a device sends for a collective over operands of `size` bytes."""
    others = group - 1
    if kind == "all-reduce":  # a reduce-scatter and an all-gather of the parts
        return 2 * size * others / group
    if kind == "all-gather":
        return size * others
    return size * others / group if kind in ("reduce-scatter", "all-to-all") else size


class Program:
    """A program's computations."""

    def __init__(self, text: str, devices: int):
        self.devices, self.entry, self.computations = devices, "", {}
        current: list[Instruction] = []
        for line in text.splitlines():
            if line[:1] in ("%", "E") and line.endswith("{"):
                name = NAME.search(line)[1]
                current = self.computations[name] = []
                self.entry = name if line.startswith("ENTRY") else self.entry
            elif match := LINE.match(line):
                current.append(_instruction(match[2], match[3], bool(match[1])))
        self.types = {
            (where, line.name): line.type
            for where, lines in self.computations.items()
            for line in lines
        }

    def read(self) -> Reading:
        """Returns what it tells."""
        kinds, moved = collections.defaultdict(collections.Counter), 0.0
        by_kind: collections.Counter[str] = collections.Counter()
        for where, line, times in self.executed(self.entry, 1):
            kind = line.op.removesuffix("-start")
            if where.startswith("all-reduce-scatter"):  # of TPUs, with a slice of the sum
                kind = "reduce-scatter" if kind == "all-reduce" else kind
            if kind in KINDS:
                group = group_size(line.attributes, self.devices)
                size = sum(s for name in line.operands for s, _ in sizes(self.types[where, name]))
                if group > 1:
                    kinds[kind] += collections.Counter(count=times, bytes=times * size)
                    moved += times * sent(kind, size, group)
            if size := times * self.traffic(where, line):
                by_kind[f"{self.operation(line)}, {line.part}"] += size
        collectives = {kind: {**kinds[kind]} for kind in KINDS if kind in kinds}
        peak, flops = self.peak(self.entry), self.flops(self.entry)
        return Reading(collectives, moved, by_kind.total(), {**by_kind}, *peak, flops)

    def operation(self, line: Instruction) -> str:
        """Returns what moves an instruction's bytes: the first of `OPERATIONS` that is in it."""
        inside, ops = [line], set()
        while inside:
            inner = inside.pop()
            ops.add(inner.op.removesuffix("-start"))
            for name in inner.called("calls") if inner.op == "fusion" else ():
                inside += self.computations.get(name, ())
        return next((name for name, of in OPERATIONS.items() if ops & of), "elementwise")

    def executed(self, where: str, times: int) -> Iterator[tuple[str, Instruction, int]]:
        """Yields (computation, instruction, how often it runs) of all that a computation runs."""
        chains: set[str] = set()  # beginning, steps and end of one collective are fusions on TPUs
        for line in self.computations.get(where, ()):
            yield where, line, times
            if line.op == "while":
                turns = self.turns(where, line)
                for name in line.called("body", "condition"):
                    yield from self.executed(name, times * turns)
            elif line.op == "conditional":
                for name in line.called(*BRANCHES):
                    yield from self.executed(name, times)
            elif line.op in ("async-start", "fusion", "call"):  # for their collectives
                for name in line.called("calls", "to_apply"):
                    for inner in self.computations.get(name, ()):
                        chain = re.findall(r'channel_id=\d+|chain_id="\d+"', inner.attributes)
                        chain = None if name.startswith("all-reduce-scatter") else " ".join(chain)
                        if inner.op.removesuffix("-start") in KINDS and chain not in chains:
                            yield name, inner, times
                            chains |= {chain} - {None, ""}

    def turns(self, where: str, loop: Instruction) -> int:
        """Returns how often a loop runs; 1 where the text does not tell.

        Programs for CPUs and GPUs say it; in those for TPUs a counter, to which each turn adds a
        constant, is compared with a constant.
        """
        if known := re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
            return int(known[1])
        body, condition = "".join(loop.called("body")), "".join(loop.called("condition"))
        test, result = self.root(condition), self.root(body)
        start = self.line(where, loop.operands[0])
        if not (test and result and start and result.op == start.op == "tuple"):
            return 1

        def constant(inside: str, name: str) -> int | None:
            """Returns the value of a constant, there or handed through by the loop."""
            if (value := self.constant(inside, name)) is not None:
                return value
            place = self.element(inside, name)
            if place is None or self.element(body, result.operands[place]) != place:
                return None
            return self.constant(where, start.operands[place])

        place = self.element(condition, test.operands[0]) if test.op == "compare" else None
        if place is None or "direction=LT" not in test.attributes:
            return 1
        step = self.line(body, result.operands[place])
        if step is None or step.op != "add":
            return 1
        by = [constant(body, name) for name in step.operands if self.element(body, name) != place]
        first, end = (
            self.constant(where, start.operands[place]),
            constant(condition, test.operands[1]),
        )
        if None in (first, end, *by) or len(by) != 1 or by[0] < 1:
            return 1
        return max(-(-(end - first) // by[0]), 0)

    def root(self, where: str) -> Instruction | None:
        """Returns the instruction whose result a computation returns."""
        return next((x for x in self.computations.get(where, ()) if x.root), None)

    def line(self, where: str, name: str) -> Instruction | None:
        """Returns the instruction of that name, or what it is a copy of."""
        found = next((x for x in self.computations.get(where, ()) if x.name == name), None)
        if found is not None and found.op in ("copy", "bitcast"):
            return self.line(where, found.operands[0])
        return found

    def constant(self, where: str, name: str) -> int | None:
        """Returns the value of a whole number that is written in the program."""
        line = self.line(where, name)
        found = line and line.op == "constant" and re.match(r"(-?\d+)\)", line.attributes)
        return int(found[1]) if found else None

    def element(self, where: str, name: str) -> int | None:
        """Returns which element of its computation's one argument an instruction takes."""
        line = self.line(where, name)
        if line is None or line.op != "get-tuple-element":
            return None
        of, index = self.line(where, line.operands[0]), re.search(r"\bindex=(\d+)", line.attributes)
        return int(index[1]) if index and of is not None and of.op == "parameter" else None

    def flops(self, where: str) -> float:
        """Returns the FLOPs of a computation's matrix products and convolutions."""
        total = 0.0
        for line in self.computations.get(where, ()):
            if line.op == "while":
                total += self.turns(where, line) * sum(map(self.flops, line.called("body")))
            elif line.op == "conditional":
                total += max(map(self.flops, line.called(*BRANCHES)), default=0.0)
            elif line.op in ("dot", "convolution"):
                types = (line.type, *(self.types[where, name] for name in line.operands[:2]))
                total += 2.0 * products.count(line.op, line.attributes, *map(_dims, types))
            else:
                total += sum(map(self.flops, line.called("calls", "to_apply")))
        return total

    def traffic(self, where: str, line: Instruction) -> float:
        """Returns the bytes that an instruction moves from and to the device's memory."""
        operands = [self.types.get((where, name), "") for name in line.operands]
        if line.alias:
            return 0
        if line.op == "copy-start":  # (to, from, context)
            return sum(size for size, here in sizes(line.type)[:2] if here)
        if line.op == "slice-start":  # ((from), to, context)
            (_, here), (size, there) = sizes(line.type)[0], sizes(line.type)[-2]
            return size * (here + there)
        if line.op in SLICES:
            return 2 * in_memory(line.type)
        if line.op == "dynamic-update-slice":
            return 2 * in_memory(operands[1])
        if line.op.endswith("-start"):  # its type has operands and results
            return 2 * sum(map(in_memory, operands))
        result = in_memory(line.type)
        if line.op == "fusion":
            inner = self.computations.get(line.called("calls")[0], ())
            return _touched(inner, operands, result)
        return result + sum(map(in_memory, operands))

    def peak(self, where: str) -> tuple[float, float]:
        """Returns (bytes of the forward pass, others) in memory, when they are most.

        Arguments and results of the computation do not count: they have their places.
        """
        lines = self.computations.get(where, ())
        buffers: dict[str, set[str]] = {}  # of each name those that it may stand for
        size, forward, last = {}, {}, {}
        born: dict[int, list[str]] = collections.defaultdict(list)
        inside: dict[int, tuple[float, float]] = {}
        for i, line in enumerate(lines):
            given = set().union(*(buffers.get(name, ()) for name in line.operands))
            if line.alias:
                buffers[line.name] = given
                names = line.called("body", *BRANCHES)
                inside[i] = max(map(self.peak, names), key=sum, default=(0.0, 0.0))
            else:
                buffers[line.name] = {line.name}
                born[i].append(line.name)
                size[line.name] = _own(line)
                fore = line.forward
                if fore is None:  # a copy: as what it is a copy of
                    fore = any(forward.get(name) for name in given)
                forward[line.name] = fore
            for name in buffers[line.name] | given:
                last[name] = i
            if line.root:
                for name in buffers[line.name]:
                    size[name] = 0
        ends = collections.defaultdict(list)
        for name, i in last.items():
            ends[i].append(name)
        now, most = [0.0, 0.0], (0.0, 0.0)
        for i in range(len(lines)):
            for name in born[i]:
                now[not forward[name]] += size[name]
            within = inside.get(i, (0.0, 0.0))
            most = max(most, (now[0] + within[0], now[1] + within[1]), key=sum)
            for name in ends[i]:
                now[not forward[name]] -= size[name]
        return most


def _dims(type: str) -> list[int]:
    """Returns the dimensions of an array's type."""
    return [int(n) for n in SHAPE.search(type)[2].split(",") if n]


def _own(line: Instruction) -> int:
    """Returns the bytes in memory that the result of an instruction takes."""
    if line.op == "copy-start":  # (to, from, context)
        size, here = sizes(line.type)[0]
        return size * here
    if line.op == "slice-start":  # ((from), to, context)
        size, here = sizes(line.type)[-2]
        return size * here
    return in_memory(line.type)


def _touched(inner: Sequence[Instruction], operands: list[str], result: int) -> int:
    """Returns the bytes that a fusion moves.

    Args:
      inner: what it computes.
      operands: their types.
      result: the bytes of what it returns.
    """
    read = [in_memory(operand) for operand in operands]
    users, types = collections.defaultdict(list), {line.name: line.type for line in inner}
    for line in inner:
        for name in line.operands:
            users[name].append(line)
    for line in inner:
        if line.op != "parameter" or not users[line.name]:
            continue
        number, used = int(line.attributes.split(")")[0]), users[line.name]
        if all(x.op in SLICES and x.operands[0] == line.name for x in used):
            read[number] = min(read[number], sum(sizes(x.type)[0][0] for x in used))
        for x in used:  # in place: only the new part is written
            if x.root and x.op == "dynamic-update-slice" and x.operands[0] == line.name:
                read[number], result = 0, min(result, sizes(types[x.operands[1]])[0][0])
    return sum(read) + result


def _instruction(name: str, text: str, root: bool) -> Instruction:
    end = _closing(text) + 1 if text.startswith("(") else text.find(" ")
    op, _, rest = text[end:].lstrip().partition("(")
    close = _closing("(" + rest) - 1
    inside, attributes = rest[:close], rest[close + 1 :]
    if op in ("parameter", "constant"):  # its number
        return Instruction(name, text[:end], op, (), f"{inside}){attributes}", root)
    return Instruction(name, text[:end], op, tuple(NAME.findall(inside)), attributes, root)


def _closing(text: str) -> int:
    """Returns where the parenthesis closes that the text begins with."""
    depth = 0
    for match in re.finditer(r"[()]", text):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    return len(text)
