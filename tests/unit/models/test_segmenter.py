"""The instance segmenter."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from selfshot.models.segmenter import InstanceSegmenter, MaskConvolution

BATCH, INSTANCES, DIM, HEADS, FINE = 2, 3, 10, 5, 7


def _inputs(time: int, height: int, width: int) -> tuple[Tensor, ...]:
    """𝓓, E_q, 𝓕, the common logits and the fine features."""
    generator = torch.Generator().manual_seed(time)
    return (
        torch.randn(BATCH, INSTANCES, time, DIM, generator=generator),
        torch.randn(BATCH, time, DIM, height, width, generator=generator),
        torch.randn(BATCH, time, DIM, height, width, generator=generator),
        torch.randn(BATCH, time, height, width, generator=generator),
        torch.randn(BATCH, time, FINE, 2 * height, 2 * width, generator=generator),
    )


@pytest.mark.parametrize("deformable", [False, True])
@pytest.mark.parametrize(("time", "height", "width"), [(1, 2, 3), (5, 3, 2), (3, 5, 7)])
def test_shapes(deformable: bool, time: int, height: int, width: int) -> None:
    segmenter = InstanceSegmenter(DIM, HEADS, FINE, channels=4, deformable=deformable)
    out = segmenter(*_inputs(time, height, width))
    assert out.shape == (BATCH, INSTANCES, time, 2 * height, 2 * width)
    assert out.isfinite().all()


def test_deformable_without_offsets_is_plain() -> None:
    deformable = InstanceSegmenter(DIM, HEADS, FINE, channels=4, deformable=True)
    plain = InstanceSegmenter(DIM, HEADS, FINE, channels=4, deformable=False)
    state = deformable.state_dict()
    plain.load_state_dict({k: v for k, v in state.items() if ".offsets." not in k})
    inputs = _inputs(3, 5, 7)
    torch.testing.assert_close(deformable(*inputs), plain(*inputs), rtol=1e-4, atol=1e-5)


def test_offsets_look_elsewhere() -> None:
    convolution = MaskConvolution(3, 4, deformable=True)
    x = torch.randn(1, 3, 11, 13, generator=torch.Generator().manual_seed(0))
    assert convolution.offsets is not None and convolution.offsets.bias is not None
    with torch.no_grad():
        convolution.offsets.bias.view(9, 2)[:, 1] = 2.0  # two pixels to the right
    moved, straight = convolution(x), convolution.convolution(x)
    torch.testing.assert_close(moved[..., 1:-3], straight[..., 3:-1], rtol=1e-4, atol=1e-5)


def test_instances_and_clips_do_not_mix() -> None:
    segmenter = InstanceSegmenter(DIM, HEADS, FINE, channels=4, deformable=False).eval()
    instances, *clip = _inputs(3, 5, 2)
    whole = segmenter(instances, *clip)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(segmenter(instances[:, order], *clip), whole[:, order])
    second = segmenter(instances[1:], *(part[1:] for part in clip))
    torch.testing.assert_close(second, whole[1:])
    torch.testing.assert_close(segmenter(instances[:, 1:2], *clip), whole[:, 1:2])
