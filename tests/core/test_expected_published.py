"""Published training runs against what `mfu.expect` makes of their shape, GPU and layout: it is an upper bound.

The rows lie beside the repository, not in it; `benchmarks/expectation.py` reads them and prints how near they come.
"""

import importlib.util
import statistics
import sys
from pathlib import Path
from types import ModuleType

import pytest

DATA = Path(__file__).parents[3] / "shared" / "data" / "published_mfu.json"
if not DATA.exists():
    pytest.skip(f"the published rows are not beside this checkout: no {DATA}", allow_module_level=True)


def _benchmark() -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / "expectation.py"
    spec = importlib.util.spec_from_file_location("benchmark_expectation", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FOUND = _benchmark().published(DATA)


def test_hardly_a_run_beats_its_expectation() -> None:
    """Of nearly three hundred dense runs on A100 and H100 at most one in a hundred is above the interval's end."""
    assert len(FOUND) > 250
    beyond = [each.id for each in FOUND if each.observed > each.high]
    assert len(beyond) <= len(FOUND) / 100, beyond


def test_the_bound_is_not_idle() -> None:
    """The best runs of known layout come near it: one in ten reaches three quarters of what was expected."""
    ratios = sorted(each.observed / each.expected for each in FOUND if each.laid_out)
    assert statistics.quantiles(ratios, n=10)[-1] > 0.75


def test_expectation_ranks_formats() -> None:
    """fp8 is expected to have more MFU over bf16's peak than bf16 runs of the same benchmark have."""
    by = {dtype: [each.expected for each in FOUND if each.laid_out and each.dtype == dtype and "H100" in each.group]
          for dtype in ("bfloat16", "float8_e4m3fn")}  # fmt: skip
    assert min(by["float8_e4m3fn"]) > statistics.median(by["bfloat16"])
