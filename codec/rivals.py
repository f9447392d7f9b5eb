"""The classical codecs that ours is measured against: JPEG, WebP and AVIF as Pillow encodes them.

Each runs at the settings that a careful user would choose for quality per byte, and says them wherever its numbers are
shown. Chroma: JPEG is at its common 4:2:0, WebP knows only 4:2:0, AVIF is at 4:4:4, where its PSNR is best.

    from codec.rivals import RIVALS
    data = RIVALS["avif"].encode(image, 50)
"""

import io
from dataclasses import dataclass
from typing import Any

from PIL import Image, features
from PIL import __version__ as PILLOW


@dataclass(frozen=True)
class Rival:
    """A codec of Pillow at fixed settings."""

    name: str
    """Name in tables, folders and on the command line, in lower case; Pillow's name of the format is the same."""
    suffix: str
    """File name ending, with the dot."""
    feature: str
    """What PIL.features calls the format."""
    options: dict[str, Any]
    """Keyword arguments of Image.save besides the quality."""
    qualities: tuple[int, ...]
    """Default qualities: on photographs about 0.1 to 2 bpp, and beyond 29 to 37 dB on both sides."""

    @property
    def settings(self) -> str:
        """The settings on one line, for the reader of a table."""
        return f"Pillow {PILLOW}, " + ", ".join(f"{key} {value}" for key, value in self.options.items())

    def encode(self, image: Image.Image, quality: int) -> bytes:
        """Return `image` (PIL, mode L or RGB) as a file of this format at `quality` (0..100).

        Raises OSError where Pillow was built without the format, OSError or ValueError where it refuses the image.
        """
        self.check()
        file = io.BytesIO()
        image.save(file, self.name.upper(), quality=quality, **self.options)
        return file.getvalue()

    def decode(self, data: bytes) -> Image.Image:
        """Return the decoded image (PIL) of a file of this format; raises OSError if `data` is no such file."""
        self.check()
        image = Image.open(io.BytesIO(data), formats=[self.name.upper()])
        image.load()
        return image

    def check(self) -> None:
        """Raise OSError where this Pillow was built without the format."""
        if not features.check(self.feature):
            raise OSError(
                f"{self.name}: this Pillow ({PILLOW}) was built without {self.name.upper()}; "
                "the wheels of Pillow 11.3 and later have it: pip install --upgrade pillow"
            )


RIVALS = {
    rival.name: rival
    for rival in (
        Rival(
            "jpeg",
            ".jpg",
            "jpg",
            {"subsampling": "4:2:0", "optimize": True},
            (5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 85, 90, 93),
        ),
        Rival("webp", ".webp", "webp", {"method": 6}, (0, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90)),
        Rival(
            "avif",
            ".avif",
            "avif",
            {"speed": 6, "subsampling": "4:4:4"},
            (10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80),
        ),
    )
}
