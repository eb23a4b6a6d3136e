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
        program_of(model, inputs).save(path, external_data=False)

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


def program_of(model: ElasticTransformer, inputs: Sequence[Array]) -> torch.onnx.ONNXProgram:
    """The model's operations, with everything that is constant computed, however large."""
    from onnxscript import optimizer

    plain = PlainModel(model)
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


FORMAT = OnnxFile()
