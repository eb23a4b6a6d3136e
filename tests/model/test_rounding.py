"""Fake quantisation: what is rounded, to what, and which way gradients go."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from planaria.blueprint import Activations, Blueprint, Gates, Quantisation
from planaria.model import build
from planaria.model.rounding import product, rounded_input, rounded_weight, weight_scale

TOKEN, TENSOR = Quantisation(8, "token"), Quantisation(8, "tensor")


def _normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(bits=st.integers(4, 8), seed=st.integers(0, 99))
def test_a_weight_is_a_whole_number_of_its_channel_s_steps_and_no_further_off_than_half_a_step(
    bits: int, seed: int
) -> None:
    weight_FK = _normal(5, 7, seed=seed) * torch.tensor([1e-3, 1.0, 30.0, 0.0, 2.0])[:, None]
    rounded_FK, scale_F = rounded_weight(weight_FK, Quantisation(bits, "token")), weight_scale(weight_FK, bits)
    whole_FK = rounded_FK / scale_F[:, None]
    assert (whole_FK - whole_FK.round()).abs().max() < 1e-4
    assert whole_FK.abs().max() <= 2 ** (bits - 1) - 1 + 1e-4
    assert ((rounded_FK - weight_FK).abs() <= scale_F[:, None] * 0.5001).all()
    assert not rounded_FK[3].any()


def test_a_token_is_rounded_as_if_it_were_alone() -> None:
    x_BTK = _normal(3, 4, 6) * torch.arange(1, 4)[:, None, None] ** 3
    together = rounded_input(x_BTK, TOKEN)
    assert torch.equal(together[1, 2], rounded_input(x_BTK[1, 2:3], TOKEN)[0])
    assert not torch.equal(rounded_input(x_BTK, TENSOR)[0], rounded_input(x_BTK[:1], TENSOR)[0])


@given(bits=st.integers(4, 8), seed=st.integers(0, 99))
def test_it_is_torch_s_fake_quantisation_to_the_bit(bits: int, seed: int) -> None:
    weight_FK, quantisation = _normal(5, 7, seed=seed), Quantisation(bits, "token")
    none_F, most = torch.zeros(5, dtype=torch.int32), quantisation.level
    reference = torch.fake_quantize_per_channel_affine(weight_FK, weight_scale(weight_FK, bits), none_F, 0, -most, most)
    assert torch.equal(rounded_weight(weight_FK, quantisation), reference)


@pytest.mark.parametrize("low", [-0.17, 0.0, 2.0])
def test_one_scale_for_all_is_that_of_onnx_s_dynamic_quantisation(low: float) -> None:
    x = torch.linspace(low, 3.0, 1_000)
    scale = (3.0 - min(low, 0.0)) / 255
    zero = round(-min(low, 0.0) / scale)
    expected = ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale
    assert (rounded_input(x, TENSOR) - expected).abs().max() <= scale * 0.01


@pytest.mark.parametrize("quantisation", [TOKEN, TENSOR])
def test_gradients_pass_as_if_nothing_were_rounded_but_the_values_that_they_meet(quantisation: Quantisation) -> None:
    x, weight, upstream = _normal(4, 3, 6).requires_grad_(), _normal(5, 6, seed=1).requires_grad_(), _normal(4, 3, 5)
    (product(x, weight, None, quantisation) * upstream).sum().backward()
    assert x.grad is not None and weight.grad is not None
    expected = (
        upstream @ rounded_weight(weight, quantisation),
        upstream.flatten(0, 1).t() @ rounded_input(x, quantisation).flatten(0, 1),
    )
    assert torch.allclose(x.grad, expected[0], atol=1e-5) and torch.allclose(weight.grad, expected[1], atol=1e-5)


def test_without_a_quantisation_a_product_is_torch_s_own() -> None:
    x, weight, bias = _normal(4, 6), _normal(5, 6, seed=1), _normal(5, seed=2)
    assert torch.equal(product(x, weight, bias, None), F.linear(x, weight, bias))


@pytest.mark.parametrize("activations", ["token", "tensor"])
@pytest.mark.parametrize("gates", [None, Gates("straight_through", "stream", 2), Gates("hard_concrete", "row", 2)])
def test_fewer_bits_are_further_from_float32(gates: Gates | None, activations: Activations) -> None:
    shape = Blueprint("classification", 32, 8, 64, (2, 3), 5, image_shape=(1, 8, 8), patch=4, gates=gates)
    model = build(shape)
    with torch.no_grad():
        model.output.weight.copy_(_normal(5, 32))
    features = {"image": torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)}
    plain, distances = model(features), []
    for bits in (8, 6, 4):
        model.quantise(Quantisation(bits, activations))
        distances.append(float((model(features) - plain).detach().abs().mean()))
    model.quantise(None)
    assert torch.equal(model(features), plain)
    assert 0 < distances[0] < distances[1] < distances[2] < float(plain.detach().std())


@pytest.mark.parametrize("given_", [Quantisation(3, "token"), Quantisation(9, "token"), Quantisation(8, "row")])  # type: ignore[arg-type]
def test_a_quantisation_that_there_is_not_is_refused(given_: Quantisation) -> None:
    with pytest.raises(ValueError, match="bits are 4 to 8, activations are token or tensor"):
        Blueprint("classification", 8, 4, 8, (1,), 2, numeric=2, quantisation=given_).check()
