"""Two documents from one evaluation: a report to read (HTML) and a model card to publish (Markdown).

Both are made from one ``ReportInput``, a plain value that holds everything the documents say, and from nothing else:
no file is read, no clock is looked at, so the same input gives the same bytes. The report is a single file without
scripts, fonts or pictures from elsewhere: it can be mailed, archived and opened in ten years. An interactive dashboard
would show more and need a server to be alive.

Escaping is the default and not the template's duty. Labels and texts come from other people's data and may hold
markup, quotes or table separators; the HTML environment escapes every expression, and the Markdown environment does
the same with Markdown's own rules (jinja has none) through its ``finalize`` hook. What a template prints unescaped is
named as such: ``| safe`` on our own SVG, ``verbatim`` for front matter that the YAML writer has quoted.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qlassify.evaluation import wording
from qlassify.evaluation.baselines import Baseline
from qlassify.evaluation.figures import loss_figure, reliability_figure
from qlassify.evaluation.intervals import Interval
from qlassify.evaluation.metrics import MULTI_LABEL, Metrics
from qlassify.evaluation.slices import SliceScores

if TYPE_CHECKING:
    from jinja2 import Environment

# A confusion matrix of more classes is no longer read, it is admired.
MAX_MATRIX_CLASSES = 25
MAX_EXAMPLE_CHARACTERS = 320
MAX_NAME_CHARACTERS = 60
# A learning rate must come back as it was typed; four digits are enough for a score.
SETTING_DIGITS = 9


@dataclass(frozen=True, slots=True)
class ReportInput:
    """Everything that a report says. Mappings are shown as they are, in their order, nested ones folded."""

    title: str
    created: str
    """Date and time in words; the caller reads the clock."""
    run_name: str
    model: Mapping[str, object]
    """The model card takes ``base_model`` (an id on the hub), ``license`` and ``language`` from here, where given."""
    method: Mapping[str, object]
    training: Mapping[str, object]
    data: Mapping[str, object]
    """The model card takes the data set's ``name`` from here, where given."""
    plan: Mapping[str, object]
    environment: Mapping[str, object]
    metrics: Metrics
    evaluated_on: str
    """Which rows were scored, as a word before "rows": ``test``, ``validation``, a file name."""
    baselines: tuple[Baseline, ...]
    history: tuple[Mapping[str, float], ...]
    """Step events: step, epoch, loss, learning_rate, grad_norm."""
    evaluations: tuple[Mapping[str, float], ...]
    """Evaluations during training: step, epoch, loss, scores."""
    examples: tuple[Mapping[str, object], ...]
    """The most confident mistakes: row, text (and pair), true, predicted, probability."""
    notes: tuple[str, ...]
    """Lossy acts and warnings, one sentence each, with its number."""
    commands: tuple[str, ...]
    """What to run next."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """95 % intervals by the names of scores."""
    slices: tuple[SliceScores, ...] = ()
    """Scores by group of rows."""


def render_report(report: ReportInput) -> str:
    """The report as one self-contained HTML file."""
    figures = {
        "loss_figure": loss_figure(report.history, report.evaluations),
        "reliability_figure": reliability_figure(report.metrics.reliability),
    }
    text = _html_environment().get_template("report.html.j2").render(**_shared_context(report), **figures)
    return text.strip() + "\n"


def render_model_card(report: ReportInput) -> str:
    """The model card as Markdown with the YAML front matter of the Hugging Face hub.

    Nothing is claimed that was not given: no licence, no language, and no base model that is a path on this machine.
    """
    front_matter = _Verbatim(_front_matter(report))
    template = _markdown_environment().get_template("model_card.md.j2")
    repeat = {"model": report.model, "method": report.method, "training": report.training, "data": report.data}
    facts = _flatten({**repeat, "environment": report.environment})
    text = template.render(**_shared_context(report), front_matter=front_matter, facts=facts)
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _flatten(mapping: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Nested mappings as dotted keys, the spelling in which the command line overrides them."""
    flat: list[tuple[str, object]] = []
    for key, value in mapping.items():
        flat += _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return flat


