"""The decision alone, over simulated loads: four decisions a second, copies that take a while to start."""

import itertools
from dataclasses import replace

import pytest

from serve.scaling.decide import Keys, Seen, State, decide

KEYS = Keys(
    min_replicas=1,
    max_replicas=20,
    metric="ongoing",
    target=10,
    upscale_delay_s=0.5,
    downscale_delay_s=60,
    idle_s=300,
)


def simulate(keys, load, seconds, *, state=None, start_s=5.0, value=None, least=lambda t: 0, untried=False, begin=0):
    """Run `load(t)` (requests in hand, on average) for so long. Returns the changes as (second, wanted) and the state.

    Copies come up `start_s` after they were wanted, and go at once. `value(t, up)` gives another metric.
    """
    state = state or State(keys.min_replicas)
    up, starting, changes, arrived = state.wanted, [], [], 0.0
    for step in range(begin * 4, int((begin + seconds) * 4)):
        t = step / 4
        starting = [(when, number) for when, number in starting if number > up]
        for when, number in starting:
            if when <= t:
                up = max(up, min(number, state.wanted))
        untried = untried and not up
        in_hand = load(t)
        arrived += in_hand
        seen = Seen(
            t,
            ongoing=in_hand,
            held=0 if up else round(in_hand),
            arrived=arrived,
            up=up,
            value=value(t, up) if value else None,
            least=least(t),
            untried=untried,
        )
        if decide(keys, seen, state):
            changes.append((t, state.wanted))
            if state.wanted > up:
                starting.append((t + start_s, state.wanted))
            up = min(up, state.wanted)
    return changes, state


def test_a_step_is_answered_in_half_a_second_and_once():
    changes, state = simulate(KEYS, lambda t: 35 if t >= 10 else 5, 60)
    assert changes == [(10.5, 4)]
    assert state.why == "35.0 requests in hand, 10 a copy"


def test_a_ramp_is_followed_upwards_only():
    changes, _ = simulate(KEYS, lambda t: t, 120)
    numbers = [number for _, number in changes]
    assert numbers == sorted(numbers)
    assert numbers[-1] == 12
    # A tenth above the target is let pass; then the next copy is wanted.
    assert all(t >= 10 * (number - 1) for t, number in changes)


def test_a_short_peak_starts_nothing():
    changes, _ = simulate(KEYS, lambda t: 100 if 10 <= t < 10.5 else 5, 60)
    assert changes == []


def test_noise_around_the_target_does_not_flap():
    # 40 +- 10 %, now this and now that: four copies are enough all the time.
    changes, _ = simulate(KEYS, lambda t: 40 * (1 + 0.1 * (-1) ** int(4 * t)), 600, state=State(4))
    assert changes == []


def test_an_oscillating_load_keeps_what_its_peaks_need():
    # Twenty seconds of 80, twenty of 10, on and on: fewer are never enough for a whole minute.
    changes, state = simulate(KEYS, lambda t: 80 if int(t / 20) % 2 else 10, 900)
    assert state.wanted == 8
    assert [number for _, number in changes] == [4, 8]


def test_load_that_vanishes_is_followed_by_halves_after_the_delay():
    changes, _ = simulate(KEYS, lambda t: 160 if t < 10 else 1, 400, state=State(16))
    assert [number for _, number in changes] == [8, 4, 2, 1]
    gaps = [later - earlier for (earlier, _), (later, _) in itertools.pairwise(changes)]
    assert changes[0][0] >= 70
    assert all(60 <= gap < 61 for gap in gaps)


def test_a_herd_starts_four_then_twice_what_is_up():
    keys = replace(KEYS, min_replicas=0, max_replicas=100)
    changes, _ = simulate(keys, lambda t: 1000, 40, state=State(0), start_s=5)
    assert changes[0] == (0.0, 4), "at once, and not a hundred"
    assert [number for _, number in changes] == [4, 8, 16, 32, 64, 100]
    assert all(later - earlier >= 5 for (earlier, _), (later, _) in itertools.pairwise(changes))


def test_to_zero_after_idling_and_back_at_once():
    keys = replace(KEYS, min_replicas=0, idle_s=30)
    changes, _state = simulate(keys, lambda t: 3 if t < 20 or t >= 100 else 0, 110, state=State(0))
    assert [number for _, number in changes] == [1, 0, 1]
    assert changes[0][0] == 0
    assert 49.5 <= changes[1][0] <= 50.5
    assert changes[2][0] == 100


