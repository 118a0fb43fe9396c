"""Passes that fail, and what passes cost beside their tokens."""

import math

import pytest

from cluster.errors import InputError, RunFailed
from serve.passes import Overhead, Pass, isolated


def run(predict, inputs):
    full, calls = [], []

    def counted(batch):
        calls.append(len(batch))
        return predict(batch)

    outputs = isolated(counted, inputs, name="m", out_of_memory=full.append)
    return outputs, calls, full


def test_one_bad_input_among_many_fails_alone_and_cheaply():
    def predict(inputs):
        if 13 in inputs:
            raise ValueError("inside")
        return [value * 2 for value in inputs]

    outputs, calls, full = run(predict, list(range(32)))
    bad = outputs.pop(13)
    assert outputs == [2 * value for value in range(32) if value != 13]
    assert isinstance(bad, RunFailed)
    assert "ValueError" in bad.message
    assert "inside" not in bad.message  # it may tell of our insides
    assert len(calls) == 1 + 2 * math.log2(32)
    assert full == []


def test_an_error_of_ours_keeps_its_message():
    def predict(inputs):
        raise InputError("inputs: no")

    assert str(run(predict, [1])[0][0]) == "inputs: no"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried"),
        type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_too_much_for_the_memory_goes_in_halves(error):
    def predict(inputs):
        if len(inputs) > 3:
            raise error
        return inputs

    outputs, calls, full = run(predict, list(range(8)))
    assert outputs == list(range(8))
    assert calls == [8, 4, 2, 2, 4, 2, 2]
    assert [len(one) for one in full] == [8, 4, 4]


def test_torch_says_so_in_these_words():
    torch = pytest.importorskip("torch")

    def predict(inputs):
        return torch.empty(2**48, dtype=torch.float32)

    outputs, _, full = run(predict, [1, 2])
    assert all("does not hold" in error.message for error in outputs)
    assert full == [[1, 2]]


def test_overhead_is_found_in_tokens():
    found = Overhead()
    assert found.tokens() == Overhead.FIRST
    for tokens in range(100, 2000, 50):
        found.add(Pass(1, tokens, tokens, 0.002 + tokens * 0.00005, ()))
    assert found.tokens() == pytest.approx(40, abs=1)


def test_overhead_of_passes_that_say_nothing_is_the_first_guess():
    same, backwards = Overhead(), Overhead()
    for place in range(50):
        same.add(Pass(1, 100, 100, 0.01, ()))
        backwards.add(Pass(1, 100 + place, 100 + place, 1 / (1 + place), ()))
    assert same.tokens() == backwards.tokens() == Overhead.FIRST
