"""What is beside the colours: metadata survives, orientation is applied once, and damage to it or to alpha is found."""

import io
import json
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, features
from shared import picture, saved

from codec.container import bitstream, lossless, metadata, modes
from codec.container.bitstream import ALPHA, DPI, EXIF, ICC, LATENT, LOSSLESS, XMP, FormatError, Header, Section
from codec.container.modes import prepare
from codec.errors import LicError

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PACKET = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="%d" dc:title="Sea"/></x:xmpmeta>'


def exif(orientation: int | None = None, order: str = "<") -> bytes:
    """A directory of maker, orientation and a string behind it, and a thumbnail's directory after the first."""
    entries = [(0x010F, 2, 6, b"\0\0\0\x60")]
    if orientation is not None:
        entries.append((0x0112, 3, 1, struct.pack(order + "HH", orientation, 0)))
    entries.append((0x0132, 2, 20, b"\0\0\0\x70"))
    fields = b"".join(
        struct.pack(order + "HHI", tag, kind, count) + (place[::-1] if order == "<" and kind == 2 else place)
        for tag, kind, count, place in entries
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    first = head + fields + struct.pack(order + "I", 0x90)
    body = first.ljust(0x60, b"\0") + b"Maker\0".ljust(16, b"\0") + b"2024:05:06 07:08:09\0".ljust(32, b"\0")
    return b"Exif\0\0" + body + struct.pack(order + "HI", 0, 0)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once_and_the_rest_of_exif_stays(tiny, photo, orientation, order):
    image = Image.open(io.BytesIO(saved(photo, "PNG", exif=exif(orientation, order), dpi=(72, 144))))
    expected = ImageOps.exif_transpose(image)
    source = prepare(image)
    assert source.image.tobytes() == expected.tobytes()
    assert (
        source.info["exif"] == exif(orientation, order)
        if orientation == 1
        else len(source.info["exif"]) == len(exif(orientation))
    )
    assert np.round(source.info["dpi"]).tolist() == ([144, 72] if orientation > 4 else [72, 144])
    decoded = tiny.decompress(tiny.compress(image, 20))
    tags = decoded.getexif()
    assert decoded.size == expected.size and tags.get(0x0112, 1) == 1
    assert (tags[0x010F], tags[0x0132]) == ("Maker", "2024:05:06 07:08:09")
    again = prepare(decoded)
    assert again.image.size == decoded.size and again.info == decoded.info == source.info


def test_orientation_of_xmp_counts_where_exif_has_none(photo):
    image = photo.copy()
    image.info = {"xmp": PACKET % 6, "exif": exif()}
    source = prepare(image)
    assert source.image.size == photo.size[::-1] and source.info["exif"] == exif()
    assert b"Orientation" not in source.info["xmp"] and b'dc:title="Sea"' in source.info["xmp"]
    image.info["exif"] = exif(1)
    assert prepare(image).image is image


def test_xmp_is_searched_for_an_orientation_in_a_time_that_grows_with_its_size(photo):
    image, began = photo.copy(), time.monotonic()
    image.info = {"xmp": b"<x>" + b" " * 200_000 + PACKET % 6 + b" " * 200_000 + b"</x>"}
    assert len(prepare(image).info["xmp"]) > 400_000 and time.monotonic() - began < 5


def test_a_tiff_that_pillow_turns_is_not_turned_again(photo):
    data = saved(photo, "TIFF", tiffinfo={0x0112: 6, 0x010F: "Maker"})
    source = prepare(Image.open(io.BytesIO(data)))
    assert source.image.tobytes() == photo.transpose(Image.Transpose.ROTATE_270).tobytes()
    tags = Image.Exif()
    tags.load(source.info["exif"])
    assert dict(tags) == {0x010F: "Maker"}


@pytest.mark.parametrize("tag", [None, 1, 8])
def test_a_tiff_that_tells_an_orientation_twice_is_turned_as_pillow_turns_it(photo, tag):
    tags = {700: PACKET % 6} | ({} if tag is None else {0x0112: tag})
    with Image.open(io.BytesIO(saved(photo, "TIFF", tiffinfo=tags))) as image:
        image.load()
        turned = image.copy()
        source = prepare(image)
    assert source.image.tobytes() == turned.tobytes() and (source.image.size == photo.size) == (tag == 1)
    assert b"Orientation" not in source.info["xmp"] and b'dc:title="Sea"' in source.info["xmp"]


@pytest.mark.parametrize("data", [b"", b"II*\0", b"no tiff at all", exif(6)[6:40], exif(9)[6:], exif(0)[6:]])
def test_exif_that_tells_no_orientation_is_kept_as_it_is(photo, data):
    image = photo.copy()
    image.info = {"exif": data}
    source = prepare(image)
    assert source.image is image and source.info.get("exif", b"")[6:] == data


WRITERS = {"PNG": "png", "JPEG": "jpg", "TIFF": "tif", "WEBP": "webp", "AVIF": "avif"}
FORMS = [form for form in WRITERS if form not in ("WEBP", "AVIF") or features.check(form.lower())]


@pytest.mark.parametrize("form", FORMS)
def test_metadata_survives_from_and_to_every_format_that_holds_it(lic, photo, form):
    image = photo.copy()
    image.info = {"icc_profile": SRGB, "exif": exif(), "xmp": PACKET % 1, "dpi": (300, 150)}
    given, _ = metadata.save(image, form)
    suffix = WRITERS[form]
    with open(f"a.{suffix}", "wb") as file:
        file.write(given)
    assert lic("compress", f"a.{suffix}", "-m", "tiny")[0] == 0
    names = ["ICC profile", "EXIF", "XMP", *(["DPI"] if form in ("PNG", "JPEG", "TIFF") else [])]
    assert json.loads(lic("info", "a.lic", "--json")[1])[0]["metadata"] == names
    assert f", {', '.join(names)}, " in lic("info", "a.lic")[1]
    for target in FORMS:
        code, _, err = lic("decompress", "a.lic", "-o", f"b.{WRITERS[target]}", "-f")
        with Image.open(f"b.{WRITERS[target]}") as image:
            image.load()
            found = metadata.of(image)
        assert code == 0 and found["icc_profile"] == SRGB and found["xmp"] == PACKET % 1
        tags = Image.Exif()
        tags.load(found["exif"])
        assert (tags[0x010F], tags[0x0132]) == ("Maker", "2024:05:06 07:08:09")
        lost = "DPI" in names and target in ("WEBP", "AVIF")
        assert err[:-1] == ([f"lic: a.lic: {target} cannot hold DPI: not kept"] if lost else [])
        assert lost or "DPI" not in names or np.allclose(found["dpi"], (300, 150), atol=0.02)


def test_a_tiff_with_the_exif_of_a_phone_keeps_its_own_size(photo):
    """Samsung's phones write ImageWidth into EXIF, which a TIFF would take as its own."""
    tags = Image.Exif()
    tags[0x0100], tags[0x010F] = 4000, "Maker"
    tags[0x8769] = {0x829A: 0.01}
    image = photo.copy()
    image.info = {"exif": tags.tobytes()}
    with Image.open(io.BytesIO(metadata.save(image, "TIFF")[0])) as image:
        assert image.size == photo.size
        kept = Image.Exif()
        kept.load(metadata.of(image)["exif"])
    assert kept[0x010F] == "Maker" and float(kept.get_ifd(0x8769)[0x829A]) == 0.01 and 0x0100 not in kept


@pytest.mark.parametrize("form", [form for form in FORMS if form in ("TIFF", "AVIF")])
def test_exif_that_nobody_can_read_is_lost_with_a_word(photo, form):
    image = photo.copy()
    image.info = {"exif": b"Exif\0\0no tiff", "xmp": b"<x/>"}
    data, lost = metadata.save(image, form)
    assert lost == ["EXIF"] and metadata.of(Image.open(io.BytesIO(data)))["xmp"] == b"<x/>"
    data, lost = metadata.save(image, "PNG")
    assert lost == [] and metadata.of(Image.open(io.BytesIO(data)))["exif"] == image.info["exif"]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
@pytest.mark.parametrize("kind, kept", [(3, True), (1, False), (2, False), (5, False)])
def test_an_orientation_that_is_no_number_is_lost_with_a_word_in_avif(photo, kind, kept):
    image = photo.copy()
    image.info = {"exif": b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, kind, 1, 1, 0, 0)}
    data, lost = metadata.save(image, "AVIF")
    assert lost == ([] if kept else ["EXIF"]) and Image.open(io.BytesIO(data)).size == photo.size


