"""The report of real runs: every number in it is the number in metrics.json, plan.json or data.json, printed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qlassify import job, scoring
from qlassify.config.files import read_settings
from qlassify.evaluation.templating import score
from qlassify.evaluation.wording import number, percent, score_name
from qlassify.planning.plan import human_bytes, human_seconds
from report_page import ReportPage, texts
from tiny_jobs import LABELS, job_settings, make_multi_label_rows, make_rows, write_table

LONG = "very quite " * 40
HOSTILE = "<b>cat</b> & <script>alert(1)</script> dog"


@dataclass(frozen=True)
class Finished:
    """A run folder, its report and its files."""

    folder: Path
    page: ReportPage
    card: str
    metrics: dict[str, Any]
    plan: dict[str, Any]
    data: dict[str, Any]

    @property
    def values(self) -> dict[str, float | None]:
        return dict(self.metrics["values"])

    @classmethod
    def read(cls, folder: Path, evaluation: Path) -> Finished:
        loaded = (json.loads(path.read_text()) for path in (folder / "plan.json", folder / "data.json"))
        return cls(
            folder,
            ReportPage((evaluation / "report.html").read_text()),
            (evaluation / "MODEL_CARD.md").read_text(),
            json.loads((evaluation / "metrics.json").read_text()),
            *loaded,
        )


def train(folder: Path, settings: dict[str, Any]) -> Finished:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    list(job.train(settings, folder))
    torch.set_num_threads(threads)
    return Finished.read(folder, folder / "evaluation")


@pytest.fixture(scope="module")
def single(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """One label per text, every eighth of them wrong, some rows twice and in both files, one text too long."""
    folder = tmp_path_factory.mktemp("single")
    generator = np.random.default_rng(0)
    rows = [
        (text, str(generator.choice(LABELS)) if generator.random() < 0.125 else label)
        for text, label in make_rows(360, seed=1)
    ]
    for place in range(10, 15):
        rows[place] = (f"{rows[place][0]} {LONG}", rows[place][1])
    rows[8] = (HOSTILE, "tool")
    learnt, held = rows[:240] + rows[:6], rows[230:]
    data = write_table(folder / "train.csv", ("text", "label"), [*learnt, ("", "tool")])
    settings = job_settings(tiny_base, data, epochs=2, log_interval=1)
    test = write_table(
        folder / "held.csv", ("text", "label", "from"), [(*row, f"s{i % 3}") for i, row in enumerate(held)]
    )
    settings["data"] = {"train": str(data), "test": str(test), "eval_fraction": 0.3, "slices": ["from"]}
    settings["accepted_contracts"] = ["C-LR-001"]
    return train(folder / "run", settings)


@pytest.fixture(scope="module")
def multi(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Any number of labels per text."""
    folder = tmp_path_factory.mktemp("multi")
    rows = [(text, "|".join(labels)) for text, labels in make_multi_label_rows(240, seed=3) if labels]
    data = write_table(folder / "multi.csv", ("text", "label"), rows)
    settings = job_settings(tiny_base, data, epochs=2)
    settings["data"] = {"train": str(data), "eval_fraction": 0.4, "multi_label": True, "label_separator": "|"}
    return train(folder / "run", settings)


@pytest.fixture(params=["single", "multi"])
def finished(request: pytest.FixtureRequest) -> Finished:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Finished)
    return found


def test_every_score_is_printed_as_it_is(finished: Finished) -> None:
    scores = finished.page.sections["Against the baselines"]
    _, *rows = texts(scores.tables["all"])
    assert [row[0] for row in rows] == [score_name(key) for key in finished.values]
    for row, (key, value) in zip(rows, finished.values.items(), strict=True):
        assert row[1] == ("-" if value is None else f"{value:.4f}")
        interval = finished.metrics["intervals"].get(key)
        assert row[2] == ("" if interval is None else "{:.4f} to {:.4f}".format(*interval))


