"""Nothing in the repository speaks of the machine that it was written on."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# In two halves, so that this file does not hold them itself.
FORBIDDEN = (
    "/wo" "rk/",
    "/ro" "ot/",
    "/tmp/ba" "sh",
    "bash_" "jobs",
    "/opt/py" "pi",
    "/opt/whe" "els",
    "cla" "ude",
    "anthro" "pic",
    "before-" "stop",
    "co-authored-" "by",
)  # fmt: skip


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_no_forbidden_words() -> None:
    """No file that git would commit holds a path or a name of the place where it was written."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout.split("\0")
    paths = [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    assert len(paths) > 20
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in paths
        for word in FORBIDDEN
        if word in str(path.relative_to(ROOT)).lower() or word.encode() in path.read_bytes().lower()
    ]
    assert found == []
