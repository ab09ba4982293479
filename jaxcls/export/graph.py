"""An ONNX graph as it is put together, what can be simplified in it, and its file.

Opset 21 of https://onnx.ai/onnx/operators. Nodes stand in the order of computation.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
IR_VERSION = 10  # of onnxruntime 1.20 and later
SMALL = 64  # entries of constants that are stored once for all that are equal


@dataclasses.dataclass
class Node:
    """An operation: names of what goes in and out, "" for an input that is left out."""

    op: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]


class Graph:
    """Nodes and constants; inputs and outputs come when it is written."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, np.ndarray] = {}
        self.shapes: dict[str, tuple[Any, ...]] = {}  # of tensors, where known
        self._same: dict[Any, str] = {}
        self._names: Counter[str] = Counter()

    def name(self, of: str) -> str:
        """Returns a name that is not used yet."""
        n = self._names[of]
        self._names[of] += 1
        return f"{of}.{n}" if n else of

    def constant(self, array: Any, of: str = "constant") -> str:
        """Returns the name of a constant."""
        array = np.asarray(array)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= SMALL else None
        if key is not None and self._same.get(key) in self.constants:
            return self._same[key]
        name = self.name(of)
        self.constants[name] = array
        if key is not None:
            self._same[key] = name
        return name

    def add(self, op: str, *inputs: str, of: str = "", outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the name of its output, or a list of them."""
        of = f"{of}/{op}" if of else op
        names = [self.name(of) for _ in range(outputs)]
        self.nodes.append(Node(op, list(inputs), names, attributes))
        return names[0] if outputs == 1 else names

    def add_as(self, name: str, op: str, *inputs: str, **attributes: Any) -> None:
        """Adds a node whose output has that name."""
        assert not self._names[name]
        self._names[name] += 1
        self.nodes.append(Node(op, list(inputs), [name], attributes))

    # -- Simplifying -------------------------------------------------------------------------------

    def simplify(self, outputs: Sequence[str]) -> None:
        """Folds factors and offsets into the weights before them, and drops what does nothing.

        Only where nothing else sees what is between, which is known when the graph is whole.
        """
        changed = True
        while changed:
            self.drop(outputs)
            changed = False
            # who makes each tensor, and how many see it
            self._makers = {name: node for node in self.nodes for name in node.outputs}
            self._uses = Counter(x for node in self.nodes for x in node.inputs) + Counter(outputs)
            kept, instead = [], {}
            for node in self.nodes:
                node.inputs = [instead.get(x, x) for x in node.inputs]
                before = self._makers.get(node.inputs[0]) if node.inputs else None
                alone = before is not None and self._uses[node.inputs[0]] == 1
                if alone and self._fold(before, node):
                    before.outputs[0], old = node.outputs[0], before.outputs[0]
                    self._makers[node.outputs[0]] = before
                    self.shapes[node.outputs[0]] = self.shapes.get(old)
                    changed = True
                    continue
                changed |= before is not None and self._merge(before, node, alone)
                if self._is_nothing(node) and node.outputs[0] not in outputs:
                    instead[node.outputs[0]] = node.inputs[0]
                    self._uses[node.inputs[0]] += self._uses[node.outputs[0]] - 1
                    changed = True
                    continue
                kept.append(node)
            self.nodes = kept

    def drop(self, outputs: Sequence[str]) -> None:
        """Drops nodes and constants that nothing uses."""
        needed, kept = set(outputs), []
        for node in reversed(self.nodes):
            if needed.intersection(node.outputs):
                needed.update(node.inputs)
                kept.append(node)
        self.nodes = kept[::-1]
        self.constants = {k: v for k, v in self.constants.items() if k in needed}

    def _merge(self, before: Node, node: Node, alone: bool) -> bool:
        """Makes one of two nodes, where they are one operation; returns whether they were.

        Transpositions, reshapes, factors, limits; a factor goes after a reshape, to meet others.
        """
        pair, factors = (before.op, node.op), []
        if "Mul" in pair and alone:
            factors = [self._scalar(n.inputs[1]) for n in (before, node) if n.op == "Mul"]
        if pair == ("Transpose", "Transpose"):
            perm = before.attributes["perm"]
            node.attributes["perm"] = [perm[i] for i in node.attributes["perm"]]
        elif pair == ("Mul", "Mul") and len(factors) == 2 and None not in factors:
            dtype = self.constants[node.inputs[1]].dtype
            node.inputs[1] = self.constant(np.array(math.prod(factors), dtype))
        elif pair == ("Mul", "Reshape") and factors and factors[0] is not None:
            before.op, node.op = node.op, before.op
            before.inputs[1], node.inputs[1] = node.inputs[1], before.inputs[1]
            self.shapes[before.outputs[0]] = self.shapes[node.outputs[0]]
            return True
        elif pair == ("Relu", "Min") and alone and self._scalar(node.inputs[1]) is not None:
            zero = np.zeros((), self.constants[node.inputs[1]].dtype)
            node.op, node.inputs[1:] = "Clip", [self.constant(zero), node.inputs[1]]
        elif pair != ("Reshape", "Reshape"):
            return False
        self._uses[node.inputs[0]] -= 1
        self._uses[before.inputs[0]] += 1
        node.inputs[0] = before.inputs[0]
        return True

    def _is_nothing(self, node: Node) -> bool:
        if node.op == "Transpose":
            return node.attributes["perm"] == sorted(node.attributes["perm"])
        if node.op == "Reshape":
            shape = self.shapes.get(node.inputs[0])
            return shape is not None and shape == self.shapes[node.outputs[0]]
        return node.op == "Mul" and self._scalar(node.inputs[1]) == 1

    def _scalar(self, name: str) -> float | None:
        value = self.constants.get(name)
        return float(value.reshape(())) if value is not None and value.size == 1 else None

    def _fold(self, layer: Node, node: Node) -> bool:
        """Folds a factor or an offset of channels into a convolution or product; returns if so."""
        if node.op == "Identity" and len(layer.outputs) == 1:  # the name of an output
            return True
        if node.op not in ("Mul", "Add", "Sub") or layer.op not in ("Conv", "MatMul", "Gemm"):
            return False
        weights, value = (self.constants.get(n.inputs[1]) for n in (layer, node))
        if weights is None or value is None or weights.dtype != value.dtype:
            return False
        conv = layer.op == "Conv"
        if layer.attributes.get("rank", 2) != 2 or (weights.ndim != 2 and not conv):
            return False
        axis, channels = (1, weights.shape[0]) if conv else (value.ndim - 1, weights.shape[-1])
        if any(n != 1 for i, n in enumerate(value.shape) if i != axis):
            return False
        wide = np.broadcast_to(value.astype(np.float64).reshape(-1), channels)
        bias = np.zeros(channels)
        if len(layer.inputs) > 2:
            bias = self.constants[layer.inputs[2]].astype(np.float64)
        if node.op == "Mul":
            shape = (-1, *[1] * (weights.ndim - 1)) if conv else (1, -1)
            scaled = weights.astype(np.float64) * wide.reshape(shape)
            layer.inputs[1] = self.constant(scaled.astype(weights.dtype), layer.inputs[1])
            bias = bias * wide
        else:
            bias = bias + (wide if node.op == "Add" else -wide)
        if node.op != "Mul" or len(layer.inputs) > 2:
            name = self.constant(bias.astype(weights.dtype), f"{layer.inputs[1]}/bias")
            layer.inputs[2:] = [name]
            layer.op = "Conv" if conv else "Gemm"
        return True

    # -- Writing -----------------------------------------------------------------------------------

    def model(
        self,
        inputs: Mapping[str, tuple[Any, Sequence[Any]]],
        outputs: Mapping[str, tuple[Any, Sequence[Any] | None]],
        metadata: Mapping[str, str],
        producer: tuple[str, str],
    ) -> onnx.ModelProto:
        """Returns the file; inputs and outputs are name: (dtype, shape), with texts for sizes.

        Where a shape is None, which ONNX does not allow and onnxruntime takes, nothing is checked.
        """

        def infos(of: Mapping[str, tuple[Any, Sequence[Any] | None]]) -> list[Any]:
            return [
                helper.make_tensor_value_info(name, onnx_type(dtype), shape)
                for name, (dtype, shape) in of.items()
            ]

        nodes = []
        names: Counter[str] = Counter()
        for node in self.nodes:
            attributes = {k: v for k, v in node.attributes.items() if k != "rank"}
            name = "/".join([*node.outputs[0].split("/")[:-1], node.op])
            names[name] += 1
            name = f"{name}.{names[name]}" if names[name] > 1 else name
            nodes.append(helper.make_node(node.op, node.inputs, node.outputs, name, **attributes))
        constants = [_tensor(name, array) for name, array in self.constants.items()]
        graph = helper.make_graph(nodes, "network", infos(inputs), infos(outputs), constants)
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name=producer[0],
            producer_version=producer[1],
        )
        helper.set_model_props(model, dict(metadata))
        if all(shape is not None for _, shape in outputs.values()):
            onnx.checker.check_model(model)
        return model


def onnx_type(dtype: Any) -> int:
    """Returns ONNX's number of a dtype, bfloat16 of JAX included."""
    if np.dtype(dtype).name == "bfloat16":
        return TensorProto.BFLOAT16
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _tensor(name: str, array: np.ndarray) -> Any:
    if array.dtype.name == "bfloat16":
        return helper.make_tensor(
            name, TensorProto.BFLOAT16, array.shape, array.tobytes(), raw=True
        )
    return numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