def test_a_few_requests_now_and_then_keep_one():
    keys = replace(KEYS, min_replicas=0, idle_s=30)
    changes, state = simulate(keys, lambda t: 0.2 if t % 25 < 0.25 else 0, 600, state=State(0))
    assert changes == [(0.0, 1)]
    assert state.wanted == 1


def test_the_last_copies_of_many_go_together_when_nobody_came_for_idle_s():
    keys = replace(KEYS, min_replicas=0, idle_s=20)
    changes, _ = simulate(keys, lambda t: 50 if t < 10 else 0, 60, state=State(5))
    assert [number for _, number in changes] == [0]
    assert 29 <= changes[0][0] <= 31


def test_a_version_that_was_never_up_is_tried_and_stays_for_idle_s():
    keys = replace(KEYS, min_replicas=0, idle_s=30)
    changes, _ = simulate(keys, lambda t: 0, 60, state=State(0), untried=True)
    assert [number for _, number in changes] == [1, 0]
    # It was up from second 5 on.
    assert changes[0][0] == 0
    assert 35 <= changes[1][0] <= 36


def test_a_schedule_is_kept_whatever_the_load_and_ends_by_the_delay():
    changes, _ = simulate(KEYS, lambda t: 1, 300, least=lambda t: 6 if 10 <= t < 100 else 0)
    # Planned starts know no bound of four, and no delay.
    assert changes[0] == (10.0, 6)
    assert [number for _, number in changes] == [6, 3, 2, 1]
    assert changes[1][0] >= 160


def test_bounds_hold_over_every_metric():
    _, state = simulate(KEYS, lambda t: 10_000, 60)
    assert state.wanted == 20
    assert "no more than serve.max_replicas" in state.why
    cpu = replace(KEYS, metric="cpu", target=0.7, max_replicas=3)
    _, state = simulate(cpu, lambda t: 5, 60, value=lambda t, up: 1.0)
    assert state.wanted == 3


@pytest.mark.parametrize("metric", ["cpu", "gpu"])
def test_cores_and_gpus_go_by_what_all_copies_use_together(metric):
    keys = replace(KEYS, metric=metric, target=0.5)
    # The work of 1.8 of them, spread over those that are up.
    _, state = simulate(keys, lambda t: 5, 300, value=lambda t, up: min(1.0, 1.8 / up))
    assert state.wanted == 4
    _, state = simulate(keys, lambda t: 5, 300, state=state, begin=300, value=lambda t, up: min(1.0, 0.4 / up))
    assert state.wanted == 1


def test_a_gpu_of_which_nobody_knows_changes_nothing_and_load_still_wakes_the_first_copy():
    keys = replace(KEYS, metric="gpu", target=0.7, min_replicas=0)
    changes, state = simulate(keys, lambda t: 50, 300, state=State(0), value=lambda t, up: None)
    assert changes == [(0.0, 1)]
    changes, state = simulate(keys, lambda t: 50, 300, state=State(3), value=lambda t, up: None)
    assert changes == []
    # All of the device's, one copy or four: more are wanted until serve.max_replicas.
    _, state = simulate(replace(keys, max_replicas=4), lambda t: 50, 60, state=State(1), value=lambda t, up: 1.0)
    assert state.wanted == 4
    assert state.why.startswith("100% of gpu used by "), state.why


def test_a_queue_that_is_too_long_grows_the_number_and_no_calm_leads_back_there():
    keys = replace(KEYS, metric="queue_time", target=0.1, downscale_delay_s=10)
    # Two copies queue under this load, three do not: down to two would be too few again.
    changes, state = simulate(keys, lambda t: 30, 600, value=lambda t, up: 0.5 if up < 3 else 0.0)
    # One too few once, then it settles: 30 / 2 were too much, 30 / 3 are more than 80 % of 12.
    assert [number for _, number in changes] == [2, 4, 3], changes
    changes, state = simulate(keys, lambda t: 3, 300, state=state, begin=600, value=lambda t, up: 0.0)
    assert state.wanted == 1


def test_a_query_counts_copies_and_none_holds_the_number():
    keys = replace(KEYS, metric="prometheus", target=25)
    changes, state = simulate(keys, lambda t: 1, 30, value=lambda t, up: 70)
    assert changes == [(0.5, 3)]
    assert state.why == "the query gives 70, 25 a copy"
    changes, state = simulate(keys, lambda t: 1, 300, state=state, begin=30, value=lambda t, up: None)
    assert changes == []
    assert state.wanted == 3
