"""Does loading a model in NF4 stay below the quantised model plus the two largest tensors of its checkpoint?

    python benchmarks/qlora_memory.py [--quick] [--json] [--threads N] [--config PATH] [--runs N]

A machine that has room for the low-bit model must be able to make it, so a load may hold, beyond what it gives back,
the tensor in hand and one more. The bound is counted above the process's memory right before the load.

Each load has a process of its own; ours and the peer's (transformers with ``BitsAndBytesConfig``) take turns. The
process imports its side, loads a two-layer model of the same architecture, which brings in what is imported on first
use (hundreds of megabytes of libraries, in both) and compiles the kernels, drops it, and then has the system forget
its peak (Linux: /proc/self/clear_refs). What the process held then is the column "before", and all others but the
model's size are above it. The peak is then the system's own (VmHWM), exact and not sampled. It counts pages of mapped
files, which the system can take back; how much of it is the process's own memory alone (RssAnon) is therefore sampled
beside it.

Two things to know when reading the table. The peer leaves tensors that it does not quantise, the embedding above all,
in the mapped file, and they cost nothing until they are used: a peak below the model's own size means that. So after
the load every page of every tensor is read once, and the peak is taken again ("all read"). And an embedding makes the
bound a wide one, because it is both part of the model and the largest tensor; "over model" is the peak less the
model, the narrower thing to look at.

The checkpoint is random in bf16, of the shapes of Qwen2-0.5B or of ``--config``, once in one file and once in shards
of 200 MB; it has just been written, so it comes from the system's cache. Both sides keep everything but linear layers
in bf16. Ours is measured up to transformers' model (``load_model``) and up to the backbone that is trained
(``load_backbone``), which runs eleven tokens through the model to see whether it can be packed: that needs activations
and one weight's numbers, and is inside the peak. Single runs differ by some ten megabytes, because the C library
keeps freed blocks or gives them back. The same is measured from the directory that ``qlassify quantize`` writes.
``--quick`` cuts the model to four layers and measures one file and ``load_backbone`` only.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from compare import OURS, PEER, machine, parser, prepare, print_json, print_machine, print_table, spread, verdict
from torch import Tensor, nn

QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 131072,
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
SHARD_BYTES = 200_000_000
PEER_LOAD, MODEL_LOAD, BACKBONE_LOAD = "peer", "model", "backbone"
QUANTIZED = {MODEL_LOAD: "model, quantised", BACKBONE_LOAD: "backbone, quantised"}
TITLES = {
    PEER_LOAD: f"{PEER} (transformers)",
    MODEL_LOAD: f"{OURS} load_model",
    BACKBONE_LOAD: f"{OURS} load_backbone",
    QUANTIZED[MODEL_LOAD]: f"{OURS} load_model, quantised files",
    QUANTIZED[BACKBONE_LOAD]: f"{OURS} load_backbone, quantised files",
}

EXTRA = (
    ("before", "baseline"),
    ("all read", "peak_all_read"),
    ("own peak", "own_peak"),
    ("own end", "own_after"),
    ("files end", "files_after"),
)
"""Columns in which nothing is decided."""


def main() -> None:
    made = parser(__doc__, times=False)
    made.add_argument("--config", type=Path, help="config.json of another model")
    made.add_argument("--runs", type=int, default=3, help="processes for each line (1 with --quick)")
    made.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    arguments = made.parse_args()
    prepare(arguments)
    if arguments.job:
        job, *values = arguments.job
        print(json.dumps(JOBS[job](*values)))
        return
    if not Path("/proc/self/clear_refs").exists():
        raise SystemExit("peaks are read from /proc, which is Linux's")
    config = json.loads(arguments.config.read_text()) if arguments.config else dict(QWEN2)
    if arguments.quick:
        config["num_hidden_layers"] = 4
    runs = 1 if arguments.quick else arguments.runs
    layouts = {"one file": 1 << 62} if arguments.quick else {"one file": 1 << 62, "shards": SHARD_BYTES}
    ours = (BACKBONE_LOAD,) if arguments.quick else (MODEL_LOAD, BACKBONE_LOAD)
    rows: list[dict[str, Any]] = []
    checkpoint: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="qlora_memory_") as folder:
        tiny, directory, quantized = (Path(folder) / name for name in ("tiny", "model", "quantized"))
        write_config(tiny, small(config))
        for layout, shard_bytes in layouts.items():
            write_config(directory, config)
            checkpoint = in_process(arguments, "make", tiny, directory, shard_bytes, quantized)
            rows += loads(arguments, layout, checkpoint, runs, (PEER_LOAD, *ours), tiny, directory)
            shutil.rmtree(directory)
        for row in loads(arguments, "quantised", checkpoint, runs, ours, tiny, quantized):
            rows.append({**row, "load": QUANTIZED[row["load"]]})
    report(arguments, config, checkpoint, rows)


def loads(
    arguments: argparse.Namespace,
    layout: str,
    checkpoint: dict[str, Any],
    runs: int,
    names: tuple[str, ...],
    tiny: Path,
    directory: Path,
) -> list[dict[str, Any]]:
    """Each kind of load in turn, in processes of their own; one row for each kind."""
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(runs):
        for name in names:
            samples[name].append(in_process(arguments, "load", name, tiny, directory))
    rows: list[dict[str, Any]] = []
    for name, found in samples.items():
        row: dict[str, Any] = {"load": name, "layout": layout, "runs": runs}
        for key in found[0]:
            row[key] = spread([float(sample[key]) for sample in found])
        bound = row["model"].median + checkpoint["two_largest"]
        rows.append({**row, "bound": bound, "of_bound": row["peak"].median / bound})
    return rows


def in_process(arguments: argparse.Namespace, *job: object) -> dict[str, Any]:
    """Run one of ``JOBS`` in a new process and give back what it printed last."""
    command = [sys.executable, __file__, "--threads", str(arguments.threads), "--job", *map(str, job)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(arguments.threads)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, job))} failed:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


# Checkpoints


def small(config: dict[str, Any]) -> dict[str, Any]:
    """The same architecture with two layers and few words."""
    return {**config, "num_hidden_layers": 2, "vocab_size": 1024, "bos_token_id": 1, "eos_token_id": 2}


def write_config(directory: Path, config: dict[str, Any]) -> None:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))


def make(tiny: str, directory: str, shard_bytes: str, quantized: str) -> dict[str, Any]:
    """Write the two checkpoints and the quantised one, as far as they are not there; the large one's sizes."""
    from qlassify.quantization import quantize_model

    if not list(Path(tiny).glob("*.safetensors")):
        write_checkpoint(Path(tiny), 1 << 62)
    sizes = write_checkpoint(Path(directory), int(shard_bytes))
    if not Path(quantized).exists():
        quantize_model(directory, Path(quantized))
    return {"bytes": sum(sizes.values()), "two_largest": sum(sorted(sizes.values())[-2:]), "tensors": len(sizes)}


