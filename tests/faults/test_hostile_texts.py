"""Labels, texts and names that were written to do harm: in a terminal, a page, a spreadsheet, a program, a path.

One classifier is trained whose labels are all of this kind; everything that is printed and written about it is then
read by somebody else's reader: a JSON parser, an HTML parser, a Markdown renderer, a CSV reader, Python's own.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import polars
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.table import Table

from qlassify.auditing import audit
from qlassify.cli.app import main
from qlassify.cli.console import make_console
from qlassify.data.corpus import read_corpus
from qlassify.data.dataset import build_dataset
from qlassify.data.spreadsheet import guarded, plain
from qlassify.data.tokenise import TextEncoder
from qlassify.terminal import json_text, visible
from tiny_jobs import make_rows, save_tiny_base

Tally = Callable[[str, int], None]

STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff]")
"""Written down again here: what a terminal obeys, what turns a line round, what ends one unseen."""
LABELS = (
    "../../x",
    "con",
    "nan",
    "1e5",
    "null",
    "</script><script>alert(1)</script>",
    '" onmouseover="alert(1)',
    "<img src=x onerror=alert(1)>",
    "[bold]x[/]",
    "[/]",
    ":smile:",
    "=HYPERLINK(1)",
    "@home",
    "-1",
    "x\x1b[31mred\x07",
    "\u202eevil",
    "{directory}",
    "{{ 7*7 }}",
    "`x` | *y* _z_ #1 $q$ ~~s~~",
    "-",
    "1.",
    "---",
    "a|b",
    '\u00e9,"q"',
    "\\",
    "%s %n {0}",
    "A" * 10_000,
)


@dataclass(frozen=True)
class Ran:
    """A command's exit code and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Ran]


@pytest.fixture(scope="module")
def command() -> Command:
    """Calls ``qlassify``; what it prints is caught here, since a fixture of a module has no ``capsys``."""

    def call(*arguments: object) -> Ran:
        out, err, code = io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["qlassify", *map(str, arguments)])
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            patch.setenv("HF_HUB_OFFLINE", "1")
            patch.setenv("COLUMNS", "200")
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(end.code is not None)
        return Ran(code, out.getvalue(), err.getvalue())

    return call


@dataclass(frozen=True)
class Trained:
    """The run with hostile labels, its data, and what training printed."""

    root: Path
    data: Path
    run: Path
    printed: Ran


@pytest.fixture(scope="module")
def trained(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("hostile")
    base = save_tiny_base(root / "base")
    texts = [text for text, _ in make_rows(12 * len(LABELS), seed=1)]
    data = root / "d[1].jsonl"
    with data.open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts):
            label = LABELS[number % len(LABELS)]
            words = f"{text} {label[:40]} </pre><img src=x>" if number % 4 == 0 else text
            file.write(json.dumps({"text": words, "label": label}) + "\n")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    printed = command(
        *("train", data, "--base", base, "--out", root / "run", "--epochs", 1, "--rank", 4, "--batch-size", 8)
    )
    torch.set_num_threads(threads)
    assert printed.code == 0, printed.err
    return Trained(root, data, root / "run", printed)


def test_nothing_printed_steers_a_terminal(trained: Trained, command: Command, tally: Tally) -> None:
    calls = [
        trained.printed,
        command("evaluate", trained.run, trained.data, "--out", trained.root / "scored"),
        command("evaluate", trained.run, trained.data, "--out", trained.root / "scored", "--json"),
        command("compare", trained.run, trained.run, trained.data),
        command("plan", trained.data, "--base", trained.root / "base", "--no-measure"),
        command("predict", trained.run, trained.data),
        command("inspect", trained.run),
        command("evaluate", trained.run, trained.root / "no\x1b[31m\u202efile.csv"),
        command("train", trained.data, "--label", "\x1b]0;x\x07"),
        command("train", trained.data, "--epochs", "\x1b[2J"),
        command("predict", trained.run, trained.root / os.fsdecode(b"no \xff name.csv"), "--json"),
    ]
    for done in calls:
        assert STEERING.search(done.out + done.err) is None
    assert [done.code for done in calls] == [0] * 7 + [2] * 4
    assert r"\x1b[31m\u202efile.csv" in calls[7].err
    tally("hostile texts printed", len(LABELS) * 7 + 4)


