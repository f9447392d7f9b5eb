"""What the validation images say of a model: while it is trained, and once it is exported."""

from pathlib import Path

import torch
from PIL import Image

from codec.coding.base import Codec
from codec.coding.models import export, load_model
from codec.config import Config
from codec.evaluation.metrics import psnr
from codec.network.pixels import to_tensor
from codec.training.distortion import Distortion
from codec.training.distributed import World


def validate(
    model: Codec, images: list[Image.Image], config: Config, compare: Distortion, world: World
) -> dict[str, float]:
    """Code the validation images to real bytes and back: mean bpp, psnr, mse and the RD loss, per quality and in
    all; beside them the score that is trained for. Every process takes its part of the images; all get the figures of
    the whole.
    """
    qualities = config.train.val_qualities if config.model.variable_rate else [None]
    model.build_tables(qualities)
    result, losses = {}, []
    for quality in qualities:
        sums = torch.zeros(4, dtype=torch.float64)  # bpp, psnr, mse, distance
        for image in images[world.rank :: world.size]:
            stream = model.compress(image, quality)
            decoded = model.decompress(stream)
            db = psnr(image, decoded)
            with torch.inference_mode():
                distance = compare.measure(to_tensor(decoded).to(model.device), to_tensor(image).to(model.device))
            figures = [8 * len(stream) / (image.width * image.height), db, 10 ** (-db / 10), distance.item()]
            sums += torch.tensor(figures, dtype=torch.float64)
        bpp, db, mse, distance = (world.total(sums.to(model.device)) / len(images)).tolist()
        losses.append(bpp + compare.blend(distance, 255**2 * mse, config.model.lmbda_at(quality)))
        name = "" if quality is None else f"_q{quality}"
        result |= {f"bpp{name}": bpp, f"psnr{name}": db, f"mse{name}": mse, f"loss{name}": losses[-1]}
        if compare.name != "mse":
            result[f"{compare.name}{name}"] = compare.perfect - distance
    model.tables_of = {}
    return result | {"rd_loss": compare.mean(losses, [config.model.lmbda_at(quality) for quality in qualities])}


def publish(model: Codec, about: dict[str, str], images: list[Image.Image], out: Path) -> str:
    """Export the model as OUT/model.safetensors and measure its rate-distortion curve beside JPEG's: OUT/rd.png, and
    the results in OUT/rd. Returns its id.
    """
    from codec.evaluation.codecs import lic_codec, rival_codec
    from codec.evaluation.evaluate import run
    from codec.evaluation.plot import rd_curves

    path = out / "model.safetensors"
    id = export(model, path, about)
    exported = load_model(path, model.device, "auto" if model.bf16 else "fp32")
    jpeg, name = rival_codec("jpeg"), out.resolve().name
    codecs = [lic_codec(exported, name="lic" if name.lower() == jpeg.name else name), jpeg]
    results = run(codecs, [(f"val{i:02d}", image) for i, image in enumerate(images)], out / "rd", ms_ssim=False)
    rates = [point["bpp"] for point in results[0].means()]
    export(model, path, about | {"rates": f"{min(rates):.2g} to {max(rates):.2g} bpp"})  # the id stays
    for result in results:
        (out / "rd" / f"{result.name}.json").write_text(result.to_json())
    rd_curves([result.curve() for result in results], out / "rd.png", "Validation images")
    return id
