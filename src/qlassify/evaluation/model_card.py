"""The model card: Markdown with the YAML front matter of the Hugging Face hub.

Nothing is claimed that was not given: no licence, no language, and no base model that is a path on this machine.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from qlassify.evaluation.report import shared_context
from qlassify.evaluation.report_input import ReportInput
from qlassify.evaluation.templating import Verbatim, markdown_environment

LOAD_EXAMPLE = """\
```python
from qlassify import ClassifyPipeline

classifier = ClassifyPipeline.load("MODEL_FOLDER")
answers = classifier.predict(["some text"])
probabilities = classifier.predict_proba(["some text"])  # (texts, labels), in the order below
```"""
MAX_CARD_SLICES = 5
"""Slices that a card names, those furthest below all rows."""


def render_model_card(report: ReportInput) -> str:
    """The model card as Markdown."""
    front_matter = Verbatim(_front_matter(report))
    template = markdown_environment().get_template("model_card.md.j2")
    repeat = {"model": report.model, "method": report.method, "training": report.training, "data": report.data}
    facts = _flatten({**repeat, "environment": report.environment})
    worse = sorted((one for one in report.slices if one.gap < 0), key=lambda one: one.gap)[:MAX_CARD_SLICES]
    text = template.render(
        **shared_context(report),
        front_matter=front_matter,
        facts=facts,
        worst_slices=worse,
        load_example=Verbatim(LOAD_EXAMPLE),
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def _flatten(mapping: Mapping[str, object], prefix: str = "") -> list[tuple[str, object]]:
    """Nested mappings as dotted keys, the spelling in which the command line overrides them."""
    flat: list[tuple[str, object]] = []
    for key, value in mapping.items():
        flat += _flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return flat


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
    method = report.method.get("kind")
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
