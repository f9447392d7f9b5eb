"""Units and limits of the exact layers (entropy/integer.py), and a check that a layer stays below 2**53; NumPy only."""

import numpy as np
from numpy.typing import NDArray

ACTIVATION_BITS = 8  # an activation of 1.0 is the integer 2**8
WEIGHT_BITS = 12  # a weight of 1.0 is the integer 2**12
LARGEST = 2.0**16 - 1  # activations between layers are clamped to 0..LARGEST, 0 to 256 in real units
EXACT = 2.0**53  # integers below it are exact in float64


def check_bound(weight: NDArray[np.float32], bias: NDArray[np.float32], largest: float, offset: float = 0.0) -> None:
    """Check that every sum of a layer is exact, in any order of summation; ValueError otherwise.

    weight (C', C, k, k) and bias (C',) in real units; inputs have magnitudes up to `largest`, offsets up to `offset`,
    both in steps of 2**-8.
    """
    steps = np.abs(np.rint(weight.astype(np.float64) * 2.0**WEIGHT_BITS))
    reach = steps.reshape(len(steps), -1).sum(1) * largest + 2**WEIGHT_BITS * offset
    reach += np.abs(np.rint(bias.astype(np.float64) * 2.0 ** (WEIGHT_BITS + ACTIVATION_BITS)))
    if not (reach < EXACT).all():
        channel = int(reach.argmax())
        raise ValueError(f"output channel {channel} can reach {reach[channel]:.3g}; 2**53 is the limit")
