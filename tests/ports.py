"""Ports for programs that must be told one: free, and not given to anybody else before they listen.

A port of the system's own choosing goes back to it with the socket that asked for it, and the next connection of any
test beside this one may get it. These lie below those that the system chooses from, and come once.
"""

import itertools
import os
import random
import socket
from collections.abc import Iterator
from pathlib import Path

LOWEST, EACH = 15_000, 500
"""The first port, and how many a worker of pytest-xdist has for itself."""


def _first_of_the_systems() -> int:
    """Where the ports begin that the system gives by itself; Linux's own default where it does not say."""
    try:
        return int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text("ascii").split()[0])
    except (OSError, ValueError):
        return 32_768


def _ours() -> Iterator[int]:
    """This worker's ports round and round, from any of them on: another session may run on this machine."""
    share = max((_first_of_the_systems() - LOWEST) // EACH, 1)
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % share
    mine = range(LOWEST + worker * EACH, LOWEST + (worker + 1) * EACH)
    return itertools.islice(itertools.cycle(mine), random.SystemRandom().randrange(EACH), None)


_next = _ours()


def free_port() -> int:
    """A port of loopback that nobody has, and whose successor nobody has either."""
    while True:
        port = next(_next)
        # The successor is of the same caller.
        if next(_next) != port + 1:
            continue
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
