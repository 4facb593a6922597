"""What does one training step through one QLoRA linear layer cost, against bitsandbytes under PEFT?

    python benchmarks/qlora_linear.py [--quick] [--json] [--threads N] [--clock cpu] [--heap kept]

A step is forward, and backward with a given random gradient, to x, A and B; the weight is frozen in NF4 in groups of
64, with and without double quantisation. Rank 16, no bias, no dropout. Forward and backward are not timed apart, for
both sides form the weight's numbers in each, and a training step has both. Gradients are dropped between steps,
outside the timed part.

Ours is ``QLoraLinear``. The peer is ``bitsandbytes.nn.Linear4bit`` wrapped by PEFT, called without PEFT's model around
it. In bf16 the peer has two ways, and both are timed: called with bf16 as it is, PEFT computes the low-rank path in
fp32, the type of A and B; under autocast it computes it in bf16, as ours does. The ratio is to the faster of the two.

Both layers hold the very same codes and scales, A and B. Outputs and gradients of both are compared with a float64
computation on the same numbers before anything is timed, and that the peer really goes through its 4-bit product is
read off its graph. One figure is the peer's own: its backward forms the weight in the type that it was quantised from,
so the weight is quantised from the type of the product, which is the best case for it.

The peer forms the weight in fresh memory. For large weights its times depend on whether the heap has such memory at
hand (see ``compare``), twofold and more at few tokens; ``--heap kept`` shows its best case.

The last column of times is the floor: nothing but the two products with the frozen weight, whose numbers lie ready in
the type of the product. What a contender takes beyond it goes into forming the weight, the low-rank path and Python.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import peft
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
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
from peft.tuners.lora.bnb import Linear4bit as PeftLinear4bit
from torch import Tensor, nn

from qlassify.config.quant import QuantConfig
from qlassify.methods.qlora import QLoraLinear
from qlassify.quant.double import DoubleScales
from qlassify.quant.tensor import QuantizedTensor

SHAPES = ((384, 1536), (896, 4864), (1024, 4096), (4096, 4096))
TOKENS = (16, 256, 1024)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TOLERANCE = {"fp32": 1e-5, "bf16": 1e-2}
"""Largest relative error (norm over norm) of an output or a gradient."""
RANK, ALPHA = 16, 32
AUTOCAST = f"{PEER}, autocast"
FLOOR = "products"


def main() -> None:
    arguments = parser(__doc__).parse_args()
    prepare(arguments)
    shapes, doubles, rounds = (SHAPES[:3], (True,), 3) if arguments.quick else (SHAPES, (False, True), 7)
    rows: list[dict[str, Any]] = []
    for shape in shapes:
        for name in DTYPES:
            for double in doubles:
                pair = make_pair(shape, name, double)
                rows.extend(time_step(pair, tokens, arguments.clock, rounds) for tokens in TOKENS)
    report(arguments, rows)


# Two layers that compute the same


@dataclass(frozen=True, slots=True)
class Pair:
    """The peer's layer and ours, on the same weight, A and B."""

    shape: tuple[int, int]
    type_name: str
    double: bool
    theirs: PeftLinear4bit
    ours: QLoraLinear

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.type_name]


class OneLayer(nn.Module):
    """A model for PEFT to wrap; ``is_loaded_in_4bit`` is how transformers tells it what is inside."""

    is_loaded_in_4bit = True

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear


def make_pair(shape: tuple[int, int], type_name: str, double: bool) -> Pair:
    generator = torch.Generator().manual_seed(0)
    weight = torch.empty(shape).normal_(0, 0.02, generator=generator).to(DTYPES[type_name])
    theirs = peer_layer(weight, double)
    ours = QLoraLinear.from_weight(weight, RANK, ALPHA, quant=QuantConfig(double=double))
    require(torch.equal(theirs.base_layer.weight.view(-1), ours.base.weight.codes), "the codes differ")
    ours.base.set_weight(same_weight(theirs.base_layer.weight.quant_state, ours.base.weight))
    with torch.no_grad():
        for name in ("lora_A", "lora_B"):
            mine = getattr(ours, name)
            mine.uniform_(-0.02, 0.02, generator=generator)
            getattr(theirs, name)["default"].weight.copy_(mine)
    return Pair(shape, type_name, double, theirs, ours)


def peer_layer(weight: Tensor, double: bool) -> PeftLinear4bit:
    """The weight in bitsandbytes' layer, wrapped by PEFT."""
    rows, columns = weight.shape
    base = Linear4bit(columns, rows, bias=False, compress_statistics=double, quant_type="nf4", device="meta")
    base.weight = Params4bit(weight, requires_grad=False, compress_statistics=double, quant_type="nf4", module=base)
    base.to("cpu")  # quantises
    config = peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, bias="none", target_modules=["linear"])
    layer = peft.get_peft_model(OneLayer(base), config).base_model.model.linear
    require(isinstance(layer, PeftLinear4bit), f"PEFT wrapped the layer as {type(layer).__name__}")
    require(layer.training and layer.lora_A["default"].weight.dtype == torch.float32, "the peer does not train in fp32")
    graph = layer.base_layer(torch.ones(2, columns, dtype=weight.dtype, requires_grad=True)).grad_fn
    require("MatMul4Bit" in type(graph).__name__, f"the peer's product is {type(graph).__name__}")
    return layer


