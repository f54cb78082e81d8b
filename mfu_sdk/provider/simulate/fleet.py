"""`mfu simulate`: a fleet from its options, its files, its telemetry."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from mfu_sdk.errors import ConfigurationError
from mfu_sdk.provider.simulate import paper, scenario
from mfu_sdk.provider.simulate.delivery import Delivery
from mfu_sdk.provider.simulate.planning import plan
from mfu_sdk.provider.simulate.simulation import begins_ns, simulate

# libyaml, where PyYAML was built with it: ten times as fast.
_DUMPER = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class Fleet:
    """A fleet of `gpus` GPUs over `hours` hours that end at `until_ns`; its faults are those of `faults`, or built in.

    Raises `ConfigurationError` for a faults file that breaks its form or does not fit.
    """

    def __init__(self, gpus: int, hours: float, faults: Path | None, seed: int, until_ns: int) -> None:
        wanted = scenario.built_in(gpus) if faults is None else scenario.load(faults)
        self.plan = plan(gpus, hours * 3600, wanted, seed)
        self._until_ns = until_ns
        self.zero_ns = begins_ns(self.plan, until_ns)

    @property
    def until_iso(self) -> str:
        """When it ends."""
        return paper.iso(self.zero_ns, self.plan.duration_s)

    def describe(self) -> str:
        """One line of what there is."""
        faults = sum(len(each.faults) for each in self.plan.workloads) + sum(
            each.fault is not None for each in self.plan.sliced
        )
        tenants = len({each.tenant for each in self.plan.workloads})
        return (
            f"{self.plan.gpus} GPUs on {len(self.plan.hosts)} machines, {len(self.plan.workloads)} workloads of"
            f" {tenants} tenants, {faults} faults, {self.plan.duration_s / 3600:g} hours until {self.until_iso}"
        )

    def write_books(self, directory: Path, write: Callable[[Path, str], None]) -> None:
        """Write the provider's three files with `write`. Raises `ConfigurationError` where the directory cannot be."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"--out {directory}: cannot be made ({error.strerror}); name another directory"
            ) from error
        books = {
            "inventory": paper.inventory(self.plan, self.zero_ns),
            "prices": paper.price_book(self.plan, self.zero_ns),
            "tokens": paper.tokens(self.plan),
        }
        for name, content in books.items():
            write(
                directory / f"{name}.yaml", yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=200)
            )

    def send(self, url: str, progress: Callable[[str, float], None]) -> dict[str, Any]:
        """Send everything to the collector at `url`; returns the truth. Raises `DeliveryError`."""
        with Delivery(url, self.plan.tokens) as delivery:
            return simulate(self.plan, self._until_ns, delivery, progress=progress)


def moment(text: str | None, now_ns: int) -> int:
    """`--until` in unix ns, UTC where it names no zone; `now_ns` where it is None. Raises `ConfigurationError`."""
    if text is None:
        return now_ns
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(f"--until {text!r}: must be ISO 8601, like 2026-11-02T00:00:00Z") from None
    return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()) * 10**9
