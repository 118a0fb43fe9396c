"""What makes CPU passes cheaper without changing them, and the two private operators of torch behind it."""

import numpy as np
import pytest
import serve_tiny as tiny
import torch
from transformers import AutoModelForSequenceClassification

from serve import torch_model
from serve.sizes import arithmetic, weight_of
from serve.tasks.text import TextClassification


@pytest.mark.parametrize(
    ("stored", "device", "dtype", "expected"),
    [
        ("float32", "cpu", "auto", "float32"),
        ("bfloat16", "cpu", "auto", "float32"),
        ("bfloat16", "cuda", "auto", "bfloat16"),
        ("float16", "cuda", "auto", "float16"),
        ("float32", "cuda", "auto", "float32"),
        ("int8", "cuda", "auto", "float32"),
        ("float32", "cpu", "bfloat16", "bfloat16"),
    ],
)
def test_which_arithmetic(stored, device, dtype, expected):
    assert arithmetic(stored, device=device, dtype=dtype) == expected


NO_BFLOAT16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN wants AVX-512 for bfloat16; torch computes it here"
)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=NO_BFLOAT16)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 48), (2, 3, 48), (1, 48)])
def test_torch_has_the_operators_and_they_compute_a_linear_layer(dtype, bias, shape):
    torch.manual_seed(0)
    linear = torch.nn.Linear(48, 40, bias=bias, dtype=dtype).eval()
    packed = torch_model.Packed(linear)
    x = torch.randn(shape, dtype=dtype)
    with torch.inference_mode():
        y = packed(x.transpose(0, -2))
        expected = torch.nn.functional.linear(x.transpose(0, -2).double(), linear.weight.double(), None)
        expected = expected if linear.bias is None else expected + linear.bias.double()
    assert y.dtype == dtype
    assert torch.allclose(y.double(), expected, atol=1e-5 if dtype == torch.float32 else 3e-2)
    assert torch_model.size(packed) == torch_model.size(linear)


class Slow(torch.nn.Module):
    """A model that one linear layer makes slow, and what a pass says of it."""

    def __init__(self, reach: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.reach = torch.nn.Linear(512, 512), reach

    def forward(self, x):
        return torch.nn.functional.linear(x, self.layer.weight) if self.reach else self.layer(x)


@pytest.mark.parametrize("reach", [False, True])
def test_a_model_keeps_its_answers_whatever_becomes_of_its_layers(reach):
    model, x = Slow(reach).eval(), torch.randn(256, 512)

    def answer():
        with torch.inference_mode():
            return model(x).numpy()

    before = answer()
    done = torch_model.quicken(model, answer)
    assert done == isinstance(model.layer, torch_model.Packed)
    assert np.abs(answer() - before).max() < 1e-4
    if reach:  # it computes with the weights past the layer: nothing may be changed
        assert not done


def test_a_layer_that_would_change_answers_is_left_alone(monkeypatch):
    class Wrong(torch_model.Packed):
        def forward(self, x):
            return super().forward(x) * 1.001

    monkeypatch.setattr(torch_model, "Packed", Wrong)
    model, x = Slow().eval(), torch.randn(256, 512)

    def answer():
        with torch.inference_mode():
            return model(x).numpy()

    assert not torch_model.quicken(model, answer)
    assert type(model.layer) is torch.nn.Linear


def test_weights_are_measured(tmp_path):
    folder = tiny.bert(tmp_path / "bert")
    model = torch_model.load(AutoModelForSequenceClassification, folder, device="cpu", dtype="auto")
    parameters = sum(one.numel() for one in model.parameters())
    assert 4 * parameters <= torch_model.size(model) < 4 * parameters + 10_000
    half = torch_model.load(AutoModelForSequenceClassification, folder, device="cpu", dtype="bfloat16")
    assert next(half.parameters()).dtype == torch.bfloat16
    assert torch_model.size(half) < 0.6 * torch_model.size(model)
    # As its files say beforehand, but for a buffer of positions.
    for loaded, dtype in ((model, "auto"), (half, "bfloat16")):
        assert 0 <= torch_model.size(loaded) - weight_of(folder, device="cpu", dtype=dtype) < 10_000


def test_bfloat16_answers_nearly_the_same(tmp_path):
    folder = tiny.bert(tmp_path / "bert", hidden=128)
    handler = TextClassification()
    handler.setup(folder, "cpu", "bfloat16")
    inputs, parameters = handler.decode_request(b'{"inputs": "win a prize"}', "", {})
    (answer,) = handler.encode_response(handler.predict(inputs), parameters)
    expected = tiny.bert_scores(folder, "win a prize")
    assert {one["label"]: one["score"] for one in answer} == pytest.approx(expected, abs=0.02)
    assert next(handler.model.parameters()).dtype == torch.bfloat16
