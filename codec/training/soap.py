"""SOAP: Adam in the eigenbasis of Shampoo's preconditioner (Vyas et al., "SOAP: Improving and stabilizing Shampoo using
Adam", ICLR 2025).

The gradient G of a weight of m outputs and n inputs, every place of a kernel being one, has the moments L = mean of
G G^T and R = mean of G^T G. Adam's second moment is kept of G turned into the eigenvectors of both; the step that Adam
would make there is turned back. The eigenvectors follow L and R by one step of orthogonal iteration every EVERY steps.
Vectors, and weights of one input a channel, are Adam's.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

EVERY = 10  # steps between two looks at the eigenvectors, as in the paper
BETA = 0.95  # of all moments, as in the paper
LARGEST = 1400  # a side that is longer is not turned
EPS = 1e-8
SIDES = ("left", "right")


def moments(G: Tensor) -> dict[str, Tensor]:
    """G (m, n) -> G G^T and G^T G by the side on which their eigenvectors turn it, without those that are too large."""
    sides = {"left": G.shape[0], "right": G.shape[1]} if G.ndim == 2 else {}
    return {side: G @ G.T if side == "left" else G.T @ G for side, length in sides.items() if length <= LARGEST}


def basis(moment: Tensor) -> Tensor:
    """Eigenvectors, as columns, of the moment of one gradient. Its rank is low: the ramp tells equal values apart."""
    ramp = torch.linspace(1, 2, len(moment), dtype=torch.float64, device=moment.device)
    scaled = moment.double() / moment.trace().clamp_min(1e-30) + 1e-6 * ramp.diag()
    return torch.linalg.eigh(scaled)[1].flip(1).to(moment).contiguous()


class SOAP(torch.optim.Optimizer):
    """Parameter groups with a learning rate `lr` and decoupled weight decay. Where the tensor `found_inf`, set from
    outside, is 1 a step leaves everything as it is; nothing waits for the device.
    """

    found_inf: Tensor | None = None

    def __init__(self, groups: Iterable, lr: float, weight_decay: float = 0.0):
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._move(p, group["lr"], group["weight_decay"])

    def _move(self, p: Tensor, lr: float, decay: float) -> None:
        good = torch.ones((), device=p.device) if self.found_inf is None else 1 - self.found_inf
        turned = p.ndim > 1 and p.shape[0] > 1 and p.shape[1] > 1
        G = p.grad.reshape(len(p), -1) if turned else p.grad
        G = torch.where(good > 0, G, torch.zeros((), dtype=G.dtype, device=G.device))
        state = self.state[p]
        if not state:
            state |= {
                "steps": torch.zeros((), device=p.device),
                "first": torch.zeros_like(G),
                "second": torch.zeros_like(G),
            }
            for side, moment in moments(G).items():
                state |= {f"moment_{side}": moment, f"basis_{side}": basis(moment)}
        state["steps"] += good
        fresh = (1 - BETA) * good
        state["first"].lerp_(G, fresh)
        state["second"].lerp_(self._turn(G, state).square_(), fresh)
        correction = (1 - BETA ** state["steps"]).clamp_min(1 - BETA)
        direction = self._turn(state["first"], state) / ((state["second"] / correction).sqrt_() + EPS)
        step = self._turn(direction, state, back=True) / correction
        p.mul_(1 - lr * decay * good).sub_((lr * good * step).view(p.shape))
        for side, moment in moments(G).items():
            state[f"moment_{side}"].lerp_(moment, fresh)
        state["count"] = state.get("count", 0) + 1
        if state["count"] % EVERY == 0:
            self._look(state)

    @staticmethod
    def _turn(G: Tensor, state: dict[str, Tensor], back: bool = False) -> Tensor:
        """G in the eigenbases, or back from there; always a new tensor."""
        left, right = (state.get(f"basis_{side}") for side in SIDES)
        if left is not None:
            G = (left if back else left.T) @ G
        if right is not None:
            G = G @ (right.T if back else right)
        return G if left is not None or right is not None else G.clone()

    @staticmethod
    def _look(state: dict[str, Tensor]) -> None:
        """One step of orthogonal iteration; what is known of an eigenvector moves with its place in the order."""
        for dim, side in enumerate(SIDES):
            if f"basis_{side}" in state:
                moment, old = state[f"moment_{side}"], state[f"basis_{side}"]
                order = (old * (moment @ old)).sum(0).argsort(descending=True)
                state["second"] = state["second"].index_select(dim, order)
                state[f"basis_{side}"] = torch.linalg.qr(moment @ old[:, order])[0]
