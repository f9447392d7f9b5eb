"""What an evaluation reports is what its files on disk say, and one bad image or codec does not spoil the others."""

import ast
import dataclasses
import hashlib
import io
import json
import math
import struct
import sys
import zlib

import numpy as np
import pytest
import torch
from files_with import chunk
from PIL import Image, features
from shared import SMOOTH, codec_of, smooth_image, untrained

from codec import machine as meta
from codec.coding.models import export, load_model
from codec.coding.target import fit_size
from codec.evaluation import cost, metrics
from codec.evaluation.codecs import FileCodec, lic_codec, rival_codec
from codec.evaluation.evaluate import load_image, run
from codec.evaluation.metrics import block_edge_ratio, decibel, psnr, ssimulacra2
from codec.evaluation.results import Row, table
from codec.evaluation.rivals import RIVALS

pytestmark = pytest.mark.usefixtures("threads")


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    """An untrained all-rates model of 8 channels: with the shortcut it is a block DCT coder."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    export(untrained(N=8, M=8, blocks=[0, 0], prior="factorized"), path)
    return path


@pytest.fixture
def model(model_path):
    return load_model(model_path, "cpu")


def needs(name):
    try:
        RIVALS[name].check()
    except OSError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", RIVALS)
def test_what_a_rival_says_of_itself_makes_the_same_file_with_pillow_alone(name):
    needs(name)
    rival, image, file = RIVALS[name], smooth_image(), io.BytesIO()
    said = dict(part.rsplit(" ", 1) for part in rival.settings.split(", ")[1:])
    options = {key: ast.literal_eval(value) if value.isdigit() or value in ("True", "False") else value
               for key, value in said.items()}  # fmt: skip
    image.save(file, rival.format, **rival.quality_options(40), **options)
    data = rival.encode(image, 40)
    assert data == file.getvalue()
    assert np.array_equal(np.asarray(rival.decode(data)), np.asarray(Image.open(file)))


@pytest.mark.parametrize("name", RIVALS)
def test_rivals_refuse_other_files_and_missing_libraries(name, monkeypatch):
    needs(name)
    with pytest.raises(OSError):
        RIVALS[name].decode(b"no image")
    with pytest.raises(ValueError, match="101 is not in 0..100"):
        rival_codec(name, [50, 101])
    with pytest.raises(ValueError, match="twice"):
        rival_codec(name, [50, 50])
    monkeypatch.setattr(features, "check", lambda feature: False)
    if RIVALS[name].plugin is None:
        with pytest.raises(OSError, match=f"built without {RIVALS[name].format}"):
            rival_codec(name)


def test_a_rival_whose_plugin_is_missing_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_jxl", None)
    with pytest.raises(OSError, match=r"jxl: .*pip install -e '\.\[perceptual\]', or pillow-jxl-plugin"):
        rival_codec("jxl")


@pytest.mark.parametrize("name", RIVALS)
def test_the_rate_of_a_rival_grows_with_its_quality(name):
    needs(name)
    image = smooth_image(192, 160)
    sizes = [len(RIVALS[name].encode(image, quality)) for quality in RIVALS[name].qualities]
    assert sizes == sorted(sizes) and sizes[-1] > 2 * sizes[0]
    assert RIVALS[name].decode(RIVALS[name].encode(smooth_image().convert("L"), 50)).size == smooth_image().size


def test_results_are_what_the_files_say(tmp_path):
    codecs = [rival_codec("jpeg", [10, 50, 90]), rival_codec("webp", [60, 20])]
    results = run(codecs, SMOOTH, tmp_path)
    for codec, result in zip(codecs, results, strict=True):
        assert result.failures == []
        assert [row.quality for row in result.rows] == [*codec.qualities, *codec.qualities]
        for row in result.rows:
            original, file = dict(SMOOTH)[row.image], tmp_path / row.file
            decoded = np.asarray(Image.open(file).convert("RGB"), dtype=float)
            assert row.bytes == file.stat().st_size
            assert row.bpp == 8 * row.bytes / (original.width * original.height)
            assert row.psnr == pytest.approx(-10 * math.log10(((decoded - original) ** 2).mean() / 255**2))
            assert math.isnan(row.ms_ssim)  # they are too small for it
            assert row.encoding_time > 0 and row.decoding_time > 0
        means = result.means()
        assert [p["bpp"] for p in means] == sorted(p["bpp"] for p in means)
        for point in means:
            rows = [row for row in result.rows if row.quality == point["quality"]]
            assert point["psnr"] == pytest.approx(sum(row.psnr for row in rows) / 2)
        assert result.curve().scores == [point["psnr"] for point in means]
    document = json.loads(results[0].to_json())
    assert set(document["results"]) >= {"bpp", "psnr-rgb", "ms-ssim-rgb", "encoding_time", "decoding_time"}
    assert document["results"]["quality"] == [10, 50, 90]
    assert document["results"]["ms-ssim-rgb"] == [None] * 3
    about = document["images"][1]
    assert (about["name"], about["width"], about["height"]) == ("second", 40, 64)
    assert about["sha256"] == hashlib.sha256(SMOOTH[1][1].tobytes()).hexdigest()
    assert "50" in table(results)


def test_metrics_are_measured_where_they_are_defined_and_wanted(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "cvvdp", lambda a, b: 7.5)
    images, jpeg = [("large", smooth_image(240, 230))], rival_codec("jpeg", [50])
    (result,) = run([jpeg], images, tmp_path)
    (row,) = result.rows
    assert 0.5 < row.ms_ssim < 1 and row.ms_ssim_db == decibel(row.ms_ssim)
    assert row.ssimulacra2 == ssimulacra2(images[0][1], Image.open(tmp_path / row.file)) and row.cvvdp is None
    means = json.loads(result.to_json())["results"]
    assert means["ssimulacra2"] == [row.ssimulacra2] == result.curve("ssimulacra2").scores
    assert result.metrics() == ["psnr", "ms-ssim", "ssimulacra2"]
    assert "cvvdp" not in means and math.isnan(result.curve("cvvdp").scores[0]) and "CVVDP" not in table([result])

    (result,) = run([jpeg], [("small", smooth_image(230, 180)), *images], tmp_path)
    assert result.without_score("ssimulacra2") == ["small"] and not result.without_score("ms-ssim")
    assert "no mean SSIMULACRA 2: it is not finite for small" in table([result])

    (result,) = run([jpeg], images, tmp_path, ["cvvdp"])
    assert result.metrics() == ["psnr", "cvvdp"] and result.curve("cvvdp").scores == [7.5]
    assert "SSIMULACRA 2" not in table([result]) and "7.500" in table([result])


def test_what_one_codec_keeps_without_loss_is_named_and_in_no_mean(tmp_path):
    jpeg = rival_codec("jpeg", [20, 60])
    drawing = smooth_image(30, 30)

    def encode(image, quality):
        return image.tobytes() if image.size == drawing.size and quality == 60 else jpeg.encode(image, quality)

    def decode(data):
        return drawing if data == drawing.tobytes() else jpeg.decode(data)

    exact = dataclasses.replace(jpeg, name="exact", encode=encode, decode=decode)
    images = [SMOOTH[0], ("drawing", drawing), SMOOTH[1]]
    plain, kept = run([jpeg, exact], images, tmp_path)
    for result in (plain, kept):
        assert len(result.rows) == 6 and [image["name"] for image in result.images] == ["first", "second"]
        assert [(image["name"], image["by"]) for image in result.lossless] == [("drawing", ["exact"])]
        assert all(map(math.isfinite, result.curve().scores))
        assert "1 more, kept without loss and in no mean: drawing (by exact)" in table([result])
    assert kept.curve()[1:] == plain.curve()[1:]
    (alone,) = run([exact], [("drawing", drawing)], tmp_path)
    assert alone.curve().scores[1] == math.inf and not alone.lossless  # there is nothing else to take a mean of


def test_metadata_costs_no_codec_bytes(tmp_path):
    smooth_image().save(tmp_path / "plain.png")
    smooth_image().save(tmp_path / "profile.png", icc_profile=b"x" * 500)
    images = [(name, tmp_path / f"{name}.png") for name in ("plain", "profile")]
    plain, profile = run([rival_codec("avif", [50])], images, tmp_path)[0].rows
    assert plain.bytes == profile.bytes


def test_images_are_taken_as_8_bit_pixels(tmp_path):
    assert load_image(smooth_image().convert("RGBA")).mode == load_image(smooth_image().convert("P")).mode == "RGB"
    assert load_image(smooth_image().convert("L")).mode == "L"
    with pytest.raises(ValueError, match="8 bits"):
        load_image(Image.fromarray(np.full((4, 4), 40000, dtype=np.uint16)))
    (row,) = run([rival_codec("jpeg", [100])], [("gray", smooth_image().convert("L"))], tmp_path)[0].rows
    assert row.psnr > 40


@pytest.mark.parametrize("colour, samples", [(2, 3), (4, 2), (6, 4)])
def test_colour_of_16_bits_is_not_evaluated_as_if_it_had_8(tmp_path, colour, samples):
    head = struct.pack(">IIBBBBB", 4, 4, 16, colour, 0, 0, 0)
    pixels = zlib.compress(bytes(4 * (1 + 4 * 2 * samples)))
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )
    with pytest.raises(ValueError, match="more than 8 bits a sample"):
        load_image(tmp_path / "a.png")
    (result,) = run([rival_codec("jpeg", [50])], [("a", tmp_path / "a.png")], tmp_path / "results")
    assert "-depth 8" in result.failures[0]["error"] and not result.rows and (tmp_path / "results").is_dir()


def test_what_fails_is_reported_and_does_not_stop_the_run(tmp_path):
    jpeg = rival_codec("jpeg", [20, 60])

    def encode(image, quality):
        if image.width == 40 and quality == 60:
            raise RuntimeError("out of luck")
        return jpeg.encode(image, quality)

    fragile = dataclasses.replace(jpeg, name="fragile", encode=encode)
    cropped = dataclasses.replace(jpeg, name="cropped", decode=lambda data: jpeg.decode(data).crop((0, 0, 9, 9)))
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = [("broken", tmp_path / "broken.png"), *SMOOTH]
    good, bad, wrong = run([jpeg, fragile, cropped], images, tmp_path)
    assert [(f["image"], f["quality"]) for f in good.failures] == [("broken", None)]
    assert [(f["image"], f["quality"]) for f in bad.failures] == [("broken", None), ("second", 60)]
    assert bad.failures[1]["error"].startswith("Traceback")  # which no user can mend
    assert bad.failures[1]["error"].rstrip().endswith("RuntimeError: out of luck")
    assert len(good.rows) == 4 and len(bad.rows) == 3 and not wrong.rows
    assert "decoded to (9, 9)" in wrong.failures[1]["error"]
    assert not (tmp_path / "files/fragile/second_q60.jpg").exists()
    # a mean over other images than at the other qualities would bend the curve
    assert [image["name"] for image in bad.images] == ["first"]
    assert [p["psnr"] for p in bad.means()] == [row.psnr for row in good.rows if row.image == "first"]
    assert wrong.means() == [] and table([good, bad, wrong])


def test_names_must_differ(tmp_path):
    with pytest.raises(ValueError, match="codec 'jpeg'"):
        run([rival_codec("jpeg"), rival_codec("jpeg")], SMOOTH, tmp_path)
    with pytest.raises(ValueError, match="image 'first'"):
        run([rival_codec("jpeg")], [*SMOOTH, SMOOTH[0]], tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_fit_size_finds_the_best_quality_that_fits():
    jpeg = rival_codec("jpeg")
    sizes = [len(jpeg.encode(smooth_image(), quality)) for quality in range(101)]
    data, quality = fit_size(jpeg.encode, smooth_image(), sizes[40] + 1)
    assert len(data) == sizes[quality] <= sizes[40] + 1 < sizes[quality + 1]
    assert fit_size(jpeg.encode, smooth_image(), 1) == (jpeg.encode(smooth_image(), 0), 0)
    assert fit_size(jpeg.encode, smooth_image(), 10**9)[1] == 100
    calls = []
    for n_bytes in range(-1, 101):  # whatever the answer is, and though these sizes do not grow as those of images do
        calls.clear()
        encode = lambda image, quality: calls.append(quality) or bytes(quality)  # noqa: E731
        assert fit_size(encode, smooth_image(), n_bytes)[1] == max(n_bytes, 0) and len(calls) <= 12
        assert len(calls) == len(set(calls))


@pytest.mark.parametrize("kind", ["factorized", "hyperprior"])
def test_our_codec_is_measured_with_its_estimates(kind, model, hyper, tmp_path):
    model = model if kind == "factorized" else hyper
    codec = lic_codec(model, [0, 50, 100])
    (result,) = run([codec], SMOOTH, tmp_path)
    assert result.failures == []
    for row in result.rows:
        original, data = dict(SMOOTH)[row.image], (tmp_path / row.file).read_bytes()
        assert row.file.endswith(f"_q{row.quality:02d}.lic") and row.bytes == len(data)
        assert data == model.compress(original, row.quality)
        assert row.psnr == psnr(original, model.decompress(data))
        assert not row.misses_estimate
        assert row.block_edges == block_edge_ratio(model.decompress(data))
        assert 0 <= row.empirical_entropy and (row.empirical_entropy <= row.cross_entropy or kind == "hyperprior")
        assert row.cross_entropy * model.estimate(original, row.quality).symbols.size == pytest.approx(
            8 * row.estimated_bytes
        )
    assert {"estimated_bytes", "cross_entropy", "empirical_entropy"} <= set(json.loads(result.to_json())["results"])
    assert "estimated" in table([result]) and model.id in result.description
    assert len(lic_codec(model).qualities) >= 8


def test_a_fixed_lambda_model_has_one_point(tmp_path):
    model = codec_of(untrained(N=8, M=8, blocks=[0, 0], prior="factorized", lmbda=[0.01]))
    (result,) = run([lic_codec(model)], SMOOTH, tmp_path)
    assert [row.file for row in result.rows] == ["files/lic/first.lic", "files/lic/second.lic"]
    assert len(result.means()) == 1 and table([result])
    with pytest.raises(ValueError, match="fixed lambda"):
        lic_codec(model, [50])


@pytest.mark.parametrize("quality", range(0, 101, 10))
def test_files_of_photographs_keep_to_their_estimate(hyper, photos, quality):
    for image in photos:
        size, bits = len(hyper.compress(image, quality)), hyper.estimate(image, quality).bits
        assert abs(size - bits / 8) <= 0.005 * bits / 8 + 64


def test_a_file_larger_or_smaller_than_its_estimate_is_flagged():
    row = Row("a", 50, "a.lic", 1070, 1.0, 30.0, 0.9, 0.1, 0.1)
    assert not row.misses_estimate
    assert not dataclasses.replace(row, estimated_bytes=1001.0).misses_estimate
    assert dataclasses.replace(row, estimated_bytes=1000.0).misses_estimate
    assert not dataclasses.replace(row, estimated_bytes=1139.0).misses_estimate
    assert dataclasses.replace(row, estimated_bytes=1141.0).misses_estimate
    assert not dataclasses.replace(row, estimated_bytes=5000.0, psnr=math.inf).misses_estimate


def test_the_gpus_queue_is_awaited_and_the_device_named(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    cost.now()
    assert calls == ["synchronize"]
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Fast GPU")
    assert meta.device_name("cuda") == "Fast GPU"
    assert "threads" in meta.device_name("cpu")


def test_a_codec_needs_only_functions(tmp_path):
    raw = FileCodec(
        "raw", "no compression", ".raw", (None,), lambda image, quality: image.tobytes(), lambda data: smooth_image()
    )
    (result,) = run([raw], SMOOTH[:1], tmp_path)
    assert result.means()[0]["bpp"] == 24 and result.means()[0]["psnr"] == math.inf
    assert json.loads(result.to_json())["results"]["psnr-rgb"] == [None]
