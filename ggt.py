"""GGT: Adam with the full matrix of second moments, from the last gradients.

Adam divides each component of the gradient by the root of its mean square. GGT multiplies the
gradient by the inverse square root of the whole matrix of second moments, G G^T, where the columns
of G are the last r gradients (Agarwal et al., "Efficient full-matrix adaptive regularization",
2019). An eigendecomposition of the r x r matrix G^T G is enough, for any number of parameters.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

WINDOW = 100  # gradients
DECAY = 0.97  # of a gradient's weight in G G^T, per step
INTERVAL = 50  # steps from one eigendecomposition to the next; 10 were worse
DAMPING = 1e-2  # added to the diagonal of G G^T: a fraction of its mean


class GGT(torch.optim.Optimizer):
    """GGT with Nesterov momentum and the decoupled weight decay of AdamW.

    The first steps only collect gradients.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, momentum: float = 0.9) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "weight_decay": 0.0})
        self._parameters = [each for group in self.param_groups for each in group["params"]]
        count = sum(parameter.numel() for parameter in self._parameters)
        device = self._parameters[0].device
        # Optimizer.state_dict saves what is filed under a parameter.
        self.state[self._parameters[0]] = {
            "step": torch.zeros((), dtype=torch.long),
            "mean": torch.zeros(count, device=device),
            "gradients": torch.zeros(WINDOW, count, device=device),  # rows of G^T, in a ring
            "directions": torch.zeros(WINDOW, count, device=device),  # as in `decompose`
            "factors": torch.zeros(WINDOW, device=device),
            "factor": torch.zeros((), device=device),
        }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Updates the parameters by their gradients."""
        state, momentum = self.state[self._parameters[0]], self.param_groups[0]["momentum"]
        gradients = [
            torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            for parameter in self._parameters
        ]
        gradient = torch.cat([each.reshape(-1) for each in gradients])
        state["mean"].lerp_(gradient, 1 - momentum)
        step = int(state["step"])
        state["gradients"][step % WINDOW] = gradient
        state["step"] += 1
        if (step + 1) % INTERVAL == 0:
            ages = (step - torch.arange(WINDOW)) % WINDOW
            weights = ((1 - DECAY) * DECAY**ages).sqrt().to(gradient.device)
            state.update(decompose(weights[:, None] * state["gradients"]))
        if step + 1 < WINDOW:
            return
        update = state["mean"].lerp(gradient, 1 - momentum)
        along = state["factors"] * (state["directions"] @ update)
        update = state["factor"] * update + along @ state["directions"]
        parts = iter(update.split([parameter.numel() for parameter in self._parameters]))
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(next(parts).view_as(parameter), alpha=group["lr"])


def decompose(rows: Tensor) -> dict[str, Tensor]:
    """The inverse square root of G G^T + damping, where `rows` (r, n) are G^T.

    It multiplies a vector by `factor`, and its part along each of `directions`, the eigenvectors
    of G G^T, by `factors` in addition.
    """
    gram = (rows @ rows.T).cpu()  # MPS has no eigh
    values, vectors = torch.linalg.eigh(gram)
    values = values.clamp(min=1e-6 * values[-1])  # rounding makes the least ones negative
    damping = DAMPING * gram.trace() / rows.shape[1]
    state = {
        "directions": (vectors / values.sqrt()).T.to(rows.device) @ rows,
        "factors": (values + damping).rsqrt() - damping.rsqrt(),
        "factor": damping.rsqrt(),
    }
    return {name: tensor.to(rows.device) for name, tensor in state.items()}
