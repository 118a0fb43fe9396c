"""A roll-out without a cluster: the split, the numbers, the judge, the comparison of answers, and the file."""

import json
import random

import pytest

from cluster.errors import InputError
from cluster.spec import parse
from cluster.spec.rollout import Rollout
from serve.rollout import judge as judging
from serve.rollout.agree import agreement
from serve.rollout.judge import at_least, judge, upper
from serve.rollout.split import client, place
from serve.rollout.stats import Stats, bucket, floor
from serve.rollout.watch import Watch

CLIENTS = [b"key %d" % number for number in range(20_000)]


# The split.


def test_a_tenth_of_the_clients_is_a_tenth():
    for weight in (0.01, 0.1, 0.5, 0.9):
        share = sum(place(who, "models:/a/2") < weight for who in CLIENTS) / len(CLIENTS)
        assert share == pytest.approx(weight, abs=4 * (weight * (1 - weight) / len(CLIENTS)) ** 0.5)


def test_a_client_stays_and_a_greater_weight_only_adds_some():
    first = {who for who in CLIENTS if place(who, "models:/a/2") < 0.1}
    assert first == {who for who in CLIENTS if place(who, "models:/a/2") < 0.1}
    more = {who for who in CLIENTS if place(who, "models:/a/2") < 0.3}
    assert first < more
    assert all(0 <= place(who, "v") < 1 for who in CLIENTS)
    # Of the next version others go first.
    other = {who for who in CLIENTS if place(who, "models:/a/3") < 0.1}
    assert len(first & other) < 0.2 * len(first)


def test_a_session_is_a_client_within_a_key_and_nobody_is_by_chance():
    key, session = (b"authorization", b"Bearer a"), (b"x-shoal-session", b"s")
    assert client([key]) != client([(b"authorization", b"Bearer b")])
    assert client([key, session]) == client([session, key]) == client([session])
    assert client([session]) != client([(b"authorization", b"s")])
    rotated = (b"authorization", b"Bearer b")
    assert client([key], "k1") == client([rotated], "k1") != client([key], "k2")
    assert client([key, session], "k1") == client([session])
    random.seed(1)
    places = [place(client([(b"accept", b"*/*")]), "v") for _ in range(2000)]
    assert sum(one < 0.1 for one in places) / 2000 == pytest.approx(0.1, abs=0.03)


# The numbers.


def test_buckets_hold_their_latencies_and_quantiles_are_right_within_one():
    for seconds in (0.0001, 0.0005, 0.0012, 0.05, 1.0, 59.0):
        assert floor(bucket(seconds)) <= seconds * (1 + 1e-9)
        assert seconds <= floor(bucket(seconds) + 1) * (1 + 1e-9)
    stats = Stats()
    for number in range(1000):
        stats.answered(0.001 * (number + 1))
    p95 = stats.quantile(0.95)
    assert p95 is not None
    assert 0.95 <= p95 <= 0.95 * 1.15
    assert Stats().quantile(0.5) is None


def test_counts_add_up_over_gateways_and_over_the_wire():
    one, other = Stats(), Stats()
    for stats, seconds in ((one, 0.01), (other, 0.02)):
        stats.answered(seconds)
        stats.failed()
        stats.compared, stats.agreed, stats.ages = 2, 1.5, [0.5]
    both = Stats()
    for stats in (one, other):
        both.add(Stats(json.loads(json.dumps(stats.told()))))
    assert (both.requests, both.errors, both.compared, both.agreed) == (4, 2, 4, 3.0)
    assert (both.latencies.total(), len(both.ages)) == (2, 2)
    assert both.summary()["agreement"] == 0.75


def test_the_binomial_tail_is_scipys():
    from scipy.stats import binom

    for hits, count, rate in ((3, 10, 0.02), (10, 10, 0.12), (60, 1000, 0.05), (900, 10_000, 0.05), (1, 5, 0.5)):
        expected = binom.sf(hits - 1, count, rate)
        found = at_least(hits, count, rate)
        assert found == (1.0 if hits <= count * rate else pytest.approx(expected, rel=1e-9))
    assert at_least(0, 10, 0.1) == 1.0
    assert at_least(1, 10, 0.0) == 0.0
    assert upper(0.0, 20) == pytest.approx(0.1191, abs=1e-3)


# The judge.

KEYS = Rollout(for_s=60, min_requests=50)


def counted(good=0, bad=0, seconds=0.01, compared=0, agreed=0.0, ages=()):
    stats = Stats()
    for _ in range(good):
        stats.answered(seconds)
    for _ in range(bad):
        stats.failed()
    stats.compared, stats.agreed, stats.ages = compared, agreed, list(ages)
    return stats


def action(old, new, keys=KEYS, elapsed_s=100.0):
    return judge(old, new, keys, elapsed_s).action


