"""Lossless coding of integers: frequency tables and an interleaved rANS coder.

`entropy.Tables` holds the integer frequency tables of a model, `entropy.encode` turns arrays of integers into bytes and
`entropy.Decoder` turns them back.  Importing this package needs NumPy only; the kernels are compiled by numba on their
first use and run, slowly but with the same bytes, in plain Python where numba is not installed.

    >>> import numpy as np
    >>> import entropy
    >>> tables = entropy.Tables.from_pmfs([np.array([0.1, 0.8, 0.1])], offsets=[-1])
    >>> values = np.array([0, 0, -1, 0, 1, 0, 1000], np.int32)
    >>> data = entropy.encode([(values, np.uint8(0), tables)])
    >>> decoder = entropy.Decoder(data)
    >>> decoder.decode(np.uint8(0), tables, shape=values.shape)
    array([   0,    0,   -1,    0,    1,    0, 1000], dtype=int32)
    >>> decoder.finish()
"""

from entropy.rans import Decoder, StreamError, encode, kernels_cached
from entropy.tables import PRECISION, Tables

__all__ = ["PRECISION", "Decoder", "StreamError", "Tables", "encode", "kernels_cached"]
