"""The Pillow plugin: opens and saves .lic files once registered, as Pillow's own formats do, and only then."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from files_with import box, chunk, deep, jp2, png
from PIL import Image, UnidentifiedImageError
from shared import in_fresh_python, picture, saved

import codec.pillow
from codec.coding import models as checkpoint
from codec.container import bitstream
from codec.container.bitstream import ALPHA, LATENT, XMP, Section

TABLES = ("OPEN", "SAVE", "EXTENSION", "MIME", "ID")  # where Pillow keeps what is registered


@pytest.fixture(autouse=True)
def registered(shell, monkeypatch):
    """Registered for one test, in an empty folder, no model loaded yet."""
    Image.init()
    for name in TABLES:
        monkeypatch.setattr(Image, name, getattr(Image, name).copy())
    monkeypatch.setattr(checkpoint, "_shared", {})
    codec.pillow.register()


def test_only_register_changes_pillow():
    code = "import codec, codec.cli, codec.pillow; from PIL import Image; Image.init(); "
    code += f"tables = lambda: [str(getattr(Image, name)) for name in {TABLES}]; before = tables(); "
    code += "assert '.lic' not in Image.registered_extensions() and 'LIC' not in str(before); "
    code += "codec.pillow.register(); print(Image.registered_extensions()['.lic'])"
    assert in_fresh_python(code).stdout == "LIC\n"


def test_a_file_is_opened_without_decoding_and_without_torch(tiny, photo):
    photo = photo.copy()
    photo.info = {"icc_profile": b"a profile", "xmp": b"<x/>", "dpi": (72.0, 144.0)}
    open("a.lic", "wb").write(tiny.compress(photo, 30))
    told = in_fresh_python(
        "import sys, codec.pillow; from PIL import Image; codec.pillow.register(); image = Image.open('a.lic'); "
        "print(image.format, image.size, image.mode, image.info, image.get_format_mimetype()); "
        "assert not {'torch', 'numba', 'entropy'} & sys.modules.keys()"
    ).stdout
    assert told == f"LIC (96, 64) RGB {photo.info} image/x-lic\n"


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
@pytest.mark.parametrize("opener", ["path", "file", "bytes"])
def test_what_is_saved_is_what_the_model_makes_and_opens_as_it_decodes(tiny, photo, mode, opener):
    image = picture(photo, 61, 35).convert(mode)
    image.info = {"dpi": (72.0, 72.0), "exif": b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0"}
    expected = codec.load("tiny").compress(image, 60)
    target = io.BytesIO() if opener == "bytes" else "a.lic"
    image.save(target, format="LIC" if opener == "bytes" else None, quality=60, model="tiny")
    data = target.getvalue() if opener == "bytes" else open(target, "rb").read()
    assert data == expected
    source = {"path": "a.lic", "file": io.BytesIO(data), "bytes": target}[opener]
    if opener != "path":
        source.seek(0)
    with Image.open(source) as opened:
        decoded = codec.decompress(data)
        assert (opened.format, opened.mode, opened.size, opened.info) == ("LIC", mode, (61, 35), image.info)
        opened.verify()
    if opener != "path":
        source.seek(0)
    opened = Image.open(source)
    assert np.array_equal(np.asarray(opened), np.asarray(decoded))
    assert opened.copy().convert("RGB").resize((7, 7)).size == (7, 7) and opened.load() is not None


@pytest.mark.parametrize("size", [(1, 1), (3, 40)])
def test_small_images_open(photo, size):
    photo.resize(size).save("a.lic", model="tiny")
    with Image.open("a.lic") as image:
        image.load()
        assert image.size == size


def test_metadata_given_to_save_replaces_that_of_the_image(photo):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    photo = photo.copy()
    photo.info = {"xmp": b"<old/>", "dpi": (72.0, 72.0)}
    photo.save("a.lic", model="tiny", exif=exif, xmp=b"<new/>")
    with Image.open("a.lic") as opened:
        assert (opened.info["xmp"], opened.info["dpi"]) == (b"<new/>", (72, 72))
        assert opened.getexif()[0x010F] == "Maker"
    assert photo.info == {"xmp": b"<old/>", "dpi": (72.0, 72.0)}


def test_metadata_that_save_is_told_to_leave_out_is_left_out(photo):
    photo = photo.copy()
    photo.info = {"XML:com.adobe.xmp": "<secret/>", "exif": b"Exif\0\0II*\0", "dpi": (72.0, 72.0)}
    photo.save("a.lic", model="tiny", xmp=b"", exif=None, dpi=None)
    with Image.open("a.lic") as opened:
        assert not opened.info.keys() & {"xmp", "exif", "dpi"}


def test_the_default_quality_and_models_of_one_lambda(photo):
    photo.save("a.lic", model="tiny")
    photo.save("b.lic", model="fixed")
    assert [bitstream.read(open(name, "rb").read())[0].quality for name in ("a.lic", "b.lic")] == [50, None]
    with pytest.raises(ValueError, match="101"):
        photo.save("c.lic", model="tiny", quality=101)


def test_a_model_is_loaded_once_whatever_it_is_called(photo, models, monkeypatch):
    loaded = []
    load = checkpoint.load_model
    monkeypatch.setattr(checkpoint, "load_model", lambda *args: loaded.append(args) or load(*args))
    photo.save("a.lic", model="tiny")
    photo.save("b.lic", model=str(models / "tiny.safetensors"))
    for name in ("a.lic", "b.lic"):
        Image.open(name).load()
    codec.decompress(open("a.lic", "rb").read())
    assert len(loaded) == 1


def test_an_image_that_is_not_coded_is_an_oserror_and_leaves_no_file(shell):
    with pytest.raises(OSError, match="mode CMYK"):
        Image.new("CMYK", (9, 9)).save("a.lic", model="tiny")
    assert not (shell / "a.lic").exists()


def sixteen_bits() -> bytes:
    """A PNG in colour."""
    rows = zlib.compress(b"".join(b"\0" + np.arange(30, dtype=">u2").tobytes() for _ in range(10)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, body)
        for kind, body in ((b"IHDR", struct.pack(">IIBBBBB", 10, 10, 16, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b""))
    )


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("name, data", [("a.png", sixteen_bits()), ("a.jp2", deep(jp2(box(b"uuid", bytes(70_000)))))])
def test_more_than_8_bits_are_refused_though_pillow_has_loaded_the_image(shell, name, data, loaded):
    (shell / name).write_bytes(data)
    with Image.open(name) as image:
        if loaded:
            image.load()
        for options in ({}, {"xmp": b"<x/>"}):
            with pytest.raises(OSError, match="more than 8 bits a sample.*-depth 8"):
                image.save("a.lic", model="tiny", **options)
    with Image.open(io.BytesIO(sixteen_bits())) as image, pytest.raises(OSError, match="more than 8 bits"):
        image.save("a.lic", model="tiny")
    assert not (shell / "a.lic").exists()


def test_what_pillow_does_not_tell_is_kept_by_save_too_or_told(shell):
    (shell / "a.png").write_bytes(png((b"cICP", bytes((9, 16, 0, 1))), (b"tEXt", b"Title\0sea")))
    with Image.open("a.png") as image, pytest.warns(UserWarning, match=r"not kept: text \(Title\)"):
        image.save("a.lic", model="tiny")
    with Image.open("a.lic") as image:
        assert image.info == {"cicp": (9, 16, 0, 1)}


def test_every_damage_is_an_oserror_of_one_line(tiny, photo):
    photo = picture(photo, 20, 10)
    photo.info = {"xmp": b"<x/>"}
    data = tiny.compress(photo, 20)
    header, sections = bitstream.read(data)
    damaged = [data[:length] for length in range(len(data))]
    damaged += [data[:i] + bytes([data[i] ^ 1 << i % 8]) + data[i + 1 :] for i in range(len(data))]
    for tag in (LATENT, ALPHA, XMP):  # behind intact checksums
        for forged in (b"", b"\2", b"\1garbage", b"\xff" * 40):
            parts = [part if part.tag != tag else Section(tag, forged) for part in sections]
            damaged.append(bitstream.write(header, parts))
    damaged.append(bitstream.write(header, sections[1:]))
    codec.decompress(data)  # the model is at hand
    for broken in damaged:
        with pytest.raises(OSError) as caught, warnings.catch_warnings(action="ignore"):
            Image.open(io.BytesIO(broken)).load()
        assert "\n" not in str(caught.value)


def test_what_is_not_ours_is_left_to_the_others(photo):
    with pytest.raises(SyntaxError):
        codec.pillow.LicImageFile(io.BytesIO(saved(photo, "PNG")))
    with Image.open(io.BytesIO(saved(photo, "PNG"))) as image:
        assert image.format == "PNG"
    with pytest.raises(UnidentifiedImageError):
        Image.open(io.BytesIO(b"neither"))


def test_an_unknown_model_is_an_oserror_that_names_it(tiny, photo, monkeypatch):
    data = tiny.compress(photo, 20)
    monkeypatch.setenv("LIC_MODELS", "elsewhere")
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (96, 64)
        with pytest.raises(OSError, match=f"{tiny.id}.*elsewhere"):
            image.load()


def test_pillows_own_limit_of_pixels_holds(tiny, photo, monkeypatch):
    data = tiny.compress(photo, 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(data))


def test_a_thin_image_counts_as_what_it_takes(tiny, monkeypatch):
    data = tiny.compress(Image.effect_noise((4000, 1), 50), 20)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16_000)
    with pytest.raises(Image.DecompressionBombError, match="4000x1"):
        Image.open(io.BytesIO(data))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 128_000)
    assert Image.open(io.BytesIO(data)).size == (4000, 1)
