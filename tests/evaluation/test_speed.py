"""What the speed benchmarks measure is what they say: pipelined files are the model's own, figures come from files."""

import json

import numpy as np
import pytest
import torch

from benchmarks import codecs, gpu, latents, measure
from benchmarks.__main__ import main
from codec.coding.models import load_model
from codec.evaluation import cost


@pytest.mark.parametrize("name", ["tiny", "hyper"])
def test_pipelined_files_and_images_are_those_of_one_after_another(models, photos, name):
    model = load_model(models / f"{name}.safetensors", precision="fp32")
    images = [image.crop((0, 0, 96 - n, 64)) for n, image in enumerate(photos * 5)]  # more than are under way at once
    files = gpu.encode_all(model, images, 40)
    assert files == [model.compress(image, 40) for image in images]
    decoded = gpu.decode_all(model, files)
    assert len(decoded) == len(files) > gpu.AHEAD
    for image, data in zip(decoded, files, strict=True):
        assert np.array_equal(image, model.decompress(data))


def test_frames_are_photographs_side_by_side(photos):
    frames = gpu.mosaics(photos, (200, 100), 3)
    assert [frame.size for frame in frames] == [(200, 100)] * 3
    assert np.array_equal(frames[1].crop((0, 0, 96, 64)), photos[1])
    assert np.array_equal(frames[1].crop((96, 0, 192, 64)), photos[2])
    assert np.array_equal(frames[1].crop((0, 64, 96, 100)), photos[0].crop((0, 0, 96, 36)))


def test_without_a_gpu_nothing_is_measured(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["gpu"]) == 1
    printed = capsys.readouterr()
    assert "no CUDA device" in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_bd_rates_are_read_from_what_an_evaluation_wrote(tmp_path):
    assert codecs.bd_rates(tmp_path) == ("-", {})
    percent = {"lic": -20.5, "lic-old": -10.0, "avif": -46.0, "webp": "webp: its points do not span 29..37 dB"}
    document = {"anchor": "jpeg", "metric": "cvvdp", "rates": {"cvvdp": {"percent": {}}, "psnr": {"percent": percent}}}
    (tmp_path / "bd_rate.json").write_text(json.dumps(document))
    for name, about in (("lic", "model 12ab, 3 M"), ("lic-old", "model 34cd, 2 M"), ("avif", "Pillow"), ("webp", "")):
        (tmp_path / f"{name}.json").write_text(json.dumps({"description": about}))
    assert codecs.bd_rates(tmp_path) == ("jpeg", {"12ab": -20.5, "34cd": -10.0, "avif": -46.0})
    document = {"anchor": "vtm", "rates": {"psnr": {"percent": {"avif": 49.0}}}}
    (tmp_path / "bd_rate.json").write_text(json.dumps(document))
    anchor, rates = codecs.bd_rates(tmp_path)
    assert anchor == "vtm" and rates["avif"] == 49.0
    assert rates["mbt2018-mean"] == pytest.approx(23, abs=2)  # +21 to +23 % in the literature


def test_a_quality_is_chosen_for_half_a_bit_per_pixel(tiny, photos):
    def rate(quality):
        return sum(8 * len(tiny.compress(image, quality)) for image in photos) / (4 * 96 * 64)

    quality = codecs.choose_quality(tiny.compress, photos)
    assert rate(quality) <= codecs.TARGET < rate(quality + 1)


def test_ours_is_made_and_counted_in_a_fresh_process(models, photo):
    entry = codecs.Entry("lic", "fp32", 1, models / "tiny.safetensors", 30)
    contender = codecs.make(entry, photo)
    model = load_model(entry.model, precision="fp32")
    assert contender.encode(photo) == model.compress(photo, 30) and contender.key == model.id
    assert cost.kmac_per_pixel(contender.encode, contender.decode) == pytest.approx(cost.kmac_of(model))
    assert 1e8 < codecs.peak_memory(entry, photo) < 1e9


@pytest.mark.parametrize("name", ["bmshj2018-factorized", "mbt2018-mean"])
def test_peers_come_back_from_their_bytes(photo, models, name):
    pytest.importorskip("compressai")
    image = photo.resize((320, 256))
    contender = codecs.make(codecs.Entry(name, "fp32", 1, models), image)
    data = contender.encode(image)
    assert 0.1 < 8 * len(data) / (320 * 256) < 2 and contender.decode(data).size == image.size
    analysis, synthesis = cost.kmac_per_pixel(contender.encode, contender.decode)
    assert 40 < analysis < 50 and 40 < synthesis < 50


@pytest.mark.parametrize("name", ["tiny", "hyper"])
def test_trained_latents_keep_their_densities(models, photos, name, monkeypatch):
    monkeypatch.setattr(latents, "photographs", lambda folder: [image.resize(measure.SIZE) for image in photos[:1]])
    case = latents.trained_case((40, 50), 2, str(models / f"{name}.safetensors"), None)
    assert [values.shape for values in case.values] == [(24, 40, 50)] * 2
    data = [latents.entropy.encode([step]) for step in zip(case.values, case.index, [case.tables] * 2, strict=True)]
    assert sum(map(len, data)) == pytest.approx(case.ideal_bytes, rel=0.05)  # untrained: they fit badly
