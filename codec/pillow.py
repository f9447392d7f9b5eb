"""A Pillow plugin that reads and writes .lic files.

    import codec.pillow
    codec.pillow.register()                      # for this process; importing the module alone changes nothing

    with Image.open("photo.lic") as image:       # size, mode and metadata; pixels when they are asked for
        image.save("photo.png")
    image.save("photo.lic", quality=60)          # 0 to 100; model=, a name or a file, if not the default

As in other plugins, `exif=`, `icc_profile=`, `xmp=` and `dpi=` replace what `image.info` has. A damaged file, or one
whose model is not available, raises OSError with one line.
"""

from __future__ import annotations

import sys
import warnings
from typing import IO

from PIL import Image, ImageFile

import codec
from codec.container import bitstream, metadata
from codec.container.bitstream import FormatError

FORMAT = "LIC"


class LicImageFile(ImageFile.ImageFile):
    """An open .lic file; its checksums are verified when it is opened."""

    format = FORMAT
    format_description = "lic, learned image compression"

    def _open(self) -> None:
        data = self.fp.read()
        if not _accept(data):
            raise SyntaxError("not a .lic file")
        try:
            header, sections = bitstream.read(data, max_pixels=sys.maxsize)  # Pillow has a limit of its own
            self.info.update(metadata.unpack(sections, header.mode in metadata.GRAY))
        except FormatError as error:
            raise OSError(str(error)) from error
        limit = Image.MAX_IMAGE_PIXELS  # Pillow refuses twice that; here thin images count as wider ones
        if limit and (excess := bitstream.beyond(header.width, header.height, 2 * limit)):
            raise Image.DecompressionBombError(excess)
        self._size, self._mode = (header.width, header.height), header.mode
        self._coded: bytes | None = data

    def load(self) -> Image.core.PixelAccess | None:
        """Decode the pixels, when they are first used."""
        if self._coded is not None:
            from codec.coding.models import ModelError

            try:
                self.im = codec.decompress(self._coded, max_pixels=sys.maxsize).im
            except (FormatError, ModelError) as error:
                raise OSError(str(error)) from error
            self._coded = None
            if self._exclusive_fp and self.fp is not None:
                self.fp.close()
            self.fp = None
        return super().load()


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(bitstream.MAGIC)


def _save(image: Image.Image, fp: IO[bytes], filename: str | bytes) -> None:
    """Image.save for .lic: `model` and `quality` are its options, beside metadata."""
    from codec.coding import models as checkpoint
    from codec.container import modes

    options = image.encoderinfo
    model = checkpoint.shared_model(options.get("model") or checkpoint.DEFAULT, device=codec.pick_device("auto"))
    given = {key: options[key] for key in metadata.NAMES if key in options}
    if isinstance(given.get("exif"), Image.Exif):
        given["exif"] = given["exif"].tobytes()
    try:
        modes.check(image)
    except modes.UnsupportedImage as error:
        raise OSError(str(error)) from error
    if lost := modes.load(image):
        warnings.warn(modes.not_kept(lost), stacklevel=3)  # where save was called
    kept = {key: value for key, value in image.info.items() if key not in metadata.SOURCES}
    known = metadata.of(image) | given
    image = image.copy()  # without its file, which was read above
    image.info = kept | {key: value for key, value in known.items() if value}
    quality = options.get("quality", codec.DEFAULT_QUALITY if model.config.variable_rate else None)
    fp.write(model.compress(image, quality))


def register() -> None:
    """Register the plugin with Pillow, for this process."""
    Image.register_open(FORMAT, LicImageFile, _accept)
    Image.register_save(FORMAT, _save)
    Image.register_extension(FORMAT, ".lic")
    Image.register_mime(FORMAT, "image/x-lic")
