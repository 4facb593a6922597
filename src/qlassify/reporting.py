"""From a run folder and an assessment to the report and the model card.

Everything that the two documents say is put together here, as one ``ReportInput``: scores from the assessment, the plan
and the contracts from ``plan.json``, the audit from ``data.json``, the curves from ``metrics.jsonl``. Nothing is
computed that stands in one of these files, so a number in the report is the number in the file.

A fact is told once. What the audit warns of stands among the notes of ``metrics.json`` too, for programs that read
nothing else; in the report it stands where the data is told of, and the contracts stand with the plan.
"""

from __future__ import annotations

import functools
import shlex
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qlassify import runs
from qlassify.assessment import Assessment, forget_scores, write_scores
from qlassify.config.files import read_settings
from qlassify.data.telling import untold
from qlassify.durable import write_text
from qlassify.evaluation.decision import Answer
from qlassify.evaluation.model_card import render_model_card
from qlassify.evaluation.report import render_report
from qlassify.evaluation.report_input import PartLengths, ReportInput
from qlassify.pipeline import ClassifyPipeline
from qlassify.runs import RunFolder
from qlassify.unwritten import Unwritten

MAX_MISTAKES = 25
"""Mistakes that the report shows, the most confident first."""
CURVES = ("step", "epoch", "loss", "learning_rate", "grad_norm", "rows", "tokens", "seconds")
"""What the report wants of a step event."""
REPORT = "report.html"
MODEL_CARD = "MODEL_CARD.md"


def write_assessment(
    folder: RunFolder,
    pipeline: ClassifyPipeline,
    assessment: Assessment,
    *,
    environment: Mapping[str, Any],
    unwritten: Unwritten,
    directory: Path | None = None,
) -> None:
    """Write report.html, MODEL_CARD.md, predictions.parquet and, last and only if nothing is missing, metrics.json.

    Args:
        folder: the run.
        pipeline: its classifier.
        assessment: the scores.
        environment: versions and hardware of this process.
        unwritten: is told what could not be written, and may know already of something.
        directory: where to write; the run's ``evaluation`` folder when None.
    """
    directory = directory or folder.evaluation
    forget_scores(directory, unwritten)

    @functools.cache
    def report() -> ReportInput:
        return report_input(folder, pipeline, assessment, environment)

    unwritten.attempt(REPORT, lambda: write_text(directory / REPORT, render_report(report())))
    unwritten.attempt(MODEL_CARD, lambda: write_text(directory / MODEL_CARD, render_model_card(report())))
    write_scores(directory, assessment, unwritten)


def report_input(
    folder: RunFolder, pipeline: ClassifyPipeline, assessment: Assessment, environment: Mapping[str, Any]
) -> ReportInput:
    """Everything that the report of a run on some rows says.

    Args:
        folder: the run.
        pipeline: its classifier.
        assessment: the scores.
        environment: versions and hardware of this process.
    """
    # Not the pipeline's: one that was loaded from a model folder knows nothing of how it was trained.
    run = read_settings(folder.config)
    data, plan = (runs.read_json(folder.file(name)) for name in ("data.json", "plan.json"))
    for name, kind in (("files", list), ("label_counts", dict)):
        runs.read_entry(folder.file("data.json"), name, kind)
    audit = data.get("audit") or {}
    contracts = plan.get("contracts") or {}
    trained = _trained_environment(folder, environment)
    history, evaluations = _curves(folder)
    return ReportInput(
        title=f"{folder.path.name}: {len(assessment.labels)} labels, {Path(run['data']['train']).name}",
        created=time.strftime("%Y-%m-%d %H:%M"),
        run_name=folder.path.name,
        model={
            "base_model": pipeline.source.name,
            **{key: value for key, value in run["model"].items() if key != "base"},
            "summary": pipeline.summary(),
        },
        method=run["method"],
        training={**run["training"], "seed": run["seed"]},
        data=_files(data),
        plan={key: plan.get(key) for key in ("verdict", "planned", "measured")},
        environment={key: value for key, value in trained.items() if key not in ("base_model", "base_sha256")},
        metrics=assessment.metrics,
        evaluated_on=assessment.part,
        baselines=assessment.baselines,
        history=history,
        evaluations=evaluations,
        examples=mistakes(assessment),
        notes=_told_nowhere_else(assessment.notes, audit, contracts),
        commands=next_commands(folder, data),
        intervals=assessment.intervals,
        slices=assessment.slices,
        rule=assessment.rule,
        decisions=assessment.decisions,
        label_noise=audit.get("label_noise") or {},
        findings=tuple(finding for finding in audit.get("findings") or () if finding["check"] != "label noise"),
        lengths=_lengths(data),
        unread=((data.get("long_texts") or {}).get("train") or {}).get("unread") or {},
        label_counts=data["label_counts"],
        contracts=contracts,
        accepted_contracts=tuple(run.get("accepted_contracts") or ()),
        hashes=_hashes(data, trained, pipeline, assessment),
        scoring_environment=_differences(environment, trained),
        repeat_command=f"qlassify train --config {shlex.quote(str(folder.config))}",
    )


def _trained_environment(folder: RunFolder, environment: Mapping[str, Any]) -> Mapping[str, Any]:
    """Versions and hardware as the run recorded them; those of this process where it did not."""
    path = folder.file("environment.json")
    return runs.read_json(path) if path.is_file() else environment


def _differences(environment: Mapping[str, Any], trained: Mapping[str, Any]) -> dict[str, object]:
    """What is not as it was when the classifier was trained, packages one by one."""
    found: dict[str, object] = {}
    for key, value in environment.items():
        if isinstance(value, Mapping):
            known = trained.get(key) or {}
            found |= {name: version for name, version in value.items() if known.get(name) != version}
        elif trained.get(key) != value:
            found[key] = value
    return found


