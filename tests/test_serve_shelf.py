"""The shelf of models: real loads in its thread, of models that are their size in bytes."""

import asyncio
import threading
import time

import pytest

from cluster.errors import InputError
from serve.shelf import Shelf

SIZES = {"a": 40, "b": 40, "c": 40, "huge": 101, "liar": 40, "bad": 10}


class Loads:
    """What was loaded and let go, in order."""

    def __init__(self):
        self.loaded, self.let_go, self.seconds = [], [], []
        self.broken = True

    def load(self, key):
        time.sleep(0.02)
        if key == "bad" and self.broken:
            raise ValueError("its file is cut short")
        self.loaded.append(key)
        return [key]

    def note(self, key, seconds):
        if seconds is None:
            self.let_go.append(key)
        else:
            self.seconds.append(seconds)

    def shelf(self, budget=100):
        size = {**SIZES, "liar": 90}
        return Shelf(self.load, guess=SIZES.__getitem__, size=lambda m: size[m[0]], budget=budget, note=self.note)


async def use(shelf, key):
    async with shelf.borrow(key) as model:
        return model[0]


def test_a_model_is_loaded_once_however_many_ask():
    loads = Loads()

    async def main():
        shelf = loads.shelf()
        assert await asyncio.gather(*(use(shelf, "a") for _ in range(20))) == ["a"] * 20
        assert await use(shelf, "a") == "a"
        assert (shelf.loaded(), shelf.used) == (["a"], 40)

    asyncio.run(main())
    assert loads.loaded == ["a"]
    assert len(loads.seconds) == 1
    assert 0.02 <= loads.seconds[0] < 2


def test_the_least_recently_used_goes_when_there_is_no_room():
    loads = Loads()

    async def main():
        shelf = loads.shelf()
        for key in ("a", "b", "a", "c"):
            await use(shelf, key)
        assert sorted(shelf.loaded()) == ["a", "c"]
        assert await use(shelf, "b") == "b"
        assert shelf.used == 80

    asyncio.run(main())
    assert loads.let_go == ["b", "a"]
    assert loads.loaded == ["a", "b", "c", "b"]


def test_one_in_use_never_goes_and_who_needs_its_room_waits():
    loads = Loads()

    async def main():
        shelf = loads.shelf()
        async with shelf.borrow("a"):
            async with shelf.borrow("b"):
                waiting = asyncio.create_task(use(shelf, "c"))
                await asyncio.sleep(0.1)
                assert not waiting.done()
                assert loads.let_go == []
                assert shelf.used <= shelf.budget
            assert await asyncio.wait_for(waiting, 5) == "c"
            assert sorted(shelf.loaded()) == ["a", "c"]

    asyncio.run(main())
    assert loads.let_go == ["b"]


def test_a_model_larger_than_everything_is_refused_with_its_size_and_moves_nobody():
    loads = Loads()

    async def main():
        shelf = loads.shelf(budget=100 << 20)
        shelf.guess = lambda key: SIZES[key] << 20
        await use(shelf, "a")
        with pytest.raises(InputError, match="huge: takes 101 MiB, and the copies that it shares have 100 MiB"):
            await use(shelf, "huge")
        assert shelf.loaded() == ["a"]

    asyncio.run(main())


def test_a_model_that_cannot_be_loaded_fails_alone_and_is_not_tried_at_every_request(monkeypatch):
    loads = Loads()

    async def main():
        shelf = loads.shelf()
        tries = await asyncio.gather(use(shelf, "bad"), use(shelf, "a"), use(shelf, "bad"), return_exceptions=True)
        assert [str(one) for one in tries] == ["its file is cut short", "a", "its file is cut short"]
        loads.broken = False
        with pytest.raises(ValueError, match="cut short"):
            await use(shelf, "bad")
        assert shelf.used == 40
        monkeypatch.setattr("serve.shelf.RETRY_S", 0)
        assert await use(shelf, "bad") == "bad"
        assert shelf.faults == {}

    asyncio.run(main())


def test_one_that_is_larger_than_its_files_said_pushes_others_out():
    loads = Loads()

    async def main():
        shelf = loads.shelf()
        await use(shelf, "a")
        await use(shelf, "liar")
        assert (shelf.loaded(), shelf.used) == (["liar"], 90)

    asyncio.run(main())


def test_one_that_asks_and_leaves_does_not_end_the_load_of_others():
    loads, go = Loads(), threading.Event()

    async def main():
        shelf = loads.shelf()
        load = shelf.load
        shelf.load = lambda key: load(key) if go.wait(5) else []
        first, second = (asyncio.create_task(use(shelf, "a")) for _ in range(2))
        await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.sleep(0.05)
        go.set()
        assert await second == "a"
        assert shelf.books["a"].users == 0

    asyncio.run(main())


def test_one_that_is_forgotten_goes_when_it_is_given_back():
    loads = Loads()

    async def main():
        shelf = loads.shelf()
        async with shelf.borrow("a"):
            shelf.forget("a")
            assert shelf.loaded() == ["a"]
        assert shelf.loaded() == []
        await use(shelf, "b")
        shelf.forget("b")
        assert shelf.used == 0

    asyncio.run(main())
    assert loads.let_go == ["a", "b"]


def test_room_is_told_of():
    async def main():
        shelf = Loads().shelf()
        assert shelf.has_room("a")
        async with shelf.borrow("a"), shelf.borrow("b"):
            assert not shelf.has_room("c")

    asyncio.run(main())
