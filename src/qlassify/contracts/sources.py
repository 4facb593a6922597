"""Where the contracts' figures are from.

A figure is cited from what was read: a paper, a project's file at a commit, a documentation page, an issue, arithmetic,
or a measurement of ours that stands on a page here. What is merely well known is not cited.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["paper", "file", "page", "issue", "arithmetic", "measured here", "own choice"]


@dataclass(frozen=True, slots=True)
class Source:
    """A claim and where it stands.

    Attributes:
        work: authors, year and identifier, or project and file.
        kind: what sort of thing was read.
        claim: what it says, with its figures.
    """

    work: str
    kind: Kind
    claim: str

    def __str__(self) -> str:
        return f"{self.work}: {self.claim}"


@dataclass(frozen=True, slots=True)
class Work:
    """Something that several contracts cite.

    Attributes:
        name: authors, year and identifier, or project and file.
        kind: what sort of thing it is.
    """

    name: str
    kind: Kind

    def says(self, claim: str) -> Source:
        """One claim of it."""
        return Source(self.name, self.kind, claim)


ENTRENAR = Work("entrenar, contracts/entrenar/qlora-hyperparameters-v1.yaml 1.0.0", "file")
QLORA = Work("Dettmers et al. 2023, arXiv:2305.14314; artidoro/qlora, scripts/finetune_guanaco_*.sh", "file")
LORA = Work("Hu et al. 2021, arXiv:2106.09685; microsoft/LoRA, examples/NLU/*.sh", "file")
RSLORA = Work("Kalajdzievski 2023, arXiv:2312.03732", "paper")
ROBERTA = Work("fairseq, examples/roberta/README.glue.md", "file")
MODERNBERT = Work("ModernBERT, examples notebook for GLUE", "file")
TFEW = Work("Liu et al. 2022, arXiv:2205.05638; r-three/t-few, configs/*.json", "file")
PTUNING2 = Work("Liu et al. 2022, arXiv:2110.07602; P-tuning v2, its RTE script", "file")
PREFIX = Work("Li and Liang 2021, arXiv:2101.00190, as config/recommend.py cites it", "paper")
ADAPTERS = Work("AdapterHub, the adapters library's training guide", "page")
LORAPLUS = Work("Hayou et al. 2024, arXiv:2402.12354; PEFT's documentation, loraplus' RoBERTa script", "file")
DORA = Work("Liu et al. 2024, arXiv:2402.09353; NVlabs/DoRA, README.md", "file")
REGRET = Work("Schulman et al. 2025, LoRA Without Regret; TRL's and Tinker's pages on it", "page")
PEFT_BENCH = Work("PEFT, method_comparison/MetaMathQA results (Llama-3.2-3B)", "file")
PEFT_NOTEBOOKS = Work("PEFT, its sequence classification notebooks (MRPC)", "file")
LS_LLAMA = Work("LS-LLaMA, its training scripts (Llama-2 7B and 13B)", "file")
AXOLOTL = Work("axolotl, docs/training_stability.qmd", "file")
FEW_SAMPLE = Work("Zhang et al. 2021, arXiv:2006.05987", "paper")
FOCAL_POSTERIOR = Work("Charoenphakdee et al. 2021, arXiv:2011.09172", "paper")
HUGGING_FACE = Work("transformers 5.23, optimization.py, get_scheduler", "file")
METHODS_PAGE = Work("docs/methods.md, benchmarks/results/methods.jsonl", "measured here")
RECOMMEND = Work("config/recommend.py", "measured here")
ARITHMETIC = Work("arithmetic", "arithmetic")
OURS = Work("this project", "own choice")
