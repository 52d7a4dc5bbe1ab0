"""What the transformer keeps of a clip once the backbone and the encoder have read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
    """A clip after the backbone and the encoder.

    Attributes:
        tokens: E, (B, T·h·w, d), frames one after another.
        directions: the backbone's own tokens at length 1, and beside them its finer features,
            averaged over each token, at length 1; (B, T·h·w, d + c). None without likeness.
        prototype: the mean of each over what the backbone takes for foreground, at length 1,
            (B, d + c). None without likeness.
        fine: finer features (B, T, c, H / s, W / s).
        shape: (T, h, w).
    """

    tokens: Tensor
    directions: Tensor | None
    prototype: Tensor | None
    fine: Tensor
    shape: tuple[int, int, int]

    def clips(self) -> list[ClipFeatures]:
        """Each clip of the batch by itself, a batch of one."""

        def part(whole: Tensor | None, index: int) -> Tensor | None:
            return None if whole is None else whole[index : index + 1]

        return [
            dataclasses.replace(
                self,
                tokens=self.tokens[i : i + 1],
                directions=part(self.directions, i),
                prototype=part(self.prototype, i),
                fine=self.fine[i : i + 1],
            )
            for i in range(len(self.tokens))
        ]


@dataclasses.dataclass(frozen=True)
class SupportFeatures:
    """The supports of a batch of queries.

    Attributes:
        tokens: E_s, (B, k, T·h·w, d).
        prototypes: of each support, (B, k, d + c). None without likeness.
    """

    tokens: Tensor
    prototypes: Tensor | None


def stack_supports(shots: Sequence[Sequence[ClipFeatures]]) -> SupportFeatures:
    """The supports of a batch of queries, of clips that were encoded before.

    Args:
        shots: for each query its k supports, each a batch of one.
    """
    tokens = torch.stack([torch.cat([clip.tokens for clip in clips]) for clips in shots])
    if any(clip.prototype is None for clips in shots for clip in clips):
        return SupportFeatures(tokens, None)
    prototypes = [
        torch.cat([clip.prototype for clip in clips if clip.prototype is not None])
        for clips in shots
    ]
    return SupportFeatures(tokens, torch.stack(prototypes))
