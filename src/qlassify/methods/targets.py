"""Which linear layers a method is attached to.

Targets are ``all-linear`` or names. A name matches a module whose dotted path is that name or ends with it at a dot:
``query`` and ``attention.self.query`` both match ``encoder.layer.0.attention.self.query``. A name that matches nothing
is an error that lists what exists: a silently unmatched target is a model that does not learn.
"""

from __future__ import annotations

import difflib

from torch import nn

from qlassify.config.method import ALL_LINEAR
from qlassify.errors import ConfigError
from qlassify.methods.base_layer import is_linear


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Dotted path -> linear layer of a model, in the model's order."""
    return {path: module for path, module in model.named_modules() if is_linear(module)}


def match_targets(model: nn.Module, targets: str | tuple[str, ...]) -> list[str]:
    """The paths of the linear layers that ``targets`` name.

    Raises:
        ConfigError: a target matches no linear layer.
    """
    layers = linear_layers(model)
    if targets == ALL_LINEAR:
        return list(layers)
    names = (targets,) if isinstance(targets, str) else targets
    chosen: set[str] = set()
    for name in names:
        matched = {path for path in layers if path == name or path.endswith(f".{name}")}
        if not matched:
            known = sorted({path.rsplit(".", 1)[-1] for path in layers})
            close = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                "the target matches no linear layer of the backbone",
                where="method.target_modules",
                got=repr(name),
                wanted=f"all-linear, or any of {', '.join(known)}",
                do=f"Did you mean {close[0]}?" if close else "The head is always trained and is never a target.",
            )
        chosen |= matched
    return [path for path in layers if path in chosen]
