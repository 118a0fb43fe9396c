"""Many models in one process within a budget of memory: loaded when first asked for, let go when others need the room.

Ray's multiplexing counts models; what runs out is bytes, and a model in use must not go.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from cluster.errors import InputError

T = TypeVar("T")
# A model that could not be loaded is not tried again sooner: each try costs what a good one does.
RETRY_S = 10.0


@dataclass
class Book(Generic[T]):
    """A model on the shelf or on its way there. `users` count those that have it or wait for it."""

    loading: asyncio.Task[T]
    bytes: int = 0
    users: int = 0
    here: bool = False
    wanted: bool = True


class Shelf(Generic[T]):
    """Models by key. `load` makes one (in a thread, one at a time), `guess` says how many bytes it will take, `size`
    how many it does take; `note` is told of each load (key and seconds), and of each model let go (None).

    All methods belong to one event loop.
    """

    def __init__(
        self,
        load: Callable[[str], T],
        *,
        guess: Callable[[str], int],
        size: Callable[[T], int],
        budget: int,
        note: Callable[[str, float | None], None] = lambda key, seconds: None,
    ) -> None:
        self.load, self.guess, self.size, self.note = load, guess, size, note
        self.budget = budget
        self.books: dict[str, Book[T]] = {}  # least recently used first
        self.faults: dict[str, tuple[float, Exception]] = {}
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="load")
        self.turn = asyncio.Lock()
        self.freed = asyncio.Event()

    @property
    def used(self) -> int:
        return sum(book.bytes for book in self.books.values())

    def loaded(self) -> list[str]:
        return [key for key, book in self.books.items() if book.here]

    async def take(self, key: str) -> T:
        """The model, which stays until `give_back`. However many ask, it is loaded once. Raises what `load` raised,
        InputError where it takes more than the whole budget."""
        book = self.books.get(key)
        if book is None:
            failed, error = self.faults.get(key, (0.0, None))
            if error is not None and time.monotonic() - failed < RETRY_S:
                raise error
            book = self.books[key] = Book(asyncio.create_task(self._load(key)))
            book.loading.add_done_callback(lambda task: task.cancelled() or task.exception())  # told of in `faults`
        book.users += 1
        try:
            # One that asks and gives up does not end the others' load.
            model = await asyncio.shield(book.loading)
        except BaseException:
            self._given_back(book)
            raise
        if self.books.get(key) is book:
            self.books[key] = self.books.pop(key)
        return model

    def give_back(self, key: str) -> None:
        """A model that was taken is not in use any more."""
        self._given_back(self.books[key])

    @asynccontextmanager
    async def borrow(self, key: str) -> AsyncIterator[T]:
        """The model, for as long as the block takes; see `take`."""
        model = await self.take(key)
        try:
            yield model
        finally:
            self.give_back(key)

    def has_room(self, key: str) -> bool:
        """Whether a model would fit beside all that are here."""
        return self.used + self.guess(key) <= self.budget

    def forget(self, key: str) -> None:
        """Nobody will ask for it again: it goes as soon as nobody has it."""
        self.faults.pop(key, None)
        if key in self.books:
            self.books[key].wanted = False
            self._tidy()

    async def _load(self, key: str) -> T:
        began = time.monotonic()
        book = self.books[key]
        loop = asyncio.get_running_loop()
        try:
            async with self.turn:  # who came first gets the room that is made
                need = await loop.run_in_executor(self.thread, self.guess, key)
                self._check(key, need)
                while not self._make_room(need):
                    self.freed.clear()
                    await self.freed.wait()
                book.bytes = need
                model = await loop.run_in_executor(self.thread, self.load, key)
                book.bytes = self.size(model)
                self._check(key, book.bytes)
        except Exception as error:
            self.faults[key] = (time.monotonic(), error)
            if self.books.get(key) is book:
                del self.books[key]
            self.freed.set()
            raise
        self.faults.pop(key, None)
        book.here = True
        self._make_room(0)
        self.note(key, time.monotonic() - began)
        return model

    def _check(self, key: str, need: int) -> None:
        if need > self.budget:
            raise InputError(
                f"{key}: takes {need / 2**20:.0f} MiB, and the copies that it shares have {self.budget / 2**20:.0f} "
                "MiB for all; raise memory_mb in cluster.yaml, or leave serve.shared out"
            )

    def _make_room(self, need: int) -> bool:
        """Let go of what is not in use, least recently used first, until so many bytes are free."""
        for key, book in list(self.books.items()):
            if self.used + need <= self.budget:
                break
            if book.here and not book.users:
                self._let_go(key)
        return self.used + need <= self.budget

    def _given_back(self, book: Book[T]) -> None:
        book.users -= 1
        self._tidy()

    def _tidy(self) -> None:
        """After somebody has given a model back."""
        for key, book in list(self.books.items()):
            if book.here and not book.users and not book.wanted:
                self._let_go(key)
        if self.used > self.budget:  # a model was larger than its files said
            self._make_room(0)
        self.freed.set()

    def _let_go(self, key: str) -> None:
        del self.books[key]
        self.note(key, None)
        gc.collect()  # a model and its batcher know each other
