"""`lic demo` shows what it says: scores by both metrics, and crops of files of one size."""

from PIL import Image
from skimage import data

import codec
from codec.coding.models import load_model
from codec.evaluation import demo


def test_the_demo_shows_both_metrics_and_crops_at_equal_size(models, tmp_path, monkeypatch, capsys):
    astronaut = Image.fromarray(data.astronaut()).crop((100, 0, 340, 240))
    monkeypatch.setattr(demo, "sample_images", lambda: [("astronaut", astronaut)])
    monkeypatch.setattr(demo, "QUALITIES", {name: (20, 70) for name in demo.QUALITIES})
    monkeypatch.setattr(codec, "load", lambda device: load_model(models / "hyper.safetensors", device))
    drawn = {}
    monkeypatch.setattr(demo.plot, "rd_curves", lambda curves, path, title: drawn.update(curves=curves))
    monkeypatch.setattr(demo.plot, "crops", lambda rows, path, title: drawn.update(rows=rows))
    assert demo.run_demo(tmp_path / "out", "cpu") == 0
    names = ["lic", "jpeg", "webp", "avif"]
    assert [(c.name, c.metric) for c in drawn["curves"]] == [(n, m) for m in ("psnr", "ssimulacra2") for n in names]
    ((original, *others),) = drawn["rows"]
    assert original[0] == "astronaut\noriginal" and [text.partition("\n")[0] for text, _ in others] == names
    sizes = [int(text.split("\n")[1].split()[0]) for text, _ in others]
    assert sizes[0] == len(load_model(models / "hyper.safetensors").compress(astronaut, demo.CROP_QUALITY))
    assert all(size <= sizes[0] for size in sizes)
    assert all(" dB, SSIMULACRA 2: " in text for text, _ in others)
    printed = capsys.readouterr().out
    assert "SSIMULACRA 2" in printed and "MS-SSIM" not in printed
    assert (tmp_path / "out/table.txt").read_text() in printed and (tmp_path / "out/lic.json").exists()
