"""A wheel built from the tree holds every file of our packages; where it is installed it codes an image without
PyTorch, and trains.
"""

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version

import pytest
from shared import ROOT, in_fresh_python, train_folders

PARTS = ("codec", "entropy", "pyproject.toml", "README.md", "LICENSE", "train.py", "eval.py")
MOST_BYTES = 30e6

CODE = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision", "onnx"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Block())
import codec, entropy, numpy, sys
from pathlib import Path
from codec.cli import main
assert {Path(package.__file__).parents[1] for package in (codec, entropy)} == {Path(sys.argv[1])}
assert main(["compress", "a.png", "--verify"]) == 0
assert main(["decompress", "a.lic", "-o", "b.png"]) == 0
"""

TRAIN = """
import runpy, sys
from pathlib import Path
import codec
from codec.training.log import Log
assert Path(codec.__file__).parents[1] == Path(sys.argv[1])
Log.graph = Log._histograms = lambda *_: None  # half of what a tiny training takes
size = "--N 8 --M 16 --blocks 1 0 --hyper_N 8 --hyper_M 4 --context 4 --batch 2 --patch 32 --save_every 50".split()
sys.argv = ["train.py", *size, "--data", "data", "--val", "val", "--steps", "10", "--out", "run", "--minutes", "0"]
runpy.run_path(f"{Path(codec.__file__).parents[1]}/share/lic/train.py", run_name="__main__")
"""


def pip(*arguments) -> None:
    variables = os.environ | {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INDEX": "1"}
    command = [sys.executable, "-m", "pip", *map(str, arguments)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def linked(source: str, target: str) -> None:
    """Both names for one file where they can be: nothing here writes into it, and the weights have megabytes."""
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def is_there(package: str, least: int) -> bool:
    """Whether a package of at least that major version is installed; importing setuptools would change distutils."""
    try:
        return int(version(package).partition(".")[0]) >= least
    except PackageNotFoundError:
        return False


@pytest.mark.skipif(not (is_there("pip", 1) and is_there("setuptools", 77)), reason="needs pip and setuptools 77")
def test_a_wheel_has_all_files_and_codes_and_trains_where_it_is_installed(tmp_path, photos, monkeypatch):
    tree, installed = tmp_path / "tree", tmp_path / "installed"
    tree.mkdir()
    for part in PARTS:  # a copy: building leaves folders behind, and would take over old ones
        if (ROOT / part).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "fast*.safetensors")  # which take seconds
            shutil.copytree(ROOT / part, tree / part, ignore=ignored, copy_function=linked)
        else:
            linked(ROOT / part, tree / part)
    ours = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file() and path.parent != tree}
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path, tree)
    (wheel,) = tmp_path.glob("lic-*.whl")
    assert ours <= set(zipfile.ZipFile(wheel).namelist()) and (
        wheel.stat().st_size + sum(path.stat().st_size for path in (ROOT / "codec/weights").glob("fast*")) <= MOST_BYTES
    )

    pip("install", "--no-deps", "--no-compile", "--target", installed, wheel)
    monkeypatch.chdir(tmp_path)
    photos[0].save("a.png")
    in_fresh_python(CODE, installed, root=installed, NUMBA_DISABLE_JIT=1)  # compiling anew would take longer
    assert (tmp_path / "b.png").exists()
    train_folders(tmp_path, photos)
    in_fresh_python(TRAIN, installed, root=installed)
    assert (tmp_path / "run/last.pt").exists()
