"""The 32-bit hash by which dropout decides: its numbers, for whoever computes it.

    h = place + low;  h ^= h >> 16;  h *= FIRST;  h ^= h >> 15;  h += high;  h *= SECOND;  h ^= h >> 16

All modulo 2^32; low and high are the halves of a 64-bit key. Multipliers and shifts are those of "lowbias32" (Wellons
2018), which come out nearly unbiased for counters. Keys have to be random: those that differ in one bit give masks
that are alike.
"""

FIRST, SECOND = 0x7FEB352D, 0x846CA68B
"""Multipliers."""
SHIFTS = (16, 15, 16)
"""Right shifts before, between and after them."""
