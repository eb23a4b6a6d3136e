"""ONNX: a file that ONNX Runtime, and much else, runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from planaria.deploy.formats import Answer, Array
from planaria.deploy.plain import PlainModel
from planaria.deploy.torch_export import traced
from planaria.model import ElasticTransformer


class OnnxFile:
    suffix = ".onnx"
    exact = True

    def write(
        self, model: ElasticTransformer, encoding: Mapping[str, Any], inputs: Sequence[Array], path: Path
    ) -> None:
        plain = PlainModel(model)
        given, made = list(plain.names), ["output"]
        program = torch.onnx.export(
            traced(plain, inputs), dynamo=True, verbose=False, input_names=given, output_names=made
        )
        assert program is not None
        program.save(path, external_data=False)

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


FORMAT = OnnxFile()
