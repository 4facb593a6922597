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
    long_texts  what is read of a text that is longer than the limit
    labels      label names to targets, counts and class weights
    split       a stratified held-out part without leaks

What is looked for in the rows, and changes none of them (put in order by ``auditing``):

    findings        how a finding is said, and how grave it is
    label_balance   rows of each label, and two spellings of one
    token_lengths   lengths, truncation, texts that are hardly any
    long_reading    how much of the texts each policy for long ones reads
    repeats         one text in several rows, with one label or with several
    shingles        texts as sets of short windows of characters, compiled
    similar         pairs of texts that are alike, and their groups
    near_duplicates texts that are nearly the same
    passages        texts of one source: they share passages
    leaks           what one part knows of another
    damage          traces of a wrong conversion
    giveaways       single words that settle the label

One law holds throughout: a row is kept whole or rejected with its number and a reason. No label is ever shifted, no
row ever disappears. Nothing is imported here: ``from qlassify.data.corpus import read_corpus``.
"""
