"""One file compressed, one file decompressed: what `lic compress` and `lic decompress` do with each.

Both are made in the process that reads the command line, and load a model where the first file that needs it is at
work (codec/batch/jobs.py).
"""

import contextlib
import io
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import codec
from codec import machine
from codec.batch.jobs import FatalError, complaint, say
from codec.batch.plan import Job
from codec.batch.progress import Progress
from codec.container import bitstream
from codec.errors import MENDABLE, LicError, explain
from codec.files import is_stream, read_bytes, write_bytes

if TYPE_CHECKING:
    from PIL import Image

    from codec.coding.codec import Codec, Witness
    from codec.container.modes import Corners

BEGINNINGS = {  # of files, by Pillow's names of formats
    "PNG": (b"\x89PNG\r\n\x1a\n",), "JPEG": (b"\xff\xd8\xff",), "WEBP": (b"RIFF",), "TIFF": (b"II*\0", b"MM\0*"),
    "BMP": (b"BM",), "GIF": (b"GIF8",), "AVIF": (b"\0\0\0",),
}  # fmt: skip


def announce_kernels(encode: bool = True, decode: bool = True) -> None:
    """Say so if the entropy coder's kernels will be compiled in this run, which happens once per machine."""
    import entropy

    if not entropy.kernels_cached(encode, decode):
        if entropy.kernels_kept():
            say("lic: first run on this machine: compiling the entropy coder, some seconds, once ...")
        else:
            say("lic: compiling the entropy coder, some seconds at each start: no folder in NUMBA_CACHE_DIR")


def why_again(job: Job, beginnings: tuple[bytes, ...], differs: Callable[[bytes], str | None]) -> str | None:
    """Why --resume makes a target again: "" if it is not there or damaged, None if it is not made again. `differs` says
    in what a file is another one than would be made, and raises what it likes for damage. LicError if the file is of
    another kind than one of the `beginnings` tells.
    """
    if is_stream(job.target) or not os.path.lexists(job.target):
        return ""
    data = Path(job.target).read_bytes()
    try:
        other = differs(data)
    except FatalError:
        raise
    except Exception as error:  # each of Pillow's decoders has classes of its own for damage
        if not any(data.startswith(beginning[: len(data)]) for beginning in beginnings):
            raise LicError(f"{job.target} exists, and is not what would be written there; -f replaces it") from error
        return ""
    if other is None and not is_stream(job.source) and os.path.getmtime(job.source) > os.path.getmtime(job.target):
        return "the input is newer"
    return other


def changed(source: str) -> int:
    """When an input was changed last, in nanoseconds; 0 of a stream."""
    return 0 if is_stream(source) else os.stat(source).st_mtime_ns


def not_before(target: str, moment: int) -> None:
    """Make a file no older than its input was, which a clock may have dated ahead: --resume would make it again."""
    if not is_stream(target) and os.stat(target).st_mtime_ns < moment:
        with contextlib.suppress(OSError):  # where times cannot be set
            os.utime(target, ns=(moment, moment))