def write_checkpoint(folder: Path, shard_bytes: int) -> dict[str, int]:
    """Random weights in files of at most so many bytes, or of one tensor; name -> bytes of each."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    sizes = {name: 2 * math.prod(shape) for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    for name, size in sizes.items():
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + size > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    files = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    files = files if len(shards) > 1 else ["model.safetensors"]
    for file, names in zip(files, shards, strict=True):
        write_random(folder / file, {name: shapes[name] for name in names})
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return sizes


def write_random(path: Path, shapes: dict[str, torch.Size]) -> None:
    """A safetensors file of bf16 numbers, normal with a deviation of 0.02."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            tensor = torch.empty(shape, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)


# Loads


def load_peer(directory: Path) -> Any:
    from transformers import AutoModel, BitsAndBytesConfig

    plan = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModel.from_pretrained(directory, quantization_config=plan, dtype=torch.bfloat16, device_map="cpu")


def load_ours(directory: Path) -> Any:
    from qlassify.config.quant import QuantConfig
    from qlassify.models.backbone import load_model

    return load_model(directory, torch.bfloat16, QuantConfig())[0]


def load_our_backbone(directory: Path) -> Any:
    from qlassify.config.quant import QuantConfig
    from qlassify.models.backbone import load_backbone

    return load_backbone(directory, torch.bfloat16, quant=QuantConfig())


