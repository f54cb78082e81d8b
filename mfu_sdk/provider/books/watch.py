"""The provider's files, read again when they change; a change that breaks one is logged and the last good one holds."""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.guard import log
from mfu_sdk.provider.books.inventory import Inventory, load_inventory
from mfu_sdk.provider.books.prices import CostBook, PriceBook, load_prices
from mfu_sdk.provider.books.table import files

T = TypeVar("T")
_State = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the files held when they were last looked at; None for those that were not named."""

    prices: PriceBook | None = None
    costs: CostBook | None = None
    inventory: Inventory | None = None


class Books:
    """The files of `prices` and `inventory`, each a list of files and directories, or none.

    Raises `ConfigurationError` when one cannot be read or breaks its form. Safe to use from several threads.
    """

    def __init__(self, prices: Iterable[Path] = (), inventory: Iterable[Path] = ()) -> None:
        prices, inventory = tuple(prices), tuple(inventory)
        self._prices = _Watched("prices", prices, load_prices) if prices else None
        self._inventory = _Watched("inventory", inventory, load_inventory) if inventory else None

    def current(self) -> Snapshot:
        """What holds now."""
        prices, costs = (None, None) if self._prices is None else self._prices.current()
        return Snapshot(prices, costs, None if self._inventory is None else self._inventory.current())


class _Watched(Generic[T]):
    """What `load` makes of `paths`, made again when one of their files changes."""

    def __init__(self, name: str, paths: tuple[Path, ...], load: Callable[[tuple[Path, ...]], T]) -> None:
        self._name, self._paths, self._load = name, paths, load
        self._lock = threading.Lock()
        # Before the load: a change while it reads is seen as one afterwards.
        self._seen = _state(paths)
        self._held = load(paths)

    def current(self) -> T:
        with self._lock:
            state = _state(self._paths)
            if state != self._seen:
                self._seen = state
                try:
                    self._held = self._load(self._paths)
                except ConfigurationError as error:
                    log.warning("mfu_sdk: the %s changed and are left out, the last good hold: %s", self._name, error)
            return self._held


def _state(paths: tuple[Path, ...]) -> _State:
    found = []
    for path in paths:
        try:
            within = files([path])
        except (ConfigurationError, OSError):
            within = (path,)
        for file in within:
            try:
                state = file.stat()
            except OSError:
                found.append((str(file), -1, -1, -1))
                continue
            found.append((str(file), state.st_mtime_ns, state.st_size, state.st_ino))
    return tuple(found)
