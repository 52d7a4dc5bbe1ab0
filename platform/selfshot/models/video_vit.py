"""ViT over the patches of uniformly sampled frames: the paper's Φ, in three sizes.

Parameters have the names of the usual image ViT (`patch_embed.proj`, `blocks.0.attn.qkv`, …), so
that weights of DINO, MoCo v3, MAE or timm load as they are (`inflate_positions`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from selfshot.errors import UserError
from selfshot.models.checkpointing import call
from selfshot.models.video_encoder import region_vectors, window_vectors

SIZES: dict[str, tuple[int, int, int]] = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
}
"""Channels, layers and heads of ViT's family."""

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""ImageNet's, which published weights of image ViTs expect."""



class Attention(nn.Module):
    """Self-attention of all tokens of a clip, by PyTorch's fused kernel."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Attend."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """The feed-forward branch."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Apply it."""
        return self.fc2(functional.gelu(self.fc1(x)))


class ViTBlock(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Apply the layer."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    """One linear map of each patch of each frame."""

    def __init__(self, dim: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)


class VideoViT(nn.Module):
    """Φ: patches of every sampled frame as one sequence of tokens, one vector for the clip."""

    cls_token: Tensor
    pos_embed: Tensor
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        *,
        size: str,
        patch: int,
        grid: tuple[int, int, int],
        checkpointing: bool = False,
    ) -> None:
        """Build it.

        Args:
            size: of the family, see `SIZES`.
            patch: side of a patch in pixels.
            grid: frames, rows and columns of patches that have positions of their own; those
                of other lengths and sizes are interpolated.
            checkpointing: forget activations inside the layers and compute them again for the
                gradient: less memory, the same result.
        """
        super().__init__()
        self.dim, layers, heads = SIZES[size]
        self.patch, self.checkpointing = patch, checkpointing
        self.patch_embed = PatchEmbedding(self.dim, patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, self.dim))
        self.pos_embed = nn.Parameter(torch.zeros(*grid, self.dim))
        self.blocks = nn.ModuleList(ViTBlock(self.dim, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(self.dim, eps=1e-6)
        self.register_buffer("pixel_mean", torch.tensor(PIXEL_MEAN), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(PIXEL_STD), persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        for tensor in (self.cls_token, self.pos_embed):
            nn.init.trunc_normal_(tensor, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        # A patch's map is a linear layer, so it is drawn as one.
        weight = self.patch_embed.proj.weight
        nn.init.xavier_uniform_(weight.view(self.dim, -1))
        if self.patch_embed.proj.bias is not None:
            nn.init.zeros_(self.patch_embed.proj.bias)

    def positions(self, time: int, height: int, width: int) -> Float[Tensor, "time h w dim"]:
        """The learned positions, interpolated where the grid is another."""
        if self.pos_embed.shape[:3] == (time, height, width):
            return self.pos_embed
        channels_first = self.pos_embed.permute(3, 0, 1, 2)[None]
        resized = functional.interpolate(
            channels_first, size=(time, height, width), mode="trilinear", align_corners=False
        )
        return resized[0].permute(1, 2, 3, 0)

    def encode(
        self, frames: UInt8[Tensor, "batch time height width 3"]
    ) -> tuple[Float[Tensor, "batch dim"], Float[Tensor, "batch time h w dim"]]:
        """The class token and the patches' tokens after the last layer.

        Raises:
            UserError: a frame is smaller than a patch.
        """
        batch, time, height, width = frames.shape[:4]
        if min(height, width) < self.patch:
            raise UserError(
                f"encoder.vit_patch: {self.patch} is more than a frame's side (frames are "
                f"{height} × {width} pixels); choose a smaller patch or larger frames",
                setting="encoder.vit_patch",
            )
        images = (frames.flatten(0, 1).float() - self.pixel_mean) / self.pixel_std
        patches = self.patch_embed.proj(images.movedim(-1, 1))
        grid = (time, *patches.shape[-2:])
        tokens = patches.permute(0, 2, 3, 1).unflatten(0, (batch, time))
        tokens = (tokens + self.positions(*grid)).flatten(1, 3)
        x = torch.cat([self.cls_token.expand(batch, -1, -1), tokens], 1)
        for block in self.blocks:
            x = call(block, x, checkpointing=self.checkpointing)
        x = self.norm(x)
        return x[:, 0], x[:, 1:].unflatten(1, grid)

    def features(self, frames: UInt8[Tensor, "batch time height width 3"]) -> Any:
        """What stays the same while it trains: the frames themselves."""
        return frames

    def embed(
        self, features: UInt8[Tensor, "batch time height width 3"]
    ) -> Float[Tensor, "batch dim"]:
        """One L2-normalised vector for each clip."""
        return functional.normalize(self.encode(features)[0], dim=-1)

    def forward(
        self, frames: UInt8[Tensor, "batch time height width 3"]
    ) -> Float[Tensor, "batch dim"]:
        """Φ(v)."""
        return self.embed(frames)

    def windows(
        self, frames: UInt8[Tensor, "batch time height width 3"], size: int
    ) -> tuple[Float[Tensor, "batch windows dim"], Float[Tensor, "batch windows"]]:
        """One vector for each window of `size` × `size` patches; every window weighs the same."""
        _, tokens = self.encode(frames)
        return window_vectors(tokens, torch.ones_like(tokens[..., 0]), size)

    def regions(
        self,
        frames: UInt8[Tensor, "batch time height width 3"],
        regions: Float[Tensor, "batch regions time rows columns"] | None,
    ) -> tuple[Float[Tensor, "batch regions dim"], Float[Tensor, "batch regions time h w"]]:
        """One vector for each region, of the patches' tokens; see `region_vectors`."""
        _, tokens = self.encode(frames)
        return region_vectors(tokens, torch.ones_like(tokens[..., 0]), regions)


def inflate_positions(state: dict[str, Tensor], grid: tuple[int, int, int]) -> dict[str, Tensor]:
    """Weights whose positions fit `grid`: those of one image are repeated over time.

    Positions of another number of patches are interpolated. An image ViT also has a position for
    its class token: that is added to the token. Weights of a video ViT stay as they are.

    Args:
        state: weights by name, with `pos_embed` of an image (1, 1 + patches, d) or of a video
            (time, rows, columns, d).
        grid: frames, rows and columns wanted.

    Raises:
        UserError: the positions are those of no square image.
    """
    positions = state.get("pos_embed")
    if positions is None or positions.shape[:-1] == grid:
        return state
    state = dict(state)
    if positions.dim() == 3 and positions.shape[0] == 1:
        # Patches make a square, before which the class token may have a position.
        side = math.isqrt(positions.shape[1])
        before = positions.shape[1] - side * side
        if before > 1:
            raise UserError(
                f"encoder.weights: pos_embed has {positions.shape[1]} positions, and only those "
                "of a square image, with or without a class token, can be interpolated; give "
                "weights of square images",
                setting="encoder.weights",
            )
        if before:
            state["cls_token"] = state["cls_token"] + positions[:, :1]
        positions = positions[0, before:].unflatten(0, (1, side, side))
    elif positions.dim() != 4:
        return state
    channels_first = positions.float().permute(3, 0, 1, 2)[None]
    resized = functional.interpolate(
        channels_first, size=grid, mode="trilinear", align_corners=False
    )
    state["pos_embed"] = resized[0].permute(1, 2, 3, 0).to(positions.dtype)
    return state
