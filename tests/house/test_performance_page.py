"""The page on performance shows what was measured: its tables are those that the samples make."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")


def summary() -> ModuleType:
    spec = importlib.util.spec_from_file_location("summary", ROOT / "benchmarks" / "summary.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["train_cpu", "qlora_cpu", "infer_cpu", "load", "tokenise"])
def test_a_table_is_what_the_samples_make(name: str) -> None:
    found = re.search(rf"<!-- {name} -->\n\n(.*?)\n\n<!-- end -->", PAGE, re.DOTALL)
    assert found is not None
    assert found.group(1) == summary().page(name)


def test_the_latest_run_of_a_setting_counts() -> None:
    lines = [
        f'{{"data": "{data}", "side": "{side}", "round": {number}, "sample": {{"seconds": {seconds}, "rows": 8}}}}'
        for seconds, data in ((1, "a"), (2, "b"), (4, "a"))
        for side in ("ours", "theirs")
        for number in (0, 1)
    ]
    found = summary().runs(lines)
    assert [[one["sample"]["seconds"] for one in samples] for samples in found] == [[4] * 4, [2] * 4]
