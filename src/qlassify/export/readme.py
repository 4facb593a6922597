"""The README of an export: what it is, how it loads, how far it is from what it was made of."""

from __future__ import annotations

from qlassify.evaluation.templating import markdown_text
from qlassify.export.result import Check, ExportResult
from qlassify.pipeline import ClassifyPipeline
from qlassify.version import __version__


def render(pipeline: ClassifyPipeline, result: ExportResult) -> str:
    """The page, in Markdown."""
    labels = pipeline.labels
    names = [str(markdown_text(name)) for name in labels.names]
    kind = "several labels per text" if labels.multi_label else "one label per text"
    reads = "text pairs" if pipeline.text_pair else "texts"
    facts = [
        f"- Base model: {markdown_text(pipeline.source.name)} ({pipeline.backbone.model_type}), weights' SHA-256 "
        f"{pipeline.source.sha256()}",
        f"- Trained with: {pipeline.run.method}",
        f"- Reads {reads} of at most {pipeline.encoder.max_length} tokens; {pipeline.pooling} pooling; {kind}",
        f"- Labels: {', '.join(names)}",
    ]
    if labels.multi_label:
        given = pipeline.decision.label_thresholds(len(labels)).tolist()
        told = ", ".join(f"{name} {one:.3g}" for name, one in zip(names, given, strict=True))
        same = len(set(given)) == 1
        facts.append(f"- A label is given from a probability of {f'{given[0]:.3g}' if same else told}")
    lines = [
        "# A text classifier",
        "",
        f"Exported by qlassify {__version__} as {result.format}. It loads with",
        f"{result.loads_with}.",
        "",
        *facts,
        "",
        "```python",
        result.snippet.rstrip(),
        "```",
        "",
    ]
    lines += [line for note in result.notes for line in (note, "")]
    lines += [line for sentence in check_lines(result.check) for line in (sentence, "")]
    return "\n".join(lines).rstrip() + "\n"


def check_lines(check: Check | None) -> list[str]:
    """The comparison in sentences."""
    if check is None:
        return ["Not compared with the classifier: the library, or an unquantised base model for it, is not here."]
    lines = [
        f"Loaded with {check.library} and compared with the classifier on {check.rows} {check.part}: the logits differ "
        f"by at most {check.max_abs_delta:.3g} (the largest is {check.max_abs_logit:.3g}); {check.changed} predictions "
        "changed."
    ]
    if check.before is not None and check.after is not None:
        change = check.after - check.before
        lines.append(f"Validation {check.metric}: {check.before:.4f} before, {check.after:.4f} after ({change:+.4f}).")
    if check.note is not None:
        lines.append(check.note)
    return lines
