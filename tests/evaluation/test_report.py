"""The two documents: complete, escaped, self-contained, and whole when parts are missing."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import yaml

from qlassify.evaluation.baselines import Baseline
from qlassify.evaluation.metrics import Metrics, evaluate_predictions
from qlassify.evaluation.model_card import render_model_card
from qlassify.evaluation.report import render_report
from qlassify.evaluation.report_input import ReportInput
from qlassify.evaluation.templating import markdown_text
from report_page import ReportPage

HOSTILE = '<script>alert("x")</script> | `pipe` & \N{HEBREW LETTER SHIN}\N{HEBREW LETTER LAMED} \U0001f642'


def single(num_classes: int, num_rows: int = 120, first_name: str = "name 0", spread: float = 1.0) -> Metrics:
    rng = np.random.default_rng(num_classes)
    targets = rng.integers(0, num_classes, num_rows)
    logits = spread * rng.normal(size=(num_rows, num_classes))
    logits[np.arange(num_rows), targets] += 2.0
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    names = [first_name, *(f"name {k}" for k in range(1, num_classes))]
    return evaluate_predictions(targets, probabilities, names, multi_label=False)


def multi(first_name: str = "name 0") -> Metrics:
    rng = np.random.default_rng(0)
    targets = (rng.random((60, 4)) < 0.3).astype(float)
    targets[:, 3] = 0.0
    probabilities = np.clip(targets * 0.5 + rng.random((60, 4)) * 0.5, 0, 1)
    return evaluate_predictions(targets, probabilities, [first_name, "b", "c", "never"], multi_label=True)


def minimal(metrics: Metrics) -> ReportInput:
    nothing: dict[str, object] = {}
    return ReportInput(
        title="Title",
        created="today",
        run_name="run",
        model=nothing,
        method=nothing,
        training=nothing,
        data=nothing,
        plan=nothing,
        environment=nothing,
        metrics=metrics,
        evaluated_on="test",
        baselines=(),
        history=(),
        evaluations=(),
        examples=(),
        notes=(),
        commands=(),
    )


def full(metrics: Metrics, text: str = "a text") -> ReportInput:
    return dataclasses.replace(
        minimal(metrics),
        title=f"Title {text}",
        run_name=f"run {text}",
        created="2 March",
        model={"base_model": "owner/model", "note": text},
        method={"kind": "lora", "rank": 16},
        training={"learning_rate": 0.000314159, "seed": 42},
        data={"name": "corpus", "label_counts": {f"{text} {k}": k for k in range(12)}, "tokens": {"p50": 12}},
        plan={"seconds": 61.5},
        environment={"torch": "2.13"},
        baselines=(Baseline(name=f"always {text}", metrics=metrics, seconds=0.5, notes=("A baseline note.",)),),
        history=tuple({"step": s, "epoch": 0.1, "loss": 1.0 / s, "learning_rate": 1e-3} for s in range(1, 60)),
        evaluations=({"step": 30, "loss": 0.5, "accuracy": 0.75}, {"step": 59, "loss": 0.4, "macro_f1": 0.625}),
        examples=({"row": 17, "text": text, "pair": text, "true": text, "predicted": "b", "probability": 0.987},),
        notes=(f"3 texts were cut. {text}",),
        commands=(f"qlassify predict runs/x - {text}",),
    )


SHAPES = {
    "two classes": single(2),
    "six classes": single(6),
    "many classes": single(60, num_rows=400),
    "all right": single(3, spread=0.01),
    "multi-label": multi(),
}
void_tags = {"meta", "br", "wbr", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags balance while it collects elements and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in void_tags:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


@pytest.mark.parametrize("build", [minimal, full])
@pytest.mark.parametrize("shape", SHAPES)
class TestEveryShape:
    def test_report_is_balanced_and_self_contained(self, build: Any, shape: str) -> None:
        text = render_report(build(SHAPES[shape]))
        page = Page(text)
        assert text.startswith("<!DOCTYPE html>")
        assert "http" not in text
        assert "@import" not in text
        assert not {"script", "link", "img", "iframe"} & set(page.tags)
        references = [value for _, name, value in page.attributes if name in ("src", "href", "xlink:href")]
        assert all(value.startswith("#") for value in references)
        assert "None" not in page.text
        assert "nan" not in page.text

    def test_model_card_has_valid_front_matter_and_tables(self, build: Any, shape: str) -> None:
        metrics = SHAPES[shape]
        card = render_model_card(build(metrics))
        _, front, body = card.split("---\n", 2)
        matter = yaml.safe_load(front)
        assert matter["pipeline_tag"] == "text-classification"
        (result,) = matter["model-index"][0]["results"]
        values = {one["name"]: one["value"] for one in result["metrics"]}
        assert values["Macro-F1"] == pytest.approx(metrics.values["macro_f1"], abs=1e-6)
        assert {"name", "type"} <= set(result["dataset"])
        assert "license" not in matter
        for table in re.findall(r"(?:^\|.*\n)+", body, flags=re.MULTILINE):
            cells = {len(re.findall(r"(?<!\\)\|", row)) for row in table.splitlines()}
            assert len(cells) == 1, table
        for heading in ("Summary", "Confidence and calibration", "Intended use", "Limitations"):
            assert f"\n## {heading}\n" in body

    def test_same_input_same_bytes(self, build: Any, shape: str) -> None:
        report = build(SHAPES[shape])
        assert render_report(report) == render_report(report)
        assert render_model_card(report) == render_model_card(report)


@pytest.mark.parametrize("metrics", [single(3, first_name=HOSTILE), multi(HOSTILE)], ids=["single", "multi"])
class TestEscaping:
    def test_html(self, metrics: Metrics) -> None:
        text = render_report(full(metrics, HOSTILE))
        assert "<script" not in text
        page = Page(text)
        # Whole and readable in the title, names, counts, mistake, pair, note and command.
        assert page.text.count(HOSTILE) >= 8

    def test_markdown(self, metrics: Metrics) -> None:
        card = render_model_card(full(metrics, HOSTILE))
        front, body = card.split("---\n", 2)[1:]
        assert "<script" not in body
        assert "&lt;script&gt;" in body
        assert yaml.safe_load(front)["model-index"][0]["name"] == f"run {HOSTILE}"


def test_report_shows_what_it_was_given() -> None:
    metrics = SHAPES["six classes"]
    page = Page(render_report(full(metrics, "given text")))
    shown = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for expected in (
        f"{100 * (metrics.values['accuracy'] or 0):.1f} % of 120 test rows right (95 % Wilson interval",
        "always given text",
        "given text",
        "with 98.7 %",
        "row 17",
        "3 texts were cut. given text",
        "A baseline note.",
        "0.000314159",
        "12 entries",
        "qlassify predict runs/x - given text",
        "0.625",
    ):
        assert expected in shown
    assert page.tags.count("svg") == 3


def test_absent_parts_leave_no_headings() -> None:
    shown = Page(render_report(minimal(SHAPES["two classes"]))).text
    headings = set(ReportPage(render_report(full(SHAPES["two classes"]))).sections)
    assert headings >= {"How training went", "Most confident mistakes", "What to know about these numbers", "Next"}
    assert set(ReportPage(render_report(minimal(SHAPES["two classes"]))).sections) == {
        "",
        "Scores",
        "Classes, weakest first",
        "What is taken for what",
        "Can its probabilities be believed?",
    }
    assert "No baseline was computed" in shown


def test_confusion_matrix_gives_way_to_lists_above_25_classes() -> None:
    assert 'class="matrix"' in render_report(minimal(single(25, 300)))
    many = render_report(minimal(single(26, 300)))
    assert 'class="matrix"' not in many
    assert "Most confused classes" in many


def test_multi_label_has_average_precision_and_no_confusions() -> None:
    shown = Page(render_report(minimal(SHAPES["multi-label"]))).text
    assert "average precision" in shown
    assert "What is taken for what" not in shown
    assert "1 of 4 labels (grey) do not occur" in shown


def test_classes_are_listed_weakest_first() -> None:
    metrics = SHAPES["six classes"]
    text = render_report(minimal(metrics))
    table = text[text.index('class="classes"') :]
    shown = [float(value) for value in re.findall(r'class="bar"><span style="--share:([\d.]+)"', table)]
    assert shown == pytest.approx(sorted(one.f1 for one in metrics.classes), abs=1e-4)


def test_long_texts_are_cut() -> None:
    report = dataclasses.replace(minimal(single(2)), examples=({"text": "word " * 500, "true": "a", "predicted": "b"},))
    text = render_report(report)
    assert "\N{HORIZONTAL ELLIPSIS}" in text
    assert text.count("word ") < 100


class TestModelCard:
    def test_front_matter_takes_what_is_given(self) -> None:
        report = dataclasses.replace(
            full(SHAPES["two classes"]), model={"base_model": "owner/model-1.5", "license": "mit", "language": "de"}
        )
        matter = yaml.safe_load(render_model_card(report).split("---\n", 2)[1])
        assert (matter["base_model"], matter["license"], matter["language"]) == ("owner/model-1.5", "mit", "de")
        assert "lora" in matter["tags"]
        assert matter["model-index"][0]["results"][0]["dataset"]["name"] == "corpus"

    @pytest.mark.parametrize("path", ["/models/owner/model", "./model", "../owner/model", "model.gguf", "C:\\m/x"])
    def test_a_path_is_not_a_base_model(self, path: str) -> None:
        report = dataclasses.replace(minimal(SHAPES["two classes"]), model={"base_model": path})
        assert "base_model" not in yaml.safe_load(render_model_card(report).split("---\n", 2)[1])

    def test_weak_and_absent_classes_are_limitations(self) -> None:
        targets = np.array([0] * 8 + [1] * 4)
        predicted = np.array([0] * 11 + [1])
        metrics = evaluate_predictions(targets, np.eye(3)[predicted], ["good", "weak", "absent"], multi_label=False)
        limits = render_model_card(minimal(metrics)).split("## Limitations\n")[1]
        assert "- weak: F1 is 0.400 on 4 rows (precision 1.000, recall 0.250)." in limits
        assert "- absent: no evaluated row has it" in limits
        assert "good" not in limits


@pytest.mark.parametrize(
    ("value", "escaped"),
    [
        ("a|b", r"a\|b"),
        ("a_b*c", r"a\_b\*c"),
        ("two\nlines", "two lines"),
        ("<b> & [x](y)", r"&lt;b&gt; &amp; \[x\](y)"),
        ("# no heading", r"\# no heading"),
        ("- no list", r"\- no list"),
        ("1. no list", r"1\. no list"),
        ("96.4 % stays", "96.4 % stays"),
        (7, 7),
    ],
)
def test_markdown_text(value: object, escaped: object) -> None:
    assert markdown_text(value) == escaped