@pytest.mark.parametrize("dpi, kept", [((70_000.0, 72.0), False), ((65_000.0, 72.0), True)])
def test_a_resolution_beyond_the_16_bits_of_a_jpeg_is_lost_with_a_word(photo, dpi, kept):
    image = photo.copy()
    image.info = {"dpi": dpi}
    data, lost = metadata.save(image, "JPEG")
    assert lost == ([] if kept else ["DPI"]) and (metadata.of(Image.open(io.BytesIO(data))).get("dpi") == dpi) == kept


@pytest.mark.parametrize("key, most", [("exif", 65533), ("xmp", 65504)])
def test_what_is_larger_than_a_segment_of_a_jpeg_is_lost_with_a_word(photo, key, most):
    image = photo.copy()
    for size in (most, most + 1):
        image.info = {key: b"Exif\0\0II*\0\x08\0\0\0\0\0".ljust(size, b"\0")}
        data, lost = metadata.save(image, "JPEG")
        assert lost == [metadata.NAMES[key]] * (size > most)
        assert (key in metadata.of(Image.open(io.BytesIO(data)))) == (size == most)


def test_damaged_exif_that_a_tiff_cannot_hold_is_lost_with_a_word(photo):
    tags, image = Image.Exif(), photo.copy()
    tags[0x010F], tags.get_ifd(0x8825)[1] = "Maker", "N"
    image.info = {"exif": tags.tobytes()}
    assert metadata.save(image, "TIFF")[1] == []
    north = image.info["exif"].index(b"\0\1\0\2\0\0\0\2N")  # tag 1, two characters
    for damage in ("1e", "11", "02"):
        damaged = bytearray(image.info["exif"])
        damaged[north + 1] = int(damage, 16)
        image.info = {"exif": bytes(damaged)}
        data, lost = metadata.save(image, "TIFF")
        assert (lost == []) == (Image.open(io.BytesIO(data)).getexif().get(0x010F) == "Maker")
    assert lost == ["EXIF"]


