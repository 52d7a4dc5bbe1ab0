"""The video encoder Φ of section 4: a transformer over the tokens of sampled frames."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from selfshot.models.attention import MultiHeadAttention
from selfshot.models.checkpointing import call
from selfshot.models.pretrained import FrameTokens
from selfshot.ops.positions import sine_positions


class ClipEncoder(Protocol):
    """What every Φ is: `embed(features(frames))` is its vector.

    `features` is the part that stays the same while Φ is trained, if there is one (a frozen
    backbone): it is computed once for Φ and Φ̃, and may be computed once for a whole training.
    """

    dim: int

    def features(self, frames: UInt8[Tensor, "batch time height width 3"]) -> Any:
        """What is not trained."""
        ...

    def embed(self, features: Any) -> Float[Tensor, "batch dim"]:
        """What is trained; L2-normalised vectors."""
        ...

    def windows(
        self, frames: UInt8[Tensor, "batch time height width 3"], size: int
    ) -> tuple[Float[Tensor, "batch windows dim"], Float[Tensor, "batch windows"]]:
        """One vector for each window of `size` × `size` tokens, and its mean foreground."""
        ...

    def regions(
        self,
        frames: UInt8[Tensor, "batch time height width 3"],
        regions: Float[Tensor, "batch regions time rows columns"] | None,
    ) -> tuple[Float[Tensor, "batch regions dim"], Float[Tensor, "batch regions time h w"]]:
        """One vector for each region, and its weights on the tokens; see `region_vectors`."""
        ...


class VideoBlock(nn.Module):
    """A pre-norm transformer layer whose branches start at zero.

    Φ therefore begins as its backbone: what pretraining knows is there from the first step, and
    self-supervision only adds to it.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = MultiHeadAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        widen, narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.mlp = nn.Sequential(widen, nn.GELU(), narrow)
        for layer in (self.attention.out, narrow):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """(B, tokens, d) to the same."""
        normed = self.norm1(x)
        located = normed + positions
        x = x + self.attention(located, located, normed)
        return x + self.mlp(self.norm2(x))


