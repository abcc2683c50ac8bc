"""Every kernel once on small cases, for compute-sanitizer: python tests/small_cases.py [cuda]"""

from __future__ import annotations

import sys

import torch
from oracle import nade_parameters

from pyar.ops.lstm import lstm_sample
from pyar.ops.nade import nade_log_prob, nade_mean_nll, nade_sample


def main(device: str) -> None:
    seed = torch.tensor(1, device=device)
    for D, K, H in ((20, 2, 9), (18, 5, 130), (3, 40, 600)):
        p = nade_parameters(D, K, H).map(lambda tensor: tensor.to(device)).leaves()
        x, _ = nade_sample(*p[:4], seed=seed, num_samples=19)
        nade_log_prob(x, *p[:4])
        nade_mean_nll(x, *p[:4]).backward()
    p = nade_parameters(20, 3, 40, mlp_sizes=(70, 9)).map(lambda tensor: tensor.to(device)).leaves()
    x, _ = nade_sample(*p, seed=seed, num_samples=19)
    nade_mean_nll(x, *p).backward()
    for H, layers in ((9, 1), (256, 1), (100, 2)):
        lstm = torch.nn.LSTM(3, H, layers).to(device)
        head = torch.nn.Linear(H, 3).to(device)
        weights = [weight.detach() for weight in lstm._flat_weights]
        arguments = (weights, head.weight.detach(), head.bias.detach())
        for dtype in (torch.float32, torch.bfloat16):
            lstm_sample(*arguments, seed=seed, num_samples=9, num_dims=4, weight_dtype=dtype)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"every kernel has run on {device}")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["cuda"])
