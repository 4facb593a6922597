"""Method configurations and tensors in PEFT's file format, there and back.

LoRA, DoRA, IA3 and prefixes are written as PEFT writes them. Methods that PEFT does not have keep the two file names,
with their own configuration under ``qlassify_method``. What PEFT's settings can say and ours cannot (another rank per
layer, an initialisation that changed the base weights) is refused: read without it, the tensors would mean something
else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pydantic
from torch import Tensor, nn

from qlassify.config.method import Ia3Config, LoraConfig, MethodConfig, PrefixConfig
from qlassify.errors import ConfigError, ModelError
from qlassify.methods import prefix
from qlassify.methods.base_layer import stores_transposed
from qlassify.methods.ia3 import Ia3Linear
from qlassify.methods.inject import Attachment

PREFIX = "base_model.model."
BARE_PREFIX = "base_model."
"""Stands before a model's names where PEFT puts nothing into the model: beside the vectors of a prefix."""
OWN = "qlassify_method"
_PLAIN_INITIALISATIONS = (None, True, False, "gaussian", "orthogonal", "eva")


def to_settings(attachment: Attachment, base_model: str) -> dict[str, Any]:
    """What ``adapter_config.json`` says of an attachment."""
    config = attachment.config
    common = {"base_model_name_or_path": base_model, "task_type": "FEATURE_EXTRACTION", "inference_mode": True}
    if isinstance(config, LoraConfig):
        return common | _lora_settings(attachment, config)
    if isinstance(config, Ia3Config):
        return common | _ia3_settings(attachment)
    if isinstance(config, PrefixConfig):
        config = config.replace(reparametrize=False, hidden_size=None)  # what a network made is plain vectors
        if config.shift_positions:
            return common | _prefix_settings(attachment, config)
    return {**common, OWN: config.model_dump(mode="json")}


def _lora_settings(attachment: Attachment, config: LoraConfig) -> dict[str, Any]:
    # After PiSSA what is written is a plain LoRA of twice the rank, with the same factor on it.
    rank, doubled = config.path_rank, config.path_rank != config.rank
    return {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": config.scaling * rank if doubled else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": shortest_names(attachment.model, attachment.layers),
        "use_rslora": config.rslora and not doubled,
        "use_dora": config.dora,
        "bias": "none",
        "fan_in_fan_out": any(stores_transposed(layer.base) for layer in attachment.layers.values()),
        "init_lora_weights": True,
        "modules_to_save": None,
    }


def _ia3_settings(attachment: Attachment) -> dict[str, Any]:
    layers = attachment.layers
    inner = [path for path, layer in layers.items() if isinstance(layer, Ia3Linear) and layer.feedforward]
    return {
        "peft_type": "IA3",
        "target_modules": sorted(layers),
        "feedforward_modules": sorted(inner),
        "fan_in_fan_out": any(stores_transposed(layer.base) for layer in layers.values()),
        "init_ia3_weights": True,
        "modules_to_save": None,
    }


def _prefix_settings(attachment: Attachment, config: PrefixConfig) -> dict[str, Any]:
    """A prefix in PEFT's words; where positions are not shifted, PEFT would compute something else."""
    heads, dim = next(iter(prefix.attention_shapes(attachment.model).values()))
    return {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": config.num_virtual_tokens,
        "num_layers": len(attachment.layers),
        "num_attention_heads": heads,
        "token_dim": heads * dim,
        "num_transformer_submodules": 1,
        "prefix_projection": False,
        "encoder_hidden_size": heads * dim,
    }


def for_classifier(
    settings: Mapping[str, Any], attachment: Attachment, model: nn.Module, prefix: str, modules: Iterable[str]
) -> dict[str, Any]:
    """The settings of an adapter of a base model as those of one of the whole classifier.

    Args:
        settings: from ``to_settings``.
        attachment: the method on the base model.
        model: the whole classifier, whose modules the names must not take in by accident.
        prefix: what stands before the base model's names in those of the whole.
        modules: the modules of its head, which are saved whole.
    """
    whole = {**settings, "task_type": "SEQ_CLS", "modules_to_save": list(modules)}
    if isinstance(attachment.config, PrefixConfig):
        return whole
    whole["target_modules"] = shortest_names(model, [f"{prefix}{path}" for path in attachment.layers])
    if "feedforward_modules" in settings:
        # PEFT asks for each of these among the targets, by the same name.
        whole["target_modules"] = sorted(f"{prefix}{path}" for path in attachment.layers)
        whole["feedforward_modules"] = [f"{prefix}{path}" for path in settings["feedforward_modules"]]
    return whole


