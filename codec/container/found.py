"""Findings about an image file, and bounds-checked reading of files.

Files come from anywhere: every length in them is checked against the length of the file, no metadata larger than a .lic
file may hold is read, and at most MOST chunks, segments or boxes.
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
    """A file is shorter than a length in it says."""


SHORT = (Ends, struct.error, IndexError)  # what reading a damaged file raises


@dataclass
class Found:
    """What a file has that Pillow does not report."""

    info: dict[str, Any] = field(default_factory=dict)  # as metadata.of has it
    lost: dict[str, None] = field(default_factory=dict)  # names of what cannot be kept, in their order
    deep: bool = False  # more than 8 bits a sample
    room: int = LARGEST  # bytes that may yet be inflated

    def keep(self, key: str, value: Any) -> None:
        """Keep a value in `info`, unless it is empty or the key has one."""
        if value:
            self.info.setdefault(key, value)

    def lose(self, name: str) -> None:
        """Note something that cannot be kept."""
        self.lost[name] = None

    def keep_code_points(self, cicp: tuple[int, ...]) -> None:
        """Keep code points of H.273 that mean more than sRGB; note them as lost if RGB cannot have them."""
        if checked := colour.checked(cicp):
            if not colour.is_srgb(checked):
                self.keep(CICP, checked)
        else:
            self.lose(f"CICP {'/'.join(map(str, cicp))}")


class Bytes:
    """A range of a file, from `begin` to `end`."""

    def __init__(self, file: IO[bytes], end: int, begin: int = 0):
        self.file, self.begin, self.end = file, begin, end

    def at(self, place: int, count: int) -> bytes:
        """`count` bytes from `place` on, counted from `begin`; raises Ends beyond the range."""
        if not 0 <= count <= self.end - self.begin - place:
            raise Ends
        self.file.seek(self.begin + place)
        return self.file.read(count)

    def part(self, place: int, count: int) -> "Bytes":
        """The range of `count` bytes from `place` on; raises Ends beyond this range."""
        if not 0 <= count <= self.end - self.begin - place:
            raise Ends
        return Bytes(self.file, self.begin + place + count, self.begin + place)

    def all(self) -> bytes:
        """All bytes of the range; none if there are more than LARGEST, which is the most that is kept."""
        return self.at(0, len(self)) if len(self) <= LARGEST else b""

    def __len__(self) -> int:
        return self.end - self.begin
