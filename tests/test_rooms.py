"""The house: which room may import which, no circle, and no file or folder that has grown too large."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from shared import ROOT

ROOMS = ("network", "container", "coding", "training", "evaluation", "batch")
LEAVES = {
    "codec",
    "codec.config",
    "codec.errors",
    "codec.machine",
}  # of the top of codec: they import no room when they are imported
PROGRAMS = {"codec.cli", "codec.pillow"}  # of the top of codec: nothing imports them
MAY = {  # the rooms that a room may import beside itself and the top of codec; the network only the leaves of that
    "entropy": set(),
    "network": {"entropy"},
    "container": set(),
    "coding": {"entropy", "network", "container"},
    "training": {"entropy", "network", "container", "coding"},
    "evaluation": {"entropy", "network", "container", "coding"},
    "batch": {"entropy", "network", "container", "coding"},
}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("codec", "entropy")
    for path in sorted((ROOT / package).rglob("*.py"))
}


def room(module: str) -> str:
    """entropy, top, or a folder of codec; outside for a module that is not ours."""
    package, *below = module.split(".")
    if package == "entropy":
        return "entropy"
    return "outside" if package != "codec" else below[0] if below and below[0] in ROOMS else "top"


def imported(path: Path, at_once: bool = False) -> Iterator[str]:
    """The modules that a file imports, anywhere but for types; `at_once`: when it is itself imported."""

    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            for name in node.names:
                module = f"{node.module}.{name.name}"
                yield module if module in FILES else node.module
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return
        elif not (at_once and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)):
            for child in ast.iter_child_nodes(node):
                yield from visit(child)

    return visit(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("module", FILES)
def test_imports_lead_downwards(module):
    own = room(module)
    others = {name: room(name) for name in imported(FILES[module])}
    assert not PROGRAMS & others.keys()
    if own == "top":
        return
    top = {"entropy": set(), "network": LEAVES}.get(own, others.keys())
    wrong = [name for name, there in others.items() if there not in MAY[own] | {own, "outside"}]
    assert [name for name in wrong if others[name] != "top" or name not in top] == []
    assert own != "container" or not any(name.split(".")[0] == "torch" for name in others)


WITH_TORCH = {  # beside the rooms network and training: what imports PyTorch when it is itself imported
    "entropy.adaptive", "entropy.bridge", "entropy.conditional", "entropy.factorized", "entropy.integer",
    "codec.coding.torch_backend", "codec.evaluation.compressai_models", "codec.evaluation.publish",
}  # fmt: skip


@pytest.mark.parametrize("module", FILES)
def test_files_are_coded_without_pytorch(module):
    """Nor is it imported by way of another module."""
    outside = {"torch", "torchvision", "tensorboard", "onnx", "compressai", "pytorch_msssim"}
    reached, new = set(), {module}
    while new:
        reached |= new
        new = {name for known in new & FILES.keys() for name in imported(FILES[known], at_once=True)} - reached
    heavy = {name for name in reached if name.split(".")[0] in outside}
    assert not heavy or module in WITH_TORCH or room(module) in ("network", "training")


def test_no_module_imports_itself_by_way_of_others():
    """Looked for when modules are imported; what a function imports when it is called cannot go round in a circle."""
    leads_to = {
        module: {name for name in imported(path, at_once=True) if name in FILES} for module, path in FILES.items()
    }
    done: set[str] = set()

    def follow(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for other in sorted(leads_to[module]):
                follow(other, (*way, module))
            done.add(module)

    for module in FILES:
        follow(module, ())


def test_the_top_of_codec_holds_at_most_12_files():
    assert len([module for module in FILES if module.startswith("codec") and room(module) == "top"]) <= 12


@pytest.mark.parametrize("module", FILES)
def test_a_file_has_at_most_350_lines(module):
    lines = FILES[module].read_text(encoding="utf-8").count("\n")
    assert lines <= 350