def classifier_tensors(attachment: Attachment, prefix: str, head: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Name in the file -> tensor of an adapter of the whole classifier, its head among them.

    Args:
        attachment: the method on the base model.
        prefix: what stands before the base model's names in those of the whole.
        head: name in the whole -> tensor.
    """
    adapter, below = to_tensors(attachment), PREFIX
    if isinstance(attachment.config, PrefixConfig):
        below = BARE_PREFIX
    else:
        adapter = {f"{PREFIX}{prefix}{name.removeprefix(PREFIX)}": value for name, value in adapter.items()}
    return adapter | {f"{below}{name}": value.contiguous() for name, value in head.items()}


def shortest_names(model: nn.Module, paths: Iterable[str]) -> list[str]:
    """The last parts of the paths, where these alone name exactly those modules of a model; else the paths."""
    chosen = set(paths)
    endings = {path.rpartition(".")[2] for path in chosen}
    named = {path for path, _ in model.named_modules() if path.rpartition(".")[2] in endings}
    return sorted(endings if named == chosen else chosen)


def from_settings(settings: Mapping[str, Any], path: Path) -> MethodConfig:
    """The method that an ``adapter_config.json`` is about.

    Raises:
        ModelError: a kind of adapter that is not supported, or settings that would be misread.
    """
    kind = settings.get("peft_type")
    try:
        if OWN in settings:
            own: MethodConfig = pydantic.TypeAdapter(MethodConfig).validate_python(settings[OWN])
            return own
        if kind == "LORA":
            return _lora_config(settings, path)
        if kind == "IA3":
            return _ia3_config(settings)
        if kind == "PREFIX_TUNING":
            return _prefix_config(settings, path)
    except (KeyError, TypeError, ConfigError, pydantic.ValidationError) as error:
        raise ModelError("the adapter's configuration cannot be used", where=path, got=error) from None
    raise ModelError("this kind of adapter is not supported", where=path, got=kind, wanted="LORA, IA3 or PREFIX_TUNING")


def adapted_paths(tensors: Mapping[str, Tensor], where: object) -> list[str]:
    """Paths of the modules that an adapter's tensors belong to, in the order of their names.

    Raises:
        ModelError: a tensor is of no kind that LoRA, DoRA or IA3 have.
    """
    paths = set()
    for name in tensors:
        ending = next((one for one in _ENDINGS if name.endswith(f".{one}")), None)
        if ending is None:
            raise ModelError("the adapter has tensors of an unknown kind", where=where, got=name, wanted="LoRA or IA3")
        paths.add(name.removesuffix(f".{ending}"))
    if not paths:
        raise ModelError("the adapter changes no module of the base model", where=where)
    return sorted(paths)


_ENDINGS = ("lora_A.weight", "lora_B.weight", "lora_magnitude_vector", "ia3_l")


def with_targets(settings: Mapping[str, Any], tensors: Mapping[str, Tensor], paths: Iterable[str]) -> dict[str, Any]:
    """The settings with the adapted modules by their full paths, as the tensors have them."""
    changed = {**settings, "target_modules": list(paths)}
    if settings.get("peft_type") == "IA3":
        # A vector on the input is kept as (1, in), one on the output as (out, 1).
        inner = [path for path in paths if tensors[f"{path}.ia3_l"].shape[0] == 1]
        changed["feedforward_modules"] = inner
    return changed


def _lora_config(settings: Mapping[str, Any], path: Path) -> LoraConfig:
    patterns = [name for name in ("alpha_pattern", "rank_pattern") if settings.get(name)]
    if patterns:
        raise ModelError("an adapter with a rank or alpha per layer is not supported", where=path, got=patterns[0])
    initial = settings.get("init_lora_weights")
    if initial not in _PLAIN_INITIALISATIONS:
        raise ModelError(
            "the adapter was initialised in a way that changed the base weights",
            where=path,
            got=f"init_lora_weights {initial!r}",
            do="Convert it with PEFT (path_initial_model_for_weight_conversion) first.",
        )
    return LoraConfig.parse(
        {
            "kind": "dora" if settings.get("use_dora") else "lora",
            "rank": settings["r"],
            "alpha": settings["lora_alpha"],
            "dropout": settings.get("lora_dropout", 0.0),
            "target_modules": _targets(settings.get("target_modules")),
            "rslora": bool(settings.get("use_rslora", False)),
        }
    )


def _ia3_config(settings: Mapping[str, Any]) -> Ia3Config:
    inner = _targets(settings["feedforward_modules"])
    every = _targets(settings["target_modules"])
    return Ia3Config.parse(
        {"target_modules": [name for name in every if name not in inner], "feedforward_modules": inner}
    )


def _prefix_config(settings: Mapping[str, Any], path: Path) -> PrefixConfig:
    """A file holds the vectors, whether or not a network made them."""
    if settings.get("num_transformer_submodules") not in (None, 1):
        raise ModelError("a prefix for an encoder and a decoder is not supported", where=path)
    return PrefixConfig.parse({"num_virtual_tokens": settings["num_virtual_tokens"]})


def _targets(value: Any) -> Any:
    return value if isinstance(value, str) else tuple(value or ())


def to_tensors(attachment: Attachment) -> dict[str, Tensor]:
    """Name in the file -> tensor, in the shapes that PEFT has."""
    if isinstance(attachment.config, PrefixConfig):
        return {prefix.TENSOR: prefix.to_tensor(attachment.layers)}
    named: dict[str, Tensor] = {}
    for path, layer in attachment.layers.items():
        for name, tensor in layer.stored().items():
            value = tensor.cpu().contiguous()
            if isinstance(layer, Ia3Linear):
                value = value.view(1, -1) if layer.feedforward else value.view(-1, 1)
            named[f"{PREFIX}{path}.{name}"] = value
    return named


def from_tensors(attachment: Attachment, tensors: Mapping[str, Tensor], where: object) -> dict[str, Tensor]:
    """Name of a parameter -> tensor in its shape, for what ``to_tensors`` or PEFT wrote.

    Raises:
        ModelError: the tensors of a prefix are not those of this model; other methods' are looked at when copied.
    """
    named = {name.removeprefix(PREFIX): value for name, value in tensors.items()}
    if isinstance(attachment.config, PrefixConfig):
        return prefix.from_tensors(attachment.layers, named, where)
    for path, layer in attachment.layers.items():
        name = f"{path}.ia3_l"
        if isinstance(layer, Ia3Linear) and name in named:
            named[name] = named[name].reshape(-1)
    return named
