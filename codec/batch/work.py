"""The work of `lic compress` and `lic decompress` on one file.

A Compressor or Decompressor is made in the process that reads the command line, and sent to workers
(codec/batch/jobs.py). Each process loads a model when a file first needs it.
"""

import contextlib
import io
import os
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
from codec.batch.reading import BEGINNINGS, Ahead, open_image
from codec.container import bitstream
from codec.errors import MENDABLE, LicError, explain
from codec.files import is_stream, read_bytes, write_bytes

if TYPE_CHECKING:
    from PIL import Image

    from codec.coding.codec import Codec, Witness
    from codec.container.modes import Corners


def announce_kernels(encode: bool = True, decode: bool = True) -> None:
    """Print a line if this run will compile the entropy coder's kernels, which is needed once per machine."""
    import entropy

    if not entropy.kernels_cached(encode, decode):
        if entropy.kernels_kept():
            say("lic: first run on this machine: compiling the entropy coder, some seconds, once ...")
        else:
            say("lic: compiling the entropy coder, some seconds at each start: no folder in NUMBA_CACHE_DIR")


def why_again(job: Job, beginnings: tuple[bytes, ...], differs: Callable[[bytes], str | None]) -> str | None:
    """Why --resume makes a target again: "" if it does not exist or is damaged, None if it is kept.

    `differs` returns how an intact target differs from what would be made, or None, and raises an exception for a
    damaged one. LicError if a damaged one has none of the `beginnings`, and so is another kind of file.
    """
    if is_stream(job.target) or not os.path.lexists(job.target):
        return ""
    data = Path(job.target).read_bytes()
    try:
        other = differs(data)
    except FatalError:
        raise
    except Exception as error:  # each decoder of Pillow raises classes of its own
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
    """Width and height of an image file, after a check of a PNG's checksums, or of other formats' pixels.

    Raises what Pillow raises for damaged files.
    """
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None
    with Image.open(io.BytesIO(data)) as image:
        image.verify() if image.format == "PNG" else image.load()
        return image.size


def made_again(job: Job, why: str | None) -> str:
    """The line on a target that --resume makes again for the reason `why`; empty without a reason."""
    return f"{complaint(job.target, f'made again: {why}')}\n" if why else ""


@dataclass
class Compressor:
    """Makes a .lic file of an image file. One of `quality`, `bpp`, `size` and `ssimulacra2` may be given."""

    model: str | None
    """Name or file; None for the default."""
    device: str
    backend: str
    precision: str
    quality: int | None
    """0..100; None for the default, or if one of the next three is given."""
    bpp: float | None
    """Limit of the file's bits per pixel."""
    size: int | None
    """Limit of the file's bytes."""
    ssimulacra2: float | None
    """Least SSIMULACRA 2 of the decoded image."""
    effort: int
    """0..9, see codec/coding/effort.py."""
    strict: bool
    """Whether to refuse an image of which something would be lost."""
    verify: bool
    """Whether to decode and compare a file before it gets its name."""
    replace: bool
    """Whether an existing file may be replaced."""
    resume: bool
    """Whether to keep intact targets that would be made the same."""
    announce: bool = True

    def expect(self, job: Job) -> None:
        if not self.resume:
            self._ahead.expect(job.source)

    @cached_property
    def _ahead(self) -> Ahead:
        """Opens images for this process."""
        return Ahead(partial(open_image, max_pixels=bitstream.MAX_PIXELS, strict=self.strict))

    @cached_property
    def codec(self) -> "Codec":
        """The model, loaded when first used; FatalError if it cannot be."""
        from codec.coding.backend import check_encodes

        if self.announce:
            announce_kernels(decode=self.verify)
        machine.keep_freed_memory()  # only now: what reading an image freed goes back to the system
        try:
            backend = "torch" if self.effort and self.backend == "auto" else self.backend
            if self.effort and backend == "torch":
                machine.require("torch", "train", "--effort")
            model = codec.load(self.model, self.device, self.precision, backend)
            check_encodes(model.backend)
        except MENDABLE as error:  # the same for every file
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
        image, notes = self._ahead.take(job.source)
        witness = check = None
        if self.verify:
            from codec.coding.verify import Witness

            witness = Witness()
            check = partial(witness.check, self.codec, image=image)
        if self.effort or self.ssimulacra2 is not None:
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
        """The id of the model, read without loading it."""
        from codec.coding import models as checkpoint

        try:
            return checkpoint.about(checkpoint.find_model(self.model or checkpoint.DEFAULT))["id"]
        except checkpoint.ModelError as error:
            raise FatalError(explain(error)) from error

    def _differs(self, job: Job, data: bytes) -> str | None:
        """How an intact .lic file differs from what would be made, or None; FormatError if it is damaged.

        For a target size, it is what would be made if it fits and the next higher quality does not.
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
        """How an intact .lic file differs from what would be made for a target score, or None."""
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
        """The limit in bytes of the file of an image of so many pixels; None without `bpp` and `size`."""
        return self.bpp * pixels / 8 if self.bpp is not None else self.size

    def _compress(
        self, image: "Image.Image", witness: "Witness | None" = None
    ) -> tuple[bytes, int | None, float | None]:
        """The file of an image, its quality, and its score if there is a target score."""
        if self.ssimulacra2 is not None:
            return self.codec.compress_to_score(image, self.ssimulacra2, self.effort, witness)
        if (most := self._most(image.width * image.height)) is not None:
            return *self.codec.compress_to(image, most, self.effort, witness), None
        default = codec.DEFAULT_QUALITY if self.codec.config.variable_rate else None
        quality = default if self.quality is None else self.quality
        return self.codec.compress(image, quality, self.effort, witness), quality, None


@dataclass
class Decompressor:
    """Makes an image file of a .lic file."""

    model: str | None
    """Name or file; None for the one with the id in the .lic file."""
    device: str
    backend: str
    replace: bool
    """Whether an existing file may be replaced."""
    resume: bool
    """Whether to keep intact targets that would be made the same."""
    region: tuple[int, int, int, int] | None
    """The rectangle to decode: left, top, width, height in pixels; None for all."""
    announce: bool = True

    def expect(self, job: Job) -> None:
        """A .lic file is read in no time."""

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
        """How an intact image file differs from what would be made, or None."""
        header, _ = bitstream.read(read_bytes(source))
        wanted = self.region[2:] if self.region else (header.width, header.height)
        if (size := size_of_image(data)) != wanted:
            return f"it was of {size[0]}x{size[1]} pixels, not {wanted[0]}x{wanted[1]}"
        return None

    def _paint(self, header: bitstream.Header, sections: list[bitstream.Section], box: "Corners") -> "Image.Image":
        """The pixels of an image in `box`, by the model given or the one that the file names."""
        from codec.coding import models as checkpoint

        if self.announce:
            announce_kernels(encode=False)
            self.announce = False
        machine.keep_freed_memory()
        try:
            device = codec.pick_device(self.device, self.backend)
            model = checkpoint.shared_model(self.model, header.model, device, self.backend)
        except checkpoint.ModelError as error:
            if self.model is None:  # the next file may name another model
                raise
            raise FatalError(explain(error)) from error
        return model.paint(header, sections, box)


def format_of(target: str) -> str:
    """Pillow's name of the format for the extension of a target; PNG for stdout. LicError if there is none."""
    from PIL import Image

    if is_stream(target):
        return "PNG"
    extension = Path(target).suffix.lower()
    name = Image.registered_extensions().get(extension)
    if name not in Image.SAVE:
        raise LicError(f"{target}: no image format that can be written has the extension {extension!r}; use .png")
    return name
