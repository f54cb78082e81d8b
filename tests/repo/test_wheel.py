"""What is published: a source archive and a wheel built from it, each with everything, installable alone."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Where each folder of the repository lies in the wheel.
PLACES = {"mfu_sdk": "mfu_sdk", "kernels/mfu_kernels": "mfu_kernels", "examples/bytegpt": "mfu_sdk/_examples/bytegpt"}


def run(*command: str | Path) -> str:
    """Run `command` in the repository; its output is shown where it fails."""
    said = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, timeout=300
    )
    assert said.returncode == 0, said.stdout
    return said.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source archive and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
    return folder


def files(folder: str) -> set[str]:
    """The files under `folder` of the repository that belong to it."""
    found = (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.relative_to(ROOT / folder).as_posix() for path in found if "__pycache__" not in path.parts}


def test_wheel_holds_everything(built: Path) -> None:
    """Every file of both packages and of the demo's example is in the wheel, the provider's SQL and page among them."""
    with zipfile.ZipFile(next(built.glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
    expected = {f"{place}/{name}" for folder, place in PLACES.items() for name in files(folder)}
    assert sorted(expected - names) == []
    assert {"mfu_sdk/py.typed", "mfu_kernels/py.typed"} <= names
    assert [name for name in names if name.startswith("mfu_sdk/provider/sql/") and name.endswith(".sql")]
    assert [name for name in names if name.startswith("mfu_sdk/provider/web/") and name.endswith(".html.j2")]
    assert [name for name in names if name.startswith("mfu_sdk/_examples/bytegpt/") and name.endswith(".py")]
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"mfu_sdk", "mfu_kernels"}


def test_source_archive_holds_everything(built: Path) -> None:
    """The source archive has the sources, tests, pages, licence and build files that a distributor needs."""
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        f"{folder}/{name}" for folder in ("mfu_sdk", "kernels", "examples", "tests", "docs") for name in files(folder)
    }
    assert sorted(sources - names) == []
    assert {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "constraints.txt", "pyproject.toml"} <= names


def test_wheel_alone(built: Path, tmp_path: Path) -> None:
    """In an environment with nothing else both packages are there: ours imports, the kernels say what they lack."""
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path)
    python = tmp_path / "bin" / "python"
    wheel = next(built.glob("*.whl"))
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    # -I: neither this repository nor PYTHONPATH may lend it anything.
    code = (
        "import mfu_sdk, mfu_sdk.records, mfu_sdk.semconv, mfu_sdk.settings\n"
        "print(mfu_sdk.__file__)\n"
        "try:\n import mfu_kernels\n"
        "except ImportError as error:\n print(error)"
    )
    origin, refusal = run(python, "-I", "-W", "error", "-c", code).splitlines()
    assert Path(origin).is_relative_to(tmp_path)
    assert refusal.startswith("mfu_kernels needs torch, which is not installed: pip install 'mfu-sdk[torch]'")
