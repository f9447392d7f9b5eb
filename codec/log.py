"""Where the figures of a training go: log.jsonl, TensorBoard, and the terminal."""

import json
from pathlib import Path

import torch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from codec.base import Codec
from codec.image import to_tensor, to_uint8


class Log:
    """Where the figures of a run go: log.jsonl, TensorBoard, and lines or a progress bar on the terminal."""

    def __init__(self, folder: Path, step: int, steps: int):
        self.file = open(folder / "log.jsonl", "a", buffering=1)
        self.board = SummaryWriter(folder / "tb", purge_step=step)
        self.bar = tqdm(
            initial=step, total=steps, unit="step", dynamic_ncols=True, disable=None
        )  # None: only on a terminal

    def numbers(self, kind: str, step: int, values: dict[str, float]) -> None:
        """Write figures of one kind (train, val): every one of them to the file and the board, all in one line."""
        self.file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        for name, value in values.items():
            self.board.add_scalar(f"{kind}/{name}", value, step)
        self.say(f"{kind} {step}: " + " ".join(f"{name} {value:.5g}" for name, value in values.items()))

    @torch.no_grad()
    def picture(self, model: Codec, step: int, image: Image.Image) -> None:
        """Input and reconstruction of an image, at quality 50, and histograms of weights and latent."""
        x = to_tensor(image)[..., :512, :512].to(model.device)
        quality = 50 if model.config.variable_rate else None
        latent = model.latent(x, quality)
        x_hat = model.reconstruct(latent, x.shape[-2:], quality)
        self.board.add_images("val/input_and_reconstruction", to_uint8(torch.cat((x, x_hat))), step)
        self.board.add_histogram("latent", latent.y, step)
        for name, parameter in model.named_parameters():
            self.board.add_histogram(name, parameter, step)

    def say(self, text: str) -> None:
        tqdm.write(text)

    def close(self) -> None:
        self.file.close()
        self.board.close()
        self.bar.close()
