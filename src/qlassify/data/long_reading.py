"""How much of a part's texts each policy for long texts reads, counted from their lengths.

Lengths before cutting are known once a part is tokenised, so what another policy would read needs no second pass. It
says how much text there is to gain, not whether it helps: a label may stand in the first sentence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qlassify.data.findings import counted, verb
from qlassify.data.long_texts import POLICIES, LongTexts
from qlassify.data.tokenise import Encoded, TextEncoder


@dataclass(frozen=True, slots=True)
class LongReading:
    """What is read of one part.

    Attributes:
        rows: its texts.
        longer: those that are longer than the limit.
        tokens: of all texts, special ones included, before anything is cut.
        unread: policy -> tokens that it does not read, at this limit and number of windows.
        computed: tokens that go through the model once, overlaps and repeated special tokens included.
    """

    rows: int
    longer: int
    tokens: int
    unread: Mapping[str, int]
    computed: int

    def as_dict(self) -> dict[str, Any]:
        """For ``data.json``."""
        return asdict(self)


def long_reading(encoded: Encoded, encoder: TextEncoder, *, pair: bool) -> LongReading:
    """Count for one part.

    Args:
        encoded: the part.
        encoder: what tokenised it.
        pair: whether its rows are text pairs, for which there is one policy.
    """
    lengths, limit = encoded.whole_lengths, encoder.max_length
    special = encoder.num_special_tokens(pair=False)
    long = encoder.long
    unread: dict[str, int] = {
        policy: LongTexts(policy, long.window_overlap, long.max_windows).unread(lengths, limit, special)
        for policy in POLICIES
        if policy == long.policy or not pair
    }
    # Of the policy in force, what was counted row by row: pairs have more special tokens.
    unread[long.policy] = int(encoded.lost_tokens.sum())
    return LongReading(len(encoded), int((lengths > limit).sum()), int(lengths.sum()), unread, encoded.num_tokens)


def wording(part: str, reading: LongReading, long: LongTexts, max_length: int) -> str:
    """The same in a sentence, for a part with texts that are longer than the limit.

    Args:
        part: what it is called.
        reading: what was counted.
        long: the policy in force.
        max_length: the limit.
    """
    share = 100 * reading.longer / max(1, reading.rows)
    first = (
        f"{reading.longer} of {reading.rows} {part} texts ({share:.1f} %) {verb(reading.longer, 'is', 'are')} "
        f"longer than {max_length} tokens; model.long={long.policy} "
    )
    lost = reading.unread[long.policy]
    own = f"does not read {_tokens(lost, reading.tokens)}" if lost else "reads all of them"
    if long.policy == "windows":
        twice = reading.computed - (reading.tokens - lost)
        own += f" and computes {counted(twice, 'token')} twice, where windows overlap"
    others = ", ".join(
        f"{policy} {f'would leave out {_tokens(count, reading.tokens)}' if count else 'would read all'}"
        for policy, count in reading.unread.items()
        if policy != long.policy
    )
    return f"{first}{own}{'; ' if others else ''}{others}."


def _tokens(count: int, total: int) -> str:
    return f"{counted(count, 'token')} ({100 * count / max(1, total):.1f} %)"
