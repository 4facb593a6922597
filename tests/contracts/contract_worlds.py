"""Situations of contracts, for tests: of an example, of entrenar's flat settings, and of what is recommended."""

from __future__ import annotations

from typing import Any

from qlassify.config.classify import ClassifyConfig
from qlassify.config.recommend import Facts, recommended_settings
from qlassify.config.run import RunConfig
from qlassify.contracts import entrenar
from qlassify.contracts.rule import Contract, Example
from qlassify.contracts.situation import (
    DataFacts,
    DeviceFacts,
    ModelFacts,
    Situation,
    TokenLengths,
    Truncation,
)

FLAT_DEFAULTS: dict[str, Any] = {name: getattr(ClassifyConfig(), name) for name in ClassifyConfig.model_fields}


def is_flat(contract: Contract[Any]) -> bool:
    """Whether a contract is one of entrenar's."""
    return contract in entrenar.CONTRACTS


def situation_of(contract: Contract[Any], example: Example) -> Any:
    """What a contract's example describes."""
    if is_flat(contract):
        return entrenar.FlatSituation.of({**FLAT_DEFAULTS, **example.settings}, example.facts)
    return Situation.of(example.settings, example.facts)


def recommended_situation(facts: Facts, method: dict[str, Any]) -> Situation:
    """What the command would settle for a model and balanced data whose texts fit, with every fact known."""
    asked = RunConfig.parse({"method": method})
    settings = recommended_settings(facts, asked.method)
    settings["method"] = {**settings["method"], **method}
    run = RunConfig.parse(settings)
    each = max(1, facts.num_rows // facts.num_classes)
    model = ModelFacts(
        parameters=facts.model_params,
        decoder=facts.decoder,
        smallest_side=384,
        max_positions=512,
        linear_bytes=facts.model_params,
        other_bytes=facts.model_params // 10,
        bytes_per_parameter=2,
    )
    data = DataFacts(
        rows=facts.num_rows,
        class_counts=(each,) * facts.num_classes,
        token_lengths=TokenLengths(20, 40, 50, 60, 100),
        truncation=Truncation(512, 0.0, (0.0,) * facts.num_classes),
        duplicates=0,
        conflicts=0,
        leaks=0,
        validation_counts=(max(1, each // 10),) * facts.num_classes,
        multi_label=facts.multi_label,
    )
    return Situation(run, model, data, DeviceFacts("cpu", True, 16_000_000_000))
