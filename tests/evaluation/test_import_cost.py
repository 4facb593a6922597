"""Importing the evaluation room must not import the libraries that only some of its functions need."""

from __future__ import annotations

import subprocess
import sys


def test_import_is_light() -> None:
    code = (
        "import sys, qlassify.evaluation.report; "
        "print(sorted({'torch', 'sklearn', 'scipy', 'matplotlib', 'jinja2', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