WRITTEN = [*FORMS, "JPEG2000", "BMP", "DIB", "GIF", "TGA", "PPM", "DDS", "SGI", "QOI"]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("form", WRITTEN)
def test_what_a_file_does_not_have_is_told_no_less_and_no_more(photo, form, mode):
    image = photo.convert(mode).quantize(16).convert(mode)  # no more colours than a GIF has
    profile = SRGB if mode == "RGB" else SRGB[:16] + b"GRAY" + SRGB[20:]
    everything = {"icc_profile": profile, "exif": exif(), "xmp": PACKET % 1, "dpi": (300, 150), "cicp": (9, 16, 0, 1)}
    for image.info in (everything, {}):
        if (form, mode) == ("QOI", "L"):
            with pytest.raises(LicError, match="QOI cannot hold mode L .*: write PNG"):
                metadata.save(image, form)
            continue
        data, lost = metadata.save(image, form)
        with Image.open(io.BytesIO(data)) as written:
            modes.load(written)
            kept = [metadata.NAMES[key] for key in metadata.of(written)]
        assert sorted(kept + lost) == sorted(metadata.NAMES[key] for key in image.info)


def test_metadata_beyond_the_limit_is_an_error_of_both_sides(tiny, photo):
    image = photo.copy()
    image.info = {"xmp": bytes(metadata.LARGEST + 1)}
    with pytest.raises(ValueError, match=f"XMP of {metadata.LARGEST + 1} bytes"):
        tiny.compress(image, 50)
    bomb = Section(XMP, b"\1" + zlib.compress(bytes(metadata.LARGEST + 1)))
    with pytest.raises(FormatError, match="XMP of more than"):
        metadata.unpack([bomb], gray=False)
    with pytest.raises(FormatError, match="DPI of more than 16 bytes"):
        metadata.unpack([Section(DPI, b"\1" + zlib.compress(bytes(17)))], gray=False)
    image.info = {"xmp": bytes(metadata.LARGEST)}
    data = tiny.compress(image, 0)
    assert len(data) < 20_000 and tiny.decompress(data).info == image.info