def test_one_failure_is_chance_and_ten_are_not():
    old = counted(good=1000)
    assert action(old, counted(good=9, bad=1), elapsed_s=5) == "keep"
    assert action(old, counted(bad=9), elapsed_s=5) == "keep"  # fewer than are judged
    found = judge(old, counted(bad=10), KEYS, 5)
    assert found.action == "roll back"
    assert "10 of 10 requests failed (serve.rollout.max_error_rate: 0.02; the old version: 0 of 1000)" in found.reason
    assert action(old, counted(good=940, bad=60)) == "roll back"
    assert action(old, counted(good=985, bad=15)) == "promote"


def test_failures_that_the_old_version_has_too_are_not_the_new_ones():
    assert action(counted(good=800, bad=200), counted(good=80, bad=20)) == "promote"
    assert action(counted(good=800, bad=200), counted(good=40, bad=60)) == "roll back"
    # Over what may be, but not surely: neither back nor on.
    found = judge(counted(good=1000), counted(good=96, bad=4), KEYS, 100)
    assert (found.action, found.reason) == ("keep", "4 of 100 requests failed, which may be chance")


def test_slow_is_judged_against_the_old_version_and_not_by_a_few_milliseconds():
    old = counted(good=500, seconds=0.1)
    assert action(old, counted(good=100, seconds=0.1)) == "promote"
    found = judge(old, counted(good=30, seconds=0.4), KEYS, 5)
    assert found.action == "roll back"
    assert "30 of 30 requests took longer" in found.reason
    assert "serve.rollout.max_latency_ratio: 1.5" in found.reason
    # 2 ms and 4 ms are the same to anybody.
    assert action(counted(good=500, seconds=0.002), counted(good=100, seconds=0.004)) == "promote"
    # One in twenty may be slow; of 40 requests 6 are no proof.
    some = counted(good=94, seconds=0.1)
    some.add(counted(good=6, seconds=1.0))
    assert action(old, some) == "keep"
    # Nothing to compare with.
    assert action(counted(good=5, seconds=0.1), counted(good=100, seconds=9.0)) == "promote"


def test_a_version_that_hangs_is_slow_before_it_has_answered_anything():
    old = counted(good=500, seconds=0.05)
    assert action(old, counted(ages=[0.01] * 30), elapsed_s=3) == "keep"
    assert action(old, counted(ages=[2.0] * 30), elapsed_s=3) == "roll back"


def test_disagreement_rolls_back_and_a_little_does_not():
    old, keys = counted(good=500), Rollout(for_s=60, min_requests=50, shadow=0.5, min_agreement=0.9)
    assert action(old, counted(good=60, compared=60, agreed=60), keys) == "promote"
    assert action(old, counted(good=60, compared=60, agreed=56), keys) == "promote"
    assert action(old, counted(good=60, compared=60, agreed=52), keys) == "keep"
    found = judge(old, counted(good=60, compared=60, agreed=30), keys, 5)
    assert found.action == "roll back"
    assert "agree on 0.500 of 60 shadowed requests (serve.rollout.min_agreement: 0.9)" in found.reason
    assert action(old, counted(good=19, compared=19, agreed=0), keys, 5) == "keep"
    assert action(old, counted(good=60, compared=5, agreed=5), keys) == "keep"  # too few to promote by


def test_promotion_takes_time_and_requests_and_the_gate():
    old, new = counted(good=500), counted(good=50)
    assert judge(old, new, KEYS, 59).reason == "59 of 60 s"
    assert "49 of 50 requests" in judge(old, counted(good=49), KEYS, 61).reason
    assert action(old, new, elapsed_s=61) == "promote"
    by_hand = Rollout(for_s=60, min_requests=50, promote="hand")
    found = judge(old, new, by_hand, 61)
    assert (found.action, "shoal rollout promote" in found.reason) == ("keep", True)
    assert action(old, counted(bad=50), by_hand) == "roll back"


def test_two_equal_versions_are_rarely_taken_for_different_ones():
    """Asked after every ten requests, fifty times in each of 200 roll-outs: what looking again and again costs."""
    chance, wrong = random.Random(7), 0
    keys = Rollout(for_s=1e6, max_latency_ratio=1.0)
    for _ in range(200):
        old, new = Stats(), Stats()
        for _ in range(50):
            for stats in [new] * 10 + [old] * 30:
                stats.failed() if chance.random() < 0.02 else stats.answered(chance.lognormvariate(-2, 0.5))
            if judge(old, new, keys, 1).action == "roll back":
                wrong += 1
                break
    assert wrong <= 4, f"{wrong} of 200 sound versions were rolled back"


def test_judging_is_cheap():
    import timeit

    old, new = counted(good=100_000), counted(good=10_000, bad=300)
    took = timeit.timeit(lambda: judging.judge(old, new, KEYS, 1), number=20) / 20
    assert took < 0.05


# The Keeper's part.


