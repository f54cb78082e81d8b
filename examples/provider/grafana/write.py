"""Writes the dashboards as JSON beside this file: python -m examples.provider.grafana.write [--check]."""

import json
import sys
from pathlib import Path
from typing import Final

from examples.provider.grafana.clickhouse import CLICKHOUSE
from examples.provider.grafana.panels import Dashboard, model
from examples.provider.grafana.prometheus import PROMETHEUS

HERE: Final = Path(__file__).parent


def text(dashboard: Dashboard) -> str:
    """The file's text."""
    return json.dumps(model(dashboard), indent=2, ensure_ascii=False) + "\n"


def main(check: bool) -> int:
    """Write both, or only tell which are not what would be written: the exit code is then 1."""
    stale = 0
    for each in (CLICKHOUSE, PROMETHEUS):
        path = HERE / f"{each.name}.json"
        if check:
            if not path.exists() or path.read_text(encoding="utf-8") != text(each):
                print(f"{path.name}: stale; run python -m examples.provider.grafana.write")
                stale = 1
        else:
            path.write_text(text(each), encoding="utf-8")
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] == ["--check"]))
