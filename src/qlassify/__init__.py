"""qlassify: fine-tune pretrained transformers into text classifiers that you can trust.

The public names, nothing else. Each is imported when it is first used, so that ``import qlassify`` costs
milliseconds and loads neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qlassify.version import __version__

if TYPE_CHECKING:
    from qlassify.config.classify import ClassifyConfig as ClassifyConfig
    from qlassify.config.fine_tune_method import FineTuneMethod as FineTuneMethod
    from qlassify.config.method import LoraConfig as LoraConfig
    from qlassify.config.quant import QuantConfig as QuantConfig
    from qlassify.config.run import RunConfig as RunConfig
    from qlassify.contracts.rule import HyperparamDiagnostic as HyperparamDiagnostic
    from qlassify.contracts.rule import HyperparamDiagnostics as HyperparamDiagnostics
    from qlassify.data.corpus import Corpus as Corpus
    from qlassify.data.corpus import ReadOptions as ReadOptions
    from qlassify.data.corpus import read_corpus as read_corpus
    from qlassify.data.stats import DataStats as DataStats
    from qlassify.errors import QlassifyError as QlassifyError
    from qlassify.methods.qlora import QLoraLinear as QLoraLinear
    from qlassify.multi_classifier import MultiClassifier as MultiClassifier
    from qlassify.pipeline import ClassifyPipeline as ClassifyPipeline
    from qlassify.quant.sizes import QLoraLayer as QLoraLayer
    from qlassify.training.step import BatchResult as BatchResult

_HOMES = {
    "BatchResult": "qlassify.training.step",
    "ClassifyConfig": "qlassify.config.classify",
    "ClassifyPipeline": "qlassify.pipeline",
    "Corpus": "qlassify.data.corpus",
    "DataStats": "qlassify.data.stats",
    "FineTuneMethod": "qlassify.config.fine_tune_method",
    "HyperparamDiagnostic": "qlassify.contracts.rule",
    "HyperparamDiagnostics": "qlassify.contracts.rule",
    "LoraConfig": "qlassify.config.method",
    "MultiClassifier": "qlassify.multi_classifier",
    "QLoraLayer": "qlassify.quant.sizes",
    "QLoraLinear": "qlassify.methods.qlora",
    "QlassifyError": "qlassify.errors",
    "QuantConfig": "qlassify.config.quant",
    "ReadOptions": "qlassify.data.corpus",
    "RunConfig": "qlassify.config.run",
    "read_corpus": "qlassify.data.corpus",
}

__all__ = [
    "BatchResult",
    "ClassifyConfig",
    "ClassifyPipeline",
    "Corpus",
    "DataStats",
    "FineTuneMethod",
    "HyperparamDiagnostic",
    "HyperparamDiagnostics",
    "LoraConfig",
    "MultiClassifier",
    "QLoraLayer",
    "QLoraLinear",
    "QlassifyError",
    "QuantConfig",
    "ReadOptions",
    "RunConfig",
    "__version__",
    "read_corpus",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'qlassify' has no attribute {name!r}")
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
