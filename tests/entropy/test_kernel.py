"""Compiled functions: machine code that is kept is taken without what compiling takes, and does the same."""

import pytest
from shared import in_fresh_python

from entropy import kernels_kept
from entropy.kernel import TRIED, numba_or_none

CODE = """
import sys
import numpy as np, entropy
from entropy import kernel
kernel.TRIED &= {tuple(map(int, number.split("."))) for number in sys.argv[1:]}
tables = entropy.Tables(np.array([8192, 8191, 1], np.uint16), np.array([3], np.int32), np.array([0], np.int32))
values = np.random.default_rng(0).integers(-3, 5, 5000, np.int32)
data = entropy.encode([(values, np.uint8(0), tables)])
assert (entropy.Decoder(data).decode(np.uint8(0), tables, values.shape) == values).all()
print(data.hex()[-64:], "numba.np.arraymath" in sys.modules)
"""


@pytest.mark.skipif(not kernels_kept(), reason="needs numba, and a folder for its machine code")
def test_kept_machine_code_is_loaded_without_what_compiling_takes():
    """With versions of numba that were tried; with others it is loaded as numba does it."""
    tried = [".".join(map(str, numbers)) for numbers in TRIED]
    in_fresh_python(CODE)  # compiled by now
    quick, whole = (in_fresh_python(CODE, *versions).stdout.split() for versions in (tried, []))
    assert quick[0] == whole[0] and whole[1] == "True"
    assert (quick[1] == "False") == (numba_or_none().version_info.short in TRIED)
