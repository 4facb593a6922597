"""The page on low-bit weights says what the code says: bits, bounds, sizes, and its example."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from qlassify.config.quant import QuantConfig
from qlassify.models import quantized
from qlassify.quant.codebook import code_book, dynamic_levels

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "quantisation.md").read_text(encoding="utf-8")


def rows_of(heading: str) -> list[list[str]]:
    """Cells of the first table after a heading or sentence."""
    after = PAGE[PAGE.index(heading) :]
    table = re.search(r"^\|.*?(?=\n\n)", after, re.MULTILINE | re.DOTALL)
    assert table is not None
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.group(0).splitlines()[2:]]


def test_bits_per_weight_of_every_format() -> None:
    rows = rows_of("## Formats")
    assert len(rows) == 6
    for kind, _, _, bits in rows:
        name = kind.split("`")[1]
        zero_point = "zero points" in kind
        plain, *double = re.findall(r"\d\.\d{3}", bits)
        config = QuantConfig(kind=name, zero_point=zero_point, double=False)
        assert f"{config.bits_per_weight:.3f}" == plain
        assert bool(double) is not zero_point
        for shown in double:
            assert f"{QuantConfig(kind=name, double=True).bits_per_weight:.3f}" == shown


def test_bits_per_weight_of_the_measured_formats() -> None:
    for name, bits, _ in rows_of("What is lost on average"):
        kind, *extras = name.split(", ")
        size = next((int(extra.rpartition(" ")[2]) for extra in extras if extra.startswith("groups of")), 64)
        config = QuantConfig(kind=kind, group_size=size, double="double" in extras, zero_point="zero points" in extras)
        assert f"{config.bits_per_weight:.3f}" == bits, name


def test_bounds_are_half_the_widest_gaps() -> None:
    bounds = {row[0]: row[1] for row in rows_of("## How far a number can move")}
    for kind in ("nf4", "fp4"):
        assert bounds[f"`{kind}`"] == f"{code_book(kind).widest_gap / 2:.4f} x absmax"
    gap = max(b - a for a, b in zip(dynamic_levels()[:-1].tolist(), dynamic_levels()[1:].tolist(), strict=True))
    assert bounds["double quantisation adds"].startswith(f"{gap / 2:.5f} x ")


def test_the_saving_of_a_small_model() -> None:
    hidden, intermediate, layers, vocabulary, kv = 896, 4864, 24, 151_936, 128
    shapes = [hidden * hidden] * 2 + [hidden * kv] * 2 + [hidden * intermediate] * 3
    embedding = 2 * vocabulary * hidden
    linear = 2 * layers * sum(shapes)
    low_bit = layers * sum(QuantConfig().storage_bytes(count) for count in shapes)
    small = 4 * (layers * hidden + hidden // 2) + 2 * layers * (hidden + 2 * kv)  # norms and biases of q, k, v
    shown = {row[0]: row[1:] for row in rows_of("Qwen2.5-0.5B has 494.0 M parameters")}
    assert shown["linear layers"] == [f"{linear / 1e6:.1f} MB", f"{low_bit / 1e6:.1f} MB"]
    assert shown["embedding"][0] == f"{embedding / 1e6:.1f} MB"
    whole, quantised = linear + embedding + small, low_bit + embedding + small
    assert shown["all"][0] == f"{whole / 1e6:.1f} MB"
    assert shown["all"][1].startswith(f"{quantised / 1e6:.1f} MB: **{whole / quantised:.2f} times smaller**")


def test_the_layout_names_what_is_written() -> None:
    named = {row[0].strip("`").removeprefix("<layer>.") for row in rows_of("keeps the result. The layout")}
    for name in ("codes", "scales", "scale_codes", "scale_maxima", "scale_mean", "offsets"):
        assert f"weight_{name}" in named
        assert f"<path>.weight_{name}" in (quantized.__doc__ or "")


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
def test_the_example_runs(code: str) -> None:
    exec(compile(code, "docs/quantisation.md", "exec"), {})
