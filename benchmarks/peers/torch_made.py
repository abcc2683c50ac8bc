"""What one would take instead of NADE for dense binary vectors: a MADE of one hidden layer with as many parameters, in
PyTorch, its sampler written by hand so that each hidden unit is computed once.

It is another model, so that its numbers are not compared with NADE's: what is compared is a step of work. With hidden
unit j of degree m_j it may see the dimensions before m_j, and dimension d sees the units of degree at most d:
    h = relu(c + (mask ∘ W)ᵀ x),   logits = b + (mask′ ∘ V) h.
Germain, Gregor, Murray & Larochelle, "MADE: Masked Autoencoder for Distribution Estimation", ICML 2015.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


class Made:
    """W [D, H] · c [H] · V [D, H] · b [D]. The units are sorted by degree, so that those that dimension d completes lie
    side by side: starts[d] … starts[d + 1]."""

    def __init__(self, D: int, H: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        degree = torch.arange(H) * (D - 1) // H + 1  # 1 … D − 1
        dims = torch.arange(D)[:, None]
        self.input_mask = (dims < degree).float()
        self.output_mask = (degree <= dims).float()
        self.starts = torch.searchsorted(degree, torch.arange(D + 1)).tolist()
        self.W = (0.05 * torch.randn(D, H, generator=generator)).requires_grad_()
        self.V = (0.05 * torch.randn(D, H, generator=generator)).requires_grad_()
        self.c = torch.zeros(H, requires_grad=True)
        self.b = torch.zeros(D, requires_grad=True)

    @property
    def parameters(self) -> list[Tensor]:
        return [self.W, self.c, self.V, self.b]

    def log_prob(self, x: Tensor) -> Tensor:
        """x float32 [B, D] → [B], in nats."""
        h = torch.relu(torch.addmm(self.c, x, self.W * self.input_mask))
        logits = torch.addmm(self.b, h, (self.V * self.output_mask).T)
        return -functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)

    @torch.inference_mode()
    def sample(self, uniforms: Tensor) -> Tensor:
        """uniforms [D, B] → x float32 [B, D]. A unit is computed once, as soon as all that it sees is drawn."""
        W, V = (self.W * self.input_mask).T.contiguous(), (self.V * self.output_mask).contiguous()
        x, h = torch.zeros_like(uniforms), torch.zeros(W.shape[0], uniforms.shape[1])
        for d, u in enumerate(uniforms):
            begin, end = self.starts[d], self.starts[d + 1]
            if end > begin:
                torch.addmm(self.c[begin:end, None], W[begin:end, :d], x[:d], out=h[begin:end]).relu_()
            logit = torch.mv(h[:end].T, V[d, :end]) + self.b[d]
            x[d] = u >= torch.sigmoid(-logit)
        return x.T

    def step(self, uniforms: Tensor, weights: Tensor) -> list[Tensor]:
        """Samples, and the gradient of Σ_i weights_i log p(x_i): the step of variational Monte Carlo."""
        x = self.sample(uniforms).clone()
        return list(torch.autograd.grad(self.log_prob(x), self.parameters, weights))
