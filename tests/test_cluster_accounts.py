"""Keys and usage over real databases: SQLite and Postgres."""

from __future__ import annotations

import csv
import io
import json
import threading
from pathlib import Path

import databases
import here
import pytest

from cluster.accounts import Counts, Key, Keys, Slot, StoreAway, Usage
from cluster.accounts.keys import digest
from cluster.accounts.usage import report, trained
from cluster.errors import InputError, NotFound
from cluster.settings.access import Price, Prices


@pytest.fixture(scope="module")
def server():
    with databases.postgres() as found:
        yield found


@pytest.fixture(params=["sqlite", "postgres"])
def uri(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty database, and a home that has nothing to do with it."""
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'with space' / 'access.db'}"
    found: databases.Program = request.getfixturevalue("server")
    keys = Keys(found.uri, databases.PASSWORD)
    with keys.transaction("making room") as connection:
        for table in ("shoal_keys", "shoal_usage", "shoal_writers"):
            connection.exec_driver_sql(f"delete from {table}")
    return found.uri


def at(uri: str, now: float = 1000.0) -> Keys:
    keys = Keys(uri, databases.PASSWORD if uri.startswith("postgresql") else None)
    keys.clock = lambda: now
    return keys


def test_a_key_is_kept_as_its_hash_alone(uri: str) -> None:
    keys = at(uri)
    key, secret = keys.create("acme", name="web", models=["reviews"], expires_in=60)
    assert secret.startswith(key.prefix)
    assert len(secret) - len(key.prefix) >= 36, "what is not shown has to be hard to guess"
    assert keys.list() == [key]
    assert key.hash == digest(secret)
    assert (key.tenant, key.models, key.verbs, key.expires) == ("acme", ("reviews",), ("predict",), 1060.0)
    if uri.startswith("sqlite"):
        whole = b"".join(file.read_bytes() for file in Path(uri.removeprefix("sqlite:///")).parent.iterdir())
        assert secret.encode() not in whole
        assert key.prefix.encode() in whole
        assert Path(uri.removeprefix("sqlite:///")).stat().st_mode & 0o077 == 0


def test_states_by_the_clock(uri: str) -> None:
    keys = at(uri)
    key, _ = keys.create("acme", expires_in=60)
    assert [key.state(now) for now in (999, 1059.9, 1060, 5000)] == ["active", "active", "expired", "expired"]
    new, secret = keys.rotate(key.id, overlap_s=10)
    old = next(one for one in keys.list() if one.id == key.id)
    assert [old.state(now) for now in (1000, 1009.9, 1010)] == ["active", "active", "replaced"]
    assert (new.origin, old.replaced_by, new.expires) == (key.origin, new.id, 1060.0)
    assert digest(secret) != old.hash
    with pytest.raises(InputError, match=rf"was replaced by {new.id}; rotate that one"):
        keys.rotate(key.prefix, overlap_s=10)
    gone = keys.revoke(new.prefix)
    assert gone.state(1000) == "revoked"
    assert at(uri, 2000).revoke(new.id) == gone, "revoked once, for good"
    with pytest.raises(InputError, match="is revoked"):
        keys.rotate(new.id, overlap_s=10)


def test_every_change_counts_up_the_revision_and_nothing_else_does(uri: str) -> None:
    keys = at(uri)
    before = keys.revision()
    key, _ = keys.create("acme")
    new, _ = keys.rotate(key.id, overlap_s=0)
    keys.revoke(new.id)
    keys.revoke(new.id)
    assert keys.revision() == before + 3
    with pytest.raises(InputError):
        keys.create("acme", verbs=["fly"])
    assert keys.read()[0] == before + 3


def test_what_names_no_key(uri: str) -> None:
    keys = at(uri)
    _, secret = keys.create("acme")
    with pytest.raises(NotFound, match="'nope': there is none"):
        keys.revoke("nope")
    with pytest.raises(InputError) as caught:
        keys.revoke(secret)
    assert secret not in str(caught.value), "a key that was pasted is not printed again"


def test_what_a_key_sees() -> None:
    def key(models=(), verbs=("predict",)):
        return Key("i", "h", "p", "t", "", models, verbs, "i", 0.0)

    assert key().sees("reviews", private=False)
    assert not key().sees("reviews", private=True)
    assert key(("reviews",)).sees("reviews", private=True)
    assert not key(("reviews",)).sees("flowers", private=False)
    assert key(verbs=("admin",)).sees("reviews", private=True)


def test_usage_adds_up_and_a_batch_counts_once(uri: str) -> None:
    usage = Usage(uri, databases.PASSWORD)
    here, there = Slot(3600, "acme", "k", "reviews", "predict"), Slot(7200, "beta", "", "reviews", "train")
    usage.add({here: Counts(2, 1, 10, 20, 0, 1.5)}, writer="w", batch=1)
    usage.add({here: Counts(2, 1, 10, 20, 0, 1.5)}, writer="w", batch=1)
    usage.add({here: Counts(1, 0, 5, 5, 1, 0.5), there: Counts(1, 0, 0, 0, 0, 90.0)}, writer="w", batch=2)
    usage.add({here: Counts(1, 0, 0, 0, 0, 0.0)}, writer="other", batch=1)
    assert usage.rows() == [(here, Counts(4, 1, 15, 25, 1, 2.0)), (there, Counts(1, 0, 0, 0, 0, 90.0))]
    assert usage.rows(since=7200) == [(there, Counts(1, 0, 0, 0, 0, 90.0))]
    assert usage.rows(until=7200, tenant="acme", model="reviews")[0][0] == here
    assert usage.rows(tenant="nobody") == []


def test_several_writers_at_once_lose_nothing(uri: str) -> None:
    slots = [Slot(3600, f"t{i}", "", "m", "predict") for i in range(5)]

    def write(number: int) -> None:
        usage = Usage(uri, databases.PASSWORD)
        for batch in range(20):
            order = slots if number % 2 else slots[::-1]
            usage.add({slot: Counts(1) for slot in order}, writer=f"w{number}", batch=batch + 1)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = Usage(uri, databases.PASSWORD).rows()
    assert [counts.requests for _, counts in found] == [80] * 5


def test_costs_follow_the_prices_of_now() -> None:
    rows = [
        (Slot(0, "acme", "k", "reviews", "predict"), Counts(3000, 1000, 1_000_000, 500_000, 500, 3600)),
        (Slot(90_000, "acme", "k", "flowers", "predict"), Counts(1000)),
        (Slot(90_000, "acme", "", "reviews", "train"), Counts(1, 0, 0, 0, 0, 7200)),
    ]
    own = Price(requests_1k=1, input_tokens_1m=2, output_tokens_1m=4, images_1k=8, compute_hour=16)
    prices = Prices(default=Price(requests_1k=10), models={"reviews": own})
    found = report(rows, prices, by=["day", "verb"])
    assert [(row["day"], row["verb"], row["cost"]) for row in found] == [
        ("1970-01-01", "predict", 2 + 2 + 2 + 4 + 16),
        ("1970-01-02", "predict", 10),
        ("1970-01-02", "train", 32),
    ]
    assert [row["requests"] for row in report(rows, prices, by=["tenant"])] == [4001]
    with pytest.raises(InputError, match="'week' is nothing to sum by; write some of tenant, key"):
        report(rows, prices, by=["week"])


def test_a_store_that_cannot_be_used_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    (tmp_path / "broken.db").write_bytes(b"no database " * 1000)
    with pytest.raises(StoreAway, match=r"access\.store: sqlite:////.*broken\.db cannot be used for making a key: .*"):
        Keys(f"sqlite:///{tmp_path / 'broken.db'}").create("acme")
    with pytest.raises(StoreAway, match="is the server up and the password right"):
        Keys("postgresql://shoal@127.0.0.1:1/shoal", "secret").list()
    monkeypatch.setenv("SHOAL_ACCESS_STORE", f"sqlite:///{tmp_path / 'broken.db'}")
    trained("reviews", "train", seconds=1, failed=False, tenant="local")  # a run does not fail for that


def test_a_wrong_password_is_told_of_without_it(server: databases.Program) -> None:
    with pytest.raises(StoreAway, match="password authentication failed") as caught:
        Keys(server.uri, "wrong-one").list()
    assert "wrong-one" not in str(caught.value)


def test_the_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))

    def shoal(*words: str) -> tuple[int, str, str]:
        done = here.shoal(*words, folder=tmp_path, home=tmp_path)
        return done.returncode, done.stdout, done.stderr

    (tmp_path / "cluster.yaml").write_text("prices: {currency: EUR, default: {compute_hour: 2}}\n")
    assert "no keys yet" in shoal("keys")[1]
    code, out, _ = shoal("keys", "create", "acme", "--model", "reviews", "--expires", "90d", "--json")
    made = json.loads(out)
    assert (code, made["tenant"], made["models"], made["state"]) == (0, "acme", ["reviews"], "active")
    assert Keys().list()[0].hash == digest(made["key"])
    code, out, err = shoal("keys", "rotate", made["prefix"], "--overlap", "1h")
    assert out.strip() == next(line for line in out.splitlines() if line.startswith("shoal_"))
    assert (code, "shown this once" in err) == (0, True)
    listed = shoal("keys")[1]
    assert "overlap" in listed
    assert made["key"] not in listed
    assert made["prefix"] in listed
    assert shoal("keys", "revoke", made["id"])[0] == 0
    assert [row["state"] for row in json.loads(shoal("keys", "--json")[1])] == ["revoked", "active"]
    for words, message in (
        (("create", "Acme"), "tenant: 'Acme'"),
        (("create", "acme", "--expires", "soon"), "--expires: 'soon' is no time"),
        (("create", "acme", "--model", "../x"), "--model: '../x'"),
        (("revoke", "zzz"), "key 'zzz': there is none"),
    ):
        code, _, err = shoal("keys", *words)
        assert (code, message in err) == (2, True), err

    trained("reviews", "train", seconds=1800, failed=False, tenant="local")
    _, out, _ = shoal("usage")
    assert "local" in out
    assert "1.0000 EUR" in out
    _, out, _ = shoal("usage", "--csv", "--by", "verb,model")
    assert next(csv.DictReader(io.StringIO(out)))["cost"] == "1.0"
    (row,) = json.loads(shoal("usage", "--json")[1])
    assert (row["compute_seconds"], row["currency"]) == (1800.0, "EUR")
    assert "nothing was used" in shoal("usage", "--tenant", "acme")[1]
    assert shoal("usage", "--since", "yesterday")[0] == 2
    assert shoal("usage", "--by", "week")[0] == 2
