"""Verification that a new file decodes to what was encoded: `lic compress --verify`.

The decoded symbols must be those of the encoder. The image must have the size, mode and metadata of the source, and the
same alpha plane, or all the same pixels if it is kept without loss. Pixels that the network makes of the right symbols
are not checked.

    witness = Witness()
    data = model.compress(image, 50, witness=witness)
    witness.check(model, data, image)
"""

import hashlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from codec.coding.codec import Codec, assembled
from codec.container import bitstream, modes
from codec.errors import LicError


class Mismatch(LicError):
    """A file decodes to something else than was encoded."""


class _Digest:
    """A hash of the symbols of a file, which does not depend on how y is cut into rows of tiles."""

    def __init__(self) -> None:
        self.y, self.z = hashlib.blake2b(), b""

    def add(self, y: NDArray[np.int32] | None, z: NDArray[np.int32] | None) -> None:
        for line in range(0 if y is None else y.shape[2]):
            self.y.update(np.ascontiguousarray(y[:, :, line]))
        if z is not None:
            self.z = hashlib.blake2b(np.ascontiguousarray(z)).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Digest) and (self.y.digest(), self.z) == (other.y.digest(), other.z)


class Witness:
    """Remembers the symbols that are encoded of an image, at every quality tried; codec/coding/encoder.py calls it."""

    def __init__(self):
        self.seen: dict[int | None, _Digest] = {}

    def __call__(
        self, quality: int | None, y: NDArray[np.int32] | None = None, z: NDArray[np.int32] | None = None, **_: float
    ) -> None:
        self.seen.setdefault(quality, _Digest()).add(y, z)

    def check(self, model: Codec, data: bytes, image: Image.Image) -> None:
        """Mismatch if a file of this image decodes to something else; FormatError if it is damaged."""
        source = modes.prepare(image)
        header, sections = bitstream.read(data)
        exact = any(section.tag == bitstream.LOSSLESS for section in sections)
        if not exact:
            found = _Digest()
            for row, coded, z in model.decode_rows(header, sections):
                found.add(assembled(coded, (1, model.config.M, *row.shape)).y, z)
            if found != self.seen.get(header.quality):
                raise Mismatch("verification failed: other symbols are decoded than were encoded")
        decoded = model.decompress(data)
        if (decoded.size, decoded.mode) != (source.image.size, source.image.mode):
            kind = f"{decoded.width}x{decoded.height} {decoded.mode}"
            raise Mismatch(f"verification failed: {kind} instead of {image.width}x{image.height} {source.image.mode}")
        if decoded.info != source.info:
            raise Mismatch("verification failed: the metadata are others")
        if exact and decoded.tobytes() != source.image.tobytes():
            raise Mismatch("verification failed: the lossless image has other pixels")
        if source.has_alpha and decoded.getchannel("A").tobytes() != source.image.getchannel("A").tobytes():
            raise Mismatch("verification failed: the alpha plane is another")
