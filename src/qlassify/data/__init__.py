"""From files to what a model is trained on.

A file goes through this room in small steps, each in its own file:

    source      bytes to lines: compression, encoding, which format it is
    quoting     lines to fields: RFC 4180 or no quoting, and how a damaged row is kept from eating its neighbours
    delimited   CSV and TSV    \\
    jsonl       JSON lines      }  a table: column names, and records with their row numbers
    parquet     Parquet        /
    tables      which of the three
    columns     which column is the text, the second text, the label
    cells       one cell to a text or to label names, or to the reason why not
    corpus      all of it: ``read_corpus``
    rows        the same for prediction, in bounded memory: ``iter_text_rows``
    labels      label names to targets, counts and class weights
    split       a stratified held-out part without leaks

One law holds throughout: a row is kept whole or rejected with its number and a reason. No label is ever shifted, no
row ever disappears. Nothing is imported here: ``from qlassify.data.corpus import read_corpus``.
"""
