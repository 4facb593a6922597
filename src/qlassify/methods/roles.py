"""Which part a linear layer plays in its transformer block, by the names that architectures give it.

Methods that are defined by roles (scale the keys, put a bottleneck behind the attention) need them; transformers has no
attribute for it. Names are few and steady within a family, so they are listed, and a model none of whose names is known
is refused with the names it has: guessing would train the wrong layers without a word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Literal

from torch import nn

from qlassify.errors import ConfigError
from qlassify.methods.targets import linear_layers

Role = Literal["query", "key", "value", "fused", "attention_output", "feed_forward_input", "feed_forward_output"]

_ATTENTION = r"(?:attention|attn|self_attn|SelfAttention|self_attention|mixer)"
_PATTERNS: tuple[tuple[Role, str], ...] = (
    ("fused", r"(?:Wqkv|c_attn|qkv_proj|query_key_value|in_proj)$"),
    ("query", r"(?:query|query_proj|q_proj|q_lin|\bq)$"),
    ("key", r"(?:key|key_proj|k_proj|k_lin|\bk)$"),
    ("value", r"(?:value|value_proj|v_proj|v_lin|\bv)$"),
    ("attention_output", rf"{_ATTENTION}\.(?:output\.dense|out_lin|Wo|c_proj|o_proj|out_proj|dense|o)$"),
    (
        "feed_forward_input",
        r"(?:intermediate\.dense|lin1|Wi|c_fc|gate_proj|up_proj|gate_up_proj|dense_h_to_4h|fc1|ffn)$",
    ),
    ("feed_forward_output", r"(?:output\.dense|lin2|mlp\.Wo|mlp\.c_proj|down_proj|dense_4h_to_h|fc2|ffn_output)$"),
)


def role_of(path: str) -> Role | None:
    """The role of the linear layer at a dotted path; None for a name that is not known."""
    for role, pattern in _PATTERNS:
        if re.search(rf"(?:^|\.){pattern}", path):
            return role
    return None


def layers_with(model: nn.Module, *roles: Role) -> dict[str, nn.Module]:
    """Path -> linear layer for those that play one of the roles."""
    return {path: layer for path, layer in linear_layers(model).items() if role_of(path) in roles}


def require_roles(model: nn.Module, wanted: Mapping[str, tuple[Role, ...]], method: str) -> dict[str, list[str]]:
    """The paths of the layers for each purpose.

    Args:
        model: the backbone's model.
        wanted: purpose in words -> roles, of which at least one must occur.
        method: its name, for the error.

    Raises:
        ConfigError: a purpose finds no layer; lists the names that the model has.
    """
    found = {purpose: list(layers_with(model, *roles)) for purpose, roles in wanted.items()}
    for purpose, paths in found.items():
        if not paths:
            names = sorted({path.rpartition(".")[2] for path in linear_layers(model)})
            raise ConfigError(
                f"{method} does not know which layers of this architecture are its {purpose}",
                where="method.kind",
                got=", ".join(names),
                do="Name them in the method's settings, or use a method that goes by names, such as lora.",
            )
    return found
