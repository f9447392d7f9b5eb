"""Lossless coding of integers: frequency tables and an interleaved rANS coder.

`Tables` holds the integer frequency tables of a model, `encode` turns arrays of int32 into bytes and `Decoder` turns
them back; entropy/rans.py has the format and an example.  Importing this package needs NumPy alone.  The kernels are
compiled by numba on their first use (`kernels_cached` tells whether that has happened on this machine); without numba
the same bytes are read and written in plain Python, a hundred times slower.
"""

from entropy.context import Context
from entropy.rans import Decoder, encode, encode_adapted, kernels_cached, kernels_kept
from entropy.tables import PRECISION, Tables
from entropy.varint import StreamError

__all__ = [
    "PRECISION", "Context", "Decoder", "StreamError", "Tables", "encode", "encode_adapted", "kernels_cached",
    "kernels_kept",
]  # fmt: skip
