"""NADE as a module: parameters named as in the paper, computed by pyar.ops.nade."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pyar.models.base import AutoregressiveModel, marginal_logits, new_parameter, positive_int
from pyar.models.layers import check_linears, linear_parameters, require_parameter
from pyar.ops.nade import nade_conditional_log_prob, nade_log_prob, nade_logits, nade_mean_nll, nade_sample
from pyar.reference.nade import outputs


class NADE(AutoregressiveModel):
    r"""The neural autoregressive distribution estimator.

        p(x_d = k | x_{<d}) = softmax_k(V_d f(h_d) + b_d)        (K = 2: σ of one logit)
        h_d = σ(c + Σ_{i<d} W_i[x_i])                            (state 0 contributes nothing)

    with f the added layers of `mlp_sizes`, or the identity.

    Reference: Uria, Côté, Gregor, Murray & Larochelle, "Neural Autoregressive Distribution Estimation", JMLR 17 (2016),
    https://jmlr.org/papers/v17/16-272.html, equations (2) and (3).

    Args:
        dim: D, the number of dimensions.
        num_states: K, 2 … 256.
        hidden_size: H, the number of hidden units.
        input: "onehot", a weight vector for every state of a dimension but 0, or "scalar", one for each dimension,
            multiplied by x/(K−1).
        mlp_sizes: sizes of fully connected ReLU layers, shared by all dimensions, between h_d and the output.
        order: a permutation of 0 … D−1, the dimension visited at each step; None for 0 … D−1.

    Attributes:
        W: [D, K−1, H], or [D, H] for scalar input. W, V and b are indexed by step.
        c: [H].
        V: [D, P, F], P = 1 for K = 2 and K otherwise, F = H or the size of the last added layer.
        b: [D, P].
        mlp: the added layers, torch.nn.Linear each.

    Example:
        >>> model = pyar.NADE(dim=64, num_states=2, hidden_size=100)
        >>> x = model.sample(16, seed=0)
        >>> x.shape, x.dtype
        (torch.Size([16, 64]), torch.uint8)
        >>> model.log_prob(x).shape
        torch.Size([16])
    """

    name = "nade"

    def __init__(
        self,
        dim: int,
        num_states: int = 2,
        hidden_size: int = 500,
        *,
        input: Literal["onehot", "scalar"] = "onehot",
        mlp_sizes: Sequence[int] = (),
        order: Sequence[int] | None = None,
    ) -> None:
        super().__init__(dim, num_states, order)
        if input not in ("onehot", "scalar"):
            raise ValueError(f"input must be 'onehot' or 'scalar', got {input!r}")
        self.hidden_size = positive_int("hidden_size", hidden_size)
        self.input = input
        if not hasattr(mlp_sizes, "__iter__"):
            raise TypeError(f"mlp_sizes must be a sequence of integers, got {type(mlp_sizes).__name__} {mlp_sizes!r}")
        self.mlp_sizes = tuple(positive_int("mlp_sizes", size) for size in mlp_sizes)

        D, K, H = self.dim, self.num_states, self.hidden_size
        P, sizes = 1 if K == 2 else K, (H, *self.mlp_sizes)
        self.W = new_parameter(D, H) if input == "scalar" else new_parameter(D, K - 1, H)
        self.c = new_parameter(H)
        self.V = new_parameter(D, P, sizes[-1])
        self.b = new_parameter(D, P)
        self.mlp = nn.ModuleList(nn.Linear(*pair, dtype=torch.float32) for pair in itertools.pairwise(sizes))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """W, V ~ N(0, 0.01²), c = b = 0; added layers as torch.nn.Linear starts them."""
        nn.init.normal_(self.W, std=0.01)
        nn.init.normal_(self.V, std=0.01)
        nn.init.zeros_(self.c)
        nn.init.zeros_(self.b)
        for layer in self.mlp:
            layer.reset_parameters()

    @torch.no_grad()
    def initialize_from_marginals(self, x: Tensor) -> NADE:
        """Sets b so that an untrained model starts at the data's marginals.

        That is at the log-frequencies of the states of each dimension (K = 2: at their log-odds), each state counted
        once more than it was seen.

        Args:
            x: uint8 or int64 [N, D], states 0 … K−1.

        Returns:
            The model itself.

        Raises:
            TypeError, ValueError: as log_prob.

        Example:
            >>> x = torch.tensor([[0, 1], [0, 1], [0, 0]])
            >>> model = pyar.NADE(dim=2, hidden_size=8).initialize_from_marginals(x)
            >>> torch.sigmoid(model.b).squeeze()  # (0 + 1)/(3 + 2) and (2 + 1)/(3 + 2)
            tensor([0.2000, 0.6000], grad_fn=<SqueezeBackward0>)
        """
        x = self._steps(x)
        require_parameter("b", self.b)
        self.b.copy_(marginal_logits(x, self.num_states))
        return self

    def _config(self) -> dict[str, Any]:
        return {"hidden_size": self.hidden_size, "input": self.input, "mlp_sizes": list(self.mlp_sizes)}

    def _layers(self) -> dict[str, nn.Module]:
        return check_linears("mlp", self.mlp, (self.hidden_size, *self.mlp_sizes))

    def _mlp_parameters(self) -> list[Tensor]:
        """weight_1, bias_1, weight_2, … as the operations take them."""
        return [parameter for layer in self.mlp for parameter in linear_parameters(layer)]

    def _called_logits(self, x: Tensor) -> Tensor:
        def features(h: Tensor, _: Sequence[Tensor]) -> Tensor:
            for layer in self.mlp:
                h = torch.relu(layer(h))
            return h

        steps = outputs(x, self.W, self.c, self.V, self.b, f=features)
        return torch.stack(list(steps), dim=1).squeeze(-1)

    def _log_prob(self, x: Tensor) -> Tensor:
        return nade_log_prob(x, self.W, self.c, self.V, self.b, self._mlp_parameters())

    def _logits(self, x: Tensor) -> Tensor:
        return nade_logits(x, self.W, self.c, self.V, self.b, self._mlp_parameters())

    def _conditional_log_prob(self, x: Tensor) -> Tensor:
        return nade_conditional_log_prob(x, self.W, self.c, self.V, self.b, self._mlp_parameters())

    def _mean_nll(self, x: Tensor, weights: Tensor | None) -> Tensor:
        return nade_mean_nll(x, self.W, self.c, self.V, self.b, self._mlp_parameters(), weights=weights)

    def _sample(
        self, num_samples: int, seed: Tensor, first_index: int, temperature: float, given: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        return nade_sample(
            self.W,
            self.c,
            self.V,
            self.b,
            self._mlp_parameters(),
            seed=seed,
            num_samples=num_samples,
            first_index=first_index,
            temperature=temperature,
            given=given,
        )
