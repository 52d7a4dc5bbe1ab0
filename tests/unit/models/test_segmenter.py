"""The instance segmenter."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from selfshot.models import precision
from selfshot.models.segmenter import InstanceSegmenter, MaskConvolution, _box_coordinates

BATCH, INSTANCES, DIM, HEADS, FINE = 2, 3, 10, 5, 7


def _inputs(time: int, height: int, width: int) -> tuple[Tensor, ...]:
    """𝓓, the boxes, E_q, 𝓕, 𝓕 with positions, the common logits and the fine features."""
    generator = torch.Generator().manual_seed(time)
    return (
        torch.randn(BATCH, INSTANCES, time, DIM, generator=generator),
        torch.rand(BATCH, INSTANCES, time, 4, generator=generator),
        torch.randn(BATCH, time, DIM, height, width, generator=generator),
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


def test_deformable_trains_where_other_convolutions_are_bfloat16(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: True)
    segmenter = InstanceSegmenter(DIM, HEADS, FINE, channels=4, deformable=True).train()
    segmenter(*_inputs(2, 3, 5)).square().mean().backward()
    offsets = segmenter.mask_convolution.offsets
    assert offsets is not None and offsets.weight.grad is not None
    assert offsets.weight.grad.isfinite().all() and offsets.weight.grad.any()


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
    instances, boxes, *clip = _inputs(3, 5, 2)
    whole = segmenter(instances, boxes, *clip)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        segmenter(instances[:, order], boxes[:, order], *clip), whole[:, order]
    )
    second = segmenter(instances[1:], boxes[1:], *(part[1:] for part in clip))
    torch.testing.assert_close(second, whole[1:])
    torch.testing.assert_close(segmenter(instances[:, 1:2], boxes[:, 1:2], *clip), whole[:, 1:2])


@pytest.mark.parametrize("changed", range(7))
def test_every_input_counts(changed: int) -> None:
    torch.manual_seed(0)
    segmenter = InstanceSegmenter(DIM, HEADS, FINE, channels=4, deformable=False).eval()
    inputs = list(_inputs(3, 5, 2))
    plain = segmenter(*inputs)
    inputs[changed] = inputs[changed].flip(-1)
    assert not torch.allclose(segmenter(*inputs), plain, rtol=1e-3, atol=1e-4)


def test_box_coordinates_are_zero_at_the_centre_and_one_at_the_borders() -> None:
    # Centre in the middle of pixel (row 5, column 3); borders two columns and one row away.
    height, width = 10, 8
    box = torch.tensor([3.5 / width, 5.5 / height, 4 / width, 2 / height])
    across, down = _box_coordinates(box.view(1, 1, 1, 4), height, width)[0]
    expected = torch.tensor([-1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2]).expand(height, width)
    torch.testing.assert_close(across, expected, rtol=0, atol=1e-5)
    rows = torch.tensor([-3.0, -3, -3, -2, -1, 0, 1, 2, 3, 3])[:, None].expand(height, width)
    torch.testing.assert_close(down, rows, rtol=0, atol=1e-5)


def test_box_coordinates_are_of_frame_then_instance() -> None:
    time, height, width = 4, 3, 5
    boxes = torch.rand(BATCH, INSTANCES, time, 4, generator=torch.Generator().manual_seed(0))
    boxes[0, 0, 0, 2:] = 0  # No box is too small for finite coordinates.
    grids = _box_coordinates(boxes, height, width)
    assert grids.shape == (BATCH * time * INSTANCES, 2, height, width)
    assert grids.isfinite().all() and grids.abs().max() <= 3
    grids = grids.unflatten(0, (BATCH, time, INSTANCES))
    for b, t, i in itertools.product(range(BATCH), range(time), range(INSTANCES)):
        alone = _box_coordinates(boxes[b, i, t].view(1, 1, 1, 4), height, width)
        torch.testing.assert_close(grids[b, t, i], alone[0])