def test_the_table_beside_the_baselines(finished: Finished) -> None:
    head, *rows = finished.page.sections["Against the baselines"].tables["scores"]
    keys = {score_name(key): key for key in finished.values}
    columns = {place: keys[cell.text] for place, cell in enumerate(head) if cell.text in keys}
    assert len(columns) == 5
    everyone = {finished.folder.name: finished.values, **finished.metrics["baselines"]}
    assert {row[0].text for row in rows} == set(everyone)
    for row in rows:
        for place, key in columns.items():
            assert row[place].text == score(everyone[row[0].text][key])
            interval = finished.metrics["intervals"].get(key) if row is rows[0] else None
            assert row[place].small == ("" if interval is None else "{:.3f} to {:.3f}".format(*interval))


def test_the_headline_scores(finished: Finished) -> None:
    facts = finished.page.sections[""].facts
    as_percent = {"accuracy": "accuracy", "macro-F1": "macro_f1", "calibration error": "ece"}
    as_percent |= {"micro-F1": "micro_f1", "every label right": "subset_accuracy"}
    as_score = {"Matthews correlation": "mcc", "ranking precision": "lrap"}
    assert len(facts) == 4
    for name, shown in facts.items():
        value = finished.values[{**as_percent, **as_score}[name]]
        assert shown == (percent(value) if name in as_percent else score(value))


def test_every_class_row_by_row(finished: Finished) -> None:
    heading = "Classes, weakest first" if finished.metrics["confusion"] else "Labels, weakest first"
    head, *rows = texts(finished.page.sections[heading].tables["classes"])
    spelled = {"rows": "support", "average precision": "average_precision"}
    known = {one["name"]: one for one in finished.metrics["classes"]}
    assert [row[0] for row in rows] == sorted(known, key=lambda name: known[name]["f1"])
    for name, *cells in rows:
        for column, cell in zip(head[1:], cells, strict=True):
            value = known[name][spelled.get(column, column.lower())]
            assert cell == (f"{value:,}" if isinstance(value, int) else score(value)), (name, column)


def test_the_confusion_matrix_cell_by_cell(single: Finished) -> None:
    section = single.page.sections["What is taken for what"]
    _, *rows = texts(section.tables["matrix"])
    assert [[int(cell) for cell in row[1:]] for row in rows] == single.metrics["confusion"]
    _, *pairs = texts(section.tables[""])
    assert [[a, b, int(n)] for a, b, n in pairs] == single.metrics["top_confusions"]


def test_slices_worst_first(finished: Finished) -> None:
    rows = finished.page.sections["Where it does worse"].tables["slices"][1:]
    shown: dict[tuple[str, str], list[Any]] = {}
    column = ""
    for row in rows:
        if len(row) == 1:
            column = row[0].text
        else:
            shown[column.replace("length in tokens", "tokens"), row[0].text] = row[1:]
    assert len(shown) == len(finished.metrics["slices"])
    for one in finished.metrics["slices"]:
        count, accuracy, gap, macro = shown[one["column"], one["value"]]
        assert (count.text, count.small) == (str(one["num_rows"]), "few rows" if one["few_rows"] else "")
        assert (accuracy.text, accuracy.small) == (score(one["accuracy"]), "{:.3f} to {:.3f}".format(*one["interval"]))
        assert (gap.text, macro.text) == (f"{100 * one['gap']:+.1f}", score(one["macro_f1"]))
    for name in dict.fromkeys(column for column, _ in shown):
        gaps = [float(cells[2].text) for (column, _), cells in shown.items() if column == name]
        assert gaps == sorted(gaps)


def test_calibration_before_and_after(finished: Finished) -> None:
    text = " ".join(finished.page.sections["Can its probabilities be believed?"].text.split())
    rule, plain = finished.metrics["decision"], finished.metrics["decisions"]["plain"]
    assert rule["fitted_rows"] > 0
    assert f"A temperature of {rule['temperature']:.3f}, fitted on {rule['fitted_rows']:,} rows" in text
    assert f"from {percent(plain['ece'])} to {percent(finished.values['ece'])}" in text
    assert f"from {score(plain['log_loss'])} to {score(finished.values['log_loss'])}" in text
    assert ">as trained<" in (finished.folder / "evaluation" / "report.html").read_text()


