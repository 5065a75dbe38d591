# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The kernels of the CUDA check as PTX text, and the results that the CPU expects.

PTX 3.1 for sm_30 is the oldest text that works on every GPU of ``gpu.tables``: Kepler, the oldest
architecture there, starts at sm_30, and a driver compiles PTX for any GPU from its target on.
Drivers accept every older PTX version: branch 470 supports PTX up to 7.4, and the compiler of CUDA
13.0 was tested with this text for sm_75, sm_80, sm_90, sm_100 and sm_120.

All arithmetic is exact (32-bit integers, or floats that hold small integers), so results are
compared byte by byte. Runs on Python 3.8 and newer.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Callable
from functools import lru_cache
from operator import mul

# Words of one block of the address pattern: 1 MiB. The kernel has the same number as a mask.
BLOCK_WORDS = 1 << 18
WORD_BYTES = 4
# Odd factors, so that every bit of a word's address changes the word.
LOW_FACTOR = 0x9E3779B1
HIGH_FACTOR = 0x85EBCA77
# The two fill patterns set every bit of memory once to 0 and once to 1.
FILL_PATTERNS = (0xA5A5A5A5, 0x5A5A5A5A)
VECTOR_WORDS = 1 << 20
MATRIX_ORDER = 128
# After so many rows and columns the numbers of the matrices repeat.
LEFT_PERIOD, RIGHT_PERIOD = 32, 16
# Large enough to keep a GPU busy; the product's largest number stays below 2**24.
LOAD_ORDER = 2048
# For a simulated GPU, which computes on one CPU.
SMALL_LOAD_ORDER = 64
MAX_LOAD_ORDER = 8192

FILL, SUM, PRODUCT = "slipway_fill_addresses", "slipway_vector_sum", "slipway_matrix_product"

# Each thread starts at its number in the grid and continues in steps of the grid's size.
PTX = f"""\
.version 3.1
.target sm_30
.address_size 64

.visible .entry {FILL}(.param .u64 output, .param .u32 words)
{{
    .reg .pred %end;
    .reg .u32 %index, %limit, %step, %low, %high, %width;
    .reg .u64 %base, %address;
    ld.param.u64 %base, [output];
    cvta.to.global.u64 %base, %base;
    ld.param.u32 %limit, [words];
    mov.u32 %width, %ntid.x;
    mov.u32 %step, %nctaid.x;
    mul.lo.u32 %step, %step, %width;
    mov.u32 %index, %ctaid.x;
    mul.lo.u32 %index, %index, %width;
    mov.u32 %low, %tid.x;
    add.u32 %index, %index, %low;
next_word:
    setp.ge.u32 %end, %index, %limit;
    @%end bra finish;
    and.b32 %low, %index, {BLOCK_WORDS - 1};
    shr.u32 %high, %index, {BLOCK_WORDS.bit_length() - 1};
    mul.lo.u32 %low, %low, {LOW_FACTOR};
    mul.lo.u32 %high, %high, {HIGH_FACTOR};
    xor.b32 %low, %low, %high;
    mul.wide.u32 %address, %index, 4;
    add.u64 %address, %base, %address;
    st.global.u32 [%address], %low;
    add.u32 %index, %index, %step;
    bra next_word;
finish:
    ret;
}}

.visible .entry {SUM}(.param .u64 left, .param .u64 right, .param .u64 output, .param .u32 words)
{{
    .reg .pred %end;
    .reg .u32 %index, %limit, %width, %a, %b;
    .reg .u64 %left, %right, %output, %offset;
    ld.param.u64 %left, [left];
    ld.param.u64 %right, [right];
    ld.param.u64 %output, [output];
    ld.param.u32 %limit, [words];
    cvta.to.global.u64 %left, %left;
    cvta.to.global.u64 %right, %right;
    cvta.to.global.u64 %output, %output;
    mov.u32 %index, %ctaid.x;
    mov.u32 %width, %ntid.x;
    mul.lo.u32 %index, %index, %width;
    mov.u32 %a, %tid.x;
    add.u32 %index, %index, %a;
    setp.ge.u32 %end, %index, %limit;
    @%end bra finish;
    mul.wide.u32 %offset, %index, 4;
    add.u64 %left, %left, %offset;
    add.u64 %right, %right, %offset;
    add.u64 %output, %output, %offset;
    ld.global.u32 %a, [%left];
    ld.global.u32 %b, [%right];
    add.u32 %a, %a, %b;
    st.global.u32 [%output], %a;
finish:
    ret;
}}

.visible .entry {PRODUCT}(.param .u64 left, .param .u64 right, .param .u64 output,
    .param .u32 order)
{{
    .reg .pred %end;
    .reg .u32 %index, %order, %row, %column, %k, %at;
    .reg .u64 %left, %right, %output, %offset;
    .reg .f32 %a, %b, %sum;
    ld.param.u64 %left, [left];
    ld.param.u64 %right, [right];
    ld.param.u64 %output, [output];
    ld.param.u32 %order, [order];
    cvta.to.global.u64 %left, %left;
    cvta.to.global.u64 %right, %right;
    cvta.to.global.u64 %output, %output;
    mov.u32 %index, %ctaid.x;
    mov.u32 %k, %ntid.x;
    mul.lo.u32 %index, %index, %k;
    mov.u32 %k, %tid.x;
    add.u32 %index, %index, %k;
    mul.lo.u32 %at, %order, %order;
    setp.ge.u32 %end, %index, %at;
    @%end bra finish;
    div.u32 %row, %index, %order;
    rem.u32 %column, %index, %order;
    mov.f32 %sum, 0f00000000;
    mov.u32 %k, 0;
next_term:
    mad.lo.u32 %at, %row, %order, %k;
    mul.wide.u32 %offset, %at, 4;
    add.u64 %offset, %left, %offset;
    ld.global.f32 %a, [%offset];
    mad.lo.u32 %at, %k, %order, %column;
    mul.wide.u32 %offset, %at, 4;
    add.u64 %offset, %right, %offset;
    ld.global.f32 %b, [%offset];
    fma.rn.f32 %sum, %a, %b, %sum;
    add.u32 %k, %k, 1;
    setp.lt.u32 %end, %k, %order;
    @%end bra next_term;
    mul.wide.u32 %offset, %index, 4;
    add.u64 %output, %output, %offset;
    st.global.f32 [%output], %sum;
finish:
    ret;
}}
"""


