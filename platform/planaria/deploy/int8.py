"""ONNX whose attention and MLPs multiply whole numbers: weights of 8 bits or fewer, activations of 8.

What is rounded, and to what, is what planaria.model.rounding does in training. Embeddings, norms, gates, the output
layer and a readout stay float32. Weights are written as unsigned numbers around a zero point: ONNX Runtime adds pairs
of products of signed ones in 16 bits on processors without VNNI, where they overflow.

Legend: F output channels, K inputs of a product.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from planaria.blueprint import Quantisation
from planaria.deploy.formats import Array
from planaria.deploy.onnx_file import OnnxFile, program_of, save
from planaria.model import ElasticTransformer
from planaria.model.rounding import ACTIVATION_LEVEL, LEAST_SCALE, rounded_weight, weight_scale

AFTER_TRAINING = Quantisation(8, "tensor")
"""Of a model that was not quantised while it learned: what ONNX Runtime is fastest with."""
_WITHIN = re.compile(r"\bblocks\.\d+\.(attention|mlp)\b")
_SCOPES = "pkg.torch.onnx.name_scopes"
"""Where torch notes which module a node comes from."""
_PRODUCTS_OF_LAYER = 5


class Int8(OnnxFile):
    suffix = ".int8.onnx"
    exact = False

    def write(
        self, model: ElasticTransformer, encoding: Mapping[str, Any], inputs: Sequence[Array], path: Path
    ) -> None:
        quantisation = model.blueprint.quantisation
        try:
            model.quantise(None)
            graph = program_of(model, inputs, to_be_rounded=True).model_proto
        finally:
            model.quantise(quantisation)
        rewriting = _Rewriting(graph, quantisation or AFTER_TRAINING)
        rewriting.run()
        if rewriting.products != _PRODUCTS_OF_LAYER * model.blueprint.layers:
            raise RuntimeError(
                f"{rewriting.products} products of weights were found in {model.blueprint.layers} layers"
            )
        save(graph, path)


@dataclass
class _Rewriting:
    """Of a float32 graph, in place."""

    model: Any
    quantisation: Quantisation
    products: int = 0
    _weights: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """Names of each weight's numbers, zero points and scales."""
    _inputs: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """The same of what is multiplied by weights."""

    def run(self) -> None:
        graph = self.model.graph
        # Shapes that the exporter noted would be those of what is replaced.
        del graph.value_info[:]
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        nodes = [new for node in graph.node for new in self._instead(node)]
        del graph.node[:]
        graph.node.extend(nodes)
        used = {name for node in nodes for name in node.input} | {out.name for out in graph.output}
        kept = [tensor for name, tensor in self._constants.items() if name in used]
        del graph.initializer[:]
        graph.initializer.extend(kept)

    def _instead(self, node: Any) -> Iterator[Any]:
        if not self._is_product(node):
            yield node
            return
        self.products += 1
        x, weight, (made,) = node.input[0], node.input[1], node.output
        if weight not in self._weights:
            yield from self._weight(weight)
        if x not in self._inputs:
            yield from self._token_scales(x) if self.quantisation.activations == "token" else self._one_scale(x)
        (w_q, w_zero, w_scale), (x_q, x_zero, x_scale) = self._weights[weight], self._inputs[x]
        yield _node("MatMulInteger", [x_q, w_q, x_zero, w_zero], f"{made}_whole")
        yield _node("Cast", [f"{made}_whole"], f"{made}_float", to=_type("FLOAT"))
        if self.quantisation.activations == "token":
            # ONNX Runtime (1.32) takes a product of both scales for one of two numbers, and then reads the first alone
            yield _node("Mul", [f"{made}_float", x_scale], f"{made}_scaled")
            yield _node("Mul", [f"{made}_scaled", w_scale], made)
            return
        yield _node("Mul", [x_scale, w_scale], f"{made}_scale")
        yield _node("Mul", [f"{made}_float", f"{made}_scale"], made)

    def _is_product(self, node: Any) -> bool:
        if node.op_type != "MatMul" or node.input[0] in self._constants or node.input[1] not in self._constants:
            return False
        return any(entry.key == _SCOPES and _WITHIN.search(entry.value) for entry in node.metadata_props)

    def _weight(self, name: str) -> Iterator[Any]:
        from onnx import helper, numpy_helper

        weight_FK = torch.from_numpy(numpy_helper.to_array(self._constants[name]).T.copy())
        scale_F = weight_scale(weight_FK, self.quantisation.bits)
        whole_KF = (rounded_weight(weight_FK, self.quantisation) / scale_F[:, None]).round().int().t().numpy()
        narrow = self.quantisation.bits == 4
        middle = 8 if narrow else 128
        q, zero, scale = f"{name}_q", f"{name}_zero", f"{name}_scale"
        self._weights[name] = q, zero, scale
        self._add(zero, np.full(len(scale_F), middle, np.uint8))
        self._add(scale, scale_F.numpy())
        if not narrow:
            self._add(q, (whole_KF + middle).astype(np.uint8))
            return
        numbers = np.resize((whole_KF + middle).astype(np.uint8).flatten(), whole_KF.size + whole_KF.size % 2)
        two = (numbers[::2] | numbers[1::2] << 4).tobytes()
        packed = helper.make_tensor(f"{q}4", _type("UINT4"), whole_KF.shape, two, raw=True)
        self._constants[packed.name] = packed
        yield _node("Cast", [packed.name], q, to=_type("UINT8"))

    def _one_scale(self, x: str) -> Iterator[Any]:
        from onnx import helper

        self._inputs[x] = f"{x}_q", f"{x}_zero", f"{x}_scale"
        yield helper.make_node("DynamicQuantizeLinear", [x], [f"{x}_q", f"{x}_scale", f"{x}_zero"])

    def _token_scales(self, x: str) -> Iterator[Any]:
        self._inputs[x] = f"{x}_q", "q_middle", f"{x}_scale"
        for name, value in (
            ("q_middle", np.uint8(128)),
            ("q_last", np.array([-1])),
            ("q_least", np.float32(LEAST_SCALE)),
            ("q_level", np.float32(ACTIVATION_LEVEL)),
            ("q_one", np.float32(1)),
        ):
            self._add(name, value)
        yield _node("Abs", [x], f"{x}_size")
        yield _node("ReduceMax", [f"{x}_size", "q_last"], f"{x}_most", keepdims=1)
        yield _node("Div", [f"{x}_most", "q_level"], f"{x}_step")
        yield _node("Max", [f"{x}_step", "q_least"], f"{x}_scale")
        yield _node("Reciprocal", [f"{x}_scale"], f"{x}_inverse")
        yield _node("Mul", [x, f"{x}_inverse"], f"{x}_scaled")
        yield _node("QuantizeLinear", [f"{x}_scaled", "q_one", "q_middle"], f"{x}_q")

    def _add(self, name: str, value: Any) -> None:
        from onnx import numpy_helper

        self._constants[name] = numpy_helper.from_array(np.asarray(value), name)


def _node(kind: str, inputs: list[str], made: str, **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(kind, inputs, [made], **attributes)


def _type(name: str) -> int:
    from onnx import TensorProto

    number: int = TensorProto.DataType.Value(name)
    return number


FORMAT = Int8()
