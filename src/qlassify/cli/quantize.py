"""``qlassify quantize``: a base model in few bits, once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qlassify.cli import options
from qlassify.cli.options import MODEL
from qlassify.cli.printing import say, say_json


def quantize(
    base: Annotated[str, typer.Argument(help="Base model: a directory, a packaged model or a Hugging Face id.")],
    directory: Annotated[Path, typer.Argument(help="New directory for the quantised model.")],
    kind: Annotated[str | None, typer.Option(help="nf4, fp4, int4 or int8.", rich_help_panel=MODEL)] = None,
    group_size: Annotated[int | None, typer.Option(help="Weights that share a scale.", rich_help_panel=MODEL)] = None,
    double: Annotated[
        bool | None, typer.Option("--double/--no-double", help="Scales in 8 bits, too.", rich_help_panel=MODEL)
    ] = None,
    zero_point: Annotated[
        bool | None,
        typer.Option("--zero-point/--no-zero-point", help="An offset per group (int4, int8).", rich_help_panel=MODEL),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Write BASE with its linear layers in few bits to DIRECTORY, which is a base model for train --base."""
    from qlassify.config.quant import QuantConfig

    config = QuantConfig.parse(options.given(kind=kind, group_size=group_size, double=double, zero_point=zero_point))

    from qlassify.planning.plan import human_bytes, human_count
    from qlassify.quantization import quantize_model

    result = quantize_model(base, directory, config)
    if json:
        say_json(result.as_dict())
        return
    if not quiet:
        say(f"format    {result.format}")
        say(f"low-bit   {human_count(result.num_low_bit)} weights of {result.layers} linear layers")
        say(f"as it was {human_count(result.num_other)} numbers: embeddings, norms, biases")
        say(f"error     {100 * result.relative_error:.2f} % of the weights' size (root mean square)")
        ratio = result.source_bytes / result.bytes
        say(f"size      {human_bytes(result.source_bytes)} -> {human_bytes(result.bytes)} ({ratio:.2f} times smaller)")
        say("\nnext:")
        say(f"  qlassify train DATA --base {directory}")
    else:
        say(directory)
