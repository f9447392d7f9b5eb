"""Large images: what is computed in tiles is what the whole image gives, and every file says how its rows lie."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import codec
from codec.coding import tiles
from codec.coding.codec import Codec
from codec.coding.models import load_model
from codec.coding.tiles import Box
from codec.container import bitstream
from codec.files import sample_images
from codec.network.hyper import HYPER_TRANSFORMS
from codec.network.transforms import TRANSFORMS
from entropy.integer import IntegerConv2d


def test_cuts_cover_a_length_with_equal_parts_near_the_side():
    for length in range(1, 200):
        parts = tiles.cuts(length, 16)
        assert [n for begin, end in parts for n in range(begin, end)] == list(range(length))
        assert len({end - begin for begin, end in parts[:-1]}) <= 1 and max(e - b for b, e in parts) <= 24


def test_tiles_cover_an_area_once_and_joined_gives_what_the_whole_does():
    area = Box(3, 5, 60, 71)
    seen = np.zeros((60, 71), int)
    for tile in tiles.tiles(area, 10):
        tile.cut(seen)[...] += 1
    assert (area.cut(seen) == 1).all() and seen.sum() == 57 * 66
    x = np.random.default_rng(0).random((1, 2, 57, 66))
    area = tiles.full((57, 66))
    called = []
    assert np.array_equal(tiles.joined(lambda box: called.append(box) or box.cut(x), area, 16, 3, area), x)
    assert len(called) == 8 and all(box == box.within(area) for box in called)


def test_a_file_has_never_more_rows_than_the_format_has_room_for():
    for height in (1, 24, 25, 3200, 3217, 10**6, 2**21):
        assert len(tiles.rows(height)) <= tiles.MOST_ROWS and tiles.rows(height)[-1][1] == height


def awake(module: nn.Module) -> nn.Module:
    """The module in float64 with weights that see everything: nothing starts at zero."""
    torch.manual_seed(0)
    for name, parameter in module.double().named_parameters():
        if "lapped" not in name and not name.endswith(("beta", "gamma")):
            nn.init.normal_(parameter, std=0.3)
    return module


def reached(function, x: torch.Tensor, scale: float) -> int:
    """How many cells of x away from the middle one a change of the latter is seen, at its farthest; `scale` cells of
    output are one of input.
    """
    middle = x.shape[-1] // 2
    size = max(1, round(1 / scale))  # samples of x in a cell
    changed = x.clone()
    begin = middle // size * size
    changed[..., begin : begin + size, begin : begin + size] += 1
    places = (function(changed) != function(x)).flatten(0, -2).any(dim=0).nonzero()
    cell = max(1, round(scale))  # samples of the output in a cell
    cells = places // cell - begin // size
    return int(cells.abs().max())


@pytest.mark.parametrize("family", sorted(TRANSFORMS))
def test_the_halo_of_a_transform_is_how_far_it_sees(family):
    for blocks in ([1, 2], [0, 1], [2, 0], [3, 1]):
        options = dict(N=4, M=6, blocks=blocks, shortcut=True, scale=1.0, conditioned=False, lapped=True)
        analysis, synthesis = (awake(part(**options)) for part in TRANSFORMS[family])
        with torch.no_grad():
            assert reached(analysis, torch.rand(1, 3, 16 * 17, 16 * 17).double(), 1 / 16) <= analysis.halo
            assert reached(synthesis, torch.rand(1, 6, 17, 17).double(), 16) <= synthesis.halo
            if blocks == [1, 2]:
                assert reached(analysis, torch.rand(1, 3, 16 * 17, 16 * 17).double(), 1 / 16) == analysis.halo
                assert reached(synthesis, torch.rand(1, 6, 17, 17).double(), 16) == synthesis.halo


@pytest.mark.parametrize("family", sorted(HYPER_TRANSFORMS))
def test_the_halo_of_a_hyper_transform_is_how_far_it_sees(family):
    h_a, h_s = (awake(part(M=6, N=4, K=5, mean=True)) for part in HYPER_TRANSFORMS[family])
    level = torch.zeros(1).double()
    z = torch.randint(-3, 4, (1, 5, 17, 17)).double()
    with torch.no_grad():
        assert reached(lambda v: h_a(v, level), torch.rand(1, 6, 68, 68).double(), 1 / 4) == h_a.halo
        for layer in h_s.modules():
            if isinstance(layer, IntegerConv2d):
                layer.weight.abs_()
        constants = h_s.constants(level, torch.ones(1, 5, 1, 1).double())
        h_s.mean.float()
        index, mean = (lambda z, part=part: h_s(z, constants, 10**6)[part] for part in (0, 1))
        assert max(reached(index, z, 4), reached(mean, z, 4)) == h_s.halo


@pytest.fixture
def large() -> Image.Image:
    """A photograph of several tiles, if a tile is 128 pixels wide; its sides are no multiples of anything."""
    return dict(sample_images(["astronaut"]))["astronaut"].crop((20, 0, 487, 401))


@pytest.fixture(params=[("tiny", "torch"), ("hyper", "torch"), ("hyper", "onnx"), ("fixed", "onnx")], ids="-".join)
def model(request, models):
    name, backend = request.param
    return load_model(models / f"{name}.safetensors", precision="fp32", backend=backend)


def set_tiles(monkeypatch, side: int) -> None:
    monkeypatch.setattr(tiles, "TILE", side)
    monkeypatch.setattr(tiles, "WIDE", 2 * side)


@pytest.fixture
def small_tiles(monkeypatch):
    set_tiles(monkeypatch, 2)


def quality_of(model) -> int | None:
    return 60 if model.config.variable_rate else None


def levels(image: Image.Image) -> np.ndarray:
    return np.asarray(image).astype(int)


def noise(image: Image.Image, decoded: Image.Image) -> float:
    """PSNR in dB."""
    return 10 * np.log10(255**2 / np.mean((levels(image) - levels(decoded)) ** 2))


def test_a_tiled_image_is_coded_and_decoded_as_the_whole_one(model, large, monkeypatch):
    whole = model.compress(large, quality_of(model))
    a, one = model.decode(*bitstream.read(whole)), model.decompress(whole)
    set_tiles(monkeypatch, 2)
    tiled = model.compress(large, quality_of(model))
    assert np.abs(levels(model.decompress(whole)) - levels(one)).max() <= 1  # one row in the file, tiles in the decoder
    header, sections = bitstream.read(tiled)
    assert [section.tag for section in sections].count(bitstream.LATENT) == 4
    b = model.decode(header, sections)
    assert a.y.any() and a.y.shape == b.y.shape and (a.y != b.y).mean() < 1e-3
    assert a.z is None or a.z.any() and (a.z != b.z).mean() < 1e-3
    assert abs(noise(large, one) - noise(large, model.decompress(tiled))) < 0.02
    assert len(tiled) <= 1.02 * len(whole) + 100


def test_a_file_decodes_to_the_same_symbols_whatever_the_tiles_of_the_decoder(model, large, small_tiles, monkeypatch):
    data = model.compress(large, quality_of(model))
    latent, image = model.decode(*bitstream.read(data)), levels(model.decompress(data))
    for side in (1, 3, 1000):
        set_tiles(monkeypatch, side)
        other = model.decode(*bitstream.read(data))
        assert np.array_equal(other.y, latent.y)
        assert latent.index is None or np.array_equal(other.index, latent.index)
        assert np.abs(levels(model.decompress(data)) - image).max() <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_a_region_is_that_part_of_the_image(mode, model, large, small_tiles):
    image = large.convert(mode)
    if mode == "RGBA":
        image.putalpha(large.getchannel("G"))
    data = model.compress(image, quality_of(model))
    decoded = model.decompress(data)
    assert decoded.size == image.size and decoded.mode == mode
    regions = (0, 0, 467, 401), (0, 0, 1, 1), (466, 400, 1, 1), (130, 90, 77, 251), (3, 200, 460, 9)
    for left, top, width, height in regions:
        part = model.decompress(data, region=(left, top, width, height))
        assert part.size == (width, height) and part.mode == mode
        expected = decoded.crop((left, top, left + width, top + height))
        assert np.abs(levels(part) - levels(expected)).max() <= 1
    for region in ((0, 0, 468, 401), (-1, 0, 2, 2), (0, 0, 0, 5), (467, 0, 1, 1)):
        with pytest.raises(ValueError, match="467x401"):
            model.decompress(data, region=region)


def test_an_image_of_more_rows_than_a_file_has_room_for_has_higher_ones(model, large, small_tiles, monkeypatch):
    many = model.compress(large, quality_of(model))
    monkeypatch.setattr(tiles, "MOST_ROWS", 1)  # of several lines of tiles
    few = model.compress(large, quality_of(model))
    sections = bitstream.read(few)[1]
    assert [section.tag for section in sections].count(bitstream.LATENT) == 1
    assert np.abs(levels(model.decompress(few)) - levels(model.decompress(many))).max() <= 1


def test_a_region_of_an_image_kept_without_loss_is_that_part_of_it(tiny):
    drawing = Image.new("RGB", (90, 80), "white")
    drawing.paste("navy", (10, 20, 50, 60))
    data = tiny.compress(drawing, 60)
    assert tiny.decompress(data, region=(5, 10, 40, 30)).tobytes() == drawing.crop((5, 10, 45, 40)).tobytes()


def test_a_region_decodes_only_the_rows_that_it_needs(model, large, small_tiles, monkeypatch):
    data = model.compress(large, quality_of(model))
    rows, decode = [], Codec._decode_row
    monkeypatch.setattr(Codec, "_decode_row", lambda self, *args: rows.append(args[2].top) or decode(self, *args))
    model.decompress(data, region=(0, 0, 50, 50))
    model.decompress(data, region=(0, 200, 50, 5))
    assert rows == [0, 8]


def test_rows_that_do_not_fit_the_image_are_refused(model, large, small_tiles):
    header, sections = bitstream.read(model.compress(large, quality_of(model)))
    at = [section.tag for section in sections].index(bitstream.ROWS)
    first, y, rows = sections[:at], sections[at + 1 :], sections[at]
    assert len(y) == 4 and rows.payload == b"\x02"
    assert model.decompress(bitstream.write(header, [*y, *first, rows])).size == large.size
    wrong_heights = [
        [*first, rows._replace(payload=p), *y] for p in (b"", b"\0", b"\x07", b"\2\2", b"\1", b"\3", b"\x82")
    ]
    for change in (
        *wrong_heights, [*sections, y[-1]], sections[:-1], [*first, *y], [*sections, rows], [*first, rows, *y[::-1]],
    ):  # fmt: skip
        with pytest.raises(bitstream.FormatError):
            model.decompress(bitstream.write(header, change))


def test_no_step_is_seen_where_tiles_meet(large, monkeypatch):
    """With the shipped model: steps between neighbouring columns are no larger there than without tiles."""
    fast = codec.load("fast")
    whole = levels(fast.decompress(fast.compress(large, 20)))
    set_tiles(monkeypatch, 2)
    tiled = levels(fast.decompress(fast.compress(large, 20)))
    columns = [16 * tile.left for tile in tiles.tiles(Box(0, 0, 8, 30), 8)][1:]
    steps, without = (np.abs(np.diff(image, axis=1)).mean(axis=(0, 2)) for image in (tiled, whole))
    for column in columns:
        assert steps[column - 1] == pytest.approx(without[column - 1], rel=0.01)
    assert len(columns) == 1 and np.abs(tiled - whole).mean() < 0.05


def test_a_stream_too_short_for_its_size_is_refused_before_anything_is_computed(hyper, photo, monkeypatch):
    _, sections = bitstream.read(hyper.compress(photo, 60))
    flat = hyper.encoder.encode_z(np.zeros((1, hyper.config.hyper_M, 64, 64), np.int32), 60)
    y = [section for section in sections if section.tag == bitstream.LATENT]
    data = bitstream.write(bitstream.Header(hyper.id, 60, "RGB", 4096, 4096, context=True), [*flat, *y])
    monkeypatch.setattr(hyper.backend, "steps", None)
    with pytest.raises(bitstream.FormatError, match="need 2 substreams; there are 1"):
        hyper.decompress(data)
