"""The file format: what is written is read, what is damaged or forged is refused."""

import zlib
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shared import in_fresh_python

from codec.container.bitstream import (
    KNOWN,
    LATENT,
    MAX_PIXELS,
    MODES,
    FormatError,
    Header,
    Section,
    beyond,
    find,
    read,
    write,
)

HEADER = Header("0123456789abcdef", 50, "RGB", 300, 7)
SECTIONS = [Section(LATENT, b"symbols"), Section(200, b"")]
FILE = write(HEADER, SECTIONS)

sides = st.integers(1, 10_000)
headers = st.builds(
    Header,
    st.binary(min_size=8, max_size=8).map(bytes.hex),
    st.none() | st.integers(0, 100),
    st.sampled_from(MODES),
    sides,
    sides,
)
sections = st.builds(Section, st.sampled_from(sorted(KNOWN)) | st.integers(128, 255), st.binary(max_size=300))


def forge(header: bytes, *bodies: bytes) -> bytes:
    """A file of these bytes, its checksums right."""
    data = covered = header
    for body in bodies:
        covered += body
        data += body + zlib.crc32(covered).to_bytes(4, "little")
    return data


def header(quality=50, mode=0, count=1, width=b"\x08", height=b"\x08", version=1) -> bytes:
    return b"\x89LIC" + bytes([version]) + bytes(8) + bytes([quality, mode, count]) + width + height


BODY = b"\x01\x03abc"  # tag, length, payload


@given(headers, st.lists(sections, min_size=1, max_size=5))
def test_read_returns_what_was_written(header, sections):
    assert read(write(header, sections), max_pixels=10**8) == (header, sections)


def test_the_bytes_are_those_of_the_specification():
    head = b"\x89LIC\x01" + bytes.fromhex("0123456789abcdef") + b"\x32\x00\x02" + b"\xac\x02" + b"\x07"
    assert forge(head, b"\x01\x07symbols", b"\xc8\x00") == FILE


def test_every_truncation_is_refused():
    for length in range(len(FILE)):
        with pytest.raises(FormatError):
            read(FILE[:length])


def test_every_flipped_bit_is_refused():
    for bit in range(8 * len(FILE)):
        damaged = bytearray(FILE)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FormatError):
            read(bytes(damaged))


@given(headers, st.lists(st.tuples(sections, sections).filter(lambda pair: pair[0] != pair[1]), min_size=2, max_size=4))
def test_a_section_of_another_file_or_in_another_place_is_refused(header, pairs):
    """The files have the same header and differ in every section."""
    one, other = (cut(header, list(file)) for file in zip(*pairs, strict=True))
    for i in range(1, len(one)):
        for forged in ([*one[:i], other[i], *one[i + 1 :]], [*one[:i], *one[i + 1 :], one[i]]):
            if forged != one:
                with pytest.raises(FormatError, match="checksum|truncated"):
                    read(b"".join(forged), max_pixels=10**8)


def cut(header: Header, sections: list[Section]) -> list[bytes]:
    """The bytes of a file: header, and each section."""
    ends = [len(write(header, sections[:count])) for count in range(1, len(sections) + 1)]
    begin = len(write(header, [Section(200, b"")])) - 6
    return [write(header, sections)[i:j] for i, j in pairwise([0, begin, *ends])]


@given(st.binary(min_size=1, max_size=50))
def test_appended_bytes_are_refused(more):
    with pytest.raises(FormatError):
        read(FILE + more)


@given(st.binary(max_size=100))
def test_any_other_bytes_are_refused(data):
    for start in (b"", b"\x89LIC\x01", header()):
        with pytest.raises(FormatError):
            read(start + data)


@pytest.mark.parametrize(
    "data, message",
    [
        (forge(header(version=3), BODY), "version 3"),
        (forge(header(quality=101), BODY), "quality 101"),
        (forge(header(mode=4), BODY), "mode 4"),
        (forge(header(width=b"\0"), BODY), "0x8"),
        (forge(header(count=0)), "0 sections"),
        (forge(header(count=2), BODY), "truncated"),
        (forge(header(width=b"\x88\x00"), BODY), "shortest form"),
        (forge(header(), b"\x01\x83\x00abc"), "shortest form"),
        (forge(header(width=b"\x88\x80\x80\x80\x80\x01"), BODY), "5 bytes"),
        (forge(header(), b"\x06\x03abc"), "section 6 is critical"),
        (forge(header(), b"\x01\xff\xff\xff\xff\x7fabc"), "truncated"),
    ],
)
def test_a_forged_file_with_right_checksums_is_refused_with_its_reason(data, message):
    with pytest.raises(FormatError, match=message):
        read(data)


def test_a_narrow_image_counts_as_one_of_16_pixels_for_encoder_and_decoder():
    long = write(Header(HEADER.model, 50, "RGB", 1, 1000), SECTIONS)
    assert read(long, max_pixels=16_000)[0].height == 1000 and beyond(1, 1000, 16_000) is None
    with pytest.raises(FormatError, match="a side counts for 16 at least"):
        read(long, max_pixels=15_999)
    assert beyond(1000, 1, 15_999) and beyond(20, 20, 400) is None and beyond(20, 20, 399)


def test_an_unknown_ancillary_section_is_skipped():
    _, found = read(forge(header(count=3), b"\x90\x01x", BODY, b"\xff\x00"))
    assert find(found, LATENT) == b"abc"


def test_a_section_must_be_there_once():
    for bodies in ([b"\x80\x01x"], [BODY, BODY]):
        _, found = read(forge(header(count=len(bodies)), *bodies))
        with pytest.raises(FormatError, match="sections with tag 1"):
            find(found, LATENT)


def test_a_file_of_too_many_pixels_is_refused_unless_they_are_allowed(tiny):
    side = b"\x80\x80\x08"  # 2**17
    data = forge(header(width=side, height=side), BODY)
    for decode in (read, tiny.decompress):
        with pytest.raises(FormatError, match=f"131072x131072 pixels are more than the limit of {MAX_PIXELS}"):
            decode(data)
    assert read(data, max_pixels=2**34)[0].width == 2**17


def test_reading_the_format_imports_no_torch():
    modules = "codec, codec.container.bitstream, codec.cli"
    in_fresh_python(f"import sys, {modules}; assert not {{'torch', 'numba', 'PIL'}} & sys.modules.keys()")
