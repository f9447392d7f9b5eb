"""Whether a file that was just made decodes to what went into it: `lic compress --verify`.

The symbols that the entropy decoder finds must be those that the encoder had; the image must have the size, mode and
metadata of the source, its alpha plane, or all of it where it is kept without loss, to the last bit. The pixels that
the network makes of the right symbols are not judged.

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
    """A file does not say what was meant."""


class _Digest:
    """Of the symbols of a file, however its y is cut into rows."""

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
    """Remembers the symbols that are encoded of an image, at each quality that is tried."""

    def __init__(self):
        self.seen: dict[int | None, _Digest] = {}

    def __call__(
        self, quality: int | None, y: NDArray[np.int32] | None = None, z: NDArray[np.int32] | None = None, **_: float
    ) -> None:
        self.seen.setdefault(quality, _Digest()).add(y, z)

    def check(self, model: Codec, data: bytes, image: Image.Image) -> None:
        """Mismatch if the file that was made of this image says something else; FormatError if it is damaged."""
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