def told(new, state="running", id="a", began=0.0, reason=""):
    keys = KEYS.model_dump()
    found = {"id": id, "began": began, "state": state, "reason": reason, "keys": keys, "version": "v2", "home": "/"}
    return {"reviews": {"found": found, "old": counted(good=500).told(), "new": new.told()}}


class Quiet(Watch):
    """Carries nothing out: there is no Ray here."""

    carried = 0

    def _carry_out(self, name, known):
        self.carried += 1


def test_no_gateway_sees_enough_and_the_keeper_does():
    watch, half = Quiet(), counted(bad=6)
    assert judge(counted(good=500), half, KEYS, 1).action == "keep"
    assert watch.hear("g1", told(half)) == {}
    assert watch.hear("g1", told(half)) == {}, "the same counts again are no more requests"
    decided = watch.hear("g2", told(half))["reviews"]
    assert decided["state"] == "rolled back"
    assert "12 of 12 requests failed" in decided["reason"]
    # The other gateway hears of it with its next word, and a Keeper that comes after by what they tell it.
    assert watch.hear("g1", told(half))["reviews"] == decided
    after = Quiet()
    assert after.hear("g1", told(counted(good=1), **{k: decided[k] for k in ("state", "reason")}))["reviews"] == decided
    assert after.carried == 1, "what was decided and not carried out is taken up again"
    assert watch.told()["reviews"]["new"]["errors"] == 12


def test_a_newer_roll_out_begins_from_nothing():
    watch = Quiet()
    watch.hear("g1", told(counted(bad=20)))
    assert watch.hear("g1", told(counted(good=1), id="b", began=1.0)) == {}
    # A gateway that has not heard of the newer one says nothing about it.
    assert watch.hear("g2", told(counted(bad=20))) == {}
    assert watch.told()["reviews"]["new"]["requests"] == 1


# What two answers have in common.


@pytest.mark.parametrize(
    ("old", "new", "share"),
    [
        ([[{"label": "a", "score": 0.9}, {"label": "b", "score": 0.1}]], [[{"label": "a", "score": 0.6}]], 1.0),
        ([[{"label": "a", "score": 0.9}]], [[{"label": "b", "score": 0.9}]], 0.0),
        ([{"label": "a", "score": 0.2}, {"label": "b", "score": 0.8}], [{"label": "b", "score": 1.0}], 1.0),
        ([[{"label": "a", "score": 1}], [{"label": "b", "score": 1}]], [[{"label": "a", "score": 1}]] * 2, 0.5),
        (["setosa", "virginica"], ["setosa", "setosa"], 0.5),
        ([1.0, 100.0], [1.04, 110.0], 0.5),
        ([[0.1] * 32], [[0.1001] * 32], 1.0),
        ([[0.1] * 32], [[0.1, -0.1] * 16], 0.0),
        ([{"generated_text": "hello"}], [{"generated_text": "hello"}], 1.0),
        ([{"generated_text": "hello"}], [{"generated_text": "hullo"}], 0.0),
        ({"answer": "x", "score": 0.1, "start": 3}, {"answer": "x", "score": 0.9, "start": 3}, 1.0),
        ([1, 2], [1, 2, 3], 0.0),
        (1, "1", 0.0),
        ([], [], 1.0),
    ],
)
def test_agreement_is_about_what_is_said(old, new, share):
    assert agreement(json.dumps(old).encode(), json.dumps(new).encode()) == share


def test_agreement_of_what_is_no_json_is_that_of_bytes():
    assert agreement(b"\x89PNG", b"\x89PNG") == 1.0
    assert agreement(b"\x89PNG", b"\x89PNH") == 0.0
    assert agreement(b"[" * 100_000, b"[") == 0.0


# The file.


def test_wrong_keys_say_what_to_write():
    head = "name: a\nmodel: x/y\n"
    with pytest.raises(InputError, match=r"the new version would never be asked"):
        parse(head + "task: text-classification\nserve: {rollout: {canary: 0}}")
    with pytest.raises(InputError, match=r"serve\.rollout: a language model is not split by weight"):
        parse(head + "task: text-generation\nserve: {rollout: {}}")
    for wrong in ("canary: 1.1", "for_s: 0", "promote: never", "weight: 0.1", "min_requests: true"):
        with pytest.raises(InputError, match=rf"serve\.rollout\.{wrong.partition(':')[0]}"):
            parse(head + f"task: text-classification\nserve: {{rollout: {{{wrong}}}}}")
    with pytest.raises(InputError, match=r"serve\.rollout: beside shared: small there are no copies of one version"):
        parse(head + "task: text-classification\nserve: {shared: small, rollout: {}}")
    spec = parse(head + "task: text-classification\nserve: {rollout: {}}")
    assert spec.serve.rollout == Rollout()
    assert parse(head + "task: text-classification").serve.rollout is None
