"""How near a plan comes: predicted against measured peak memory and training time, over shapes, methods and budgets.

    python benchmarks/plan_accuracy.py RESULTS.jsonl DATA.tsv [--rows 800] [--shapes minilm bert-base qwen2-0.5b]
    python benchmarks/plan_accuracy.py RESULTS.jsonl --table

Each run is ``qlassify train`` in a process of its own, one epoch over the first rows of DATA, with nothing set but the
method and the token budget; what it planned and what it measured stand in its ``plan.json``. BERT-base and Qwen2-0.5B
have random weights in their published shapes: memory and time do not depend on what the weights are. A run whose line
is in RESULTS already is not repeated.

The targets are 10 % for memory and 25 % for a step's time. Memory is the most that was resident before the final
evaluation, interpreter and libraries included, as a person sees it in ``top``. A step's time is the mean of all steps
of the run; the training loop's time has evaluations and checkpoints in it, whose files a disk takes at one rate as long
as caches hold them and at another when they are full.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SHAPES = ("minilm", "bert-base", "qwen2-0.5b")
RUNS = (("lora", 8192), ("lora", 256), ("qlora", 8192), ("full", 8192), ("ia3", 8192), ("dora", 8192))
"""Methods and token budgets that each shape is trained with."""


def make_base(shape: str, folder: Path) -> str:
    """A base model of a published shape: MiniLM itself, others with random weights and MiniLM's tokeniser."""
    if shape == "minilm":
        return "minilm"
    import torch
    from transformers import BertConfig, BertModel, Qwen2Config, Qwen2Model

    from qlassify.models.source import resolve

    torch.manual_seed(0)
    if shape == "bert-base":
        model: Any = BertModel(BertConfig(), add_pooling_layer=False)
    else:
        model = Qwen2Model(
            Qwen2Config(
                vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
                num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0,
            )
        ).to(torch.bfloat16)  # fmt: skip
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copyfile(resolve("minilm").directory / name, folder / name)
    return str(folder)


def measure(shape: str, base: str, method: str, budget: int, data: Path) -> dict[str, Any]:
    """Train once and read what was planned and measured."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [str(Path(sys.executable).with_name("qlassify")), "train", str(data), "--base", base]
        command += ["--method", method, "--epochs", "1", "--out", str(out), "--quiet"]
        command += ["--set", f"training.token_budget={budget}", "--set", "evaluation.baselines=false"]
        command += ["--set", "training.log_interval=1"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
        plan = json.loads((out / "plan.json").read_text(encoding="utf-8"))
        environment = json.loads((out / "environment.json").read_text(encoding="utf-8"))
        events = [json.loads(line) for line in (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = [event["seconds"] for event in events if event["event"] == "step"]
    planned, measured = plan["planned"], plan["measured"]
    return {
        "shape": shape,
        "method": method,
        "token_budget": budget,
        "steps": measured["steps"],
        "heaviest_tokens": planned["heaviest_tokens"],
        "planned_bytes": planned["memory"]["total_bytes"],
        "measured_bytes": measured["training_peak_memory_bytes"],
        "memory": planned["memory"],
        "planned_step_seconds": planned["step_seconds"],
        "measured_step_seconds": round(statistics.mean(steps), 4),
        "planned_seconds": planned["training_seconds"],
        "measured_seconds": measured["training_seconds"],
        "precision": environment["precision"],
        "processor": environment["processor"],
        "threads": environment["threads"],
    }


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: a line per run, and how far off they are in the middle and at worst."""
    lines = [
        "| model | method | tokens at once | memory planned | measured | off | step planned | measured | off "
        "| training planned | measured |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    off: dict[str, list[float]] = {"memory": [], "step": [], "training": []}
    for one in results:
        memory = one["planned_bytes"] / one["measured_bytes"] - 1
        step = "| | | "  # of runs that were measured before steps were
        if "planned_step_seconds" in one:
            planned, measured = one["planned_step_seconds"], one["measured_step_seconds"]
            off["step"].append(abs(planned / measured - 1))
            step = f"| {planned:.2f} s | {measured:.2f} s | {100 * (planned / measured - 1):+.0f} % "
        off["memory"].append(abs(memory))
        off["training"].append(abs(one["planned_seconds"] / one["measured_seconds"] - 1))
        lines.append(
            f"| {one['shape']} | `{one['method']}` | {one['heaviest_tokens']} | {one['planned_bytes'] / 1e9:.2f} GB | "
            f"{one['measured_bytes'] / 1e9:.2f} GB | {100 * memory:+.0f} % {step}| {one['planned_seconds']:.0f} s | "
            f"{one['measured_seconds']:.0f} s |"
        )
    for name, values in off.items():
        lines.append(f"\n{name}: median {100 * statistics.median(values):.0f} %, worst {100 * max(values):.0f} %")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=800)
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    text = options.results.read_text(encoding="utf-8") if options.results.is_file() else ""
    results = [json.loads(line) for line in text.splitlines() if line]
    if not options.table:
        done = {(one["shape"], one["method"], one["token_budget"]) for one in results}
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / f"data{options.data.suffix}"
            lines = options.data.read_bytes().splitlines(keepends=True)
            data.write_bytes(b"".join(lines[: options.rows + 1]))
            for shape in options.shapes:
                wanted = [(method, budget) for method, budget in RUNS if (shape, method, budget) not in done]
                base = make_base(shape, Path(folder) / shape) if wanted else ""
                for method, budget in wanted:
                    result = measure(shape, base, method, budget, data)
                    results.append(result)
                    with options.results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(result) + "\n")
                    print(shape, method, budget, result["planned_bytes"], result["measured_bytes"], flush=True)
                shutil.rmtree(Path(folder) / shape, ignore_errors=True)
    print(table(results))


if __name__ == "__main__":
    main()
