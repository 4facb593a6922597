"""How fast are weights turned into NF4 and back, against bitsandbytes?

    python benchmarks/quantise.py [--quick] [--json] [--threads N] [--clock cpu] [--heap kept]

NF4 in groups of 64, with and without double quantisation. Before anything is timed, both sides' results are compared:

* codes, fp32 scales and the numbers that come back must be equal bit for bit;
* 8-bit scale codes must be equal except where ours is the nearer level (bitsandbytes approximates the search, and up
  to one code in a hundred is a neighbour of the nearest). Going back is compared, and timed, from bitsandbytes' own
  scale codes on both sides, so both sides do the same work there.

Quantising starts from a bf16 weight, which is what checkpoints hold. Each call makes its results anew on both sides.

Going back to numbers is what a layer does twice per training step, so each side is timed as its own layer does it:
bitsandbytes writes into fresh memory every time, ours into a buffer that all layers share. Ours is timed with fresh
memory, too: what the last columns lack is the buffer, what they have is the kernel. How much fresh memory costs
depends on the state of the heap (see ``compare``): ``--heap kept`` shows both sides without page faults. A weight is
used again and again here, so its codes are in the cache for both sides; in a model they come from memory.

Targets: to codes at least 25 times as fast as bitsandbytes; back to bf16 within 1.5 times its time, to fp32 ahead.
"""

from __future__ import annotations

import argparse
from typing import Any

import bitsandbytes.functional as bnb
import torch
from compare import (
    OURS,
    PEER,
    in_turn,
    in_words,
    machine,
    parser,
    prepare,
    print_json,
    print_machine,
    print_table,
    ratio_in_words,
    spread,
    times_faster,
    verdict,
)
from torch import Tensor

from qlassify.config.quant import QuantConfig
from qlassify.quant.codebook import dynamic_levels
from qlassify.quant.double import DoubleScales
from qlassify.quant.linear import LowBitLinear
from qlassify.quant.tensor import QuantizedTensor, quantize

SHAPES = ((384, 384), (384, 1536), (896, 4864), (1024, 4096), (4096, 4096))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUANTISE_TARGET = 25.0
DEQUANTISE_TARGETS = {"fp32": 1.0, "bf16": 1 / 1.5}
FRESH = f"{OURS}, fresh"


def main() -> None:
    arguments = parser(__doc__).parse_args()
    prepare(arguments)
    shapes, rounds = (SHAPES[:3], 5) if arguments.quick else (SHAPES, 21)
    to_codes: list[dict[str, Any]] = []
    to_numbers: list[dict[str, Any]] = []
    for shape in shapes:
        weight = torch.empty(shape).normal_(0, 0.02, generator=torch.Generator().manual_seed(0))
        for double in (False, True):
            to_codes.append(time_quantise(weight.bfloat16(), double, arguments.clock, rounds))
            to_numbers.extend(time_dequantise(weight, double, name, arguments.clock, rounds) for name in DTYPES)
    report(arguments, to_codes, to_numbers)


# Equality


def require(equal: bool, what: str) -> None:
    if not equal:
        raise SystemExit(f"not the same: {what}; times of different work would mean nothing")


def peer_quantise(weight: Tensor, double: bool) -> tuple[Tensor, Any]:
    codes, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=double)
    return codes, state


def same_weight(codes: Tensor, state: Any, config: QuantConfig) -> QuantizedTensor:
    """bitsandbytes' quantised weight as ours."""
    scales: Tensor | DoubleScales = state.absmax
    if config.double:
        scales = DoubleScales(state.absmax, state.state2.absmax, state.offset)
    return QuantizedTensor(config, tuple(state.shape), codes.view(-1), scales, None)


def require_same_codes(weight: Tensor, double: bool) -> None:
    where = f"{tuple(weight.shape)} {weight.dtype} double={double}"
    codes, state = peer_quantise(weight, double)
    ours = quantize(weight, QuantConfig(double=double))
    require(torch.equal(codes.view(-1), ours.codes), f"codes of {where}")
    if isinstance(ours.scales, Tensor):
        require(torch.equal(state.absmax, ours.scales), f"scales of {where}")
        return
    levels = torch.from_numpy(dynamic_levels().copy())
    require(torch.equal(state.state2.code, levels), "the levels of 8-bit scales")
    require(torch.allclose(state.offset, ours.scales.mean, rtol=1e-6, atol=0), f"mean scale of {where}")
    differ = state.absmax != ours.scales.codes
    require(float(differ.float().mean()) < 0.01, f"8-bit scales of {where}")
    plain = quantize(weight, QuantConfig(double=False)).scales
    assert isinstance(plain, Tensor)
    exact = (plain - ours.scales.mean) / ours.scales.maxima.repeat_interleave(256)[: len(plain)]
    theirs, nearest = ((levels[codes.long()] - exact).abs()[differ] for codes in (state.absmax, ours.scales.codes))
    require(bool((nearest <= theirs).all()), f"8-bit scales of {where}: ours are not the nearer ones")


