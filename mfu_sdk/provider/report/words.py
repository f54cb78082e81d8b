"""Numbers and names as people read them: with units, and with what a tenant chose made safe to print."""

from typing import Final

UNKNOWN: Final = "unknown"

_PREFIXES: Final = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def percent(share: float | None, digits: int = 1) -> str:
    """A share as a percentage; one too small for `digits` decimals keeps two significant digits: it is not zero."""
    if share is None:
        return UNKNOWN
    value = share * 100
    return f"{value:#.2g} %" if 0 < abs(value) < 10**-digits else f"{value:.{digits}f} %"


def flop(flops: float | None) -> str:
    """A count of FLOPs with an SI prefix and three significant digits."""
    return UNKNOWN if flops is None else si(flops, "FLOP")


def si(value: float, unit: str) -> str:
    """A value with an SI prefix and three significant digits."""
    for size, prefix in _PREFIXES:
        # 999.6 G would round to 1000 G.
        if abs(value) >= 0.9995 * size:
            scaled = value / size
            return f"{scaled:.{0 if scaled >= 99.95 else 1 if scaled >= 9.995 else 2}f} {prefix}{unit}"
    return f"{value:.3g} {unit}"


def hours(value: float | None) -> str:
    """Hours; short times in minutes or seconds."""
    if value is None:
        return UNKNOWN
    if value >= 1:
        return f"{value:,.1f} h" if value < 1000 else f"{value:,.0f} h"
    return f"{value * 60:.1f} min" if value * 60 >= 1 else f"{value * 3600:.1f} s"


def seconds(value: float | None) -> str:
    """A duration with a unit that suits it."""
    if value is None:
        return UNKNOWN
    if value >= 1:
        return f"{value:.2f} s"
    return f"{value * 1e3:.1f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"


def count(value: float | None) -> str:
    """A number of things; a weighted one is rounded."""
    return UNKNOWN if value is None else f"{value:,.0f}"


def estimate(value: float | None, *, sampled: bool) -> str:
    """A number of things, marked as an estimate where it stands on a sample."""
    return f"≈ {count(value)}" if sampled and value is not None else count(value)


def name(text: str | None, longest: int = 64) -> str:
    """A name that somebody chose: control characters replaced, and no longer than a table can take."""
    if not text:
        return UNKNOWN
    safe = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return safe if len(safe) <= longest else safe[: longest - 1] + "…"


def moment(iso: str) -> str:
    """A time of ISO 8601 in UTC, to the minute."""
    return iso[:16].replace("T", " ")


def line(text: str, longest: int = 400) -> str:
    """A text of one line that names are part of: control characters replaced, nothing else left out of it."""
    return name(text, longest) if text else ""


def money(value: float | None, currency: str) -> str:
    """An amount to the hundredth with its currency; one below a tenth keeps three significant digits."""
    if value is None:
        return UNKNOWN
    return f"{figure(value)} {name(currency, 8)}"


def figure(value: float) -> str:
    """An amount without its currency."""
    return f"{value:.3g}" if 0 < abs(value) < 0.1 else f"{value:,.2f}"


def evidence(value: float | str | None) -> str:
    """A piece of evidence: a number with four significant digits, a text made safe."""
    if value is None:
        return UNKNOWN
    return name(value, 200) if isinstance(value, str) else f"{value:.4g}"
