"""The context in training: what it computes is what its integers do, it learns, and no channel sees a later one."""

import numpy as np
import torch

from entropy import encode, encode_adapted
from entropy.adaptive import ContextModel
from entropy.conditional import LaplaceConditional
from entropy.substream import adapted

CONDITIONAL = LaplaceConditional(count=24, most=16.0)
CHANNELS = 6


def latents(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Symbols (count, C, 8, 10) whose scale changes from place to place, together in all channels, and an index that
    tells the channel's mean scale alone.
    """
    rng = np.random.default_rng(seed)
    loud = np.repeat(np.repeat(rng.exponential(1.0, (count, 1, 2, 2)), 4, 2), 5, 3)
    scale = np.geomspace(2.5, 0.3, CHANNELS)[:, None, None]
    symbols = np.round(rng.laplace(size=(count, CHANNELS, 8, 10)) * loud * scale)
    index = CONDITIONAL.index(torch.from_numpy(scale * 2**0.5)).expand(symbols.shape)
    return torch.from_numpy(symbols).float(), index


def trained(steps: int = 120) -> ContextModel:
    torch.manual_seed(0)
    model = ContextModel(CHANNELS, 3, CONDITIONAL)
    symbols, index = latents(64)
    model.start(index)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(steps):
        bits(model, symbols, index).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def bits(model: ContextModel | None, symbols: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    index = index.float() if model is None else model(symbols, index)
    return -torch.log2(CONDITIONAL.likelihood(symbols, CONDITIONAL.scale_of(index)) + 1e-9).sum()


def test_it_learns_and_its_integers_save_the_bits_that_it_promised():
    model, (symbols, index) = trained(), latents(16, seed=1)
    with torch.no_grad():
        before, after = bits(None, symbols, index).item(), bits(model, symbols, index).item()
    assert after < 0.97 * before
    context, tables = model.context(), CONDITIONAL.tables()
    own = symbols.numpy().astype(np.int32), index.numpy()
    plain = sum(len(encode([(y, i, tables)])) for y, i in zip(*own, strict=True))
    coded = sum(len(encode_adapted(y, np.ascontiguousarray(i), tables, context)) for y, i in zip(*own, strict=True))
    assert abs((plain - coded) * 8 - (before - after)) < 0.15 * (before - after)


def test_training_sees_the_indices_of_the_integers_but_for_a_rounding():
    model, (symbols, index) = trained(60), latents(8, seed=2)
    with torch.no_grad():
        found = model.eval()(symbols, index).numpy().astype(int)
    context, tables = model.context(), CONDITIONAL.tables()
    each = zip(symbols.numpy().astype(np.int32), index.numpy(), strict=True)
    exact = np.stack([adapted(y, np.ascontiguousarray(i), tables, context) for y, i in each]).astype(int)
    assert np.abs(found - exact).max() <= 1 and (found == exact).mean() > 0.85
    assert (exact != index.numpy()).mean() > 0.3  # it is not idle


def test_every_weight_hears_of_the_bits():
    model, (symbols, index) = ContextModel(CHANNELS, 2, CONDITIONAL), latents(4)
    model.start(index)
    with torch.no_grad():
        model.slope.fill_(0.5)
    bits(model, symbols, index.double().requires_grad_()).backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all() and parameter.grad.any(), name
    heard = model.cross.grad != 0  # candidates that were not taken, too, but none that is coded later
    rank = torch.argsort(model.order())
    assert (heard <= (rank < rank[:, None])).all() and (heard.sum(dim=1)[rank > 2] > 2).all()


def test_louder_channels_come_first():
    model, (_, index) = ContextModel(CHANNELS, 2, CONDITIONAL), latents(1)
    model.start(index.flip(1))
    assert model.order().tolist() == list(range(CHANNELS))[::-1]