def _curves(folder: RunFolder) -> tuple[tuple[Mapping[str, float], ...], tuple[Mapping[str, float], ...]]:
    """Step events and evaluations of the log."""
    events = list(runs.read_events(folder.metrics))
    steps = ({key: event[key] for key in CURVES if key in event} for event in events if event["event"] == "step")
    scored = (
        {"step": event["step"], "epoch": event["epoch"], **_main_scores(event["scores"])}
        for event in events
        if event["event"] == "evaluation"
    )
    return tuple(steps), tuple(scored)


def _told_nowhere_else(
    notes: tuple[str, ...], audit: Mapping[str, Any], contracts: Mapping[str, Any]
) -> tuple[str, ...]:
    """The notes without what the audit and the contracts say: that has its own place in the report."""
    findings = [finding["what"] for finding in audit.get("findings") or ()]
    broken = tuple(f"{item['contract_id']}: {item['message']}" for item in contracts.get("items") or ())
    return untold([note for note in notes if note not in findings and not note.startswith(broken)], findings)


def _files(data: Mapping[str, Any]) -> dict[str, object]:
    """The files of a run and what became of their rows."""
    shown: dict[str, object] = {"name": Path(data["files"][0]["path"]).name, "task": data["task"].replace("_", "-")}
    for part, rows in data["rows"].items():
        shown[f"{part} rows"] = f"{rows:,}"
    for file in data["files"]:
        columns = [name for name in (file["columns"]["text"], file["columns"]["text_pair"]) if name]
        shown[f"{file['part']} file"] = {
            "file": Path(file["path"]).name,
            "columns": f"{' + '.join(columns)} -> {file['columns']['label']}",
            "rows": f"{file['rows']:,}",
            "kept": f"{file['kept']:,}",
            "rejected": f"{sum(file['rejected'].values()):,}",
            "repaired": f"{file['num_repaired']:,}",
        }
    return shown


def _lengths(data: Mapping[str, Any]) -> tuple[PartLengths, ...]:
    """Token lengths of each part, from the audit where there was one; else of the training rows alone."""
    audited = {one["part"]: one for one in (data.get("audit") or {}).get("token_lengths") or ()}
    reading, counted = data.get("long_texts") or {}, data["train_tokens"]

    def part(name: str, rows: int) -> PartLengths:
        found = audited.get(name)
        ranks = found["percentiles"] if found else counted if name == "train" else {}
        longest = found["longest"] if found else ranks.get("max")
        long = reading.get(name) or {}
        return PartLengths(
            name,
            rows,
            ranks.get("p50"),
            ranks.get("p90"),
            ranks.get("p99"),
            longest,
            long.get("longer"),
            data["truncated"][name],
            data["lost_tokens"][name],
            long.get("tokens"),
        )

    return tuple(part(name, rows) for name, rows in data["rows"].items())


def _hashes(
    data: Mapping[str, Any], trained: Mapping[str, Any], pipeline: ClassifyPipeline, assessment: Assessment
) -> dict[str, str]:
    """SHA-256 of the base model's weights, of the run's files and of the file that was scored."""
    base = trained.get("base_sha256") or pipeline.source.sha256()
    found = {f"base model, {pipeline.source.name}": str(base)}
    for file in data["files"]:
        found[f"{file['part']} file, {Path(file['path']).name}"] = file["sha256"]
    scored = assessment.rows.corpus
    if scored.sha256 not in found.values():
        found[f"scored file, {Path(scored.path).name}"] = scored.sha256
    return found


def mistakes(assessment: Assessment) -> tuple[Mapping[str, object], ...]:
    """The rows that are wrong, the most confident first (single-label), or with the most wrong labels."""
    labels, corpus, scores = assessment.labels, assessment.rows.corpus, assessment.probabilities
    rule = assessment.rule.replace(abstain_below=None)
    predicted = rule.answers(scores, labels)
    if labels.multi_label:
        wrong = (rule.flags(scores) != (assessment.rows.targets > 0.5)).sum(axis=1)
        certainty = wrong + np.abs(scores - 0.5).mean(axis=1)
    else:
        answers = rule.classes(scores)
        wrong = answers != assessment.rows.targets
        certainty = scores[np.arange(len(scores)), answers]
    indices = np.flatnonzero(wrong)
    indices = indices[np.argsort(-certainty[indices], kind="stable")][:MAX_MISTAKES]
    return tuple(
        {
            "row": corpus.rows[index],
            "text": corpus.texts[index] if corpus.pairs is None else f"{corpus.texts[index]} | {corpus.pairs[index]}",
            "true": ", ".join(corpus.labels[index]),
            "predicted": _joined(predicted[index]),
            "probability": float(scores[index].max()),
        }
        for index in indices.tolist()
    )


def _joined(label: Answer) -> str:
    return label if isinstance(label, str) else ", ".join(label or ())


def _main_scores(scores: Mapping[str, float | None]) -> dict[str, float]:
    wanted = ("loss", "accuracy", "macro_f1", "micro_f1", "mcc")
    return {key: value for key in wanted if (value := scores.get(key)) is not None}


def next_commands(folder: RunFolder, data: Mapping[str, Any]) -> tuple[str, ...]:
    """The three commands that a person would type next."""
    pair = any(file["columns"]["text_pair"] for file in data["files"])
    example = "--text 'some text'" + (" --text-pair 'another'" if pair else "")
    return (
        f"qlassify predict {folder.path} {example}",
        f"qlassify predict {folder.path} FILE > predictions.jsonl",
        f"qlassify evaluate {folder.path} FILE",
    )
