"""Settings as YAML, overrides and layers, and ``RunConfig`` through a file and back."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from qlassify.config.files import gather_settings, layer, parse_override, read_settings, write_settings
from qlassify.config.run import RunConfig
from qlassify.config.section import sections_of
from qlassify.errors import ConfigError


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5E-5", 5e-5),
        ("-2e3", -2000.0),
        ("1.5e-4", 1.5e-4),
        ("1.e-4", 1e-4),
        ("+3e+2", 300.0),
        ("0.001", 0.001),
        ("'1e-4'", "1e-4"),
        ("1e", "1e"),
        ("e-4", "e-4"),
        ("32", 32),
        ("null", None),
        ("true", True),
        ("linear", "linear"),
    ],
)
def test_numbers_as_people_write_them(tmp_path: Path, text: str, value: Any) -> None:
    """YAML 1.1 reads 1e-4 as a string; learning rates are written that way."""
    found = read_settings(write(tmp_path / "a.yaml", f"x: {text}\n"))["x"]
    assert found == value
    assert type(found) is type(value)
    assert parse_override(f"a.x={text}") == {"a": {"x": value}}


def test_the_global_yaml_loader_is_left_alone() -> None:
    assert yaml.safe_load("1e-4") == "1e-4"


def test_nothing_in_a_file_is_no_settings(tmp_path: Path) -> None:
    assert read_settings(write(tmp_path / "a.yaml", "# nothing\n")) == {}
    assert gather_settings(None) == {}


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("a: [1", "not valid YAML"),
        ("a: b: c", "not valid YAML"),
        ("- 1\n- 2\n", "mapping of sections; got list"),
        ("just words", "mapping of sections; got str"),
        ("a: !!python/object/apply:os.system [true]", "not valid YAML"),
    ],
)
def test_files_that_are_no_settings(tmp_path: Path, text: str, part: str) -> None:
    path = write(tmp_path / "a.yaml", text)
    with pytest.raises(ConfigError, match=part) as caught:
        read_settings(path)
    assert caught.value.where == str(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\xfe\xfa")
    for name in ("nowhere.yaml", ".", "latin.yaml"):
        with pytest.raises(ConfigError, match="cannot read the configuration file"):
            read_settings(tmp_path / name)


# Overrides and layers


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("seed=3", {"seed": 3}),
        ("training.epochs=5", {"training": {"epochs": 5}}),
        ("training.class_weights=[1, 2.5]", {"training": {"class_weights": [1, 2.5]}}),
        ("data.label=a=b", {"data": {"label": "a=b"}}),
        ("data.label_separator=,", {"data": {"label_separator": ","}}),
        ("training.gradient_clip_norm=null", {"training": {"gradient_clip_norm": None}}),
        ("data.text=", {"data": {"text": None}}),
    ],
)
def test_overrides(text: str, settings: dict[str, Any]) -> None:
    assert parse_override(text) == settings


@pytest.mark.parametrize("text", ["training.epochs", "=5", "training.=5", ".epochs=5", "a..b=1", ""])
def test_overrides_without_a_name_or_a_value(text: str) -> None:
    with pytest.raises(ConfigError, match="NAME=VALUE"):
        parse_override(text)


def test_overrides_lie_on_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", "training: {epochs: 2, batch_size: 8}\nseed: 1\n")
    found = gather_settings(path, ["training.epochs=5", "seed=2", "training.epochs=6"])
    assert found == {"training": {"epochs": 6, "batch_size": 8}, "seed": 2}


KEYS = st.sampled_from(["a", "b", "c"])
SETTINGS = st.recursive(
    st.dictionaries(KEYS, st.integers(0, 9) | st.none()),
    lambda inner: st.dictionaries(KEYS, inner | st.integers(0, 9)),
    max_leaves=8,
)


def leaves(settings: Any, prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Path -> value of everything that is no mapping; an empty mapping counts as a value."""
    if isinstance(settings, dict) and settings:
        return {path: value for key, inner in settings.items() for path, value in leaves(inner, (*prefix, key)).items()}
    return {prefix: settings} if prefix else {}


@hypothesis_settings(deadline=None)
@given(SETTINGS, SETTINGS, SETTINGS)
def test_layering_is_associative_and_the_last_word_counts(a: dict, b: dict, c: dict) -> None:
    before = copy.deepcopy((a, b, c))
    merged = layer(a, b, c)
    assert merged == layer(layer(a, b), c)
    assert merged == layer(a, layer(b, c)) or _a_mapping_was_replaced(a, b, c)
    assert (a, b, c) == before, "nothing is changed in place"
    assert layer(a) == a
    assert layer(a, {}) == a
    assert layer({}, a) == a
    assert layer(a, a) == a
    found = leaves(merged)
    for path, value in leaves(c).items():
        if value != {}:
            assert found[path] == value
    for path, value in leaves(a).items():
        touched = any(path[: len(other)] == other[: len(path)] for other in {**leaves(b), **leaves(c)})
        if not touched:
            assert found[path] == value