def load(name: str, tiny: str, directory: str) -> dict[str, Any]:
    """Load a model and say what that took, in bytes and seconds."""
    loaders: dict[str, Callable[[Path], Any]] = {
        PEER_LOAD: load_peer,
        MODEL_LOAD: load_ours,
        BACKBONE_LOAD: load_our_backbone,
    }
    loaders[name](Path(tiny))
    gc.collect()
    # What the small model has left in the C library's hands would otherwise be room for the large one.
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = memory()
    if before["VmHWM"] > before["VmRSS"] + (1 << 20):
        raise SystemExit("the system does not forget a peak here, so a load's own cannot be read")
    start = time.perf_counter()
    with own_memory_peak() as own:
        model = loaders[name](Path(directory))
    seconds = time.perf_counter() - start
    after = memory()
    read_all(model)
    return {
        "baseline": before["VmRSS"],
        "model": sum(tensor.numel() * tensor.element_size() for tensor in tensors_of(model)),
        "peak": after["VmHWM"] - before["VmRSS"],
        "peak_all_read": memory()["VmHWM"] - before["VmRSS"],
        "own_peak": own[0] - before["RssAnon"],
        "own_after": after["RssAnon"] - before["RssAnon"],
        "files_after": after["RssFile"] - before["RssFile"],
        "seconds": seconds,
    }


def memory() -> dict[str, int]:
    """The process's memory in bytes, by the system's names."""
    lines = Path("/proc/self/status").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return {name: int(fields[name].split()[0]) * 1024 for name in ("VmHWM", "VmRSS", "RssAnon", "RssFile")}


@contextlib.contextmanager
def own_memory_peak() -> Iterator[list[int]]:
    """The largest RssAnon seen, looked at every two milliseconds from another thread."""
    largest, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            largest[0] = max(largest[0], memory()["RssAnon"])

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield largest
    finally:
        done.set()
        thread.join()
        largest[0] = max(largest[0], memory()["RssAnon"])


def tensors_of(model: nn.Module) -> list[Tensor]:
    """All tensors of a model, each memory once; with what bitsandbytes keeps beside its weights."""
    tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    return list({tensor.data_ptr(): tensor.detach() for tensor in tensors}.values())


def read_all(model: nn.Module) -> None:
    """Read one byte of each page of each tensor, so that all of them are in memory."""
    for tensor in tensors_of(model):
        tensor.reshape(-1).view(torch.uint8)[::4096].sum()


JOBS: dict[str, Callable[..., dict[str, Any]]] = {"make": make, "load": load}


# Report


def report(
    arguments: argparse.Namespace, config: dict[str, Any], checkpoint: dict[str, Any], rows: list[dict[str, Any]]
) -> None:
    found = machine(arguments, "transformers", "accelerate")
    described = {name: config.get(name) for name in ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")}
    if arguments.json:
        print_json(
            {"machine": found, "model": described, "checkpoint": checkpoint, "rows": [plain(row) for row in rows]}
        )
        return
    print_machine(found)
    print(", ".join(f"{name} {value}" for name, value in described.items()))
    print(
        f"checkpoint {in_megabytes(checkpoint['bytes'])} MB in {checkpoint['tensors']} tensors; "
        f"its two largest {in_megabytes(checkpoint['two_largest'])} MB"
    )
    print_table(
        "Loading in NF4: MB (1e6 bytes) above the process's memory before it; bound: model + two largest tensors",
        ("load", "files", "model", "peak", "bound", "of bound", "", "over model", *(name for name, _ in EXTRA), "time"),
        [cells(row) for row in rows],
    )


def cells(row: dict[str, Any]) -> list[str]:
    return [
        TITLES[row["load"]],
        row["layout"],
        in_megabytes(row["model"].median),
        in_megabytes(row["peak"].median),
        in_megabytes(row["bound"]),
        f"{row['of_bound']:.3f}",
        verdict(row["of_bound"] <= 1),
        in_megabytes(row["peak"].median - row["model"].median),
        *(in_megabytes(row[key].median) for _, key in EXTRA),
        f"{row['seconds'].median:.2f} s ±{row['seconds'].share * 50:.0f}%",
    ]


def in_megabytes(count: float) -> str:
    return f"{count / 1e6:.1f}"


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row for JSON."""
    return {name: value.as_dict() if hasattr(value, "as_dict") else value for name, value in row.items()}


if __name__ == "__main__":
    main()
