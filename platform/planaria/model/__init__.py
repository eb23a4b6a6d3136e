"""The elastic transformer: attention whose heads come and go, blocks, input and output layers."""

from planaria.model.adapters import ROUTE
from planaria.model.attention import ElasticAttention, mix
from planaria.model.transformer import ElasticTransformer, build, check_weights, load_model, predict, save_model

__all__ = [
    "ROUTE",
    "ElasticAttention",
    "ElasticTransformer",
    "build",
    "check_weights",
    "load_model",
    "mix",
    "predict",
    "save_model",
]