def test_a_target_size_counts_everything(tiny, photo):
    image = picture(photo, 96, 64)
    image.info = {"exif": exif(), "xmp": np.random.default_rng(0).bytes(500)}
    target = len(tiny.compress(image, 60)) - 1
    data, quality = tiny.compress_to(image, target)
    assert len(data) <= target < len(tiny.compress(image, quality + 1)) and data == tiny.compress(image, quality)


# ---- damage ----


@pytest.fixture
def parts(tiny, photo) -> tuple[Header, dict[int, bytes]]:
    """Header and sections of a file that has all that can be beside the colours."""
    image = picture(photo, 40, 30)
    image.info = {"icc_profile": SRGB, "exif": exif(), "xmp": PACKET % 1, "dpi": (72, 72)}
    header, sections = bitstream.read(tiny.compress(image, 50))
    assert [section.tag for section in sections] == [LATENT, ALPHA, ICC, EXIF, XMP, DPI]
    return header, dict(sections)


def refused(model, header: Header, sections: list[tuple[int, bytes]]) -> None:
    with pytest.raises(FormatError):
        model.decompress(bitstream.write(header, [Section(*section) for section in sections]))


def test_a_truncated_extended_or_doubled_section_is_a_format_error(tiny, parts):
    header, sections = parts
    for tag in (ALPHA, ICC, EXIF, XMP, DPI):
        payload = sections[tag]
        cuts = [payload[:length] for length in range(0, len(payload), 1 + len(payload) // 40)]
        stored = payload[:1] == b"\0"  # of these every length is one
        for damaged in [b"", b"\2" + payload, *([] if stored and tag != DPI else [*cuts, payload + b"\0"])]:
            refused(tiny, header, list((sections | {tag: damaged}).items()))
        refused(tiny, header, [*sections.items(), (tag, payload)])


def test_alpha_must_be_of_the_size_and_where_the_mode_says(tiny, parts):
    header, sections = parts
    for other in ((30, 40), (41, 30), (40, 31), (16383, 16383)):
        plane = lossless.encode_plane(Image.new("L", (min(other[0], 64), min(other[1], 64))))
        if other[0] > 64:  # a claim that would take a gigabyte
            plane = plane[:21] + (int.from_bytes(plane[21:25], "little") | 0xFFFFFFF).to_bytes(4, "little") + plane[25:]
        refused(tiny, header, list((sections | {ALPHA: plane}).items()))
    without = {tag: payload for tag, payload in sections.items() if tag != ALPHA}
    refused(tiny, header, list(without.items()))
    rgb = Header(header.model, header.quality, "RGB", header.width, header.height)
    refused(tiny, rgb, list(sections.items()))
    assert tiny.decompress(bitstream.write(rgb, [Section(*part) for part in without.items()])).mode == "RGB"
    exact = lossless.encode(picture(Image.new("RGB", (9, 9)), header.width, header.height))
    refused(tiny, header, [(LOSSLESS, exact), (ALPHA, sections[ALPHA])])


def test_a_flipped_byte_of_alpha_or_metadata_decodes_or_is_a_format_error(tiny, parts):
    header, sections = parts
    rng = np.random.default_rng(0)
    for tag in (ALPHA, ICC, EXIF, XMP, DPI):
        for _ in range(60):
            damaged = bytearray(sections[tag])
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
            file = bitstream.write(header, [Section(*part) for part in (sections | {tag: bytes(damaged)}).items()])
            try:
                assert tiny.decompress(file).size == (40, 30)
            except FormatError as error:
                assert len(str(error).splitlines()) == 1


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 2e7])
def test_a_resolution_that_means_nothing_is_not_coded_and_not_decoded(tiny, photo, value):
    image = photo.copy()
    image.info = {"dpi": (value, 72)}
    assert tiny.decompress(tiny.compress(image, 0)).info == {}
    with pytest.raises(FormatError, match="dots per inch"):
        metadata.unpack([Section(DPI, b"\0" + struct.pack("<dd", 72, value))], gray=False)
