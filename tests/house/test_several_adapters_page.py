"""The page on several adapters: its example runs, and its memory is counted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from qlassify.config.method import LoraConfig
from qlassify.methods.cost import method_cost
from qlassify.models.backbone import load_skeleton
from qlassify.models.source import PACKAGED, resolve
from qlassify.planning.plan import human_bytes

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "several-adapters.md").read_text(encoding="utf-8")

TEXTS = {
    "intent": {
        "arrival": ["my card has not arrived", "where is my new card", "the card is late", "card still not here"],
        "pin": ["how do I change my PIN", "reset the PIN please", "I forgot my PIN", "new PIN for my card"],
        "fee": ["why was I charged a fee", "what is this charge", "you took a fee twice", "a fee for cash"],
    },
    "tone": {
        "kind": ["thank you so much", "great, that was quick", "thanks for your help", "very kind of you"],
        "cross": ["this is a disgrace", "I am fed up with this", "worst service ever", "answer me at last"],
    },
}


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    pytest.importorskip(PACKAGED["minilm"].module)
    for name, classes in TEXTS.items():
        rows = [
            f'"{texts[index]}{ending}",{label}'
            for ending in ("", " today", " now")
            for index in range(4)
            for label, texts in classes.items()
        ]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    block = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None
    done = subprocess.run([sys.executable, "-c", block.group(1)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    intents, mixed, names = done.stdout.splitlines()[-3:]
    # What the intent of a thank-you is, the example leaves open.
    assert re.fullmatch(r"\['arrival', '(arrival|pin|fee)'\]", intents)
    assert mixed == "['arrival', 'kind']"
    assert names == "('intent',)"


def test_memory_is_counted() -> None:
    pytest.importorskip(PACKAGED["minilm"].module)
    model = load_skeleton(resolve("minilm").directory)
    cost = method_cost(model, LoraConfig(rank=16))
    own = cost.value_bytes + 4 * (5 * 384 + 5)  # MiniLM's vectors have 384 numbers
    table = re.findall(r"^\| (\d+) \| (\S+ \S+) \| (\S+ \S+) \|$", PAGE, re.MULTILINE)
    assert [row[0] for row in table] == ["1", "10", "100"]
    for count, apart, together in table:
        number = int(count)
        assert apart == human_bytes(number * (cost.frozen_bytes + own))
        assert together == human_bytes(cost.frozen_bytes + number * own)
