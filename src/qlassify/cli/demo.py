"""``qlassify demo``: the whole road on a corpus that comes with the package, without a download."""

from __future__ import annotations

from typing import Annotated

import typer

from qlassify.cli import options
from qlassify.cli.train import follow


def demo(
    epochs: Annotated[int | None, typer.Option(help="Passes over the rows.")] = None,
    seed: Annotated[int, typer.Option(help="The one seed.")] = 42,
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    debug: options.Debug = False,
) -> None:
    """Train on the packaged corpus: shell commands and what is wrong with them, in five classes."""
    import time
    from importlib import resources
    from pathlib import Path

    from qlassify import job, runs
    from qlassify.training.loop import StopRequest

    corpus = Path(str(resources.files("qlassify") / "demo_corpus"))
    settings = {
        "data": {"train": str(corpus / "train.jsonl"), "test": str(corpus / "test.jsonl")},
        "training": options.given(epochs=epochs),
        "seed": seed,
    }
    stop = StopRequest()
    folder = out or runs.default_run_path("demo", time.time())
    follow(job.train(settings, folder, stop=stop), stop, as_json=json, quiet=quiet)
