"""Attention of packed texts, each text and head by itself: no padding, no copies of queries, values or results.

    P = softmax(factor * Q K^T + mask)    O = P V
    dV = P^T dO    dS = P (dO V^T - rowsum(P dO V^T))    dQ = factor * dS K    dK = factor * dS^T Q

A text's rows lie one after another, heads beside each other or one after another, so every operand of these products
is read and written where it is, by its strides; only K (and, for backward, V) is transposed into a small buffer. A
text's result depends on nothing but the text: not on what stands beside it, not on the number of threads.

Batched matrix products from a library need rectangles: all texts of a batch copied out and padded to the longest. For
texts of 5 to 40 tokens that is most of the time, and most of it is spent on places that hold nothing. What a thread
works in grows with the square of the longest text, so the caller takes the library's products for very long ones.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import torch
from torch import Tensor

from qlassify.kernels.compiling import OPTIONS
from qlassify.kernels.team import Kernel, bits, edge, fp32_of, next_part, numbers_of, part_done, whole_at
from qlassify.kernels.texts import LANES, Texts
from qlassify.kernels.vectors import (
    add_1x16,
    add_1x32,
    add_4x16,
    add_4x32,
    fill,
    product_1x16,
    product_1x32,
    product_4x16,
    product_4x32,
    row_softmax,
    row_softmax_backward,
    transpose_16,
)

# numba. L tokens of a text, W = L rounded up to 16, D and V dimensions of keys and values. Names ending in _at are
# addresses; _row and _head are elements from one token to the next and from one head to the next.


@numba.njit(**OPTIONS)
def _product(a, a_row, a_column, b, b_row, c, c_row, rows, columns, depth, factor, adds):  # type: ignore[no-untyped-def]
    """C = factor * A B, or C += it: tiles of 4 x 32, and what is left over in smaller ones."""
    column = 0
    while column < columns:
        wide = columns - column >= 32
        b_at = b + 4 * column
        row = 0
        while row < rows:
            a_at, c_at = a + 4 * a_row * row, c + 4 * (c_row * row + column)
            if rows - row >= 4:
                if wide:
                    if adds:
                        add_4x32(a_at, a_row, a_column, b_at, b_row, c_at, c_row, depth, factor)
                    else:
                        product_4x32(a_at, a_row, a_column, b_at, b_row, c_at, c_row, depth, factor)
                elif adds:
                    add_4x16(a_at, a_row, a_column, b_at, b_row, c_at, c_row, depth, factor)
                else:
                    product_4x16(a_at, a_row, a_column, b_at, b_row, c_at, c_row, depth, factor)
                row += 4
            else:
                if wide:
                    if adds:
                        add_1x32(a_at, a_row, a_column, b_at, b_row, c_at, c_row, depth, factor)
                    else:
                        product_1x32(a_at, a_row, a_column, b_at, b_row, c_at, c_row, depth, factor)
                elif adds:
                    add_1x16(a_at, a_row, a_column, b_at, b_row, c_at, c_row, depth, factor)
                else:
                    product_1x16(a_at, a_row, a_column, b_at, b_row, c_at, c_row, depth, factor)
                row += 1
        column += 32 if wide else 16


@numba.njit(**OPTIONS)
def _transposed(source_at, row, length, columns, zeros_at, target_at, width):  # type: ignore[no-untyped-def]
    """(L, columns) -> (columns, W), zeros behind L."""
    for column in range(0, columns, 16):
        for first in range(0, width, 16):
            transpose_16(
                source_at + 4 * (row * first + column), row, length - first, zeros_at,
                target_at + 4 * (width * column + first), width,
            )  # fmt: skip


@numba.njit(**OPTIONS)
def _probabilities(q_at, q_row, kt_at, p_at, length, width, dim, factor, causal, window):  # type: ignore[no-untyped-def]
    """P (L, W) of one text and head; zero behind L and where a key is not visible."""
    _product(q_at, q_row, 1, kt_at, width, p_at, width, length, width, dim, factor, False)
    hidden = np.float32(-np.inf)
    for i in range(length):
        row_at = p_at + 4 * width * i
        stop = i + 1 if causal else length
        if window > 0:
            stop = min(stop, i + window)
            fill(row_at, 0, max(0, i - window + 1), hidden)
        fill(row_at, stop, width, hidden)
        row_softmax(row_at, width // 16)


@numba.njit(**OPTIONS)
def _room(starts_at, first, last):  # type: ignore[no-untyped-def]
    """W of the longest text."""
    longest = 0
    for text in range(first, last):
        longest = max(longest, whole_at(starts_at, text + 1) - whole_at(starts_at, text))
    return (longest + 15) // 16 * 16


# numba drops an array behind the last use of its name, not at the function's end: its address alone does not keep it.
# So what a loop works in by address is named once more behind the loop.


@numba.njit(**OPTIONS)
def _held(*arrays):  # type: ignore[no-untyped-def]
    """Nothing; its arguments live until it is called."""


# What both kernels get: query, key and value, each as address, elements from token to token and from head to head;
# addresses of the texts' starts and of their probabilities' places; heads, query heads per key head, D, V; the factor's
# bits, causal, window; the address of the kept probabilities, or 0. Then what is written.


@numba.njit(**OPTIONS)
def _forward(numbers, first, last):  # type: ignore[no-untyped-def]
    q, q_row, q_head = whole_at(numbers, 0), whole_at(numbers, 1), whole_at(numbers, 2)
    k, k_row, k_head = whole_at(numbers, 3), whole_at(numbers, 4), whole_at(numbers, 5)
    v, v_row, v_head = whole_at(numbers, 6), whole_at(numbers, 7), whole_at(numbers, 8)
    starts_at, places_at = whole_at(numbers, 9), whole_at(numbers, 10)
    heads, groups, dim, value_dim = (
        whole_at(numbers, 11),
        whole_at(numbers, 12),
        whole_at(numbers, 13),
        whole_at(numbers, 14),
    )
    factor, causal, window = fp32_of(whole_at(numbers, 15)), whole_at(numbers, 16), whole_at(numbers, 17)
    kept, out = whole_at(numbers, 18), whole_at(numbers, 19)
    room = _room(starts_at, first, last)
    kt, zeros = np.empty(dim * room, np.float32), np.zeros(16, np.float32)
    spare = np.empty(0 if kept != 0 else room * room, np.float32)
    kt_at, zeros_at, spare_at = kt.ctypes.data, zeros.ctypes.data, spare.ctypes.data
    one, out_row = np.float32(1), heads * value_dim
    for text in range(first, last):
        start = whole_at(starts_at, text)
        length = whole_at(starts_at, text + 1) - start
        width = (length + 15) // 16 * 16
        for head in range(heads):
            shared = head // groups
            if head % groups == 0:
                _transposed(k + 4 * (k_row * start + k_head * shared), k_row, length, dim, zeros_at, kt_at, width)
            p_at = spare_at
            if kept != 0:
                p_at = kept + 4 * (whole_at(places_at, text) * heads + head * length * width)
            q_at = q + 4 * (q_row * start + q_head * head)
            _probabilities(q_at, q_row, kt_at, p_at, length, width, dim, factor, causal, window)
            v_at = v + 4 * (v_row * start + v_head * shared)
            out_at = out + 4 * (out_row * start + value_dim * head)
            _product(p_at, width, 1, v_at, v_row, out_at, out_row, length, value_dim, length, one, False)
    _held(kt, zeros, spare)


@numba.njit(**OPTIONS)
def _backward(numbers, first, last):  # type: ignore[no-untyped-def]
    q, q_row, q_head = whole_at(numbers, 0), whole_at(numbers, 1), whole_at(numbers, 2)
    k, k_row, k_head = whole_at(numbers, 3), whole_at(numbers, 4), whole_at(numbers, 5)
    v, v_row, v_head = whole_at(numbers, 6), whole_at(numbers, 7), whole_at(numbers, 8)
    starts_at, places_at = whole_at(numbers, 9), whole_at(numbers, 10)
    heads, groups, dim, value_dim = (
        whole_at(numbers, 11),
        whole_at(numbers, 12),
        whole_at(numbers, 13),
        whole_at(numbers, 14),
    )
    factor, causal, window = fp32_of(whole_at(numbers, 15)), whole_at(numbers, 16), whole_at(numbers, 17)
    kept, grad, grad_q, grad_k, grad_v = (
        whole_at(numbers, 18),
        whole_at(numbers, 19),
        whole_at(numbers, 20),
        whole_at(numbers, 21),
        whole_at(numbers, 22),
    )
    room = _room(starts_at, first, last)
    transposed, zeros = np.empty(max(dim, value_dim) * room, np.float32), np.zeros(16, np.float32)
    spare = np.empty(0 if kept != 0 else room * room, np.float32)
    slopes = np.empty(room * room, np.float32)
    t_at, zeros_at, s_at = transposed.ctypes.data, zeros.ctypes.data, slopes.ctypes.data
    spare_at = spare.ctypes.data
    one, shared_heads = np.float32(1), heads // groups
    q_columns, k_columns, v_columns = heads * dim, shared_heads * dim, shared_heads * value_dim
    for text in range(first, last):
        start = whole_at(starts_at, text)
        length = whole_at(starts_at, text + 1) - start
        width = (length + 15) // 16 * 16
        for head in range(heads):
            shared, later = head // groups, head % groups != 0
            q_at, k_at = q + 4 * (q_row * start + q_head * head), k + 4 * (k_row * start + k_head * shared)
            v_at, g_at = v + 4 * (v_row * start + v_head * shared), grad + 4 * (heads * start + head) * value_dim
            p_at = spare_at
            if kept != 0:
                p_at = kept + 4 * (whole_at(places_at, text) * heads + head * length * width)
            else:
                _transposed(k_at, k_row, length, dim, zeros_at, t_at, width)
                _probabilities(q_at, q_row, t_at, p_at, length, width, dim, factor, causal, window)
            g_row = heads * value_dim
            gv_at = grad_v + 4 * (v_columns * start + shared * value_dim)
            _product(p_at, 1, width, g_at, g_row, gv_at, v_columns, length, value_dim, length, one, later)
            _transposed(v_at, v_row, length, value_dim, zeros_at, t_at, width)
            _product(g_at, g_row, 1, t_at, width, s_at, width, length, width, value_dim, one, False)
            for i in range(length):
                row_softmax_backward(p_at + 4 * width * i, s_at + 4 * width * i, width // 16)
            gq_at = grad_q + 4 * (q_columns * start + head * dim)
            _product(s_at, width, 1, k_at, k_row, gq_at, q_columns, length, dim, length, factor, False)
            gk_at = grad_k + 4 * (k_columns * start + shared * dim)
            _product(s_at, 1, width, q_at, q_row, gk_at, k_columns, length, dim, length, factor, later)
    _held(transposed, zeros, spare, slopes)


def _forward_task(data):  # type: ignore[no-untyped-def]
    part = next_part(data)
    while part >= 0:
        _forward(numbers_of(data), edge(data, part), edge(data, part + 1))
        part_done(data)
        part = next_part(data)


def _backward_task(data):  # type: ignore[no-untyped-def]
    part = next_part(data)
    while part >= 0:
        _backward(numbers_of(data), edge(data, part), edge(data, part + 1))
        part_done(data)
        part = next_part(data)


_FORWARD, _BACKWARD = Kernel(_forward, _forward_task), Kernel(_backward, _backward_task)


# Calls


@dataclass(frozen=True, slots=True)
class Mask:
    """Which keys a query sees.

    Attributes:
        causal: none behind it.
        window: only those at a distance below it; 0 for all.
    """

    causal: bool
    window: int


def forward(
    query: Tensor, key: Tensor, value: Tensor, texts: Texts, mask: Mask, factor: float, *, keep: bool
) -> tuple[Tensor, Tensor | None]:
    """Attention of each text to itself; on the meta device the shapes of it.

    Args:
        query: (T, heads, D) fp32, D a multiple of 16 as is V.
        key: (T, K, D), where K divides heads.
        value: (T, K, V).
        texts: where they lie.
        mask: which keys are seen.
        factor: on the scores.
        keep: also return the probabilities, for ``backward``.

    Returns:
        (T, heads, V), and the probabilities or None.
    """
    query, key, value = _rows(query), _rows(key), _rows(value)
    heads, dim, value_dim = query.shape[1], query.shape[2], value.shape[2]
    out = query.new_empty(len(query), heads, value_dim)
    kept = query.new_empty(int(texts.places[-1]) * heads) if keep else None
    if query.is_meta:
        _work_space(query, value, texts, squares=0 if keep else 1)
        return out, kept
    numbers = _numbers((query, key, value), texts, mask, factor, kept)
    _FORWARD.run((*numbers, out.data_ptr()), texts.edges(heads, dim))
    return out, kept


def backward(
    grad: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    kept: Tensor | None,
    texts: Texts,
    mask: Mask,
    factor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value.

    Args:
        grad: (T, heads, V) of the result.
        inputs: query, key and value as they were given to ``forward``.
        kept: the probabilities that it returned.
        texts: as there.
        mask: as there.
        factor: as there.
    """
    query, key, value = (_rows(tensor) for tensor in inputs)
    grad = grad.contiguous()
    heads, dim = query.shape[1], query.shape[2]
    grads = query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
    if query.is_meta:
        _work_space(query, value, texts, squares=1 if kept is not None else 2)
        return grads
    numbers = _numbers((query, key, value), texts, mask, factor, kept)
    written = (grad.data_ptr(), *(tensor.data_ptr() for tensor in grads))
    _BACKWARD.run((*numbers, *written), texts.edges(heads, dim))
    return grads


