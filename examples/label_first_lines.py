"""Turn lines of the form ``LABEL text`` into a table with two columns, byte for byte.

Several classic data sets (TREC, SST) come as one line per text with the label in front. This writes a TSV with a
header; the bytes of the text are not decoded, so one that is not UTF-8 arrives at the reader as it was.

    python examples/label_first_lines.py TREC.train trec.train.tsv --coarse
    qlassify train trec.train.tsv
"""

from __future__ import annotations

import argparse
from pathlib import Path


def convert(source: Path, destination: Path, *, coarse: bool) -> int:
    """Write the table and return its number of rows.

    Args:
        source: lines of a label, a blank and a text.
        destination: the TSV to write.
        coarse: keep only what stands before a colon in the label (``ENTY`` of ``ENTY:animal``).

    Raises:
        SystemExit: a line has no text, or holds a tab.
    """
    rows = [b"label\ttext"]
    for number, line in enumerate(source.read_bytes().splitlines(), start=1):
        label, _, text = line.strip().partition(b" ")
        if not text or b"\t" in line:
            raise SystemExit(f"{source}, line {number}: wanted LABEL, a blank and a text without tabs")
        rows.append((label.split(b":")[0] if coarse else label) + b"\t" + text)
    destination.write_bytes(b"\n".join(rows) + b"\n")
    return len(rows) - 1


def main() -> None:
    """Parse the command line and convert one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--coarse", action="store_true", help="drop what follows a colon in the label")
    arguments = parser.parse_args()
    print(f"{convert(arguments.source, arguments.destination, coarse=arguments.coarse)} rows")


if __name__ == "__main__":
    main()