@lru_cache(maxsize=1)
def first_block() -> bytes:
    """Return the first block of the address pattern, little-endian."""
    words = array("I", ((i * LOW_FACTOR) & 0xFFFFFFFF for i in range(BLOCK_WORDS)))
    return _little_endian(words)


def block(first: bytes, number: int) -> bytes:
    """Return block NUMBER of the address pattern, made from the FIRST block."""
    factor = (number * HIGH_FACTOR) & 0xFFFFFFFF
    change = struct.pack("<I", factor) * (len(first) // WORD_BYTES)
    changed = int.from_bytes(first, "little") ^ int.from_bytes(change, "little")
    return changed.to_bytes(len(first), "little")


@lru_cache(maxsize=1)
def blocks(count: int) -> bytes:
    """Return the first COUNT blocks of the address pattern."""
    first = first_block()
    return b"".join(block(first, number) for number in range(count))


def fill(pattern: int, size: int) -> bytes:
    """Return SIZE bytes of a 32-bit PATTERN, little-endian."""
    return struct.pack("<I", pattern) * (size // WORD_BYTES)


@lru_cache(maxsize=1)
def vectors() -> tuple[bytes, bytes, bytes]:
    """Return two vectors of 32-bit integers and their sum; the sum passes 2**32 and wraps."""
    start = 0xFFF00000
    left = array("I", range(start, start + VECTOR_WORDS))
    right = array("I", range(0, 2 * VECTOR_WORDS, 2))
    total = array("I", ((start + 3 * i) & 0xFFFFFFFF for i in range(VECTOR_WORDS)))
    return _little_endian(left), _little_endian(right), _little_endian(total)


@lru_cache(maxsize=1)
def matrices() -> tuple[bytes, bytes, bytes]:
    """Return two square matrices of 32-bit floats and their product, row by row.

    The numbers are integers below 32 and 16, so every partial sum is below 2**24 and exact.
    """
    order = range(MATRIX_ORDER)
    left = [[float(_left(row, column)) for column in order] for row in order]
    right = [[float(_right(row, column)) for column in order] for row in order]
    columns = list(zip(*right))
    product = [[sum(map(mul, row, column)) for column in columns] for row in left]
    return _floats(left), _floats(right), _floats(product)


def load_matrices(order: int) -> tuple[bytes, bytes, bytes]:
    """Return two square matrices of an ORDER, a multiple of 32, and their product.

    Their numbers are those of :func:`matrices`. They repeat after LEFT_PERIOD rows and columns of
    the left one and RIGHT_PERIOD of the right one, and so do those of the product.
    """
    terms = [
        [
            sum(_left(row, k) * _right(k, column) for k in range(LEFT_PERIOD))
            for column in range(RIGHT_PERIOD)
        ]
        for row in range(LEFT_PERIOD)
    ]
    times = order // LEFT_PERIOD
    left = _rows(order, LEFT_PERIOD, _left)
    right = _rows(order, RIGHT_PERIOD, _right)
    product = _rows(order, LEFT_PERIOD, lambda row, at: times * terms[row][at % RIGHT_PERIOD])
    return left, right, product


def _left(row: int, column: int) -> int:
    return (3 * row + 5 * column) % LEFT_PERIOD


def _right(row: int, column: int) -> int:
    return (7 * row + column) % RIGHT_PERIOD


def _rows(order: int, period: int, number: Callable[[int, int], int]) -> bytes:
    """Return a square matrix of an ORDER whose rows and columns repeat after a PERIOD."""
    rows = [
        _little_endian(array("f", (float(number(row, column)) for column in range(period))))
        * (order // period)
        for row in range(period)
    ]
    return b"".join(rows) * (order // period)


def first_difference(expected: bytes, result: bytes) -> int:
    """Return the byte offset of the first 32-bit word that differs, -1 if none does."""
    if expected == result:
        return -1
    for offset in range(0, len(expected), WORD_BYTES):
        if expected[offset : offset + WORD_BYTES] != result[offset : offset + WORD_BYTES]:
            return offset
    return len(expected)


def _floats(rows: list[list[float]]) -> bytes:
    return _little_endian(array("f", (value for row in rows for value in row)))


def _little_endian(words: array[int] | array[float]) -> bytes:
    if sys.byteorder == "big":
        words.byteswap()
    return words.tobytes()
