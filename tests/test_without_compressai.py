"""Nothing but tests and benchmarks needs compressai, and coding needs none of the heavy packages of training."""

import pytest
from shared import in_fresh_python

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "compressai":
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Block())
"""

CODE = """
from codec.cli import main
for model in ("tiny", "hyper"):
    assert main(["compress", "a.png", "-m", model, "-o", model + ".lic"]) == 0
    assert main(["decompress", model + ".lic", "-o", model + ".png"]) == 0
"""

EVERYTHING = """
import importlib, pkgutil, codec, entropy, train, eval
for package in (codec, entropy):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name != "entropy.bridge":  # for CompressAI's models
            importlib.import_module(module.name)
"""

LIGHT = """
import sys
heavy = {"torch", "torchvision", "tensorboard", "skimage", "matplotlib", "compressai"} & sys.modules.keys()
assert not heavy, heavy
"""


@pytest.mark.parametrize("script", [BLOCK + EVERYTHING + CODE, CODE + LIGHT], ids=["without compressai", "light"])
def test_coding_works_in_a_process_of_its_own(script, models, photo, tmp_path, monkeypatch):
    photo.save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    in_fresh_python(script, LIC_MODELS=models)
    assert (tmp_path / "tiny.png").exists() and (tmp_path / "hyper.png").exists()
