"""Run folders of which a file is damaged, missing or of another run."""

from __future__ import annotations

from pathlib import Path

from bad_inputs import BadInput, cut, edited, holding, run, setting, without

_RESUME = "train --resume {tmp}/run"
_EVALUATE = "evaluate {tmp}/run {data} --out {tmp}/out"
_COMPARE = "compare {tmp}/run {run}"
_CALIBRATE = "calibrate {tmp}/run"


def _unfinished(folder: Path) -> None:
    (folder / "evaluation" / "metrics.json").unlink()


RUNS = (
    BadInput(
        "resume: settings that are no YAML",
        _RESUME,
        ("run.yaml", "not valid YAML"),
        run(_unfinished, holding("run.yaml", "a: [")),
    ),
    BadInput(
        "resume: an unknown setting",
        _RESUME,
        ("run.yaml", "unknown option colour"),
        run(_unfinished, holding("run.yaml", "colour: red\n")),
    ),
    BadInput(
        "resume: settings of nothing",
        _RESUME,
        ("data.train: no training data was given",),
        run(_unfinished, holding("run.yaml", "")),
    ),
    BadInput(
        "resume: data.json cut short",
        _RESUME,
        ("data.json", "cannot read a file of the run"),
        run(_unfinished, cut("data.json", 40)),
    ),
    BadInput(
        "resume: data.json a list",
        _RESUME,
        ("data.json",),
        run(_unfinished, holding("data.json", "[1]")),
    ),
    BadInput(
        "resume: data.json of another kind",
        _RESUME,
        ("data.json",),
        run(_unfinished, holding("data.json", '{"files": 3}')),
    ),
    BadInput(
        "resume: other data",
        _RESUME,
        ("the data has changed since the run began", "start a new run"),
        run(_unfinished, edited("data.json", lambda d: d["files"][0].update(sha256="0" * 64))),
        code=1,
    ),
    BadInput(
        "resume: another base",
        _RESUME,
        ("the base model has changed since the run began",),
        run(_unfinished, setting("environment.json", base_sha256="0" * 64)),
        code=1,
    ),
    BadInput(
        "resume: environment.json a list",
        _RESUME,
        ("environment.json",),
        run(_unfinished, holding("environment.json", "[]")),
    ),
    BadInput(
        "evaluate: settings that are a list",
        _EVALUATE,
        ("run.yaml", "mapping of sections"),
        run(holding("run.yaml", "- 1\n")),
    ),
    BadInput(
        "evaluate: settings out of range",
        _EVALUATE,
        ("run.yaml", "seed is -4"),
        run(holding("run.yaml", "seed: -4\n")),
    ),
    BadInput("compare: plan.json of nothing", _COMPARE, ("plan.json", "planned None"), run(holding("plan.json", "{}"))),
    BadInput(
        "compare: data.json of nothing",
        _COMPARE + " {data}",
        ("data.json", "files None"),
        run(holding("data.json", "{}")),
    ),
    BadInput(
        "evaluate: no model",
        _EVALUATE,
        ("no saved classifier here",),
        run(without("model/classifier.json"), without("model/adapter_config.json")),
    ),
    BadInput(
        "calibrate: data.json cut short",
        _CALIBRATE,
        ("data.json",),
        run(cut("data.json", 40)),
    ),
    BadInput(
        "calibrate: training data that changed",
        _CALIBRATE,
        ("the data has changed",),
        run(edited("data.json", lambda d: d["files"][0].update(sha256="0" * 64))),
        code=1,
    ),
    BadInput(
        "compare: metrics.json cut short",
        _COMPARE,
        ("metrics.json",),
        run(cut("evaluation/metrics.json", 40)),
    ),
    BadInput(
        "compare: metrics.json a list",
        _COMPARE,
        ("metrics.json",),
        run(holding("evaluation/metrics.json", "[]")),
    ),
    BadInput(
        "compare: no predictions",
        _COMPARE,
        ("predictions.parquet",),
        run(without("evaluation/predictions.parquet")),
    ),
    BadInput(
        "compare: predictions that are none",
        _COMPARE,
        ("predictions.parquet",),
        run(holding("evaluation/predictions.parquet", "hello")),
    ),
    BadInput(
        "compare: a run without scores",
        _COMPARE,
        ("{tmp}/run",),
        run(without("evaluation/metrics.json"), without("evaluation/predictions.parquet")),
    ),
    BadInput(
        "compare: other labels",
        "compare {tmp}/run {run} {data}",
        ("labels",),
        run(setting("model/classifier.json", labels=["a", "b", "c"])),
    ),
    BadInput(
        "inspect: a run with a damaged adapter",
        "inspect {tmp}/run",
        ("adapter_model.safetensors",),
        run(cut("model/adapter_model.safetensors", -8)),
    ),
    BadInput(
        "export: plan.json is not asked",
        "export {tmp}/run {tmp}/out --format merged",
        ("head.safetensors",),
        run(without("model/head.safetensors")),
    ),
)
