"""A small evaluation with its report."""

import pytest
from PIL import Image
from reported import HOSTILE, RATES, VTM

from codec.coding.models import load_model
from codec.evaluation.codecs import lic_codec, rival_codec
from codec.evaluation.evaluate import run
from codec.evaluation.report import write_report


@pytest.fixture(scope="session")
def evaluation(models, tmp_path_factory):
    """A folder with a report, its results, images and codecs: two images, one of them with a hostile name."""
    from skimage import data

    folder = tmp_path_factory.mktemp("evaluation")
    astronaut = Image.fromarray(data.astronaut())
    images = [("face", astronaut.crop((120, 10, 352, 236))), (HOSTILE, astronaut.crop((0, 200, 230, 440)))]
    codecs = [lic_codec(load_model(models / "hyper.safetensors", precision="fp32"), [0, 50, 100])]
    codecs += [
        rival_codec(name, qualities)
        for name, qualities in (("jpeg", [5, 10, 15, 20, 30, 40, 60, 80, 90]), ("webp", [20, 80]), ("avif", [50]))
    ]
    results = run(codecs, images, folder, ["psnr", "ms-ssim", "ssimulacra2"])
    assert not any(result.failures for result in results)
    write_report(folder, results, images, codecs, [VTM], RATES, "eval.py --data '<b>'", "Two <b>images</b>")
    return folder, results, images, codecs


@pytest.fixture
def page(evaluation):
    """The text of the report."""
    return (evaluation[0] / "report.html").read_text(encoding="utf-8")