# Timing


def time_quantise(weight: Tensor, double: bool, clock: str, rounds: int) -> dict[str, Any]:
    require_same_codes(weight, double)
    config = QuantConfig(double=double)
    seconds = in_turn(
        {PEER: lambda: peer_quantise(weight, double), OURS: lambda: quantize(weight, config)},
        clock=clock,
        rounds=rounds,
    )
    return {"shape": list(weight.shape), "double": double, "count": weight.numel(), "seconds": seconds}


def time_dequantise(weight: Tensor, double: bool, name: str, clock: str, rounds: int) -> dict[str, Any]:
    dtype = DTYPES[name]
    # A weight that was quantised from one type is what bitsandbytes writes back in that type.
    codes, state = peer_quantise(weight.to(dtype), double)
    ours = same_weight(codes, state, QuantConfig(double=double))
    layer = LowBitLinear(ours)
    for numbers in (ours.dequantize(dtype), layer.dense_weight(dtype)):
        require(torch.equal(bnb.dequantize_4bit(codes, state), numbers), f"numbers of {tuple(weight.shape)} in {name}")
    seconds = in_turn(
        {
            PEER: lambda: bnb.dequantize_4bit(codes, state),
            OURS: lambda: layer.dense_weight(dtype),
            FRESH: lambda: ours.dequantize(dtype),
        },
        clock=clock,
        rounds=rounds,
    )
    return {"shape": list(weight.shape), "double": double, "count": weight.numel(), "to": name, "seconds": seconds}


# Report


def report(arguments: argparse.Namespace, to_codes: list[dict[str, Any]], to_numbers: list[dict[str, Any]]) -> None:
    for row in to_codes:
        row["ratio"] = times_faster(row["seconds"], PEER, OURS)
        row["target"] = QUANTISE_TARGET
    for row in to_numbers:
        row["ratio"] = times_faster(row["seconds"], PEER, OURS)
        row["ratio_fresh"] = times_faster(row["seconds"], PEER, FRESH)
        row["target"] = DEQUANTISE_TARGETS[row["to"]]
    found = machine(arguments)
    if arguments.json:
        print_json(
            {
                "machine": found,
                "quantise": [plain(row) for row in to_codes],
                "dequantise": [plain(row) for row in to_numbers],
            }
        )
        return
    print_machine(found)
    print_table(
        "To NF4 from bf16 (ratio: times as fast as bitsandbytes, with quartiles; ns: per weight)",
        ("weight", "double", PEER, "ns", OURS, "ns", "ratio", "target"),
        [[*labels(row), *compared(row)] for row in to_codes],
    )
    print_table(
        "Back to numbers (each as its own layer does it: bitsandbytes into fresh memory, ours into a shared buffer)",
        ("weight", "double", "to", PEER, "ns", OURS, "ns", "ratio", "target", FRESH, "ns", "ratio"),
        [
            [*labels(row), row["to"], *compared(row), *timed(row, FRESH), ratio_in_words(row["ratio_fresh"])]
            for row in to_numbers
        ],
    )


def labels(row: dict[str, Any]) -> tuple[str, str]:
    return "x".join(map(str, row["shape"])), "yes" if row["double"] else "no"


def timed(row: dict[str, Any], name: str) -> tuple[str, str]:
    found = spread(row["seconds"][name])
    return in_words(found), f"{found.median / row['count'] * 1e9:.3f}"


def compared(row: dict[str, Any]) -> tuple[str, ...]:
    """The peer, ours, their ratio, and whether that is the target."""
    aim = f">= {row['target']:.2g} {verdict(row['ratio'].median >= row['target'])}"
    return (*timed(row, PEER), *timed(row, OURS), ratio_in_words(row["ratio"]), aim)


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row for JSON, with medians and quartiles in place of samples."""
    seconds = {name: spread(values).as_dict() for name, values in row["seconds"].items()}
    ratios: dict[str, Any] = {name: row[name].as_dict() for name in ("ratio", "ratio_fresh") if name in row}
    return {**row, "seconds": seconds, **ratios}


if __name__ == "__main__":
    main()