def same_weight(state: Any, ours: QuantizedTensor) -> QuantizedTensor:
    """Our weight with the peer's scales: its 8-bit ones are not always the nearest, and differing ones cost time."""
    scales: Tensor | DoubleScales = state.absmax
    if ours.config.double:
        scales = DoubleScales(state.absmax, state.state2.absmax, state.offset)
    return QuantizedTensor(ours.config, ours.shape, ours.codes, scales, None)


def require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise SystemExit(f"this would not compare like with like: {otherwise}")


# Equality


def contenders(pair: Pair, x: Tensor, grad: Tensor) -> dict[str, Callable[[], Tensor]]:
    """Name -> one step, giving y."""

    def step(layer: nn.Module) -> Tensor:
        y: Tensor = layer(x)
        y.backward(grad)
        return y

    def autocast_step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            y: Tensor = pair.theirs(x)
        y.backward(grad)
        return y

    made: dict[str, Callable[[], Tensor]] = {PEER: lambda: step(pair.theirs), OURS: lambda: step(pair.ours)}
    return made | ({AUTOCAST: autocast_step} if pair.type_name == "bf16" else {})


def results(pair: Pair, name: str, y: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Output and gradients after a step."""
    if name == OURS:
        a, b = pair.ours.lora_A, pair.ours.lora_B
    else:
        a, b = (getattr(pair.theirs, part)["default"].weight for part in ("lora_A", "lora_B"))
    found = {"y": y, "x.grad": x.grad, "A.grad": a.grad, "B.grad": b.grad}
    require(all(tensor is not None for tensor in found.values()), f"{name} leaves out a gradient")
    return {what: tensor.detach().double() for what, tensor in found.items() if tensor is not None}


def wanted(pair: Pair, x: Tensor, grad: Tensor) -> dict[str, Tensor]:
    """The same in float64."""
    weight = pair.ours.dequantize_weight().double()
    a, b = (part.detach().double().requires_grad_() for part in (pair.ours.lora_A, pair.ours.lora_B))
    exact = x.detach().double().requires_grad_()
    y = exact @ weight.T + ALPHA / RANK * (exact @ a.T) @ b.T
    y.backward(grad.double())
    return {
        what: tensor
        for what, tensor in {"y": y.detach(), "x.grad": exact.grad, "A.grad": a.grad, "B.grad": b.grad}.items()
        if tensor is not None
    }


def largest_errors(pair: Pair, x: Tensor, grad: Tensor) -> dict[str, float]:
    """Largest relative error of each contender's results."""
    exact = wanted(pair, x, grad)
    errors: dict[str, float] = {}
    for name, step in contenders(pair, x, grad).items():
        drop_gradients(pair, x)
        found = results(pair, name, step(), x)
        off = {what: float((found[what] - exact[what]).norm() / exact[what].norm()) for what in exact}
        worst = max(off, key=lambda what: off[what])
        errors[name] = off[worst]
        require(off[worst] < TOLERANCE[pair.type_name], f"{name}'s {worst} is off by {off[worst]:.1e}")
    return errors


def drop_gradients(pair: Pair, x: Tensor) -> None:
    x.grad = None
    for layer in (pair.theirs, pair.ours):
        for parameter in layer.parameters():
            parameter.grad = None


# Timing


def time_step(pair: Pair, tokens: int, clock: str, rounds: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    x, grad = (torch.empty(tokens, width).normal_(generator=generator).to(pair.dtype) for width in reversed(pair.shape))
    x.requires_grad_()
    errors = largest_errors(pair, x, grad)
    dense = pair.ours.dequantize_weight().to(pair.dtype)
    rows = x.detach()
    timed: dict[str, Callable[[], object]] = {
        **contenders(pair, x, grad),
        FLOOR: lambda: (nn.functional.linear(rows, dense), grad @ dense),
    }
    seconds = in_turn(timed, clock=clock, rounds=rounds, before=functools.partial(drop_gradients, pair, x))
    peer = min((PEER, AUTOCAST), key=lambda name: spread(seconds[name]).median if name in seconds else float("inf"))
    return {
        "weight": list(pair.shape),
        "type": pair.type_name,
        "double": pair.double,
        "tokens": tokens,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "errors": errors,
        "peer": peer,
        "ratio": times_faster(seconds, peer, OURS),
    }


# Report


def report(arguments: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    found = machine(arguments, "peft")
    if arguments.json:
        print_json({"machine": found, "rows": [as_plain(row) for row in rows]})
        return
    print_machine(found)
    print_table(
        "One QLoRA linear, forward and backward (ratio: times as fast as the faster peer; target: 1, in fp32 above 1)",
        ("weight", "type", "double", "tokens", PEER, AUTOCAST, OURS, "ratio", "target", FLOOR, "error", "peer's"),
        [cells(row) for row in rows],
    )


def cells(row: dict[str, Any]) -> list[str]:
    seconds, errors = row["seconds"], row["errors"]
    return [
        "x".join(map(str, row["weight"])),
        row["type"],
        "yes" if row["double"] else "no",
        str(row["tokens"]),
        in_words(seconds[PEER]),
        in_words(seconds[AUTOCAST]) if AUTOCAST in seconds else "-",
        in_words(seconds[OURS]),
        ratio_in_words(row["ratio"]),
        verdict(row["ratio"].median > 1),
        in_words(seconds[FLOOR]),
        f"{errors[OURS]:.0e}",
        f"{errors[row['peer']]:.0e}",
    ]


def as_plain(row: dict[str, Any]) -> dict[str, Any]:
    """A row for JSON."""
    seconds = {name: value.as_dict() for name, value in row["seconds"].items()}
    return {**row, "seconds": seconds, "ratio": row["ratio"].as_dict()}


if __name__ == "__main__":
    main()
