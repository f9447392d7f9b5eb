"""Colour spaces that are given without an ICC profile: as code points of ITU-T H.273, or as numbers.

`cicp` is a tuple of four code points (ITU-T H.273, 2024, "Coding-independent code points"): primaries, transfer
characteristics, matrix coefficients (0 for RGB) and full range (0 or 1), as in a PNG's cICP chunk. Numbers are the
chromaticities x and y of white, red, green and blue, and a transfer curve.

Here they become ICC profiles of the same meaning, with a matrix and parametric curves (ICC.1:2022, sections 8.3 and
8.4), for formats and programs that know nothing else. sRGB (IEC 61966-2-1) is the default and is not written down.
"""

import struct

import numpy as np

Cicp = tuple[int, int, int, int]
UNSPECIFIED = 2
D65, C, DCI = (0.3127, 0.3290), (0.310, 0.316), (0.314, 0.351)
PRIMARIES = {  # ITU-T H.273, table 2: white, red, green, blue
    1: (*D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060),
    4: (*C, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    8: (*C, 0.681, 0.319, 0.243, 0.692, 0.145, 0.049),
    9: (*D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (*DCI, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    22: (*D65, 0.630, 0.340, 0.295, 0.605, 0.155, 0.077),
}
PROPHOTO = (0.3457, 0.3585, 0.734699, 0.265301, 0.159597, 0.840403, 0.036598, 0.000105)  # ISO 22028-2, ROMM RGB
# Light of a sample v: (a v + b)^g from d on, c v below. One number alone is g.
SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
BT709_CURVE = (1 / 0.45, 1 / 1.099, 0.099 / 1.099, 1 / 4.5, 0.081)
CURVES = {  # ITU-T H.273, table 3; PQ and HLG are none that a profile of this kind can hold
    1: BT709_CURVE, 4: (2.2,), 5: (2.8,), 6: BT709_CURVE, 8: (1.0,), 13: SRGB_CURVE, 14: BT709_CURVE, 15: BT709_CURVE,
}  # fmt: skip
D50 = (0.9642, 1.0, 0.8249)  # of the profile connection space
BRADFORD = np.array(((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367), (0.0389, -0.0685, 1.0296)))
NEAR = 0.0015  # of a chromaticity: what writers round differently
GAMMA = 1 / 0.45455  # with which PNG says sRGB
NEAR_GAMMA = 0.02


def is_srgb(cicp: Cicp) -> bool:
    """Whether code points mean sRGB, or leave all unspecified."""
    primaries, transfer, _, full = cicp
    return primaries in (1, UNSPECIFIED) and transfer in (13, UNSPECIFIED) and full == 1


def checked(cicp: object) -> Cicp | None:
    """The code points as a tuple; None unless they are four valid ones of an RGB image."""
    if not (isinstance(cicp, (tuple, list, bytes)) and len(cicp) == 4 and all(type(value) is int for value in cicp)):
        return None
    primaries, transfer, matrix, full = cicp
    good = 0 <= primaries <= 255 and 0 <= transfer <= 255 and matrix == 0 and full in (0, 1)
    return (primaries, transfer, matrix, full) if good else None


def of_cicp(cicp: Cicp, gray: bool) -> bytes | None:
    """The ICC profile of code points; None where a matrix and curves cannot express them."""
    primaries, transfer, _, full = cicp
    if primaries not in PRIMARIES or transfer not in CURVES or not full:
        return None
    return profile(PRIMARIES[primaries], CURVES[transfer], gray)


def of_numbers(gamma: float | None, chromaticities: tuple[float, ...] | None, gray: bool) -> bytes | None:
    """The ICC profile of a gamma (light = v^gamma) or of chromaticities (x, y of white, red, green, blue), or of both.

    None if that is sRGB, or impossible.
    """
    points = PRIMARIES[1] if chromaticities is None or gray else tuple(map(float, chromaticities))
    same = len(points) == 8 and max(abs(a - b) for a, b in zip(points, PRIMARIES[1], strict=True)) < NEAR
    if same and (gamma is None or abs(gamma - GAMMA) < NEAR_GAMMA):
        return None
    if gamma is not None and not 0.1 <= gamma <= 10:
        return None
    return profile(points, SRGB_CURVE if gamma is None else (gamma,), gray)


def profile(chromaticities: tuple[float, ...], curve: tuple[float, ...], gray: bool) -> bytes | None:
    """An ICC profile, version 4, of a display: chromaticities (x, y of white, red, green, blue) and a curve of CURVES.

    A gray one has the curve only. None for primaries that span no colours.
    """
    matrix = _to_d50(chromaticities)
    if matrix is None:
        return None
    to_d50, colourants = matrix
    tags = {b"desc": _text("made by lic"), b"cprt": _text("no copyright, use freely"), b"wtpt": _numbers(b"XYZ ", D50)}
    tags[b"chad"] = _numbers(b"sf32", to_d50.ravel())
    kind = {1: 0, 5: 3}[len(curve)]
    shape = b"para" + bytes(4) + struct.pack(">HH", kind, 0) + _fixed(curve)
    if gray:
        tags[b"kTRC"] = shape
    else:
        for name, xyz in zip((b"r", b"g", b"b"), colourants.T, strict=True):
            tags[name + b"XYZ"] = _numbers(b"XYZ ", xyz)
        tags |= {b"rTRC": shape, b"gTRC": shape, b"bTRC": shape}
    places: dict[bytes, int] = {}  # of what is there already: three curves are one
    body, table = b"", struct.pack(">I", len(tags))
    first = 128 + 4 + 12 * len(tags)
    for name, content in tags.items():
        if content not in places:
            places[content] = first + len(body)
            body += content + bytes(-len(content) % 4)
        table += name + struct.pack(">II", places[content], len(content))
    space, date = b"GRAY" if gray else b"RGB ", struct.pack(">6H", 2024, 1, 1, 0, 0, 0)
    version = 0x04400000
    head = struct.pack(">III", first + len(body), 0, version) + b"mntr" + space + b"XYZ " + date + b"acsp"
    head += bytes(28) + _fixed(D50)
    return head.ljust(128, b"\0") + table + body


def _to_d50(chromaticities: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray] | None:
    """Bradford's adaptation of white to D50 (3, 3), and the adapted XYZ of red, green and blue as columns (3, 3)."""
    x, y = np.array(chromaticities, dtype=np.float64).reshape(4, 2).T
    if not np.isfinite([x, y]).all() or (y <= 0).any() or (x < 0).any() or (x + y > 1.1).any():
        return None
    xyz = np.stack([x / y, np.ones(4), (1 - x - y) / y])  # columns white, red, green, blue
    if abs(np.linalg.det(xyz[:, 1:])) < 1e-3:
        return None
    colourants = xyz[:, 1:] * np.linalg.solve(xyz[:, 1:], xyz[:, 0])
    cone_white, cone_d50 = BRADFORD @ xyz[:, 0], BRADFORD @ np.array(D50)
    if (cone_white <= 0).any() or np.abs(colourants).max() > 100:
        return None
    adaptation = np.linalg.solve(BRADFORD, (cone_d50 / cone_white)[:, None] * BRADFORD)
    return adaptation, adaptation @ colourants


def _fixed(values) -> bytes:
    """Numbers as s15Fixed16Number."""
    return struct.pack(f">{len(values)}i", *(round(float(value) * 65536) for value in values))


def _numbers(kind: bytes, values) -> bytes:
    return kind + bytes(4) + _fixed(values)


def _text(text: str) -> bytes:
    """Text as a multiLocalizedUnicodeType of one language."""
    coded = text.encode("utf-16-be")
    return b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(coded), 28) + coded
