"""Twelve obligations that every fine-tuning method meets on every kind of base.

The numbers in the names are those of the list in docs/methods.md. A method is excused from an obligation only by a
trait in ``worlds``, and then a test holds it to the trait.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from conformance.worlds import BASES, METHODS, PAIRS, World, snapshot
from qlassify.config.method import (
    BitfitConfig,
    BottleneckConfig,
    FullConfig,
    Ia3Config,
    LoraConfig,
    PrefixConfig,
    ProbeConfig,
)
from qlassify.errors import ConfigError, ModelError
from qlassify.methods.base_layer import dense_weight, is_linear, linear_shape
from qlassify.methods.inject import attach, linear_layers
from qlassify.methods.roles import role_of
from qlassify.methods.state import load_adapter, merge, read_adapter_config, save_adapter
from qlassify.models.backbone import load_backbone
from qlassify.models.packed_layout import PackedLayout
from qlassify.training.step import Stepper
from tiny_models import FAMILIES

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow]

# One encoder with biases, norms with biases and token types; one decoder with grouped heads and without most biases.
# Both with each method on fp32 weights; on the other weights they take turns.
SUBJECTS = [
    (family, method, base)
    for index, (method, base) in enumerate(PAIRS)
    for turn, family in enumerate(("bert", "qwen2"))
    if base == "fp32" or (index + turn) % 2
]


@pytest.fixture(params=SUBJECTS, ids=[f"{family}-{method} on {base}" for family, method, base in SUBJECTS])
def subject(request: pytest.FixtureRequest) -> tuple[str, str, str]:
    found: tuple[str, str, str] = request.param
    return found


@pytest.fixture
def family(subject: tuple[str, str, str]) -> str:
    return subject[0]


@pytest.fixture
def pair(subject: tuple[str, str, str]) -> tuple[str, str]:
    return subject[1:]


@pytest.fixture
def world(tiny_directories: dict[str, Path], family: str, pair: tuple[str, str]) -> World:
    method, base = pair
    return World(tiny_directories[family], family, METHODS[method], BASES[base])


@pytest.fixture
def bare(tiny_directories: dict[str, Path], family: str, pair: tuple[str, str]) -> World:
    return World(tiny_directories[family], family, None, BASES[pair[1]])


def test_01_the_attached_model_starts_as_the_bare_one(world: World, bare: World) -> None:
    assert world.method is not None
    start, wanted = world.logits(), bare.logits()
    if world.method.starts == "exactly":
        assert torch.equal(start, wanted)
    elif world.method.starts == "nearly":
        # What cancels is a few terms of order one: bf16 keeps 8 bits of each, over the layers of a small model.
        bound = 0.1 if world.backbone.dtype == torch.bfloat16 else 1e-4
        torch.testing.assert_close(start, wanted, atol=bound, rtol=0)
    else:
        assert not torch.allclose(start, wanted, rtol=1e-3)


def test_02_what_is_trained_is_what_the_attachment_says(world: World) -> None:
    named = world.parameters()
    trainable = {id(p) for p in world.backbone.parameters() if p.requires_grad}
    assert trainable == {id(p) for p in named.values()}
    assert len(trainable) == len(named)
    assert world.method is not None
    assert bool(named) is world.method.attaches
    assert all(p.dtype == torch.float32 for p in named.values())


@pytest.mark.parametrize("looked_first", [False, True], ids=["at once", "after a look without gradients"])
def test_03_and_04_every_parameter_gets_a_gradient_and_moves(world: World, looked_first: bool) -> None:
    """Two steps: where one factor starts at zero, the other has a zero gradient in the first."""
    if looked_first:
        world.logits()
    start = {name: p.detach().clone() for name, p in world.parameters().items()}
    stepper = world.stepper()
    world.train(1, stepper)
    world.classifier.train()
    stepper.accumulate(world.batches, world.targets)
    for name, parameter in world.parameters().items():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), name
    stepper.apply()
    still = [name for name, p in world.parameters().items() if torch.equal(p, start[name])]
    assert still == []


def test_05_nothing_frozen_changes_in_twenty_steps(world: World) -> None:
    losses = world.train(20)
    assert losses[-1] < losses[0]
    assert world.attachment is not None
    world.attachment.detach()
    assert snapshot(world.backbone.model) == world.before


def test_06_the_number_of_parameters_is_the_closed_form(world: World, bare: World) -> None:
    assert world.attachment is not None
    config, model = world.attachment.config, bare.backbone.model
    shapes = {path: linear_shape(layer) for path, layer in linear_layers(model).items()}
    roles = {path: role_of(path) for path in shapes}
    if isinstance(config, LoraConfig):
        wanted = config.parameter_count(shapes.values())
    elif isinstance(config, Ia3Config):
        outputs = [shapes[path] for path, role in roles.items() if role in ("key", "value")]
        inputs = [shapes[path] for path, role in roles.items() if role == "feed_forward_output"]
        wanted = config.parameter_count(outputs, inputs)
    elif isinstance(config, BottleneckConfig):
        ends = ["feed_forward_output"] + (["attention_output"] if config.placement == "houlsby" else [])
        wanted = config.parameter_count(shapes[path] for path, role in roles.items() if role in ends)
    elif isinstance(config, BitfitConfig):
        wanted = config.parameter_count(p.numel() for name, p in model.named_parameters() if name.endswith(".bias"))
    elif isinstance(config, ProbeConfig):
        wanted = config.parameter_count()
    elif isinstance(config, PrefixConfig):
        widths = [shapes[path][0] for path, role in roles.items() if role == "key"]
        wanted = config.parameter_count(len(widths), widths[0])
    else:
        assert isinstance(config, FullConfig)
        wanted = config.parameter_count(bare.backbone.num_parameters)
    assert world.attachment.num_parameters() == wanted


def test_07_merged_is_unmerged(world: World) -> None:
    world.shake()
    assert world.attachment is not None
    assert world.method is not None
    before = world.logits()
    if not world.method.mergeable:
        with pytest.raises(ConfigError, match="cannot be merged"):
            merge(world.attachment)
        assert torch.equal(world.logits(), before)
        return
    layers = {path: layer for path, layer in world.attachment.layers.items() if is_linear(layer.base)}
    inputs = {
        path: torch.randn(7, linear_shape(layer.base)[1]).to(world.backbone.dtype) for path, layer in layers.items()
    }
    with torch.no_grad():
        wanted = {path: layer(inputs[path]) for path, layer in layers.items()}
        sizes = {path: dense_weight(layer.base, torch.float32).float().abs() for path, layer in layers.items()}
        merge(world.attachment)
        for path, x in inputs.items():
            module = world.backbone.model.get_submodule(path)
            found, weight = module(x), dense_weight(module, x.dtype).float().abs()
            # Each product, sum and weight is rounded a handful of times by at most half a unit in the last place.
            unit = torch.finfo(x.dtype).eps / 2
            room = x.float().abs() @ (weight + sizes[path]).T + wanted[path].float().abs() + 1
            assert ((found.float() - wanted[path].float()).abs() <= 8 * unit * room).all(), path
    assert not any(p.requires_grad for p in world.backbone.parameters())
    if world.backbone.dtype == torch.float32:
        torch.testing.assert_close(world.logits(), before, rtol=1e-5, atol=1e-5)


def test_08_saved_and_loaded_is_bitwise_the_same(
    world: World, tiny_directories: dict[str, Path], family: str, pair: tuple[str, str], tmp_path: Path
) -> None:
    world.shake()
    assert world.attachment is not None
    save_adapter(world.attachment, tmp_path, base_model="tiny")
    again = World(tiny_directories[family], family, None, BASES[pair[1]])
    config = read_adapter_config(tmp_path)
    attachment = attach(again.backbone.model, config, seed=77)
    load_adapter(attachment, tmp_path)
    assert torch.equal(again.logits(), world.logits())


def test_08_a_missing_and_an_unknown_tensor_are_named(world: World, tmp_path: Path) -> None:
    from qlassify.methods.state import WEIGHTS_FILE, read_tensors, write_tensors

    assert world.attachment is not None
    save_adapter(world.attachment, tmp_path, base_model="tiny")
    tensors = read_tensors(tmp_path / WEIGHTS_FILE)
    first = next(iter(tensors), None)
    lost = torch.zeros(2) if first is None else tensors.pop(first)
    tensors["base_model.model.nobody.lora_A.weight"] = lost
    write_tensors(tmp_path / WEIGHTS_FILE, tensors)
    with pytest.raises(ModelError) as caught:
        load_adapter(world.attachment, tmp_path)
    assert ("got missing" in str(caught.value)) is (first is not None)
    assert "unknown nobody" in str(caught.value)


def test_09_detaching_restores_the_very_modules(world: World, bare: World) -> None:
    world.shake()
    assert world.attachment is not None
    world.attachment.detach()
    now = dict(world.backbone.model.named_modules())
    assert list(now) == list(world.bare)
    assert all(now[name] is module for name, module in world.bare.items())
    assert torch.equal(world.logits(), bare.logits())


def test_10_changing_the_mode_changes_no_weight(world: World) -> None:
    world.shake()
    before = snapshot(world.backbone)
    for mode in (True, False, True):
        world.classifier.train(mode)
        assert snapshot(world.backbone) == before


def test_12_two_runs_are_bitwise_equal(
    world: World, tiny_directories: dict[str, Path], family: str, pair: tuple[str, str]
) -> None:
    method, base = pair
    twin = World(tiny_directories[family], family, METHODS[method], BASES[base])
    assert world.train(3) == twin.train(3)
    assert all(torch.equal(p, twin.parameters()[name]) for name, p in world.parameters().items())


def test_12_a_resumed_run_is_the_uninterrupted_one(
    world: World, tiny_directories: dict[str, Path], family: str, pair: tuple[str, str]
) -> None:
    """Parameters and moments after three steps, carried into a fresh world, lead on as if nothing had happened."""
    first: Stepper = world.stepper()
    world.train(3, first)
    method, base = pair
    other = World(tiny_directories[family], family, METHODS[method], BASES[base], seed=99)
    second = other.stepper()
    with torch.no_grad():
        for name, parameter in second.optimizer.parameters.items():
            parameter.copy_(first.optimizer.parameters[name])
    second.optimizer.load_state_tensors(first.optimizer.state_tensors())
    assert world.train(3, first) == other.train(3, second)
    for name, parameter in first.optimizer.parameters.items():
        assert torch.equal(parameter, second.optimizer.parameters[name]), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_can_be_trained(tiny_directories: dict[str, Path], name: str, method: str) -> None:
    if not METHODS[method].padded and not FAMILIES[name].packed:
        with pytest.raises(ConfigError, match="packed texts"):
            World(tiny_directories[name], name, METHODS[method], BASES["fp32"])
        return
    world = World(tiny_directories[name], name, METHODS[method], BASES["fp32"])
    losses = world.train(8)
    assert losses[-1] < losses[0]
    assert world.attachment is not None
    world.attachment.detach()
    assert snapshot(world.backbone.model) == world.before


def test_full_fine_tuning_of_low_bit_weights_is_refused(tiny_directories: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="low-bit weights cannot be trained"):
        World(tiny_directories["bert"], "bert", METHODS["full"], BASES["nf4"])


def test_08_in_a_fresh_process(tiny_directories: dict[str, Path], tmp_path: Path) -> None:
    """All methods in one process, so that its start is paid once."""
    wanted = {}
    for method, base in PAIRS:
        world = World(tiny_directories["bert"], "bert", METHODS[method], BASES[base])
        world.shake()
        folder = tmp_path / f"{method} on {base}"
        folder.mkdir()
        assert world.attachment is not None
        save_adapter(world.attachment, folder, base_model="tiny")
        wanted[folder.name] = world.logits().double().tolist()
    script = (
        "import json, sys, torch; from pathlib import Path\n"
        "torch.set_num_threads(1)\n"
        "from conformance.worlds import BASES, World\n"
        "from qlassify.methods.inject import attach\n"
        "from qlassify.methods.state import load_adapter, read_adapter_config\n"
        "found = {}\n"
        "for folder in sorted(Path(sys.argv[2]).iterdir()):\n"
        "    world = World(Path(sys.argv[1]), 'bert', None, BASES[folder.name.partition(' on ')[2]])\n"
        "    load_adapter(attach(world.backbone.model, read_adapter_config(folder), seed=5), folder)\n"
        "    found[folder.name] = world.logits().double().tolist()\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tiny_directories["bert"]), str(tmp_path)],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == wanted


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.attaches])
def test_11_gradients_are_the_numerical_ones(tiny_directories: dict[str, Path], name: str) -> None:
    """Every layer of a method, in float64, against finite differences of its own forward pass."""
    backbone = load_backbone(tiny_directories["bert"], torch.float64)
    method = METHODS[name]
    attachment = attach(backbone.model, method.config, seed=1)
    generator = torch.Generator().manual_seed(5)
    if isinstance(method.config, PrefixConfig):
        # A prefix does something only inside attention: all layers together, by the hidden states of two texts.
        ids, positions = torch.arange(2, 9), torch.tensor([0, 1, 2, 3, 0, 1, 2])
        layout = PackedLayout(np.array([4, 3]))
        leaves = list(attachment.parameters().values())
        assert torch.autograd.gradcheck(lambda *_: backbone(ids, positions, None, layout), leaves, fast_mode=True)
        return
    path = next(path for path in attachment.layers if role_of(path) == "feed_forward_output")
    layer = attachment.layers[path]
    with torch.no_grad():
        for parameter in layer.trainable().values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    width = linear_shape(layer.base)[1]
    x = torch.randn(2, width, generator=generator, dtype=torch.float64, requires_grad=True)
    trained = list(layer.trainable().values())
    if isinstance(method.config, LoraConfig) and method.config.dora:
        # Row lengths are constants in backward on purpose; a finite difference would move them.
        layer.lengths = (lambda value: lambda: value)(layer.lengths())  # type: ignore[operator,method-assign]
    assert torch.autograd.gradcheck(lambda *_: layer(x), (x, *trained), fast_mode=True)
