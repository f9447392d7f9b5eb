"""What is found in an image file, and how it is read: by pieces that end where they say or where the file does.

These files come from anywhere. Every length in them is held against what is there, no piece of metadata larger than a
.lic file may hold is read, and of pieces no more than MOST.
"""

import struct
from dataclasses import dataclass, field
from typing import IO, Any

from codec.container import colour

LARGEST = 1 << 24  # bytes of one of them; larger than what cameras and editors write
MOST = 1 << 16  # chunks, segments or boxes of a file that are looked at
GAIN_MAP, PICTURES = "gain map (HDR)", "further pictures (MPF)"
ASIDE = {GAIN_MAP, PICTURES}  # what a phone adds to a photograph that is whole without it
ICC, EXIF, XMP, CICP = "icc_profile", "exif", "xmp", "cicp"  # keys of `info`


class Ends(Exception):
    """There is less in a file than it says."""


SHORT = (Ends, struct.error, IndexError)  # what reading a damaged file raises


@dataclass
class Found:
    """What a file has beside what Pillow tells."""

    info: dict[str, Any] = field(default_factory=dict)  # as metadata.of has it
    lost: dict[str, None] = field(default_factory=dict)  # names of what cannot be kept, in their order
    deep: bool = False  # more than 8 bits a sample
    room: int = LARGEST  # bytes that may yet be inflated

    def keep(self, key: str, value: Any) -> None:
        """Of several the first."""
        if value:
            self.info.setdefault(key, value)

    def lose(self, name: str) -> None:
        self.lost[name] = None

    def keep_code_points(self, cicp: tuple[int, ...]) -> None:
        """Code points of H.273 that say more than sRGB; lost if they are none that RGB can have."""
        if checked := colour.checked(cicp):
            if not colour.is_srgb(checked):
                self.keep(CICP, checked)
        else:
            self.lose(f"CICP {'/'.join(map(str, cicp))}")


class Bytes:
    """Part of a file."""

    def __init__(self, file: IO[bytes], end: int, begin: int = 0):
        self.file, self.begin, self.end = file, begin, end

    def at(self, place: int, count: int) -> bytes:
        """`count` bytes from `place` on, counted from the begin of the part."""
        if not 0 <= count <= self.end - self.begin - place:
            raise Ends
        self.file.seek(self.begin + place)
        return self.file.read(count)

    def part(self, place: int, count: int) -> "Bytes":
        if not 0 <= count <= self.end - self.begin - place:
            raise Ends
        return Bytes(self.file, self.begin + place + count, self.begin + place)

    def all(self) -> bytes:
        """Nothing if that is more than is kept of anything."""
        return self.at(0, len(self)) if len(self) <= LARGEST else b""

    def __len__(self) -> int:
        return self.end - self.begin