def _a_mapping_was_replaced(*layers: dict) -> bool:
    """A value over a mapping, and a mapping over that again, start from nothing; then grouping matters."""
    kinds: dict[tuple[str, ...], set[bool]] = {}

    def walk(settings: Any, prefix: tuple[str, ...]) -> None:
        for key, value in settings.items():
            kinds.setdefault((*prefix, key), set()).add(isinstance(value, dict))
            if isinstance(value, dict):
                walk(value, (*prefix, key))

    for one in layers:
        walk(one, ())
    return any(len(kind) == 2 for kind in kinds.values())


def test_the_result_shares_no_mapping_with_its_layers() -> None:
    below = {"training": {"epochs": 1}}
    merged = layer(below)
    merged["training"]["epochs"] = 2
    assert below == {"training": {"epochs": 1}}


# RunConfig


def test_a_run_goes_through_a_file_and_back(tmp_path: Path) -> None:
    run = RunConfig.parse(
        {
            "data": {"train": "données.csv", "label_separator": ";", "eval_fraction": 0.2, "multi_label": True},
            "model": {"base": "some/where", "pooling": "last"},
            "method": {"rank": 3, "alpha": 0.1 + 0.2, "target_modules": ["query", "layer.0.value"]},
            "training": {
                "learning_rate": 1e-05,
                "class_weights": [1.0, 0.333],
                "early_stopping_patience": None,
                "gradient_clip_norm": None,
            },
            "evaluation": {"threshold": 0.25},
            "seed": 7,
        }
    )
    write_settings(tmp_path / "run.yaml", run.model_dump(mode="json"))
    assert RunConfig.parse(read_settings(tmp_path / "run.yaml")) == run
    write_settings(tmp_path / "again.yaml", run.model_dump())
    assert RunConfig.parse(read_settings(tmp_path / "again.yaml")) == run


@hypothesis_settings(deadline=None)
@given(
    rate=st.floats(1e-300, 1e3),
    epochs=st.integers(1, 10**6),
    text=st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1)),
    weights=st.sampled_from(["uniform", "inverse"]) | st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=4),
)
def test_any_value_survives_the_file(
    tmp_path_factory: pytest.TempPathFactory, rate: float, epochs: int, text: str | None, weights: Any
) -> None:
    run = RunConfig.parse(
        {"data": {"text": text}, "training": {"learning_rate": rate, "epochs": epochs, "class_weights": weights}}
    )
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    write_settings(path, run.model_dump(mode="json"))
    assert RunConfig.parse(read_settings(path)) == run


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        ({"training": {"epoch": 3}}, ["unknown option training.epoch", "Did you mean training.epochs?"]),
        ({"trainig": {"epochs": 3}}, ["unknown option trainig"]),
        ({"learning_rate": 1e-4}, ["unknown option learning_rate", "training.learning_rate"]),
        ({"model": {"poling": "cls"}}, ["unknown option model.poling", "model.pooling"]),
        ({"training": {"epochs": 0}}, ["training.epochs is 0", "greater than or equal to 1"]),
        ({"training": 5}, ["training is 5"]),
        ({"data": {"eval_fraction": 0.7}}, ["data.eval_fraction is 0.7", "less than or equal to 0.5"]),
        ({"evaluation": {"threshold": 0}}, ["evaluation.threshold is 0", "greater than 0"]),
        ({"seed": -1}, ["seed is -1"]),
        ({"model": {"device": "tpu"}}, ["model.device is 'tpu'", "'cpu'", "'cuda'"]),
    ],
)
def test_mistakes_have_dotted_names(settings: dict[str, Any], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig.parse(settings, where="run.yaml")
    assert caught.value.where == "run.yaml"
    for part in parts:
        assert part in str(caught.value)


def test_every_option_of_every_section_says_what_it_is() -> None:
    sections = {name: sections_of(field.annotation) for name, field in RunConfig.model_fields.items()}
    alone = [name for name, found in sections.items() if not found]
    assert alone == ["seed", "accepted_contracts", "tracking"]
    assert all(RunConfig.model_fields[name].description for name in alone)
    silent = [
        f"{name}.{option}"
        for name, found in sections.items()
        for section in found
        for option, field in section.model_fields.items()
        if not field.description
    ]
    assert silent == []
