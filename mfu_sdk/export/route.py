"""One signal's way to its collector, with the memory that a back-off needs."""

import random
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from mfu_sdk import guard
from mfu_sdk.export.destination import Destination, Signal
from mfu_sdk.export.otlp import Outcome, Sender
from mfu_sdk.export.otlp_grpc import GrpcSender

FIRST_BACKOFF_S: Final = 1.0
LAST_BACKOFF_S: Final = 32.0


def sender(signal: Signal, destination: Destination, now_unix_s: Callable[[], float]) -> Sender | GrpcSender:
    """What speaks the destination's protocol. Raises `ConfigurationError` for certificates that cannot be read."""
    return GrpcSender(signal, destination) if destination.protocol == "grpc" else Sender(destination, now_unix_s)


class Route:
    """Sends when it may. After a failure it waits 1, 2, 4 … 32 s, ± 20 %, or as long as the collector asks.

    `unix_ns` is the wall clock in nanoseconds, `monotonic_s` a monotonic one in seconds. Raises `ConfigurationError`
    when made, for certificates that cannot be read.
    """

    def __init__(
        self,
        signal: Signal,
        destination: Destination,
        unix_ns: Callable[[], int],
        monotonic_s: Callable[[], float],
    ) -> None:
        self.sender = sender(signal, destination, lambda: unix_ns() / 1e9)
        parts = urlsplit(destination.url)
        # Without a name and password that the URL may hold.
        self._to = f"{signal} to {parts.hostname}:{parts.port}" if parts.port else f"{signal} to {parts.hostname}"
        self._monotonic_s = monotonic_s
        self._not_before_s = 0.0
        self._failures = 0
        self._said = False
        # Our own generator, seeded by the operating system: ranks must not retry in step.
        self._jitter = random.Random()  # noqa: S311 - spreads load, keeps no secret

    @property
    def wait_s(self) -> float:
        """Seconds until it may send."""
        return max(0.0, self._not_before_s - self._monotonic_s())

    def hasten(self) -> None:
        """Try once more at once, back-off or not."""
        self._not_before_s = 0.0

    def send(self, body: bytes, deadline_s: float | None) -> Outcome | None:
        """Send `body` by `deadline_s` (monotonic): its outcome if that is final, None if it has to be sent again."""
        left_s = None if deadline_s is None else deadline_s - self._monotonic_s()
        if self.wait_s > 0 or (left_s is not None and left_s <= 0):
            return None
        outcome = self.sender.send(body, left_s)
        if outcome.kind == "retry":
            backoff_s = min(FIRST_BACKOFF_S * 2**self._failures, LAST_BACKOFF_S) * self._jitter.uniform(0.8, 1.2)
            self._failures += 1
            wait_s = backoff_s if outcome.retry_after_s is None else outcome.retry_after_s
            self._not_before_s = self._monotonic_s() + wait_s
            if not self._said:
                # One warning a signal, not one a try: what the tries die of differs from one to the next.
                self._said = True
                guard.warn_once(
                    "export", f"{self._to} are not delivered yet ({outcome.detail}); trying on, the run goes on"
                )
            return None
        self._failures, self._not_before_s = 0, 0.0
        if outcome.kind == "rejected":
            guard.warn_once("export", f"the collector rejects {self._to} ({outcome.detail}); they are dropped")
        return outcome
