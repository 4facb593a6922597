"""A trained classifier in other libraries' formats: transformers, PEFT, sentence-transformers, ONNX.

Each format has a file that writes it. What is written is loaded again with the library that it is for and compared with
the classifier it came from, on the run's validation rows, before it gets its place: an export that gives other logits
is an error, not a surprise in production.
"""
