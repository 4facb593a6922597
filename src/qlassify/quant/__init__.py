"""Frozen weights in few bits: formats, kernels, the linear layer that computes with them, and their files.

A weight is flattened row by row and cut into groups; each number becomes a code of 4 or 8 bits and each group keeps a
scale. ``tensor`` is the format, ``kernels`` turn weights into codes and back (three implementations, equal results),
``linear`` is the layer. What a layer learns on top of frozen codes is the business of ``methods``.
"""
