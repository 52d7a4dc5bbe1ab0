"""The projection head of MoCo v3: what the loss sees, and retrieval mostly does not."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

HeadNorm = Literal["batch", "layer"]


class ProjectionHead(nn.Module):
    """An MLP of three layers, with a norm after each; its output is L2-normalised."""

    def __init__(self, dim: int, hidden: int, out: int, norm: HeadNorm) -> None:
        """Build it.

        Args:
            dim: channels of Φ's vector.
            hidden: channels of the two hidden layers.
            out: channels that the loss compares.
            norm: `batch` as in MoCo v3, whose statistics are those of one rank's vectors;
                `layer` for small batches, with the same result on any number of ranks.
        """
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, last in ((dim, hidden, False), (hidden, hidden, False),
                                      (hidden, out, True)):  # fmt: skip
            layers.append(nn.Linear(inputs, outputs, bias=False))
            if norm == "batch":
                layers.append(nn.BatchNorm1d(outputs, affine=not last))
            else:
                layers.append(nn.LayerNorm(outputs, elementwise_affine=not last))
            if not last:
                layers.append(nn.ReLU(inplace=True))
        self.layers = nn.Sequential(*layers)
        self.dim = out

    def forward(self, x: Float[Tensor, "batch dim"]) -> Float[Tensor, "batch out"]:
        """Project."""
        return functional.normalize(self.layers(x), dim=-1)
