"""ONNX with 8-bit weights: ONNX Runtime's dynamic quantisation, which also rounds each product's inputs, row set by row
set."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from planaria.deploy.formats import Array
from planaria.deploy.onnx_file import OnnxFile
from planaria.model import ElasticTransformer


class Int8(OnnxFile):
    suffix = ".int8.onnx"
    exact = False

    def write(
        self, model: ElasticTransformer, encoding: Mapping[str, Any], inputs: Sequence[Array], path: Path
    ) -> None:
        import onnx
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory(prefix="planaria-") as temporary:
            whole = Path(temporary) / "model.onnx"
            super().write(model, encoding, inputs, whole)
            graph = onnx.load(whole)
            # Shapes that the exporter noted contradict those that the quantiser infers.
            del graph.graph.value_info[:]
            onnx.save(graph, whole)
            quantize_dynamic(whole, path, weight_type=QuantType.QInt8)


FORMAT = Int8()
