"""A graph in 8 bits: weights, and what flows from layer to layer.

A feature x is stored as uint8, round(x / scale) + zero, with one scale a tensor; weights are int8,
with one a channel that comes out, and no zero. The graph says so with pairs of QuantizeLinear and
DequantizeLinear, of which onnxruntime makes operations on 8 bits (Jacob et al. 2018,
arXiv:1712.05877; https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
`models.layers.quantised` rounds at the same places, for networks that are trained for this.

All convolutions and matrix products are done so, and what lies between them where all that goes in
is in 8 bits. What normalises images, and what comes out of the last layer, stays as it is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from jaxcls.export.graph import Graph, Node

LAYERS = ("Conv", "Gemm", "MatMul")
# In 8 bits where all that goes in is, with a range of their own.
BETWEEN = ("Add", "AveragePool", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "Sigmoid")
# What comes out is what went in, elsewhere.
MOVES = ("MaxPool", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")
ARITHMETIC = {"Add": np.add, "Mul": np.multiply, "Sub": np.subtract}  # of what normalises
LIMITS = ("Clip", "Relu")  # after another: what uint8 stands for ends there anyway
BEYOND = 1e-4  # share of a tensor's values that lie beyond its range, at either end
LARGEST_BIAS = 2.0**30  # in its unit, of int32: half of what there is, the other for the sum

Range = tuple[float, float]
Like = tuple[str, float]  # as another tensor, times a factor


def quantise(
    graph: Graph,
    outputs: Sequence[str],
    run: Callable[[list[str]], Iterable[Mapping[str, np.ndarray]]],
    images: int,
) -> None:
    """Changes a graph of 32 bits to one of 8; its inputs and outputs stay.

    Args:
      graph: simplified.
      outputs: its names.
      run: names of tensors -> what they are for some images, part by part.
      images: how many these are.

    Raises:
      ValueError: what they are is not finite.
    """
    _normalise_planes(graph)
    own, like = tensors(graph, outputs)
    found = ranges(run(own), images)
    _Writer(graph, {name: _numbers(found[name]) for name in own}, like).write()
    graph.drop(outputs)


def _normalise_planes(graph: Graph) -> None:
    """Makes a factor and an offset of what normalises images, on images whose pixels are one axis.

    onnxruntime wants channels last for convolutions of 8 bits, and moves a transposition there up
    to the input: arithmetic with three channels last takes as long as several convolutions.
    """
    name, pixels, chain = "images", "", []
    found = np.arange(2.0).reshape(2, 1, 1, 1)
    while len(readers := [node for node in graph.nodes if name in node.inputs]) == 1:
        [node] = readers
        if node.op in ARITHMETIC and pixels and node.inputs[1] in graph.constants:
            constant = graph.constants[node.inputs[1]]
            if constant.size > 1 and constant.shape[-2:] != (1, 1):
                return
            found = ARITHMETIC[node.op](found, constant.astype(np.float64))
            chain.append(node)
        elif node.op == "Cast" and not pixels:
            pixels = node.outputs[0]
        elif node.op != "Transpose" or pixels:
            break
        name = node.outputs[0]
    if not chain:
        return
    sizes = [n if isinstance(n, int) else -1 for n in graph.shapes[pixels]]
    one, two = (np.array(x, np.int64) for x in ([*sizes[:2], sizes[2] * sizes[3]], sizes))
    numbers = (found[1] - found[0], found[0])
    factor, offset = (x.astype(np.float32).reshape(1, -1, 1) for x in numbers)
    last, old = graph.nodes.index(chain[-1]), graph.nodes
    graph.nodes = []
    x = graph.add("Reshape", pixels, graph.constant(one))
    x = graph.add("Add", graph.add("Mul", x, graph.constant(factor)), graph.constant(offset))
    graph.nodes.append(Node("Reshape", [x, graph.constant(two)], [name], {}))
    graph.nodes = old[:last] + graph.nodes + old[last + 1 :]


def tensors(graph: Graph, outputs: Sequence[str]) -> tuple[list[str], dict[str, Like]]:
    """Returns the tensors in 8 bits: those with a range of their own, and those like others."""
    outputs = [*outputs, *(node.inputs[0] for node in graph.nodes if node.op == "Identity")]
    own: dict[str, None] = {}
    like: dict[str, Like] = {}
    readers: dict[str, list[Node]] = {}
    for node in graph.nodes:
        for name in node.inputs:
            readers.setdefault(name, []).append(node)

    def add(name: str) -> None:
        if name not in graph.constants and name not in outputs and name not in like:
            own[name] = None

    def limited(name: str) -> str:
        """Returns what a limit makes of a tensor that nothing else reads, or the tensor."""
        several = readers.get(name, [])
        if len(several) != 1 or name in outputs or not _limit(graph, several[0]):
            return name
        return several[0].outputs[0]

    for node in graph.nodes:
        if node.op in LAYERS:
            for name in node.inputs[:2]:
                add(name)
            add(limited(node.outputs[0]))
    for node in graph.nodes:
        constants = [graph.constants[x] for x in node.inputs if x in graph.constants]
        given = [x for x in node.inputs if x not in graph.constants]
        if not given or not all(x in own or x in like for x in given):
            continue
        number = constants[0] if len(constants) == 1 and constants[0].size == 1 else None
        if node.op in MOVES or (node.op == "Mul" and number is not None and number > 0):
            factor = 1.0 if node.op in MOVES else float(number.reshape(()))
            for name in {*node.outputs} - {*outputs}:
                like[name] = given[0], factor
                own.pop(name, None)
        elif node.op in BETWEEN and all(x.size == 1 for x in constants):
            add(limited(node.outputs[0]))
    return [*own], like


def _limit(graph: Graph, node: Node) -> bool:
    """Returns whether a node limits values to a range around 0."""
    if node.op not in LIMITS:
        return False
    limits = [graph.constants.get(name) for name in node.inputs[1:]]
    return not limits or (len(limits) == 2 and None not in limits and limits[0] <= 0 <= limits[1])


def ranges(parts: Iterable[Mapping[str, np.ndarray]], images: int) -> dict[str, Range]:
    """Returns the range, 0 included, that all but `BEYOND` of a tensor's values keep to.

    No more values than these are kept.

    Args:
      parts: name -> values [B, ...] of some images.
      images: how many there are in all parts.

    Raises:
      ValueError: a value is not finite.
    """
    low: dict[str, np.ndarray] = {}
    high: dict[str, np.ndarray] = {}
    for part in parts:
        for name, values in part.items():
            if not np.isfinite(values).all():
                raise ValueError(f"--format=int8: {name} is not finite for these images")
            flat = values.reshape(-1)
            count = 1 + int(BEYOND * images * flat.size / len(values))
            high[name] = _largest(flat, high.get(name), count)
            low[name] = _largest(-flat, low.get(name), count)
    return {name: (min(-low[name].min(), 0.0), max(high[name].min(), 0.0)) for name in low}


def _largest(values: np.ndarray, others: np.ndarray | None, count: int) -> np.ndarray:
    if others is not None:
        values = np.concatenate([values[values > others.min()], others])
    return values if len(values) <= count else np.partition(values, -count)[-count:]


def _numbers(limits: Range) -> tuple[np.float32, np.uint8]:
    """Returns scale and zero of a range."""
    low, high = limits
    scale = np.float32((high - low) / 255)
    scale = scale if scale > 0 else np.float32(1)
    return scale, np.uint8(np.clip(np.round(-low / scale), 0, 255))


class _Writer:
    """Puts a graph together anew."""

    def __init__(
        self,
        graph: Graph,
        numbers: dict[str, tuple[np.float32, np.uint8]],
        like: Mapping[str, Like],
    ):
        self.graph, self.numbers, self.like = graph, numbers, like
        self.stored: dict[str, str] = {}  # tensor -> that of uint8
        self.read: dict[str, str] = {}  # tensor -> what is read in its place

    def write(self) -> None:
        graph, old = self.graph, self.graph.nodes
        made = {name for node in old for name in node.outputs}
        eight = {*self.numbers, *self.like}
        graph.nodes = []
        for name in self.numbers:
            if name not in made:  # an input of the graph
                self.store(name, name)
        for node in old:
            [out, *_] = node.outputs
            if node.op == "Mul" and out in self.like:  # the same numbers, of another scale
                origin, factor = self.like[out]
                scale, zero = self.numbers[origin]
                self.numbers[out] = np.float32(scale * factor), zero
                self.stored[out] = self.stored[origin]
                self.load(out)
            elif out in eight and _limit(graph, node) and node.inputs[0] not in eight:
                self.store(out, node.inputs[0])
            else:
                self.add(node)
                for name in eight.intersection(node.outputs):
                    self.numbers[name] = self.numbers.get(name) or self.numbers[self.like[name][0]]
                    self.store(name, name)

    def store(self, name: str, origin: str) -> None:
        """Stores a tensor in 8 bits, and reads it again."""
        numbers = map(self.graph.constant, self.numbers[name])
        self.stored[name] = self.graph.add("QuantizeLinear", origin, *numbers, of=name)
        self.load(name)

    def load(self, name: str) -> None:
        """Reads what is stored of a tensor."""
        numbers = map(self.graph.constant, self.numbers[name])
        self.read[name] = self.graph.add("DequantizeLinear", self.stored[name], *numbers, of=name)

    def add(self, node: Node) -> None:
        """Adds a node that reads what is in 8 bits."""
        graph = self.graph
        numbers = [graph.constants.get(name) for name in node.inputs]
        inputs = [self.read.get(name, name) for name in node.inputs]
        if node.op in LAYERS and numbers[1] is not None and node.inputs[0] in self.numbers:
            inputs = self.layer(node, inputs[0])
        elif node.op in BETWEEN and any(name in self.read for name in node.inputs):
            for i, number in enumerate(numbers):
                if number is not None and number.size == 1:  # exactly itself
                    below = number.reshape(()) < 0
                    scale = np.abs(number).reshape(()).astype(np.float32) or np.float32(1)
                    stored = np.full(number.shape, 0 if below else number.any(), np.uint8)
                    parts = map(graph.constant, (stored, scale, np.uint8(below)))
                    inputs[i] = graph.add("DequantizeLinear", *parts, of=node.inputs[i])
        node.inputs = inputs
        graph.nodes.append(node)

    def layer(self, node: Node, features: str) -> list[str]:
        """Returns the inputs of a convolution or product with weights of 8 bits."""
        graph, of = self.graph, node.inputs[1]
        kernel = graph.constants[of]
        axis = 0 if node.op == "Conv" else kernel.ndim - 1
        scale = np.abs(kernel).max(tuple(i for i in range(kernel.ndim) if i != axis)) / 127
        scale = np.where(scale > 0, scale, 1)
        unit, bias = self.numbers[node.inputs[0]][0], None
        if len(node.inputs) > 2:
            bias = graph.constants[node.inputs[2]].reshape(-1)
            # of a channel that is next to nothing but a bias
            scale = np.maximum(scale, np.abs(bias) / (unit * LARGEST_BIAS))
        scale = scale.astype(np.float32)
        wide = scale.reshape([-1 if i == axis else 1 for i in range(kernel.ndim)])
        stored = np.clip(np.round(kernel / wide), -127, 127).astype(np.int8)
        inputs = [features, self.weights(of, stored, scale, axis)]
        if bias is not None:
            units = unit * scale
            inputs.append(self.weights(of, np.round(bias / units).astype(np.int32), units, 0))
        return inputs

    def weights(self, of: str, stored: np.ndarray, scale: np.ndarray, axis: int) -> str:
        """Returns weights with a scale for each entry of an axis."""
        zeros = np.zeros(len(scale), stored.dtype)
        parts = (self.graph.constant(x, of) for x in (stored, scale, zeros))
        return self.graph.add("DequantizeLinear", *parts, of=of, axis=axis)
