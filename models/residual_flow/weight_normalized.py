"""A linear map whose rows have a length and a direction of their own (Salimans and Kingma, arXiv 1602.07868)."""

import torch
import torch.nn.functional as F
from torch import nn

INITIAL_DEVIATION = 0.05


class WeightNormalizedLinear(nn.Module):
    """x W^T + b with W = g V / |V|, |V| the length of each row."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        direction = torch.randn(out_features, in_features) * INITIAL_DEVIATION
        self.linear = nn.ParameterDict(
            {
                "bias": nn.Parameter(torch.zeros(out_features)),
                "weight_g": nn.Parameter(torch.linalg.vector_norm(direction, dim=1, keepdim=True)),
                "weight_v": nn.Parameter(direction),
            }
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, in_features) to (B, out_features)."""
        direction = self.linear["weight_v"]
        length = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
        return F.linear(x, self.linear["weight_g"] * direction / length, self.linear["bias"])
