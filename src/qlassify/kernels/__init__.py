"""Loops that no library has, compiled by numba for the processor at hand: for the CPU, computed in fp32.

``compiling`` turns a function into machine code and keeps it; ``vectors`` are the inner loops in LLVM's own vector
instructions; ``attention`` and ``drop`` are what the model's rooms call. Everything here has a plain torch
counterpart in the room that calls it, which runs on every device and type and is what tests hold it against.
"""
