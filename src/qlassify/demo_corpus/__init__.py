"""Demo corpus: shell commands and short scripts, labelled by the first thing a reviewer objects to.

The folder holds ``train.jsonl`` and ``test.jsonl`` (one ``{"input": ..., "label": ...}`` object
per line) and ``LABELLING.md``, the guide the labels follow. The rows are data to be read by a
classifier; many of them are destructive on purpose, so none of them is meant to be run.
"""