def test_label_sets_and_answered_shares(single: Finished) -> None:
    section, decisions = single.page.sections["Decisions"], single.metrics["decisions"]
    sets = decisions["sets"]
    chance = f"{percent(sets['expected_low'])} to {percent(sets['expected_high'])}"
    row = [percent(sets["promised"]), percent(sets["coverage"]), chance]
    assert texts(section.tables["sets"])[1] == [*row, f"{sets['mean_size']:.2f}", percent(sets["single"])]
    assert texts(section.tables["answered"])[1:] == [
        [percent(one["share"], 0), score(one["from_probability"]), percent(one["accuracy"])]
        for one in decisions["answered"]
    ]


def test_thresholds_by_their_gain(multi: Finished) -> None:
    section = multi.page.sections["Decisions"]
    _, *rows = texts(section.tables["thresholds"])
    after = {one["name"]: one["f1"] for one in multi.metrics["classes"]}
    thresholds = dict(zip(after, multi.metrics["decision"]["thresholds"], strict=True))
    assert {row[0] for row in rows} == set(after)
    for name, threshold, at_half, f1, gain in rows:
        assert (threshold, f1) == (score(thresholds[name]), score(after[name]))
        # Three numbers that are rounded to 0.0005 each on their own.
        assert float(gain) == pytest.approx(100 * (float(f1) - float(at_half)), abs=0.16)
    gains = [float(row[-1]) for row in rows]
    assert gains == sorted(gains, reverse=True)
    assert percent(multi.metrics["decisions"]["plain"]["macro_f1"]) in section.text


def test_planned_beside_measured(finished: Finished) -> None:
    section = finished.page.sections["Settings and plan"]
    planned, measured = finished.plan["planned"], finished.plan["measured"]
    rows = {row[0]: row[1:] for row in texts(section.tables["plan"])}
    assert rows["optimiser steps"][:2] == [f"{planned['steps']:,}", f"{measured['steps']:,}"]
    seconds = [planned["training_seconds"], measured["training_seconds"]]
    assert rows["training time"][:2] == [human_seconds(one) for one in seconds]
    bytes_ = [planned["memory"]["total_bytes"], measured["training_peak_memory_bytes"]]
    assert rows["peak memory in training"][:2] == [human_bytes(one) for one in bytes_]
    for name, (before, after) in {"training time": seconds, "peak memory in training": bytes_}.items():
        # The difference is printed with one decimal.
        assert float(rows[name][2].removesuffix(" %")) == pytest.approx(100 * (after / before - 1), abs=0.051)
    terms = [count for name, count in planned["memory"].items() if count and name != "total_bytes"]
    assert [row[1] for row in texts(section.tables["memory"])] == [human_bytes(count) for count in terms]


def test_contracts_with_their_remedies(single: Finished) -> None:
    rows = single.page.sections["Settings and plan"].tables["contracts"][1:]
    items = {item["contract_id"]: item for item in single.plan["contracts"]["items"]}
    assert {row[0].text for row in rows} == set(items)
    assert "C-LR-001" in items
    for name, message, remedy in rows:
        item = items[name.text]
        assert message.text == item["message"]
        assert remedy.text.startswith(item["recommendation"])
        assert all(f"--set {setting}=" in remedy.text for setting in item["remedy"])
        assert ("accepted" in name.small) == (name.text == "C-LR-001")


def test_lengths_and_what_is_not_read(single: Finished) -> None:
    section = single.page.sections["Data"]
    _, *rows = section.tables["lengths"]
    for row, audited in zip(rows, single.data["audit"]["token_lengths"], strict=True):
        part, percentiles = audited["part"], audited["percentiles"]
        wanted = [part, single.data["rows"][part], *(percentiles[rank] for rank in ("p50", "p90", "p99"))]
        wanted += [audited["longest"], single.data["long_texts"][part]["longer"]]
        wanted += [single.data["truncated"][part], single.data["lost_tokens"][part]]
        assert [cell.text for cell in row] == [one if isinstance(one, str) else f"{one:,}" for one in wanted]
    assert single.data["lost_tokens"]["train"] > 0
    assert "A text of more than 64 tokens loses its end (model.long=truncate)." in section.text


