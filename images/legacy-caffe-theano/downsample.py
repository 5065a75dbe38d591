# Copyright: Slipway contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""theano.tensor.signal.downsample, which Lasagne 0.1 imports and Theano 1.0 no longer has."""

from theano.tensor.signal.pool import pool_2d


def max_pool_2d(input, ds, ignore_border=None, st=None, padding=(0, 0), mode="max"):
    """Pool as pool_2d does, under the names that the parameters had."""
    return pool_2d(input, ds, ignore_border, st, padding, mode)
