"""The end of a training: export of the model, and its rate-distortion curves on the validation images."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from codec.coding.models import export, load_model
from codec.errors import LicError
from codec.evaluation.codecs import lic_codec, rival_codec
from codec.evaluation.evaluate import run
from codec.evaluation.plot import rd_curves
from codec.files import write_atomically
from codec.network.model import Network


def publish(
    network: Network, about: dict[str, str], images: list[Image.Image], out: Path, metrics: Sequence[str] = ("psnr",)
) -> str:
    """Export a network as OUT/model.safetensors, and measure rate-distortion curves of it and of JPEG; returns its id.

    `about` is metadata of the model. The figure is OUT/rd.png, the results are in OUT/rd.
    """
    path = out / "model.safetensors"
    id = export(network, path, about)
    exported = load_model(path, network.device, "auto" if network.bf16 else "fp32")
    jpeg, name = rival_codec("jpeg"), out.resolve().name
    codecs = [lic_codec(exported, name="lic" if name.lower() == jpeg.name else name), jpeg]
    results = run(codecs, [(f"val{i:02d}", image) for i, image in enumerate(images)], out / "rd", metrics)
    if not (rates := [point["bpp"] for point in results[0].means()]):
        raise LicError(f"{path} is exported, but has no curve: {results[0].failures[0]['error']}")
    export(network, path, about | {"rates": f"{min(rates):.2g} to {max(rates):.2g} bpp"})  # the id stays
    for result in results:
        write_atomically(out / "rd" / f"{result.name}.json", result.to_json().encode())
    rd_curves(
        [result.curve(metric) for metric in metrics for result in results],
        out / "rd.png",
        "Validation images",
    )
    return id
