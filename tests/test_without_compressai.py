"""Nothing but tests and benchmarks needs compressai, and coding needs none of the heavy packages of training."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

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
import codec, codec.base, codec.cli, codec.checkpoint, codec.data, codec.demo, codec.evaluate, codec.hyper, codec.model
import codec.plot, codec.rivals, entropy, entropy.factorized, entropy.conditional, entropy.integer, train, eval
"""

LIGHT = """
import sys
heavy = {"torchvision", "tensorboard", "skimage", "matplotlib", "compressai"} & sys.modules.keys()
assert not heavy, heavy
"""


@pytest.mark.parametrize("script", [BLOCK + EVERYTHING + CODE, CODE + LIGHT], ids=["without compressai", "light"])
def test_coding_works_in_a_process_of_its_own(script, models, photo, tmp_path):
    photo.save(tmp_path / "a.png")
    environment = os.environ | {"LIC_MODELS": str(models), "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "tiny.png").exists() and (tmp_path / "hyper.png").exists()
