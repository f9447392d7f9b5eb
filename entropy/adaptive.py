"""The context model of entropy/context.py in training: the same sums, over all positions at once, with gradients.

    model = ContextModel(channels=320, parents=12, conditional)
    index = model(y_q, index)          symbols and table indices (B, C, h, w) -> adapted indices, same shape
    context = model.context()          entropy.Context: the integers that encoder and decoder use

All symbols are known in training, so all positions are computed in parallel. The weights learn from the bits of y_q
under the adapted indices. The parents of a channel are learned, too: every channel that is coded before it is a
candidate, the forward pass uses the `parents` candidates of largest weight, and the gradient goes to all of them,
straight through the choice (Bengio, Léonard and Courville, 2013).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from entropy.conditional import ScaleConditional
from entropy.context import FEATURE_BITS, FEATURE_MOST, INDEX_BITS, MOST, NEAR, UNIT_BITS, Context
from entropy.integer import straight_through

HEAVIEST = 255  # largest integer weight of a channel: uint8
UNIT = 8.0  # tables by which a slope or bias of 1 moves an index, by hand: about a factor e of the scale


class ContextModel(nn.Module):
    """Trainable weights of a context model: C channels with P parents each, for the tables of a conditional prior.

    channels: C; parents: P, cut to C; conditional: the prior whose tables the indices name. Weights start by hand.
    """

    def __init__(self, channels: int, parents: int, conditional: ScaleConditional):
        super().__init__()
        self.parents, self.tables = min(parents, channels), conditional.count
        self.near = nn.Parameter(torch.full((channels, len(NEAR)), -1.0))  # near, cross, floor: before softplus
        self.cross = nn.Parameter(torch.full((channels, channels), -4.0))
        self.floor = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("energy", torch.zeros(channels))  # channels of larger energy are coded first
        magnitudes = torch.arange(1.0, MOST)[:, None]
        likelihood = conditional.likelihood(magnitudes, conditional.scale_of(torch.arange(self.tables)))
        self.register_buffer("expected", 2 * (likelihood * magnitudes).sum(dim=0), persistent=False)

    def start(self, index: Tensor) -> None:
        """Set the coding order, by the mean magnitude that each channel's tables expect; index (B, C, h, w)."""
        self.energy.copy_(self.expected[index.long()].mean(dim=(0, 2, 3)))

    def order(self) -> Tensor:
        """The coding order: (C,) int64, the channel that is coded first, second, ..."""
        return torch.argsort(self.energy, descending=True, stable=True)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Weights >= 0 of channels on channels, twice (C, C): of all candidates, and with 0 for all but the parents."""
        rank = torch.argsort(self.order())
        candidates = F.softplus(self.cross) * (rank < rank[:, None])
        heaviest = candidates.topk(self.parents, dim=1).indices
        return candidates, torch.zeros_like(candidates).scatter(1, heaviest, candidates.gather(1, heaviest))

    def forward(self, y_q: Tensor, index: Tensor) -> Tensor:
        """Symbols y_q and table indices (B, C, h, w), integers in floats -> adapted indices, float32, same shape.

        They are integers in 0..number of tables - 1. The gradient goes to the weights and, unchanged, to `index`.
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
        return straight_through(adapted, adapted.clamp(0, self.tables - 1))

    @torch.no_grad()
    def context(self) -> Context:
        """The context in integers. Weights and floor of a channel are scaled so that its largest weight is 255."""
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
    """x (B, C, h, w) shifted: sample (r, c) is that at (r + down, c + right); 0 outside, same shape."""
    h, w = x.shape[-2:]
    return F.pad(x, (1, 1, 2, 0))[..., 2 + down : 2 + down + h, 1 + right : 1 + right + w]


def logarithm(x: Tensor) -> Tensor:
    """log2 of x > 0, linear between powers of two; same shape."""
    mantissa, exponent = torch.frexp(x)
    return exponent + 2 * mantissa - 2
