"""Which inputs go together: against what can be computed by hand, and over random lengths."""

import random

import pytest

from serve.window import PADDING, window


def taken(lengths, leader, *, rows=32, tokens=16_384, spare=0):
    begin, end = window(lengths, leader, rows=rows, tokens=tokens, spare=spare)
    assert begin <= leader < end
    return lengths[begin:end]


@pytest.mark.parametrize("leader", [0, 1, 2])
def test_equal_lengths_go_together(leader):
    assert taken([7, 7, 7], leader) == [7, 7, 7]


def test_unlike_lengths_do_not():
    assert taken([10, 100, 1000], 1) == [100]


def test_spare_tokens_buy_padding():
    assert taken([10, 100], 0, spare=89) == [10]
    assert taken([10, 100], 0, spare=90) == [10, 100]


def test_rows_and_tokens_bound_it():
    assert taken([8] * 10, 0, rows=3) == [8, 8, 8]
    assert taken([8] * 10, 9, rows=3) == [8, 8, 8]
    assert taken([8] * 10, 4, tokens=33) == [8] * 4
    assert taken([900], 0, tokens=100) == [900]
    # The longer neighbour would be over the limit, the shorter one is not.
    assert taken([90, 100, 101], 1, tokens=200) == [90, 100]


def test_the_nearest_come_first():
    assert taken([80, 99, 100, 120], 2, rows=2) == [99, 100]


def test_over_random_lengths_padding_stays_under_its_bound_and_passes_are_few():
    draw = random.Random(1)
    for _ in range(200):
        lengths = sorted(int(draw.lognormvariate(4.5, 0.9)) + 3 for _ in range(draw.randint(1, 200)))
        spare = draw.choice([0, 32, 500])
        passes = 0
        while lengths:
            leader = draw.randrange(len(lengths))
            begin, end = window(lengths, leader, rows=32, tokens=4000, spare=spare)
            group = lengths[begin:end]
            real, padded = sum(group), len(group) * group[-1]
            assert begin <= leader < end
            assert len(group) == 1 or (len(group) <= 32 and padded <= 4000)
            assert padded - real <= max(PADDING * real, spare)
            del lengths[begin:end]
            passes += 1
        assert passes <= 60