class ResidualAdapter(nn.Module):
    """A linear correction of a vector, which starts at none.

    It reweighs the backbone's channels and mixes no tokens, so that the windows of a query stay as
    sharp as the backbone's.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.change = nn.Linear(dim, dim)
        nn.init.zeros_(self.change.weight)
        nn.init.zeros_(self.change.bias)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """L2-normalised vectors to the same."""
        return functional.normalize(x + self.change(x), dim=-1)


class Whitening(nn.Module):
    """A linear map of vectors that was fitted before (`ops.whitening`); at first it is none."""

    map: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("map", torch.eye(dim))

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """L2-normalised vectors to the same."""
        return functional.normalize(x @ self.map, dim=-1)


def build_adapter(kind: str, dim: int) -> nn.Module:
    """What corrects pooled vectors: none, linear, whitened or whitened_linear."""
    parts: dict[str, list[type[nn.Module]]] = {
        "none": [],
        "linear": [ResidualAdapter],
        "whitened": [Whitening],
        "whitened_linear": [Whitening, ResidualAdapter],
    }
    made = [part(dim) for part in parts[kind]]
    # One part stands alone: the names of its weights are those of older files.
    return nn.Sequential(*made) if len(made) > 1 else made[0] if made else nn.Identity()


def window_vectors(
    tokens: Float[Tensor, "batch time h w dim"],
    foreground: Float[Tensor, "batch time h w"],
    size: int,
) -> tuple[Float[Tensor, "batch windows dim"], Float[Tensor, "batch windows"]]:
    """The mean of the tokens of each window of `size` × `size`, weighted by foreground.

    Returns:
        L2-normalised vectors, frame by frame and row by row, and the mean foreground of each
        window.
    """
    batch, time = tokens.shape[:2]
    size = min(size, *tokens.shape[2:4])
    weights = foreground.clamp_min(1e-4).flatten(0, 1)[:, None]
    planes = tokens.flatten(0, 1).permute(0, 3, 1, 2)
    mass = functional.avg_pool2d(weights, size, 1)
    vectors = functional.avg_pool2d(planes * weights, size, 1) / mass
    vectors = functional.normalize(vectors, dim=1).permute(0, 2, 3, 1)
    return vectors.unflatten(0, (batch, time)).flatten(1, 3), mass.reshape(batch, -1)


def region_vectors(
    tokens: Float[Tensor, "batch time h w dim"],
    foreground: Float[Tensor, "batch time h w"],
    regions: Float[Tensor, "batch regions time rows columns"] | None,
) -> tuple[Float[Tensor, "batch regions dim"], Float[Tensor, "batch regions time h w"]]:
    """The mean of a clip's tokens over each region, weighted by how much of a token it covers.

    Args:
        tokens: of the clips.
        foreground: of each token.
        regions: the share of each cell that a region covers, on any grid of the frames; none:
            one region a clip, its foreground.

    Returns:
        L2-normalised vectors, zeros for a region that covers nothing, and the weight of each token.
    """
    if regions is None:
        weights = foreground.clamp_min(1e-4)[:, None]
    else:
        size = (tokens.shape[2], tokens.shape[3])
        cells = functional.adaptive_avg_pool2d(regions.flatten(0, 2)[:, None], size)
        weights = cells[:, 0].unflatten(0, regions.shape[:3])
    totals = torch.einsum("bthwd,bnthw->bnd", tokens, weights.to(tokens))
    return functional.normalize(totals, dim=-1), weights


class VideoEncoder(nn.Module):
    """Φ: frames to one L2-normalised vector, or to one for each spatial window."""

    def __init__(
        self,
        backbone: nn.Module,
        dim: int,
        layers: int,
        heads: int,
        *,
        adapter: str = "none",
        pools_itself: bool = False,
        checkpointing: bool = False,
    ) -> None:
        """Build it.

        Args:
            backbone: clips to `FrameTokens`.
            dim: channels d; the backbone's tokens are projected where theirs differ.
            layers: transformer layers; 0 leaves the backbone alone.
            heads: attention heads.
            adapter: what corrects the pooled vectors, see `build_adapter`.
            pools_itself: a clip's vector is the backbone's own, and not the mean of its tokens.
            checkpointing: forget activations inside the layers and compute them again for the
                gradient.
        """
        super().__init__()
        self.backbone = backbone
        self.frozen = bool(getattr(backbone, "frozen", False))
        self.dim, self.checkpointing = dim, checkpointing
        self.pools_itself = pools_itself
        own = cast(int, backbone.dim)
        self.project = nn.Identity() if own == dim else nn.Linear(own, dim, bias=False)
        self.blocks = nn.ModuleList(VideoBlock(dim, heads) for _ in range(layers))
        self.adapter = build_adapter(adapter, dim)

    def contextualise(self, tokens: Float[Tensor, "batch time h w backbone_dim"]) -> Tensor:
        """The transformer over all tokens of a clip, (B, T, h, w, d)."""
        tokens = self.project(tokens)
        time, height, width, dim = tokens.shape[1:]
        x = tokens.flatten(1, 3)
        if self.blocks:
            # Positions take a multiple of six channels; the rest of d carries none.
            codes = sine_positions(time, height, width, dim // 6 * 6).flatten(0, 2)
            codes = functional.pad(codes, (0, dim - codes.shape[-1])).to(x)
            for block in self.blocks:
                x = call(block, x, codes, checkpointing=self.checkpointing)
        return x.unflatten(1, (time, height, width))

    @staticmethod
    def pool(
        tokens: Float[Tensor, "batch time h w dim"], foreground: Float[Tensor, "batch time h w"]
    ) -> Float[Tensor, "batch dim"]:
        """The mean of tokens weighted by foreground, L2-normalised."""
        weights = foreground.clamp_min(1e-4)
        total = (tokens * weights[..., None]).sum((1, 2, 3)) / weights.sum((1, 2, 3))[:, None]
        return functional.normalize(total, dim=-1)

    def features(self, frames: UInt8[Tensor, "batch time height width 3"]) -> Any:
        """Tokens and foreground of a frozen backbone; of one that is trained, the frames."""
        return self.backbone(frames) if self.frozen else frames

    def embed(self, features: Any) -> Float[Tensor, "batch dim"]:
        """One L2-normalised vector for each clip."""
        found: FrameTokens = features if self.frozen else self.backbone(features)
        if self.pools_itself:
            assert found.pooled is not None
            return self.adapter(functional.normalize(found.pooled, dim=-1))
        return self.adapter(self.pool(self.contextualise(found.tokens), found.foreground))

    @torch.no_grad()
    def set_whitening(self, matrix: Float[Tensor, "dim dim"]) -> None:
        """Give the adapter its fitted map."""
        (part,) = (part for part in self.adapter.modules() if isinstance(part, Whitening))
        part.map.copy_(matrix)

    def forward(
        self, frames: UInt8[Tensor, "batch time height width 3"]
    ) -> Float[Tensor, "batch dim"]:
        """Φ(v): one vector for each clip."""
        return self.embed(self.features(frames))

    def windows(
        self, frames: UInt8[Tensor, "batch time height width 3"], size: int
    ) -> tuple[Float[Tensor, "batch windows dim"], Float[Tensor, "batch windows"]]:
        """One vector for each window of `size` × `size` tokens of each frame.

        A query shows several things and only one of them is in the corpus: a window that
        holds one thing is nearer to that thing's clips than the mean over all of them.

        Returns:
            L2-normalised vectors, and the mean foreground probability of each window.
        """
        tokens, foreground, _ = self.backbone(frames)
        vectors, mass = window_vectors(self.contextualise(tokens), foreground, size)
        return self.adapter(vectors), mass

    def regions(
        self,
        frames: UInt8[Tensor, "batch time height width 3"],
        regions: Float[Tensor, "batch regions time rows columns"] | None,
    ) -> tuple[Float[Tensor, "batch regions dim"], Float[Tensor, "batch regions time h w"]]:
        """Φ with each region in place of the foreground; see `region_vectors`."""
        tokens, foreground, _ = self.backbone(frames)
        vectors, weights = region_vectors(self.contextualise(tokens), foreground, regions)
        return self.adapter(vectors), weights


@torch.no_grad()
def update_momentum(target: nn.Module, source: nn.Module, momentum: float) -> None:
    """Φ̃ ← m·Φ̃ + (1 − m)·Φ, over parameters; buffers are copied."""
    for slow, fast in zip(target.parameters(), source.parameters(), strict=True):
        slow.lerp_(fast.detach(), 1 - momentum)
    for old, new in zip(target.buffers(), source.buffers(), strict=True):
        old.copy_(new)
