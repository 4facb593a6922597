"""The page on methods: its table of rules of thumb and counted figures, and its example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from torch import nn

from qlassify import FineTuneMethod
from qlassify.methods.cost import method_cost
from qlassify.models.backbone import load_skeleton
from qlassify.models.source import PACKAGED, resolve
from qlassify.planning.plan import human_bytes
from tiny_models import shared_root

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "methods.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## Rules of thumb and counted truth") :]
METHODS = (
    FineTuneMethod.lora(16),
    FineTuneMethod.qlora(16),
    FineTuneMethod.adapter(),
    FineTuneMethod.ia3(),
    FineTuneMethod.full(),
)


def skeleton(place: int) -> nn.Module:
    """MiniLM's architecture, or Qwen2-0.5B's."""
    if place == 0:
        pytest.importorskip(PACKAGED["minilm"].module)
        return load_skeleton(resolve("minilm").directory)
    directory = shared_root() / "models" / "qwen2-0.5b"
    if not directory.is_dir():
        pytest.skip("needs the published configuration of Qwen2-0.5B beside the repository")
    return load_skeleton(directory)


def rows() -> dict[str, list[list[str]]]:
    """Method -> cells, each split into its figures."""
    lines = [line for line in SECTION.splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: [cell.split("; ") for cell in others] for first, *others in cells}


def test_the_rules_are_the_code_s() -> None:
    table = rows()
    assert list(table) == [str(method) for method in METHODS]
    full = FineTuneMethod.full().training_speedup()
    for method in METHODS:
        percent, memory, over, speed, _ = table[str(method)]
        assert percent[0] == f"{method.trainable_params_percent():g}"
        assert memory[0] == f"{method.memory_reduction_factor():.2f}"
        assert over[0] == str(method.memory_multiplier())
        assert speed[0] == f"{method.training_speedup() / full:.2f}"


@pytest.mark.parametrize("place", [0, 1], ids=["MiniLM", "Qwen2-0.5B"])
def test_the_counted_figures_are_counted(place: int) -> None:
    model, table = skeleton(place), rows()
    full = method_cost(model, FineTuneMethod.full().to_config())
    for method in METHODS:
        cost = method_cost(model, method.to_config(), quant=method.to_quant())
        percent, memory, over, speed, file = table[str(method)]
        assert percent[place + 1] == f"{cost.trainable_percent:.3f}"
        assert memory[place + 1] == f"{full.total_bytes / cost.total_bytes:.2f}"
        assert over[place + 1] == f"{cost.total_bytes / cost.frozen_bytes:.2f}"
        assert speed[place + 1] == f"{full.train_flop_per_token / cost.train_flop_per_token:.2f}"
        assert file[place] == human_bytes(cost.file_bytes)


def test_the_example_runs() -> None:
    pytest.importorskip(PACKAGED["minilm"].module)
    block = re.search(r"```python\n(.*?)```", SECTION, re.DOTALL)
    assert block is not None
    names: dict[str, object] = {}
    exec(compile(block.group(1), "docs/methods.md", "exec"), names)
    # Published shape of MiniLM-L6: rank 16 on 36 layers.
    assert getattr(names["cost"], "trainable_parameters") == 663_552  # noqa: B009
