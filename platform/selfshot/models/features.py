"""What the transformer keeps of a clip once the backbone and the encoder have read it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@dataclasses.dataclass(frozen=True)
class ClipFeatures:
    """A clip after the backbone and the encoder.

    Attributes:
        tokens: E, (B, T·h·w, d), frames one after another.
        directions: the backbone's own tokens at length 1, and beside them its finer features,
            averaged over each token, at length 1; (B, T·h·w, d + c). None without similarity.
        prototype: the mean of each over what the backbone takes for foreground, at length 1,
            (B, d + c). None without similarity.
        fine: finer features (B, T, c, H / s, W / s).
        shape: (T, h, w).
        frame_size: height and width of a frame in pixels, where the method asks.
    """

    tokens: Tensor
    directions: Tensor | None
    prototype: Tensor | None
    fine: Tensor
    shape: tuple[int, int, int]
    frame_size: tuple[int, int] | None = None

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

    def as_supports(self, queries: int) -> SupportFeatures:
        """These clips as the supports of so many queries, each with as many."""
        shots = len(self.tokens) // queries
        prototypes = self.prototype
        return SupportFeatures(
            self.tokens.unflatten(0, (queries, shots)),
            None if prototypes is None else prototypes.unflatten(0, (queries, shots)),
        )


@dataclasses.dataclass(frozen=True)
class SupportFeatures:
    """The supports of a batch of queries.

    Attributes:
        tokens: E_s, (B, k, T·h·w, d).
        prototypes: of each support, (B, k, d + c). None without similarity.
        padding_mask: (B, k, T·h·w), true where a shorter clip has no token; none: nowhere.
    """

    tokens: Tensor
    prototypes: Tensor | None
    padding_mask: Tensor | None = None


def stack_supports(shots: Sequence[Sequence[ClipFeatures]]) -> SupportFeatures:
    """The supports of a batch of queries, of clips that were encoded before.

    Args:
        shots: for each query its k supports, each a batch of one, of any lengths.
    """
    lengths = [[clip.tokens.shape[1] for clip in clips] for clips in shots]
    most = max(max(row) for row in lengths)

    def padded(clip: ClipFeatures) -> Tensor:
        return functional.pad(clip.tokens, (0, 0, 0, most - clip.tokens.shape[1]))

    tokens = torch.stack([torch.cat([padded(clip) for clip in clips]) for clips in shots])
    padding = None
    if any(length < most for row in lengths for length in row):
        counts = torch.tensor(lengths, device=tokens.device)
        padding = torch.arange(most, device=tokens.device) >= counts[..., None]
    if any(clip.prototype is None for clips in shots for clip in clips):
        return SupportFeatures(tokens, None, padding)
    prototypes = [
        torch.cat([clip.prototype for clip in clips if clip.prototype is not None])
        for clips in shots
    ]
    return SupportFeatures(tokens, torch.stack(prototypes), padding)


def groups_of(lengths: Sequence[int]) -> dict[int, list[int]]:
    """Places of the clips of each length."""
    found: dict[int, list[int]] = {}
    for place, length in enumerate(lengths):
        found.setdefault(int(length), []).append(place)
    return found


def rows_of(x: Tensor, rows: list[int]) -> Tensor:
    """Some rows of a batch; without a copy where that is all of them."""
    return x if rows == list(range(len(x))) else x[rows]


def with_padding(outputs: dict[str, Any], time: int) -> dict[str, Any]:
    """Outputs of shorter clips with zeros up to `time` frames."""
    axis = {"common_logits": 1}

    def longer(name: str, value: Any) -> Any:
        if name == "auxiliary":
            return [{key: longer(key, x) for key, x in layer.items()} for layer in value]
        at = axis.get(name, 2)
        if value.shape[at] == time:
            return value
        sizes = [0, 0] * (value.dim() - 1 - at) + [0, time - value.shape[at]]
        return functional.pad(value, sizes)

    return {name: longer(name, value) for name, value in outputs.items()}


def in_order(parts: list[dict[str, Any]], places: Tensor) -> dict[str, Any]:
    """Outputs of several groups of clips as those of one batch."""

    def together(name: str, values: list[Any]) -> Any:
        if name == "auxiliary":
            return [in_order(list(layers), places) for layers in zip(*values, strict=True)]
        return torch.cat(values)[places]

    return {name: together(name, [part[name] for part in parts]) for name in parts[0]}
