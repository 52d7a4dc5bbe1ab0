"""The projection head of MoCo v3: what the loss sees, and retrieval does not."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class ProjectionHead(nn.Module):
    """An MLP of three layers, with a BatchNorm after each; its output is L2-normalised.

    Statistics are those of one rank's vectors.
    """

    def __init__(self, dim: int, hidden: int = 4096, out: int = 256) -> None:
        """Build it, by default in MoCo v3's size.

        Args:
            dim: channels of Φ's vector.
            hidden: channels of the two hidden layers.
            out: channels that the loss compares.
        """
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, last in ((dim, hidden, False), (hidden, hidden, False),
                                      (hidden, out, True)):  # fmt: skip
            layers.append(nn.Linear(inputs, outputs, bias=False))
            layers.append(nn.BatchNorm1d(outputs, affine=not last))
            if not last:
                layers.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*layers)
        self.dim = out

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch out"]:
        """Project."""
        return functional.normalize(self.layers(x), dim=-1)
