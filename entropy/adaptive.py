"""The context of entropy/context.py while it is trained: the same sums over all positions at once, with gradients.

    model = ContextModel(channels=320, parents=12, conditional)
    index = model(y_q, index)          symbols (B, C, h, w) and the index told before -> the adapted one, integers
    context = model.context()          entropy.Context, what an encoder and a decoder use

Hard symbols are all known in training, so every position is computed in parallel, and what it costs to code y_q under
the adapted index teaches the weights. Which channels are parents is learned, too: all that come before are candidates,
the sums take the `parents` heaviest ones, and the gradient goes to every candidate as if it had been taken, straight
through the choice (Bengio, Léonard and Courville, 2013).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entropy.conditional import ScaleConditional
from entropy.context import FEATURE_BITS, FEATURE_MOST, INDEX_BITS, MOST, NEAR, UNIT_BITS, Context
from entropy.integer import straight_through

HEAVIEST = 255  # of the integer weights of a channel
UNIT = 8.0  # a slope or bias of 1 counts for as many tables: about an octave of the scale


class ContextModel(nn.Module):
    """Weights of a context for `channels` channels with `parents` parents each, over the tables of a conditional."""

    def __init__(self, channels: int, parents: int, conditional: ScaleConditional):
        super().__init__()
        self.parents, self.levels = min(parents, channels), conditional.levels
        self.near = nn.Parameter(torch.full((channels, len(NEAR)), -1.0))  # before softplus, as are cross and floor
        self.cross = nn.Parameter(torch.full((channels, channels), -4.0))
        self.floor = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("energy", torch.zeros(channels))  # louder channels are coded first
        magnitudes = torch.arange(1.0, MOST)[:, None]
        likelihood = conditional.likelihood(magnitudes, conditional.scale_of(torch.arange(self.levels)))
        self.register_buffer("expected", 2 * (likelihood * magnitudes).sum(dim=0), persistent=False)

    def start(self, index: Tensor) -> None:
        """Order the channels by the magnitudes that their tables (B, C, h, w) expect."""
        self.energy.copy_(self.expected[index.long()].mean(dim=(0, 2, 3)))

    def order(self) -> Tensor:
        """(C,) the channel that is coded first, second, ..."""
        return torch.argsort(self.energy, descending=True, stable=True)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Those of all candidates (C, C), before any choice, and of the parents alone, 0 for all others."""
        rank = torch.argsort(self.order())
        candidates = F.softplus(self.cross) * (rank < rank[:, None])
        heaviest = candidates.topk(self.parents, dim=1).indices
        return candidates, torch.zeros_like(candidates).scatter(1, heaviest, candidates.gather(1, heaviest))

    def forward(self, y_q: Tensor, index: Tensor) -> Tensor:
        """y_q, index (B, C, h, w), integers in floats -> the adapted index, float32, within the tables; the gradient
        goes to the weights and, as if nothing had been adapted, to `index`.
        """
        magnitudes = y_q.detach().abs().clamp_max(MOST).float()
        means = self.expected[index.detach().long()]
        candidates, parents = self.weights()
        cross, near = straight_through(candidates, parents), F.softplus(self.near)[:, :, None, None]
        floor = F.softplus(self.floor)[:, None, None]
        s, e = (floor + torch.einsum("cd,bdhw->bchw", cross, x) for x in (magnitudes, means))
        for k, (down, right) in enumerate(NEAR):
            s, e = s + near[:, k] * moved(magnitudes, down, right), e + near[:, k] * moved(means, down, right)
        limit = FEATURE_MOST / 2**FEATURE_BITS
        feature = (logarithm(s) - logarithm(e)).clamp(-limit, limit)
        change = UNIT * (self.slope[:, None, None] * feature + self.bias[:, None, None])
        change = change * ((s > floor) | (index > 0))
        change = straight_through(change, torch.floor(change + 0.5))
        adapted = index.float() + change
        return straight_through(adapted, adapted.clamp(0, self.levels - 1))

    @torch.no_grad()
    def context(self) -> Context:
        """The integers. Those of a channel are so scaled that its heaviest weight is 255."""
        order = self.order().cpu().numpy().astype(np.uint16)
        _, cross = self.weights()
        weights, parents = cross.topk(self.parents, dim=1)
        weights = torch.cat([weights, F.softplus(self.near)], dim=1).double()
        unit = weights.amax(dim=1, keepdim=True) / HEAVIEST
        weights = torch.round(weights / unit)
        most = 2.0**31 - 1 - weights.sum(dim=1) * (MOST << UNIT_BITS)
        floor = torch.round(F.softplus(self.floor).double() / unit[:, 0] * 2**UNIT_BITS).clamp_min(1)
        slope = torch.round(self.slope.double() * UNIT * 2 ** (INDEX_BITS - FEATURE_BITS)).clamp(1 - 2**16, 2**16 - 1)
        bias = torch.round(self.bias.double() * UNIT * 2**INDEX_BITS).clamp(1 - 2**24, 2**24 - 1)
        constants = torch.stack([torch.minimum(floor, most), slope, bias], dim=1)
        arrays = (parents, np.uint16), (weights, np.uint8), (constants, np.int32)
        return Context(order, *(array.cpu().numpy().astype(dtype) for array, dtype in arrays))


def moved(x: Tensor, down: int, right: int) -> Tensor:
    """What places see that look `down` rows further down and `right` columns right in x (B, C, h, w); 0 outside."""
    h, w = x.shape[-2:]
    return F.pad(x, (1, 1, 2, 0))[..., 2 + down : 2 + down + h, 1 + right : 1 + right + w]


def logarithm(x: Tensor) -> Tensor:
    """log2 of x > 0, along straight lines between powers of two."""
    mantissa, exponent = torch.frexp(x)
    return exponent + 2 * mantissa - 2