def size_of_image(data: bytes) -> tuple[int, int]:
    """Width and height of an image file; raises what Pillow raises if it is damaged: as far as a PNG's checksums tell,
    or its pixels.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    with Image.open(io.BytesIO(data)) as image:
        image.verify() if image.format == "PNG" else image.load()
        return image.size


def made_again(job: Job, why: str | None) -> str:
    """A line about a file that --resume makes again, if there was one."""
    return f"{complaint(job.target, f'made again: {why}')}\n" if why else ""


def open_image(source: str, max_pixels: int, strict: bool) -> tuple["Image.Image", list[str]]:
    """A loaded PIL image that can be coded, and sentences about what of its file is not: further frames or pages, what
    no section can hold. LicError with them if `strict`.
    """
    from PIL import Image, UnidentifiedImageError

    from codec.container import found, modes, original

    Image.MAX_IMAGE_PIXELS = max_pixels  # Pillow refuses twice that, also of an image inside an icon
    data = read_bytes(source)
    if not data:
        raise LicError("the file is empty")
    damaged = []
    if data.startswith(BEGINNINGS["PNG"]):
        if original.has_damaged_pixels(data):
            raise LicError("damaged image: the checksum of its pixels is wrong")
        data, damaged = original.without_damaged_chunks(data)
    try:
        with warnings.catch_warnings(action="ignore"):  # of damage that does not matter
            image = Image.open(io.BytesIO(data))
            if excess := bitstream.beyond(*image.size, max_pixels):
                raise LicError(excess)
            modes.check(image)
            has_more = modes.has_more(image)
            lost = damaged + modes.load(image)
    except UnidentifiedImageError:
        if data.startswith(BEGINNINGS["JPEG"]) and (original.bits_of_jpeg(data) or 8) > 8:
            raise LicError(modes.DEEP) from None
        raise LicError("not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        raise LicError(f"its pixels are more than the limit of {max_pixels}") from None
    except (LicError, modes.UnsupportedImage):
        raise
    except Exception as error:  # each of Pillow's decoders has classes of its own for damage
        raise LicError(f"damaged image: {error}") from error
    if has_more and strict:
        raise LicError("it has more than one frame or page, which --strict refuses; without it the first is coded")
    if strict and (strictly := [name for name in lost if name not in found.ASIDE]):
        raise LicError(f"{modes.not_kept(strictly)}, which --strict refuses; without it the image is coded")
    notes = ["it has more than one frame or page, only the first is coded"] if has_more else []
    return image, notes + ([modes.not_kept(lost)] if lost else [])


@dataclass
class Compressor:
    """An image file -> a .lic file."""

    model: str | None
    """Name or file; None: the default."""
    device: str
    backend: str
    precision: str
    quality: int | None
    """None: the default, unless one of the next three is given."""
    bpp: float | None
    """Most bits per pixel of the file."""
    size: int | None
    """Most bytes."""
    ssimulacra2: float | None
    """Least score of the decoded image."""
    effort: int
    """0..9, how long to look for better symbols."""
    strict: bool
    verify: bool
    """Whether to decode what was written before it gets its name."""
    replace: bool
    """Whether an existing file may be replaced."""
    resume: bool
    """Whether to leave intact targets as they are."""
    announce: bool = True

    @cached_property
    def codec(self) -> "Codec":
        """The loaded model."""
        if self.announce:
            announce_kernels(decode=self.verify)
        machine.keep_freed_memory()  # from here on: what reading an image has freed goes back to the system
        try:
            backend = "torch" if self.effort and self.backend == "auto" else self.backend
            model = codec.load(self.model, self.device, self.precision, backend)
        except MENDABLE as error:  # no file will be better off
            raise FatalError(explain(error)) from error
        asked = [name for name in ("quality", "bpp", "size", "ssimulacra2") if getattr(self, name) is not None]
        if asked and not model.config.variable_rate:
            raise FatalError(f"{self.model} was trained for one lambda: leave --{asked[0]} out")
        return model

    def __call__(self, job: Job) -> str | None:
        why = why_again(job, (bitstream.MAGIC,), partial(self._differs, job)) if self.resume else ""
        if why is None:
            return None
        moment = changed(job.source)
        image, notes = open_image(job.source, bitstream.MAX_PIXELS, self.strict)
        witness = check = None
        if self.verify:
            from codec.coding.verify import Witness

            witness = Witness()
            check = partial(witness.check, self.codec, image=image)
        if self.effort:
            with Progress(os.path.basename(job.source), witness) as witness:
                data, quality, score = self._compress(image, witness)
        else:
            data, quality, score = self._compress(image, witness)
        write_bytes(job.target, data, self.replace or self.resume, check)
        not_before(job.target, moment)
        header, _ = bitstream.read(data)
        bpp = 8 * len(data) / (image.width * image.height)
        note = made_again(job, why) + "".join(f"{complaint(job.source, note)}\n" for note in notes)
        told = "" if quality is None else f", quality {quality}"
        told += "" if score is None else f", SSIMULACRA 2 {score:.2f}"
        told += ", verified" if self.verify else ""
        size = f"{header.width}x{header.height}, {len(data)} bytes, {bpp:.3f} bpp"
        return f"{note}{job.source} -> {job.target}: {size}{told}"

    @cached_property
    def model_id(self) -> str:
        """That of the model, which need not be loaded for it."""
        from codec.coding import models as checkpoint

        try:
            return checkpoint.about(checkpoint.find_model(self.model or checkpoint.DEFAULT))["id"]
        except checkpoint.ModelError as error:
            raise FatalError(explain(error)) from error

    def _differs(self, job: Job, data: bytes) -> str | None:
        """In what an intact .lic file is another one than would be made; FormatError if it is damaged. The best quality
        of a size is known by the next one, which takes more.
        """
        header, sections = bitstream.read(data)
        if header.model != self.model_id:
            return f"it was of model {header.model}, not {self.model_id}"
        if (effort := bitstream.effort(sections)) != self.effort:
            return f"it was of effort {effort}, not {self.effort}"
        if self.ssimulacra2 is not None:
            return self._scores_otherwise(job, data, header.quality)
        wanted = codec.DEFAULT_QUALITY if self.quality is None else self.quality
        if (most := self._most(header.width * header.height)) is None or header.quality is None:
            if header.quality not in (None, wanted):
                return f"it was of quality {header.quality}, not {wanted}"
            return None
        if len(data) > most:
            return f"it takes {len(data)} bytes, above the target of {most:.0f}"
        if header.quality < 100:
            image, _ = open_image(job.source, bitstream.MAX_PIXELS, self.strict)
            if len(self.codec.compress(image, header.quality + 1, self.effort)) <= most:
                return f"it was of quality {header.quality}, and a higher one fits"
        return None

    def _scores_otherwise(self, job: Job, data: bytes, quality: int | None) -> str | None:
        """In what an intact .lic file is another one than would be made for a score."""
        from codec.coding.target import ssimulacra2
        from codec.container import modes

        source, _ = open_image(job.source, bitstream.MAX_PIXELS, self.strict)
        image = modes.prepare(source).image
        if (score := ssimulacra2(image, self.codec.decompress(data))) < self.ssimulacra2:
            return f"it scores {score:.2f}, below the target of {self.ssimulacra2:g}"
        if quality:
            lower = self.codec.decompress(self.codec.compress(source, quality - 1, self.effort))
            if ssimulacra2(image, lower) >= self.ssimulacra2:
                return f"it was of quality {quality}, and a lower one will do"
        return None

    def _most(self, pixels: int) -> float | None:
        """Bytes that the file of an image may take, if that is what was asked for."""
        return self.bpp * pixels / 8 if self.bpp is not None else self.size

    def _compress(
        self, image: "Image.Image", witness: "Witness | None" = None
    ) -> tuple[bytes, int | None, float | None]:
        """The file, its quality, and its score if one is aimed at."""
        if self.ssimulacra2 is not None:
            return self.codec.compress_to_score(image, self.ssimulacra2, self.effort, witness)
        if (most := self._most(image.width * image.height)) is not None:
            return *self.codec.compress_to(image, most, self.effort, witness), None
        default = codec.DEFAULT_QUALITY if self.codec.config.variable_rate else None
        quality = default if self.quality is None else self.quality
        return self.codec.compress(image, quality, self.effort, witness), quality, None


@dataclass
class Decompressor:
    """A .lic file -> an image file."""

    model: str | None
    """Name or file; None: the one with the id in the file."""
    device: str
    backend: str
    replace: bool
    """Whether an existing file may be replaced."""
    resume: bool
    """Whether to leave intact targets as they are."""
    region: tuple[int, int, int, int] | None
    """Left, top, width and height of what is wanted; None: all of it."""
    announce: bool = True

    def __call__(self, job: Job) -> str | None:
        from codec.container import metadata, modes

        why = ""
        if self.resume:
            why = why_again(job, BEGINNINGS.get(format_of(job.target), ()), partial(self._differs, job.source))
        if why is None:
            return None
        moment, data = changed(job.source), read_bytes(job.source)
        image = modes.decode(data, bitstream.MAX_PIXELS, self.region, self._paint)
        form = format_of(job.target)
        packed, lost = metadata.save(image, form)
        write_bytes(job.target, packed, self.replace or self.resume)
        not_before(job.target, moment)
        note = made_again(job, why)
        note += f"lic: {job.source}: {form} cannot hold {', '.join(lost)}: not kept\n" if lost else ""
        return f"{note}{job.source} -> {job.target}: {image.width}x{image.height} {image.mode}"

    def _differs(self, source: str, data: bytes) -> str | None:
        """In what an intact image is another one than would be made."""
        header, _ = bitstream.read(read_bytes(source))
        wanted = self.region[2:] if self.region else (header.width, header.height)
        if (size := size_of_image(data)) != wanted:
            return f"it was of {size[0]}x{size[1]} pixels, not {wanted[0]}x{wanted[1]}"
        return None

    def _paint(self, header: bitstream.Header, sections: list[bitstream.Section], box: "Corners") -> "Image.Image":
        """That part of an image, by the model that its file names."""
        from codec.coding import models as checkpoint

        if self.announce:
            announce_kernels(encode=False)
            self.announce = False
        machine.keep_freed_memory()
        try:
            device = codec.pick_device(self.device, self.backend)
            model = checkpoint.shared_model(self.model, header.model, device, self.backend)
        except checkpoint.ModelError as error:
            if self.model is None:  # the next file may have another
                raise
            raise FatalError(explain(error)) from error
        return model.paint(header, sections, box)


def format_of(target: str) -> str:
    """Pillow's format name for the extension of the output; PNG for stdout."""
    from PIL import Image

    if is_stream(target):
        return "PNG"
    extension = Path(target).suffix.lower()
    name = Image.registered_extensions().get(extension)
    if name not in Image.SAVE:
        raise LicError(f"{target}: no image format that can be written has the extension {extension!r}; use .png")
    return name