def test_labels_are_what_they_were(trained: Trained, command: Command) -> None:
    record = json.loads((trained.run / "model" / "classifier.json").read_text(encoding="utf-8"))
    assert sorted(record["labels"]) == sorted(LABELS)
    lines = command("predict", trained.run, trained.data).out.splitlines()
    assert {name for line in lines for name in json.loads(line)["probabilities"]} == set(LABELS)
    scored = polars.read_parquet(trained.run / "evaluation" / "predictions.parquet")
    assert {name for names in scored["predicted"].to_list() for name in names} <= set(LABELS)


def test_labels_name_no_files(trained: Trained) -> None:
    assert {path.name for path in trained.root.iterdir()} <= {
        "base",
        "run",
        "d[1].jsonl",
        "scored",
        "export",
        "rows.csv",
    }
    names = {path.name for path in trained.run.rglob("*")}
    assert names.isdisjoint({"x", "con", "nan"})


class _Elements(HTMLParser):
    """Every element and attribute of a page, and its text."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.titles: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.titles |= {value or "" for name, value in attrs if name == "title"}

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_report_holds_no_markup_of_theirs(trained: Trained) -> None:
    page = (trained.run / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert STEERING.search(page) is None
    found = _Elements()
    found.feed(page)
    assert found.tags.isdisjoint({"script", "img", "iframe", "object", "embed", "form", "link"})
    assert not any(name.startswith("on") for name in found.attributes)
    # The names are there, as text.
    for label in LABELS:
        assert visible(label) in found.titles
    assert "</pre><img src=x>" in "".join(found.text)


def test_the_model_card_shows_the_labels_as_text(trained: Trained) -> None:
    card = (trained.run / "evaluation" / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert STEERING.search(card) is None
    body = card.split("---\n", 2)[2]
    page = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(body)
    found = _Elements()
    found.feed(page)
    assert found.tags.isdisjoint({"script", "img", "a", "em", "s", "del", "hr"})
    listed = re.findall(r"<li>(.*?)</li>", page[page.index("<h2>Classes") : page.index("<h2>Scores per")], re.DOTALL)
    names = [re.sub(r"\s+", " ", _text(one)) for one in listed]
    assert sorted(names) == sorted(visible(label) for label in LABELS)


def _text(markup: str) -> str:
    found = _Elements()
    found.feed(markup)
    return "".join(found.text)


def test_predictions_open_in_a_spreadsheet(trained: Trained, command: Command) -> None:
    done = command("predict", trained.run, trained.data, "--output", "csv")
    assert done.code == 0
    assert "apostrophe" in done.err
    rows = list(csv.DictReader(io.StringIO(done.out, newline="")))
    assert rows
    for row in rows:
        for cell in row.values():
            assert not _runs(cell)
        assert plain(row["label"]) in LABELS


def test_rows_that_differ_open_in_a_spreadsheet(trained: Trained, tmp_path: Path) -> None:
    from qlassify.differences import Difference, write_differences

    hostile = [label for label in LABELS if "|" not in label]
    found = [Difference(n, f"={label}", None, (label,), (label,), ("con",)) for n, label in enumerate(hostile)]
    write_differences(tmp_path / "rows.csv", found)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "rows.csv").read_text(encoding="utf-8"), newline="")))
    assert [plain(row["text"]) for row in rows] == [f"={label}" for label in hostile]
    assert [plain(row["true"]) for row in rows] == hostile
    assert not any(_runs(cell) for row in rows for cell in row.values())


def _runs(cell: str) -> bool:
    """Whether a spreadsheet would take a cell for a formula: a sign in front, and not a number."""
    if cell[:1] not in {"=", "+", "-", "@", "\t", "\r"} or not cell:
        return False
    try:
        float(cell)
    except ValueError:
        return True
    return not cell[-1].isdigit()  # float() also takes -inf and -nan


def test_an_exports_program_has_the_labels(trained: Trained, command: Command) -> None:
    done = command("export", trained.run, trained.root / "export", "--format", "onnx", "--json")
    if done.code != 0:
        pytest.skip("needs the packages of the extra onnx")
    readme = (trained.root / "export" / "README.md").read_text(encoding="utf-8")
    assert STEERING.search(readme) is None
    program = readme.split("```python\n")[1].split("\n```")[0]
    assigned = {
        node.targets[0].id: node.value
        for node in ast.parse(program).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert sorted(ast.literal_eval(assigned["labels"])) == sorted(LABELS)
    outside = "".join(readme.split("```")[::2])
    found = _Elements()
    found.feed(MarkdownIt("commonmark", {"html": True}).render(outside))
    assert found.tags.isdisjoint({"script", "img", "em", "strong"})


def test_tables_print_markup_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    console = make_console(width=120, force_terminal=True, color_system=None)
    table = Table()
    table.add_column("label :smile:")
    for label in ("[bold]x[/]", "[/]", ":smile:", "[link=http://x]y[/link]", "a\x1b[2Jb"):
        table.add_row(label)
    console.print(table)
    console.print("[red]told[/red] :smile: \x1b[2J")
    printed = capsys.readouterr().out
    for words in ("[bold]x[/]", "[/]", ":smile:", "[link=http://x]y[/link]", r"a\x1b[2Jb", "[red]told[/red]"):
        assert words in printed
    # rich's own codes for bold may be there; a clearing of the screen may not.
    assert "\x1b[2J" not in printed


@given(st.text())
@settings(max_examples=200)
def test_visible_text_has_nothing_that_steers(text: str) -> None:
    assert STEERING.search(visible(text)) is None
    assert visible(visible(text)) == visible(text)


@given(st.text())
@settings(max_examples=200)
def test_json_says_the_same(text: str) -> None:
    written = json_text({"a": text})
    assert json.loads(written) == {"a": text}
    assert STEERING.search(written) is None
    assert "\n" not in written


def test_letters_of_every_script_stay() -> None:
    for text in ("caf\u00e9", "\u05e9\u05dc\u05d5\u05dd\u200f", "\u4f60\u597d", "\U0001f600\u200d", "a\tb\nc"):
        assert visible(text) == text


@given(st.text(alphabet="'=+-@\t\r1.e ab", max_size=8))
@settings(max_examples=500)
def test_guarded_cells_come_back_and_do_not_run(cell: str) -> None:
    assert plain(guarded(cell)) == cell
    assert not _runs(guarded(cell))


@pytest.mark.parametrize("cell", ["-1", "+2.5e3", "-.5", "dog", "it's", "", "a=b", "1-2"])
def test_harmless_cells_are_not_changed(cell: str) -> None:
    assert guarded(cell) == cell


SAME_TO_THE_EYE = ("caf\u00e9", "cafe\u0301", "Cafe\u0301", "caf\u00e9\u200b", "ca\ufb01", "cafi", "A b", "a_b", "a  B")


def test_labels_that_look_alike_are_told(tmp_path: Path, tally: Tally) -> None:
    odd = [f"l{number}{name}" for number in range(34) for name in SAME_TO_THE_EYE]
    rows = make_rows(4 * len(odd), seed=3, longest=14)
    path = tmp_path / "rows.jsonl"
    lines = (json.dumps({"text": text, "label": odd[n % len(odd)] + "  "}) for n, (text, _) in enumerate(rows))
    path.write_text("\n".join(lines), encoding="utf-8")
    dataset = build_dataset(read_corpus(path), None, None, fraction=0.1, seed=1)
    # Blanks at the end are no difference; every other one is, and is kept.
    assert set(dataset.labels.names) == set(odd)
    base = save_tiny_base(tmp_path / "base")
    encoder = TextEncoder.load(base, 32)
    encoded = {name: encoder.encode(part.corpus.texts) for name, part in dataset.parts().items()}
    found = [one for one in audit(dataset, encoded, special_tokens=2, seed=1).findings() if one.check == "labels"]
    told = " ".join(one.what for one in found)
    assert r"'l0cafe\u0301'" in told
    assert r"'l0caf\xe9\u200b'" in told
    assert "Unicode form" in told
    assert all(one.severity == "warning" for one in found if "Unicode form" in one.what)
    tally("labels that look alike told", 3 * 34)
