"""The pages are true: what they tell a reader to run runs, and the reference is what the code says."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUN_PAGE = Path(__file__).with_name("run_page.py")


def python(*arguments: str | Path, cwd: Path) -> tuple[int, str]:
    """Run Python with `arguments`; its exit code and all that it printed."""
    said = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=600,
    )
    return said.returncode, said.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", ["README.md", "docs/tutorial.md", "docs/how-to/train.md", "docs/how-to/integrations.md"]
)
def test_page_runs(page: str, tmp_path: Path) -> None:
    """A newcomer who follows the page from top to bottom sees what it promises."""
    # Pages name the examples from the repository's root, and what they write must not land there.
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    code, printed = python(RUN_PAGE, ROOT / page, cwd=tmp_path)
    assert code == 0, printed


def test_reference_is_current() -> None:
    """docs/reference is what docs/generate.py makes of the code today."""
    code, printed = python(ROOT / "docs" / "generate.py", "--check", cwd=ROOT)
    assert code == 0, printed


@pytest.mark.slow
def test_stale_reference_is_found(tmp_path: Path) -> None:
    """One changed character, or a missing page, is told by name; making the pages again mends both."""
    generate = ROOT / "docs" / "generate.py"
    assert python(generate, tmp_path, cwd=ROOT) == (0, "")
    assert python(generate, "--check", tmp_path, cwd=ROOT) == (0, "")
    settings = tmp_path / "settings.md"
    settings.write_text(settings.read_text(encoding="utf-8").replace("MFU_SPANS", "MFU_SPAN"), encoding="utf-8")
    (tmp_path / "cli.md").unlink()
    code, printed = python(generate, "--check", tmp_path, cwd=ROOT)
    assert code == 1
    assert "settings.md" in printed
    assert "cli.md" in printed
    assert "telemetry.md" not in printed


GOOD = """```python
x = 20
```
Text, and a block that is only shown:
```yaml
x: [
```
<!-- not run: needs a cluster -->
```console
$ false
```
```python
from pathlib import Path

Path("x").write_text(str(x + 1))
```
```console
$ cat \\
    x && echo
21
$ python -c "print('took', 0.123, 's')"
took ... s
$ echo anything
```
"""


def run_page(text: str, folder: Path) -> tuple[int, str]:
    """Run a page with `text` in `folder`."""
    page = folder / "page.md"
    page.write_text(text, encoding="utf-8")
    return python(RUN_PAGE, page, cwd=folder)


def test_runner_runs_a_page(tmp_path: Path) -> None:
    """Blocks share one namespace and one folder, outputs are compared, and a block with a reason is left out."""
    assert run_page(GOOD, tmp_path) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("x = 20", "x = 1 / 0", "page.md\", line 2, in <module>"),
        ("str(x + 1)", "str(y)", "page.md\", line 15, in <module>"),
        ("\n21\n", "\n22\n", "page.md:18: $ cat \\\n    x && echo\nshould print:\n22\nbut printed:\n21\n"),
        ("took ... s", "took ... ms", "page.md:21: $ python"),
        ("echo anything", "exit 3", "page.md:23: $ exit 3\nexited with 3"),
        ("$ cat", "cat", "line 18: a console block must start with `$ ` and a command"),
        ("anything\n```", "anything", "line 17: this block is never closed"),
        ("not run: needs a cluster", "not run: ", "page.md:10: $ false\nexited with 1"),
    ],
)  # fmt: skip
def test_runner_tells_what_fails(old: str, new: str, told: str, tmp_path: Path) -> None:
    """Each thing that a page can get wrong ends the run, with the page's line."""
    assert GOOD.count(old) == 1
    code, printed = run_page(GOOD.replace(old, new), tmp_path)
    assert code == 1
    assert told in printed


def test_runner_refuses_an_empty_page(tmp_path: Path) -> None:
    """A page that is missing, or that has nothing to run, proves nothing, so it fails."""
    assert run_page("# Title\n", tmp_path)[0] == 1
    code, printed = python(RUN_PAGE, tmp_path / "none.md", cwd=tmp_path)
    assert code == 1
    assert "none.md: is missing" in printed
