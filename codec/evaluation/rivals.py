"""The classical codecs that ours is measured against: JPEG, JPEG 2000, WebP, AVIF and JPEG XL, through Pillow.

Each has the settings that a careful user would choose for quality per byte; they are shown with its figures. Chroma is
at 4:2:0 for JPEG, as is common, and for WebP, which has nothing else; at 4:4:4 for AVIF, where its PSNR is best, and at
4:2:0 for avif-420. JPEG XL needs a plugin of Pillow, pillow-jxl-plugin of the extra `perceptual`, which is imported
only if jxl is used.

    from codec.evaluation.rivals import RIVALS
    data = RIVALS["avif"].encode(image, 50)
"""

import importlib
import importlib.metadata
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image, features
from PIL import __version__ as PILLOW


@dataclass(frozen=True)
class Rival:
    """A codec of Pillow at fixed settings."""

    name: str
    """Name in tables, folders and on the command line."""
    format: str
    """Pillow's name of the format."""
    suffix: str
    """File name ending, with the dot."""
    options: dict[str, Any]
    """Keyword arguments of Image.save besides the quality."""
    qualities: tuple[int, ...]
    """Default qualities: about 0.1 to 2 bpp on photographs, and more than 29 to 37 dB."""
    quality_options: Callable[[int], dict[str, Any]] = lambda quality: {"quality": quality}
    """Quality 0..100 -> keyword arguments of Image.save."""
    feature: str | None = None
    """Name of the format in PIL.features; None if a plugin adds it."""
    plugin: tuple[str, str] | None = None
    """Module and package that add the format to Pillow."""

    @property
    def settings(self) -> str:
        """The settings on one line, for the reader of a table."""
        plugin = f" with {self.plugin[1]} {importlib.metadata.version(self.plugin[1])}" if self.plugin else ""
        return f"Pillow {PILLOW}{plugin}, " + ", ".join(f"{key} {value}" for key, value in self.options.items())

    def encode(self, image: Image.Image, quality: int) -> bytes:
        """`image` (PIL, mode L or RGB) as a file of this format at `quality` (0..100).

        Raises OSError if Pillow lacks the format, OSError or ValueError if it refuses the image.
        """
        self.check()
        file = io.BytesIO()
        image.save(file, self.format, **self.quality_options(quality), **self.options)
        return file.getvalue()

    def decode(self, data: bytes) -> Image.Image:
        """The decoded image (PIL) of a file of this format; OSError if `data` is no such file."""
        self.check()
        image = Image.open(io.BytesIO(data), formats=[self.format])
        image.load()
        return image

    def check(self) -> None:
        """OSError if Pillow lacks the format."""
        if self.plugin:
            try:
                importlib.import_module(self.plugin[0])
            except ImportError as error:
                raise OSError(f"{self.name}: {error}; pip install -e '.[perceptual]', or {self.plugin[1]}") from None
        elif not features.check(self.feature):
            raise OSError(
                f"{self.name}: this Pillow ({PILLOW}) was built without {self.format}; "
                "the wheels of Pillow 11.3 and later have it: pip install --upgrade pillow"
            )


# With one thread AVIF's encoder makes other files (Kodak: 0.7 % larger, 0.03 dB better at quality 10) than with more
THREADS = max(2, os.cpu_count() or 1)

RIVALS = {
    rival.name: rival
    for rival in (
        Rival(
            "jpeg",
            "JPEG",
            ".jpg",
            {"subsampling": "4:2:0", "optimize": True},
            (5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 85, 90, 93),
            feature="jpg",
        ),
        Rival(
            "jpeg2000",
            "JPEG2000",
            ".j2k",
            {"quality_mode": "rates", "irreversible": True, "mct": 1, "no_jp2": True},
            (5, 12, 18, 24, 30, 36, 42, 48, 54, 60, 66, 74),
            quality_options=lambda quality: {"quality_layers": [300 * 0.01 ** (quality / 100)]},  # ratios 300 to 3
            feature="jpg_2000",
        ),
        Rival(
            "webp", "WEBP", ".webp", {"method": 6}, (0, 2, 5, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90), feature="webp"
        ),
        *(
            Rival(
                name,
                "AVIF",
                ".avif",
                {"speed": 6, "subsampling": subsampling, "max_threads": THREADS},
                (10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 80),
                feature="avif",
            )
            for name, subsampling in (("avif", "4:4:4"), ("avif-420", "4:2:0"))
        ),
        Rival(
            "jxl",
            "JXL",
            ".jxl",
            {"effort": 7},
            (5, 10, 15, 20, 30, 40, 50, 60, 70, 80, 85, 90, 93),
            plugin=("pillow_jxl", "pillow-jxl-plugin"),
        ),
    )
}