def _work_space(query: Tensor, value: Tensor, texts: Texts, *, squares: int) -> Tensor:
    """As much as the threads allocate inside the kernels, for whoever counts memory on the meta device.

    Args:
        query: (T, heads, D).
        value: (T, K, V).
        texts: where they lie.
        squares: matrices of scores of a text and head that a thread holds.
    """
    width = -(-int(np.diff(texts.starts).max()) // LANES) * LANES
    parts = len(texts.edges(query.shape[1], query.shape[2])) - 1
    threads = min(parts, torch.get_num_threads())
    return query.new_empty(threads, width, squares * width + max(query.shape[2], value.shape[2]))


def _rows(tensor: Tensor) -> Tensor:
    """With each head's numbers side by side."""
    return tensor if tensor.stride(2) == 1 else tensor.contiguous()


def _numbers(
    inputs: tuple[Tensor, Tensor, Tensor], texts: Texts, mask: Mask, factor: float, kept: Tensor | None
) -> tuple[int, ...]:
    """What both kernels get."""
    query, key, value = inputs
    places = [number for tensor in inputs for number in (tensor.data_ptr(), tensor.stride(0), tensor.stride(1))]
    shape = query.shape[1], query.shape[1] // key.shape[1], query.shape[2], value.shape[2]
    rule = bits(factor), int(mask.causal), mask.window
    return (
        *places, texts.starts.ctypes.data, texts.places.ctypes.data, *shape, *rule,
        0 if kept is None else kept.data_ptr(),
    )  # fmt: skip