def test_rows_per_label(finished: Finished) -> None:
    head, *rows = texts(finished.page.sections["Data"].tables["counts"])
    for name, *counts in rows:
        for part, count in zip(head[1:], counts, strict=True):
            assert count == f"{finished.data['label_counts'][part][name]:,}"


def test_likely_label_errors_are_called_candidates(single: Finished) -> None:
    noise = single.data["audit"]["label_noise"]
    text = " ".join(single.page.sections["Likely label errors"].text.split())
    assert noise["candidates"]
    assert "A bag of words" in text
    assert "They are candidates and not errors" in text
    assert f"in {noise['num_candidates']:,} of them" in text
    for one in noise["candidates"]:
        suggestion = f"the words speak for {one['suggested']} with {percent(one['probability'])}"
        assert f"labelled {', '.join(one['given'])}, {suggestion} · training row {one['row']}" in text


def test_a_fact_is_told_once(single: Finished) -> None:
    """The files have texts in both, rejected rows and a text that is cut; each is told by the audit and not again."""
    page = single.page
    assert page.text.count("test texts also stand in the training rows") == 1
    assert page.text.count("1 x blank text") == 1
    assert page.text.count("texts are cut at 64 tokens") == 1
    assert "longer than 64 tokens" not in page.text
    for item in single.plan["contracts"]["items"]:
        assert page.text.count(item["message"]) == 1
    told = single.metrics["notes"]
    assert sum("also stand in the training rows" in note for note in told) == 1


def test_texts_are_escaped(single: Finished) -> None:
    raw = (single.folder / "evaluation" / "report.html").read_text()
    assert "<script" not in raw
    assert "<b>cat" not in raw


def test_how_to_repeat_it(single: Finished) -> None:
    section = single.page.sections["How to repeat it"]
    assert f"qlassify train --config {single.folder / 'run.yaml'}" in section.text
    environment = json.loads((single.folder / "environment.json").read_text())
    hashes = [environment["base_sha256"], *(file["sha256"] for file in single.data["files"])]
    for value in (*hashes, environment["processor"], str(environment["threads"]), *environment["packages"].values()):
        assert value in section.text
    assert section.facts["seed"] == "3"
    assert section.facts["epochs"] == "2"
    for name, value in read_settings(single.folder / "run.yaml")["training"].items():
        assert section.facts[name.replace("_", " ")] == number(value, 9), name


def test_a_later_evaluation_tells_the_settings_of_the_run(single: Finished, tmp_path: Path) -> None:
    """A loaded classifier does not know how it was trained; the report must not tell the defaults instead."""
    data = write_table(tmp_path / "later.csv", ("text", "label"), make_rows(30, seed=9))
    done = scoring.evaluate_run(single.folder, data, {}, out=tmp_path / "out", device="cpu")
    assert done.report == tmp_path / "out" / "report.html"
    later = Finished.read(single.folder, tmp_path / "out")
    section = later.page.sections["How to repeat it"]
    for name, value in read_settings(single.folder / "run.yaml")["training"].items():
        assert section.facts[name.replace("_", " ")] == number(value, 9), name
    assert "30 later.csv rows" in later.page.text
    test_every_score_is_printed_as_it_is(later)
    test_every_class_row_by_row(later)


def test_the_model_card_has_the_same_numbers(finished: Finished) -> None:
    for key, (low, high) in finished.metrics["intervals"].items():
        value = finished.values[key]
        assert f"| {score_name(key)} | {score(value)} | {low:.3f} to {high:.3f} |" in finished.card
    assert "ClassifyPipeline.load(" in finished.card
    assert "\n- lora\n" in finished.card.split("---\n")[1]
    assert f"A temperature of {finished.metrics['decision']['temperature']:.3f}" in finished.card
    worst = min(finished.metrics["slices"], key=lambda one: one["gap"])
    assert f"| {worst['column']} | {worst['value']} | {worst['num_rows']}" in finished.card
    for one in finished.metrics["classes"]:
        assert (
            f"| {one['name']} | {score(one['f1'])} | {score(one['precision'])} | {score(one['recall'])} |"
            in finished.card
        )
