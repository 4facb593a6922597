"""AdamW over named parameters, in groups that differ in rate and decay.

Groups: the method's parameters at the learning rate, the head's at its own, each split into matrices, which decay,
and vectors (biases, norms), which do not (Loshchilov and Hutter 2019, arXiv:1711.05101, for the decoupled decay).
State is saved and restored by parameter name, so that a checkpoint does not depend on the order of groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qlassify.errors import CheckpointError

BETAS = (0.9, 0.999)
EPSILON = 1e-8


class Optimizer:
    """AdamW with a peak rate per group; the schedule's factor is set before each step.

    Args:
        method: name -> parameter of the fine-tuning method.
        head: name -> parameter of the head.
        learning_rate: peak rate of the method's parameters.
        head_learning_rate: peak rate of the head's.
        weight_decay: decoupled decay of matrices.
        rate_factors: name -> factor on the peak rate, for parameters of the method where it is not one.
    """

    def __init__(
        self,
        method: Mapping[str, nn.Parameter],
        head: Mapping[str, nn.Parameter],
        *,
        learning_rate: float,
        head_learning_rate: float,
        weight_decay: float,
        rate_factors: Mapping[str, float] | None = None,
    ) -> None:
        self.parameters: dict[str, nn.Parameter] = {**method, **head}
        factors = rate_factors or {}
        groups: dict[tuple[str, float, bool], dict[str, Any]] = {}
        for part, named, rate in (("method", method, learning_rate), ("head", head, head_learning_rate)):
            for name, parameter in sorted(named.items(), key=lambda item: item[1].dim() < 2):
                peak, decays = rate * factors.get(name, 1.0), parameter.dim() >= 2
                group = {"params": [], "lr": peak, "peak": peak, "weight_decay": weight_decay if decays else 0.0}
                groups.setdefault((part, peak, decays), group)["params"].append(parameter)
        self._adamw = torch.optim.AdamW(list(groups.values()), betas=BETAS, eps=EPSILON, fused=True)

    @property
    def learning_rate(self) -> float:
        """The current rate of the first group, the method's matrices."""
        return float(self._adamw.param_groups[0]["lr"])

    def set_rate_factor(self, factor: float) -> None:
        """Set every group's rate to ``factor`` times its peak."""
        for group in self._adamw.param_groups:
            group["lr"] = factor * group["peak"]

    def set_peak(self, learning_rate: float) -> None:
        """Change the peak of the first group to ``learning_rate`` and the others' in proportion."""
        ratio = learning_rate / self._adamw.param_groups[0]["peak"]
        for group in self._adamw.param_groups:
            group["peak"] *= ratio
            group["lr"] = group["peak"]

    def step(self) -> None:
        """Move every parameter by its gradient."""
        self._adamw.step()

    def clear_gradients(self) -> None:
        """Forget all gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """The moments and step counts as ``<kind>/<parameter name>`` -> tensor."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.parameters.items():
            for kind, value in self._adamw.state.get(parameter, {}).items():
                tensors[f"{kind}/{name}"] = value.detach()
        return tensors

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore what ``state_tensors`` gave.

        Raises:
            CheckpointError: a tensor belongs to a parameter that is not optimised here.
        """
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            parameter = self.parameters.get(name)
            if parameter is None:
                raise CheckpointError("the optimiser state names an unknown parameter", got=name)
            device = "cpu" if kind == "step" and parameter.device.type == "cpu" else parameter.device
            self._adamw.state[parameter][kind] = value.to(device).clone()
