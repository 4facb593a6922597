"""What is written is true: generated pages match the code, the README's example runs, its tree and links exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_generated_pages_say_what_the_code_says() -> None:
    done = subprocess.run([sys.executable, "docs/generate.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_setting_of_the_recommendation_table_is_named_as_in_the_code() -> None:
    from qlassify.config import recommend

    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    low, high = recommend.EPOCH_BOUNDS
    assert f"{recommend.BASE_STEPS} + {recommend.STEPS_PER_CLASS} x classes" in page
    assert f"at least {low}, at most {high}" in page
    settings = recommend.recommended_settings(recommend.Facts(22_000_000, False, 6, 5000))
    method, training = settings["method"], settings["training"]
    assert f"rank {method['rank']}, alpha {method['alpha']:g}" in page
    assert f"dropout {method['dropout']:g}" in page
    assert f"{training['warmup_fraction']:.0%} warm-up".replace("%", " %") in page
    for parameters, decoder in ((22_000_000, False), (110_000_000, False), (355_000_000, False), (10**9, True)):
        assert f"{recommend.learning_rate(parameters, decoder=decoder):g}" in page


@pytest.mark.parametrize("page", sorted(ROOT.glob("**/*.md")), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_relative_links_lead_somewhere(page: Path) -> None:
    if ".venv" in page.parts:
        return
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_tree_of_the_readme_is_the_tree() -> None:
    block = re.search(r"```\nsrc/qlassify/\n(.*?)```", README, re.DOTALL)
    assert block is not None
    named = {match.group(1) for match in re.finditer(r"^  (\w+(?:\.py|/))", block.group(1), re.MULTILINE)}
    package = ROOT / "src" / "qlassify"
    files = {path.name for path in package.glob("*.py")} - {"__init__.py"}
    folders = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and any(path.iterdir())}
    assert named == files | (folders - {"__pycache__/"})


@pytest.mark.slow
def test_the_library_example_runs(tmp_path: Path) -> None:
    block = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert block is not None
    code = block.group(1)
    lines = [line for line in code.splitlines() if line and not line.startswith(("from ", "import "))]
    assert len(lines) <= 6
    good = ["my card has not arrived", "where is my new card", "the card is late", "card still not here"]
    other = ["how do I change my PIN", "reset the PIN please", "I forgot my PIN", "new PIN for my card"]
    rows = [("card_arrival", text) for text in good] + [("change_pin", text) for text in other]
    for name, repeat in (("train.csv", 6), ("dev.csv", 1), ("test.csv", 1)):
        lines_out = [
            f'"{text}{" today" * (number % 3)}{" now" * (number // 3)}",{label}'
            for number in range(repeat)
            for label, text in rows
        ]
        (tmp_path / name).write_text("text,label\n" + "\n".join(lines_out) + "\n", encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    score, predicted = done.stdout.strip().splitlines()[-2:]
    assert float(score) > 0.5
    assert predicted == "['change_pin']"
