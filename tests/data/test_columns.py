import pytest

from qlassify.data.columns import LABEL_NAMES, PAIR_NAMES, TEXT_NAMES, find_columns, is_header
from qlassify.data.records import Columns, ReadOptions
from qlassify.errors import ConfigError, DataError


def find(names: list[str], needs_label: bool = True, pair: bool | None = None, **options: str) -> Columns:
    return find_columns(names, ReadOptions(**options), where="file.csv", needs_label=needs_label, pair=pair)


def test_a_name_has_one_meaning() -> None:
    texts = [name for rank in TEXT_NAMES for name in rank]
    labels = [name for rank in LABEL_NAMES for name in rank]
    assert len(set(texts)) == len(texts)
    assert len(set(labels)) == len(labels)
    assert not set(texts) & set(labels)
    assert not {name for pair in PAIR_NAMES for name in pair} & set(labels)


@pytest.mark.parametrize(
    ("names", "text", "pair", "label"),
    [
        (["text", "label"], "text", None, "label"),
        (["id", "Sentence", "LABEL"], "Sentence", None, "LABEL"),
        (["input", "labels"], "input", None, "labels"),
        (["title", "text", "category"], "text", None, "category"),
        (["label", "intent", "utterance"], "utterance", None, "label"),
        (["premise", "hypothesis", "label"], "premise", "hypothesis", "label"),
        (["text", "text_pair", "label"], "text", "text_pair", "label"),
        (["id", "Text_Pair", "Text", "label"], "Text", "Text_Pair", "label"),
        (["idx", "question", "sentence", "label"], "question", "sentence", "label"),
        (["Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"], "#1 String", "#2 String", "Quality"),
        (["body_html", "label"], "body_html", None, "label"),  # the only one that is left
        (["y", "x"], "x", None, "y"),
    ],
)
def test_columns_found_by_name(names: list[str], text: str, pair: str | None, label: str) -> None:
    assert find(names) == Columns(text, pair, label)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (["review", "comment", "label"], "several columns could be the text"),
        (["text", "premise", "hypothesis", "label"], "several columns could be the text"),
        (["text", "text_pair", "premise", "hypothesis", "label"], "several columns could be the text"),
        (["text1", "text2", "text_a", "text_b", "label"], "several columns could be the text"),
        (["text", "class", "category"], "several columns could be the label"),
        (["text", "text", "label"], "several columns could be the text"),
        (["foo", "bar", "label"], "no text column"),
        (["text", "stars"], "no label column"),
    ],
)
def test_no_guess_between_equals(names: list[str], what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        find(names)
    # The message lists what there is and shows the option.
    assert caught.value.got is not None
    assert "--text" in str(caught.value) or "--label" in str(caught.value)


def test_options_decide() -> None:
    names = ["review", "comment", "class", "category"]
    assert find(names, text="comment", label="class") == Columns("comment", None, "class")
    assert find(names, text="REVIEW", label="4") == Columns("review", None, "category")
    assert find(names, text="review", text_pair="comment", label="class") == Columns("review", "comment", "class")
    assert find(["premise", "hypothesis", "label"], text="premise") == Columns("premise", None, "label")
    assert find(["a", "hypothesis", "label"], text_pair="hypothesis") == Columns("a", "hypothesis", "label")
    assert find(["x", "premise", "hypothesis", "label"], text_pair="hypothesis").text == "premise"
    assert find(["2", "text", "label"], text="2").text == "2"  # a name before a number


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"text": "sentense"}, r"no column 'sentense'.*Did you mean --text 'sentence'"),
        ({"label": "9"}, "no column '9'"),
        ({"label": "0"}, "no column '0'"),
        ({"text": "label"}, "used twice"),
    ],
)
def test_names_that_do_not_work(options: dict[str, str], what: str) -> None:
    with pytest.raises(DataError, match=what):
        find(["sentence", "label"], **options)


def test_a_used_name_may_not_occur_twice_and_an_unused_one_may() -> None:
    with pytest.raises(DataError, match="several columns are named 'note'"):
        find(["note", "note", "label"], text="note")
    assert find(["text", "label", "note", "note"]) == Columns("text", None, "label")


def test_prediction_needs_no_label_and_never_takes_it_for_the_text() -> None:
    assert find(["text"], needs_label=False) == Columns("text", None, None)
    assert find(["x", "label"], needs_label=False) == Columns("x", None, None)
    assert find(["x", "stars"], needs_label=False, label="stars") == Columns("x", None, None)
    assert find(["text"], needs_label=False, label="gone") == Columns("text", None, None)


def test_prediction_says_whether_it_wants_pairs() -> None:
    names = ["premise", "hypothesis"]
    assert find(names, needs_label=False, pair=True) == Columns("premise", "hypothesis", None)
    assert find(names, needs_label=False, pair=True, text="premise") == Columns("premise", "hypothesis", None)
    with pytest.raises(DataError, match="no text column"):
        find(names, needs_label=False, pair=False)
    with pytest.raises(DataError, match=r"one text column.*--text-pair"):
        find(["text", "label"], needs_label=False, pair=True)


@pytest.mark.parametrize(
    ("cells", "options", "wanted"),
    [
        (["text", "label"], {}, True),
        (["id", " Label "], {}, True),
        (["good film", "1"], {}, None),
        (["good film", "1"], {"header": True}, True),
        (["text", "label"], {"header": False}, False),
        (["good film", "1"], {"text": "1", "label": "2"}, False),
        (["text", "label"], {"text": "1", "label": "2"}, True),
        (["how so?", "question"], {"text": "1", "label": "2"}, False),  # no name of a label
        (["2", "1"], {"text": "1", "label": "2"}, False),  # a label that looks like a column number
        (["opinion", "stars"], {"text": "Opinion"}, True),
        (["opinion", "stars"], {"text": "opinions"}, True),  # the search for the column will complain
    ],
)
def test_header(cells: list[str], options: dict[str, object], wanted: bool | None) -> None:
    assert is_header(cells, ReadOptions(**options)) is wanted  # type: ignore[arg-type]


def test_options_are_checked() -> None:
    with pytest.raises(ConfigError, match="xlsx"):
        ReadOptions(format="xlsx")
    with pytest.raises(ConfigError, match="separator"):
        ReadOptions(label_separator="")
    with pytest.raises(ConfigError, match="max_field_chars"):
        ReadOptions(max_field_chars=0)


def test_columns_that_nobody_reads_are_known() -> None:
    assert find(["id", "text", "text_pair", "source", "label"]).unread == ("id", "source")
    assert find(["id", "text", "source", "label"], extra=("source",)).unread == ("id",)
    assert find(["text", "label"]).unread == ()
