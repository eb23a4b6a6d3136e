"""ONNX: a file that ONNX Runtime, and much else, runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from planaria.deploy.formats import Answer, Array
from planaria.deploy.plain import PlainModel
from planaria.deploy.torch_export import traced
from planaria.errors import InputError
from planaria.model import ElasticTransformer

OPSET = 21
"""The first with numbers of 4 bits."""


class OnnxFile:
    suffix = ".onnx"
    exact = True

    def write(
        self, model: ElasticTransformer, encoding: Mapping[str, Any], inputs: Sequence[Array], path: Path
    ) -> None:
        if model.blueprint.quantisation is not None:
            raise InputError("export: --to onnx computes in float32, but this model is quantised; use --to int8")
        save(program_of(model, inputs).model_proto, path)

    def read(self, path: Path) -> Answer:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]

        def answer(inputs: Sequence[Array]) -> Array:
            output: Array = session.run(None, dict(zip(names, inputs, strict=True)))[0]
            return output

        return answer


def program_of(
    model: ElasticTransformer, inputs: Sequence[Array], *, to_be_rounded: bool = False
) -> torch.onnx.ONNXProgram:
    """The model's operations, with everything that is constant computed, however large."""
    from onnxscript import optimizer

    plain = PlainModel(model)
    for layer in range(model.blueprint.layers):
        plain.model.block(layer).attention.absorbs = not to_be_rounded
    program = torch.onnx.export(
        traced(plain, inputs),
        dynamo=True,
        verbose=False,
        input_names=list(plain.names),
        output_names=["output"],
        opset_version=OPSET,
    )
    assert program is not None
    sizes = sum(tensor.numel() for tensor in model.state_dict().values())
    optimizer.optimize(program.model, input_size_limit=8 * sizes, output_size_limit=8 * sizes)
    return program


def save(model: Any, path: Path) -> None:
    """Without notes on where its nodes come from, which may be most of a small file, and with constants that are equal,
    as those of layers that share weights, stored once."""
    import onnx

    graph = model.graph
    first: dict[bytes, str] = {}
    instead: dict[str, str] = {}
    kept = []
    for tensor in graph.initializer:
        name, tensor.name, tensor.doc_string = tensor.name, "", ""
        del tensor.metadata_props[:]
        instead[name] = first.setdefault(tensor.SerializeToString(), name)
        tensor.name = name
        if instead[name] == name:
            kept.append(tensor)
    del graph.initializer[:], graph.value_info[:], graph.metadata_props[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
        node.input[:] = [instead.get(name, name) for name in node.input]
    onnx.save(model, path)


FORMAT = OnnxFile()
