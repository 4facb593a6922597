"""Seconds and peak memory of loading a base model, in fp32 and in NF4, against transformers and bitsandbytes.

    python benchmarks/load.py --quick
    python benchmarks/load.py --models qwen2-0.5b qwen3-0.6b

A checkpoint of random bf16 weights in a published shape, in one file that has just been written and comes from the
system's cache. Each load is the first one of a fresh process, as in a command that a user types: what is imported (all
but torch, which is there already), or compiled on first use, is part of it on every side, because libraries differ in
what they put off until it is used. A load ends when a byte of every page of every tensor has been read, because weights
that stay in a mapped file are otherwise paid for later. Ours ends in the backbone that is trained, which includes the
trial of whether it can be packed.

Peaks are those of the whole process, and above what it held with torch alone. ``qlora_memory.py`` looks at the same
loads in NF4 without what first use costs, and holds them against a bound.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bases
import side_by_side
from side_by_side import Job, Record, Side, Stopwatch

QUICK_LAYERS = 2


def main() -> None:
    if side_by_side.serve(CHILDREN):
        return
    arguments = options().parse_args()
    if arguments.quick:
        arguments.models, arguments.layers = arguments.models[:1], arguments.layers or QUICK_LAYERS
    print(side_by_side.in_words(side_by_side.machine(arguments)))
    for model in arguments.models:
        with tempfile.TemporaryDirectory(prefix="load_") as folder:
            base = bases.make_base(model, Path(folder) / "base", layers=arguments.layers)
            quantised = Path(folder) / "quantised"
            made = side_by_side.in_process(__file__, "quantise", job_of(base, "nf4", into=str(quantised)), arguments)
            if "error" in made:
                raise SystemExit(f"the quantised copy could not be made: {made.get('stderr', made['error'])}")
            for precision in ("fp32", "nf4"):
                compare(arguments, model, make_sides(base, quantised, precision), precision)


def options() -> argparse.ArgumentParser:
    made = side_by_side.parser(__doc__)
    made.add_argument("--models", nargs="+", default=["qwen2-0.5b", "bert-base"], help=f"of {', '.join(bases.NAMES)}")
    made.add_argument("--layers", type=int, help="hidden layers; as published without")
    return made


def job_of(base: Path, precision: str, **more: Any) -> Job:
    return {"base": str(base), "format": precision, **more}


def make_sides(base: Path, quantised: Path, precision: str) -> list[Side]:
    """Who loads in a precision; a directory that is quantised already is ours alone to read."""
    job = job_of(base, precision)
    peer = "transformers + bitsandbytes" if precision == "nf4" else "transformers"
    sides = [Side("qlassify", "ours", job, ours=True), Side(peer, "transformers_load", job)]
    if precision == "nf4":
        sides.append(Side("qlassify, from its quantised folder", "ours", job_of(quantised, precision)))
    return sides


def compare(arguments: argparse.Namespace, model: str, sides: list[Side], precision: str) -> None:
    """All sides in one precision."""
    sides = side_by_side.chosen(arguments, sides)
    results = side_by_side.measure(__file__, sides, arguments, rounds=side_by_side.repeats(arguments))
    print(f"\n## {model} in {precision}\n")
    print(
        side_by_side.simple_table(
            results,
            {
                "seconds": lambda one: one["seconds"],
                "processor seconds": lambda one: one["cpu_seconds"],
                "peak, MB": lambda one: one["peak_bytes"] / 1e6,
                "above torch alone, MB": lambda one: (one["peak_bytes"] - one["before_bytes"]) / 1e6,
                "tensors, MB": lambda one: one["model_bytes"] / 1e6,
            },
        )
    )
    setting = {"model": model, "layers": arguments.layers, "format": precision}
    print(f"\nappended to {side_by_side.append('load', results, arguments, setting)}\n", flush=True)


# Children


def quantise(job: Job) -> Record:
    """Write a quantised copy, as ``qlassify quantize`` does."""
    from qlassify.quantization import quantize_model

    quantize_model(job["base"], Path(job["into"]))
    return {}


def ours(job: Job) -> Record:
    """``load_backbone``."""

    def load() -> Any:
        import torch

        from qlassify.config.quant import QuantConfig
        from qlassify.models.backbone import load_backbone

        quant = QuantConfig() if job["format"] == "nf4" else None
        return load_backbone(Path(job["base"]), torch.float32, quant=quant)

    return _timed(load)


def transformers_load(job: Job) -> Record:
    """``from_pretrained``, with ``BitsAndBytesConfig`` for NF4."""

    def load() -> Any:
        import torch
        import transformers

        options: dict[str, Any] = {"dtype": torch.float32}
        if job["format"] == "nf4":
            options["quantization_config"] = transformers.BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.float32,
            )
            options["device_map"] = "cpu"
        return transformers.AutoModel.from_pretrained(job["base"], **options)

    return _timed(load)


def _timed(load: Callable[[], Any]) -> Record:
    """Load, read every page, and say what that took."""
    from qlora_memory import memory, read_all, tensors_of

    before = memory()["VmRSS"]
    with Stopwatch() as watch:
        model = load()
        read_all(model)
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(model))
    return {**watch.as_record(), "before_bytes": before, "model_bytes": size}


CHILDREN = {"quantise": quantise, "ours": ours, "transformers_load": transformers_load}


if __name__ == "__main__":
    main()