def _shared_context(report: ReportInput) -> dict[str, Any]:
    """What both templates print: the report's own fields, and what ``wording`` says about them."""
    metrics = report.metrics
    key, main_score = wording.main_score(metrics)
    baseline_notes = tuple(note for one in report.baselines for note in one.notes)
    return {
        "report": report,
        "metrics": metrics,
        "multi_label": metrics.task == MULTI_LABEL,
        "main_key": key,
        "main_score": main_score,
        "headline": wording.headline(metrics, report.evaluated_on, report.baselines),
        "verdict": wording.verdict(metrics, report.baselines),
        "interval": wording.interval_words(metrics),
        "calibration": wording.calibration_words(metrics),
        "columns": wording.score_columns(metrics),
        "scores": wording.score_table(metrics, report.baselines, report.run_name),
        "classes": sorted(metrics.classes, key=lambda one: one.f1),
        "weak": wording.weak_classes(metrics),
        "absent": wording.absent_classes(metrics),
        "most_confused": wording.most_confused(metrics),
        "show_matrix": metrics.confusion is not None and len(metrics.classes) <= MAX_MATRIX_CLASSES,
        "notes": report.notes + baseline_notes,
        "evaluation_columns": tuple(dict.fromkeys(key for event in report.evaluations for key in event)),
        "meanings": wording.MEANINGS,
    }


def _html_environment() -> Environment:
    # Not select_autoescape: it looks at the last suffix, which is .j2 here, and would escape nothing.
    return _environment(autoescape=True)


def _markdown_environment() -> Environment:
    return _environment(autoescape=False, finalize=markdown_text)


def _environment(**options: Any) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.filters.update(
        percent=wording.percent,
        number=wording.number,
        score=_score,
        score_name=wording.score_name,
        setting=lambda value: wording.number(value, SETTING_DIGITS),
        label=lambda name: wording.shorten(str(name), MAX_NAME_CHARACTERS),
        excerpt=lambda text: wording.shorten(str(text), MAX_EXAMPLE_CHARACTERS),
        keep_units=lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%"),
    )
    environment.tests["nested"] = lambda value: isinstance(value, Mapping) and len(value) > 0
    return environment


def _score(value: float | None) -> str:
    """A score in a table: three decimals, or a dash."""
    return "-" if value is None else f"{value:.3f}"


class _Verbatim(str):
    """Text that the Markdown environment must print as it is."""


def markdown_text(value: object) -> object:
    """Escape a value for a line, a table cell or a list item of Markdown.

    Markup is turned into entities (renderers pass HTML through), Markdown's own signs get a backslash, list markers
    only where they would open a list, and line breaks become spaces, because a table row ends at one.
    """
    if isinstance(value, _Verbatim) or not isinstance(value, str):
        return value
    one_line = html.escape(" ".join(value.split()), quote=False)
    escaped = re.sub(r"([\\`*_\[\]|~#])", r"\\\1", one_line)
    return re.sub(r"^(\d*)([-+.)])(?= )", r"\1\\\2", escaped)


def _front_matter(report: ReportInput) -> str:
    import yaml

    card: dict[str, object] = {}
    for key in ("license", "language"):
        if report.model.get(key):
            card[key] = report.model[key]
    base_model = report.model.get("base_model")
    if isinstance(base_model, str) and re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", base_model):
        card["base_model"] = base_model
    card["pipeline_tag"] = "text-classification"
    method = report.method.get("name")
    card["tags"] = ["text-classification", "qlassify", *([str(method)] if method else [])]
    card["model-index"] = [{"name": report.run_name, "results": [_hub_result(report)]}]
    return str(yaml.safe_dump(card, sort_keys=False, allow_unicode=True)).rstrip()


# The hub's own names of metrics; others would not be shown beside the models they compare with.
_HUB_METRICS = (
    ("accuracy", "accuracy", "Accuracy"),
    ("subset_accuracy", "accuracy", "Accuracy (all labels right)"),
    ("macro_f1", "f1", "Macro-F1"),
    ("micro_f1", "f1", "Micro-F1"),
    ("weighted_f1", "f1", "Weighted F1"),
    ("mcc", "matthews_correlation", "Matthews correlation"),
)


def _hub_result(report: ReportInput) -> dict[str, object]:
    values = report.metrics.values
    data_name = str(report.data.get("name") or report.evaluated_on or "custom")
    data_type = re.sub(r"[^\w./-]+", "-", data_name).strip("-").lower() or "custom"
    return {
        "task": {"type": "text-classification", "name": "Text classification"},
        "dataset": {"name": data_name, "type": data_type, "split": report.evaluated_on},
        "metrics": [
            {"type": hub_type, "name": name, "value": round(value, 6)}
            for key, hub_type, name in _HUB_METRICS
            if (value := values.get(key)) is not None
        ],
    }
