"""The key-value store that the ranks of a run share already: a client of our own, never a collective."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

ANSWER_S: Final = 5.0
"""Seconds within which the store is reached, or is not used."""


@dataclass(frozen=True, slots=True)
class KeyStore:
    """A client of our own. `outlives`: what earlier attempts of the run wrote is still in it."""

    store: Store
    outlives: bool


def key_store(env: Mapping[str, str] | None = None) -> KeyStore | None:
    """The store of the process group, else that of torchrun's agent; None where there is neither.

    A client of our own (`clone`), because one client answers one question at a time: a question of ours must not stand
    before one of the user's. The agent's server is there before the process group, and outlives the workers, and so do
    the keys in it: torch gives them no prefix by attempt. Raises RuntimeError where a store does not answer.
    """
    env = os.environ if env is None else env
    import torch.distributed as dist

    if not dist.is_available():
        return None
    agents = env.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if dist.is_initialized():
        from torch.distributed.distributed_c10d import _get_default_store

        store = _get_default_store()
        if agents and _is_agents(base := _base(store), env):
            return KeyStore(_own(base), outlives=True)
        return KeyStore(_own(store), outlives=False)
    host, port = env.get("MASTER_ADDR"), env.get("MASTER_PORT", "")
    if not (agents and host and port.isdigit()):
        return None
    from torch._C._distributed_c10d import TCPStore

    within = timedelta(seconds=ANSWER_S)
    return KeyStore(TCPStore(host, int(port), is_master=False, timeout=within, wait_for_workers=False), outlives=True)


def _own(store: Store) -> Store:
    # torch's stubs know neither `clone` nor `underlying_store`.
    clone: Callable[[], Store] | None = getattr(store, "clone", None)
    if clone is None:
        return store
    own = clone()
    own.set_timeout(timedelta(seconds=ANSWER_S))
    return own


def _base(store: Store) -> Store:
    while (beneath := getattr(store, "underlying_store", None)) is not None:
        store = beneath
    return store


def _is_agents(store: Store, env: Mapping[str, str]) -> bool:
    return str(getattr(store, "port", "")) == env.get("MASTER_PORT")
