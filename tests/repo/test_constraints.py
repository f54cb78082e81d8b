"""constraints.txt pins what the extras need: all of it, each to one version."""

from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
EXTRAS = ("torch", "provider", "dev", "hf", "verify")


def pins() -> dict[str, str]:
    """Each pinned package and its version."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if line and not line.startswith("#"))


def needed(name: str, extras: tuple[str, ...], seen: set[tuple[str, tuple[str, ...]]]) -> None:
    """Add to `seen` the installed package `name` and all that it needs with `extras`, by this machine's markers."""
    key = (canonicalize_name(name), extras)
    if key in seen:
        return
    seen.add(key)
    for text in requires(name) or ():
        requirement = Requirement(text)
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in (*extras, "")):
            needed(requirement.name, tuple(sorted(requirement.extras)), seen)


def test_everything_needed_is_pinned() -> None:
    """A package that any extra needs, however far down, has a pin: an install next year finds what CI ran."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    needed("mfu-sdk", EXTRAS, seen)
    names = {name for name, _ in seen} - {"mfu-sdk"}
    assert len(names) > 50
    assert sorted(names - pins().keys()) == []


def test_pins_are_plain() -> None:
    """Each line is name==version, canonical and in order; torch's names no build, so any index's build of it fits."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    names = [line.split("==")[0] for line in lines if not line.startswith("#")]
    assert names == sorted(canonicalize_name(name) for name in names)
    assert pins()["torch"] == "2.13.0"
    assert not [version for version in pins().values() if "+" in version]
