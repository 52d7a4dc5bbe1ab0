"""The supervised tasks on a tiny benchmark: their batches, their learning, their files."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from refusals import refused
from selfshot.benchmarks.manifest import load_benchmark
from selfshot.models.backbone import normalise_frames
from selfshot.models.weights import load_backbone, load_vis, save_weights
from selfshot.training.backbone import BackboneTask
from selfshot.training.loop import Schedule, run_plain
from selfshot.training.vis import VisTask

LOOP: dict[str, Any] = {"warmup_steps": 2, "weight_decay": 1e-4, "clip_norm": 1.0, "log_every": 1}


def _losses(history: list[dict[str, Any]]) -> list[float]:
    return [point["loss"] for point in history]


class TestBackbone:
    """Pretraining on the seen classes."""

    def test_batches_are_pure(self, backbone_settings: dict[str, Any], check_pure: Any) -> None:
        task = BackboneTask(**backbone_settings)
        check_pure(task, BackboneTask(**backbone_settings))
        other = BackboneTask(**{**backbone_settings, "seed": 2}).batch(3, 0, 1)
        assert not torch.equal(task.batch(3, 0, 1)["frames"], other["frames"])

    def test_a_batch(self, backbone_settings: dict[str, Any]) -> None:
        task = BackboneTask(**backbone_settings)
        batch = task.batch(0, 0, 1)
        assert batch["frames"].shape == (6, 32, 32, 3) and batch["frames"].dtype == torch.uint8
        assert batch["masks"].shape[1:] == (4, 4) and batch["masks"].dtype == torch.float32
        assert len(batch["masks"]) == len(batch["frame_of"]) == len(batch["classes"]) > 0
        assert batch["frame_of"].max() < 6 and 0 < batch["masks"].max() <= 1
        assert task.batch(0, 0, 2)["frames"].shape[0] == 3, "half of them"

    def test_masks_are_mirrored_with_their_frames(self, backbone_settings: dict[str, Any]) -> None:
        task = BackboneTask(**backbone_settings)
        reader, found = task.reader, set()
        plain = {
            (video, i): reader.frame(video, i, 8)
            for video in reader.annotations.videos
            for i in range(3)
        }
        for step in range(3):
            batch = task.batch(step, 0, 1)
            for i, pixels in enumerate(batch["frames"].numpy()):
                for frame, tracks in plain.values():
                    for flipped in (False, True):
                        if np.array_equal(frame[:, ::-1] if flipped else frame, pixels):
                            masks = tracks.masks[:, 0]
                            masks = masks[..., ::-1] if flipped else masks
                            ours = batch["masks"][batch["frame_of"] == i].numpy()
                            np.testing.assert_array_equal(ours, masks[masks.sum((1, 2)) > 0.05])
                            found.add(flipped)
        assert found == {False, True}

    def test_any_number_of_ranks_shares_the_same_frames(
        self, backbone_settings: dict[str, Any]
    ) -> None:
        task = BackboneTask(**backbone_settings)
        whole = task.batch(4, 0, 1)["frames"]
        for world_size in (2, 3):
            for rank in range(world_size):
                ours = task.batch(4, rank, world_size)["frames"]
                assert torch.equal(ours, whole[rank::world_size])

    def test_no_video_of_an_unseen_class_is_read(self, backbone_settings: dict[str, Any]) -> None:
        task = BackboneTask(**backbone_settings)
        benchmark = load_benchmark(Path(backbone_settings["benchmark"]))
        names = task.reader.annotations.categories
        assert {names[category] for category in task.labels} == set(benchmark.classes["train"])
        assert sorted(task.labels.values()) == [0, 1, 2]
        assert task.module.prototypes.shape[0] == 3
        unseen = {
            video
            for split in ("val", "test")
            for videos in (
                [video for video, _ in benchmark.queries[split]],
                *benchmark.supports[split].values(),
            )
            for video in videos
        }
        assert not unseen & {video for videos in task.videos.values() for video in videos}

    @staticmethod
    def _with_strangers(task: BackboneTask) -> int:
        """Make all objects of one seen class unseen, and all objects absent in first frames."""
        (hidden, label), *_ = task.labels.items()
        annotations = task.reader.annotations
        stranger = next(c for c in annotations.categories if c not in task.labels)
        task.reader.annotations = dataclasses.replace(
            annotations,
            tracks=tuple(
                dataclasses.replace(
                    track,
                    category_id=stranger if track.category_id == hidden else track.category_id,
                    segmentations=(None, *track.segmentations[1:]),
                )
                for track in annotations.tracks
            ),
        )
        return label

    def test_frames_show_a_seen_class(
        self, backbone_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = BackboneTask(**backbone_settings)
        self._with_strangers(task)
        tracks_of, length = task.reader.annotations.tracks_of, 3
        barren = {
            video
            for videos in task.videos.values()
            for video in videos
            if not any(track.category_id in task.labels for track in tracks_of(video))
        }
        for videos in task.videos.values():
            for video in videos:
                useful = [
                    i
                    for i in range(length)
                    if any(
                        track.segmentations[i] is not None
                        for track in tracks_of(video)
                        if track.category_id in task.labels
                    )
                ]
                assert 0 not in useful
                expected = [0, 1, 2] if video in barren else useful
                assert task.useful_frames(video) == (expected or [0, 1, 2])
        drawn, frame = set(), task.reader.frame

        def note(video: int, index: int, stride: int) -> Any:
            drawn.add((video, index))
            return frame(video, index, stride)

        monkeypatch.setattr(task.reader, "frame", note)
        for step in range(8):
            task.batch(step, 0, 1)
        assert {index for video, index in drawn if video not in barren} == {1, 2}
        assert all(index in task.useful_frames(video) for video, index in drawn)

    def test_no_unseen_object_teaches(
        self, backbone_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """An unseen class that strays into a training video is neither class nor background."""
        task = BackboneTask(**backbone_settings)
        label = self._with_strangers(task)
        drawn: list[Any] = []
        frame = task.reader.frame

        def note(*args: Any) -> Any:
            pixels, tracks = frame(*args)
            drawn.append((pixels.copy(), dataclasses.replace(tracks, masks=tracks.masks.copy())))
            return pixels, tracks

        monkeypatch.setattr(task.reader, "frame", note)
        strayed = 0
        for step in range(4):
            drawn.clear()
            batch = task.batch(step, 0, 1)
            assert not (batch["classes"] == label).any()
            assert batch["unseen"].shape == (6, 4, 4) and batch["unseen"].dtype == torch.bool
            for i, (pixels, tracks) in enumerate(drawn):
                mirrored = not np.array_equal(pixels, batch["frames"][i].numpy())
                masks = tracks.masks[:, 0, :, ::-1] if mirrored else tracks.masks[:, 0]
                strange = np.array([int(c) not in task.labels for c in tracks.classes], bool)
                expected = (masks[strange] > 0).any(0)
                np.testing.assert_array_equal(batch["unseen"][i].numpy(), expected)
                strayed += int(expected.any())
                shown = masks[~strange & (masks.sum((1, 2)) > 0.05)]
                np.testing.assert_array_equal(batch["masks"][batch["frame_of"] == i], shown)
        assert strayed

    def test_unseen_tokens_are_not_in_the_foreground_loss(
        self, backbone_settings: dict[str, Any]
    ) -> None:
        task = BackboneTask(**backbone_settings)
        module, batch = task.module.eval(), task.batch(0, 0, 1)
        batch["unseen"] = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.3
        tokens, _ = module.backbone(normalise_frames(batch["frames"]))
        logits = module.foreground(tokens.permute(0, 2, 3, 1))[..., 0].detach().double().numpy()
        cover = np.zeros((6, 4, 4))
        for mask, i in zip(batch["masks"].numpy(), batch["frame_of"].tolist(), strict=True):
            cover[i] += mask
        cover = cover.clip(max=1)
        bce = np.logaddexp(0, logits) - logits * cover
        ours = module(batch)["foreground"].item()
        assert ours == pytest.approx(bce[~batch["unseen"].numpy()].mean(), abs=1e-5)
        assert ours != pytest.approx(bce.mean(), abs=1e-5)

    def test_it_learns(self, backbone_settings: dict[str, Any]) -> None:
        history = run_plain(BackboneTask(**backbone_settings), Schedule(steps=20, **LOOP))
        losses = _losses(history)
        assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])

    def test_export_and_load(
        self, backbone_settings: dict[str, Any], backbone_folder: Path, tmp_path: Path
    ) -> None:
        task = BackboneTask(**backbone_settings)
        run_plain(task, Schedule(steps=2, **LOOP))
        task.export(tmp_path)
        loaded, ours = load_backbone(tmp_path), task.module.eval()
        frames = normalise_frames(task.batch(5, 0, 1)["frames"])
        tokens, fine = loaded.backbone(frames)
        torch.testing.assert_close((tokens, fine), ours.backbone(frames), rtol=0, atol=0)
        grid = tokens.permute(0, 2, 3, 1)
        assert torch.equal(loaded.foreground(grid), ours.foreground(grid))
        assert loaded.backbone.freeze_norms and not loaded.training


class TestVis:
    """Episodes of seen classes."""

    @pytest.fixture
    def make(self, vis_settings: dict[str, Any], change: Any) -> Any:
        return lambda **changes: VisTask(**change(vis_settings, "vis", **changes))

    def test_batches_are_pure(self, make: Any, check_pure: Any) -> None:
        check_pure(make(), make())

    def test_goes_on_from_an_earlier_training(self, make: Any, tmp_path: Path) -> None:
        earlier = make(seed=5)
        with torch.no_grad():
            earlier.module.model.foreground_head.bias.fill_(0.25)
        earlier.export(tmp_path)
        wanted = earlier.module.model.state_dict()
        path = str(tmp_path / "vis.safetensors")
        found = make(initial=path).module.model.state_dict()
        assert all(torch.equal(found[name], value) for name, value in wanted.items())
        assert found.keys() == wanted.keys()
        alone = make(fuser=False, initial=path).module.model.state_dict()
        assert 0 < len(alone) < len(wanted)
        assert all(torch.equal(value, wanted[name]) for name, value in alone.items())

    @pytest.mark.parametrize(
        "model",
        [
            {"num_instances": 5},
            {"fuser_layers": 2},
            {"decoder_layers": 1},
            {"decoder_layers": 1, "fuser": False},
        ],
    )
    def test_an_earlier_training_of_other_settings(
        self, make: Any, tmp_path: Path, model: dict[str, Any]
    ) -> None:
        make().export(tmp_path)
        with refused("vis.initial"):
            make(**model, initial=str(tmp_path / "vis.safetensors"))

    def test_a_damaged_file_of_an_earlier_training(self, make: Any, tmp_path: Path) -> None:
        path = tmp_path / "vis.safetensors"
        path.write_bytes(b"no weights")
        with refused("vis.initial"):
            make(initial=str(path))

    def test_any_number_of_ranks_shares_the_same_episodes(self, make: Any) -> None:
        task = make(episodes_per_batch=6)
        whole = task.batch(4, 0, 1)
        for world_size in (2, 3):
            for rank in range(world_size):
                ours = task.batch(4, rank, world_size)
                for part in ("query", "supports", "common"):
                    assert torch.equal(ours[part], whole[part][rank::world_size])

    def test_episodes_are_of_seen_classes(self, make: Any, monkeypatch: Any) -> None:
        task = make(train_shots=2, episodes_per_batch=4)
        benchmark = load_benchmark(Path(task.reader.frames_root).parent)
        asked: list[Any] = []

        def note(reader: Any, *args: Any, **settings: Any) -> dict[str, Any]:
            asked.append(args[:3])
            return {}

        monkeypatch.setattr("selfshot.training.vis.episode_batch", note)
        for step in range(6):
            task.batch(step, 0, 2)
        names = task.reader.annotations.categories
        for queries, supports, categories in asked:
            assert len(queries) == len(supports) == len(categories) == 2
            for query, helpers, category in zip(queries, supports, categories, strict=True):
                name = names[category]
                assert (query, name) in benchmark.queries["train"]
                assert len(set(helpers)) == 2 and query not in helpers
                assert set(helpers) <= set(benchmark.supports["train"][name])

    def test_without_fuser_no_support_is_read(self, make: Any) -> None:
        batch = make(fuser=False).batch(0, 0, 1)
        assert batch["supports"].shape[:2] == (2, 0)
        assert make().batch(0, 0, 1)["supports"].shape[:2] == (2, 1)

    def test_supports_may_be_middle_frames(self, make: Any) -> None:
        whole, middle = make().batch(3, 0, 1), make(support_frames=1).batch(3, 0, 1)
        num_frames = whole["query"].shape[1]
        assert whole["supports"].shape[2] == num_frames > 2
        assert middle["supports"].shape[2] == 1
        assert torch.equal(middle["query"], whole["query"])
        # A sprites video is as long as a clip, so that its middle frame is one of the clip's.
        assert torch.equal(middle["supports"][:, :, 0], whole["supports"][:, :, num_frames // 2])

    def test_every_weight_is_in_one_group(self, make: Any) -> None:
        task = make()
        groups = {group["name"]: group for group in task.parameter_groups()}
        assert {name: group["lr"] for name, group in groups.items()} == {
            "backbone": 2e-4,
            "transformer": 2e-3,
        }
        ids = [id(p) for group in groups.values() for p in group["params"]]
        assert len(ids) == len(set(ids))
        assert set(ids) == {id(p) for p in task.module.parameters()}
        task.module(task.batch(0, 0, 1))["loss"].backward()
        assert not [name for name, p in task.module.named_parameters() if p.grad is None]

    def test_it_learns_one_episode(self, make: Any) -> None:
        task = make()
        norms = {k: v.clone() for k, v in task.module.named_buffers()}
        episode = task.batch(0, 0, 1)
        task.batch = lambda step, rank, world_size: episode
        history = run_plain(task, Schedule(steps=15, **LOOP))
        losses = _losses(history)
        assert np.mean(losses[-3:]) < 0.8 * losses[0]
        assert history[-1]["common"] < history[0]["common"]
        assert all(torch.equal(v, norms[k]) for k, v in task.module.named_buffers())

    def test_export_and_load(self, make: Any, tmp_path: Path) -> None:
        task = make()
        run_plain(task, Schedule(steps=1, **LOOP))
        task.export(tmp_path)
        loaded, ours = load_vis(tmp_path), task.module.model.eval()
        batch = task.batch(4, 0, 1)
        with torch.no_grad():
            mine, theirs = (m(batch["query"], batch["supports"]) for m in (ours, loaded))
        assert not loaded.training
        for name in ("foreground_logits", "boxes_cxcywh", "mask_logits", "common_logits"):
            assert torch.equal(mine[name], theirs[name])

    def test_another_method_is_trained_exported_and_loaded(self, make: Any, tmp_path: Path) -> None:
        task = make(method="siamese_mask_rcnn", episodes_per_batch=4, accumulate=2)
        history = run_plain(task, Schedule(steps=6, **LOOP))
        assert history[-1]["loss"] < history[0]["loss"]
        assert set(history[0]) >= {"objectness", "rpn_box_reg", "classifier", "box_reg", "mask"}
        batch = task.batch(0, 0, 1)
        batch["targets"][0]["valid_frames"] = torch.tensor([True, False, False])
        shares = [part["share"] for part in task.parts(batch)]
        assert shares == pytest.approx([0.4, 0.6])
        task.export(tmp_path)
        loaded, ours = load_vis(tmp_path), task.module.model.eval()
        with torch.no_grad():
            mine, theirs = (
                m.predict(
                    m.encode(batch["query"], is_support=False),
                    m.encode(batch["supports"][:, 0], is_support=True).as_supports(4),
                )
                for m in (ours, loaded)
            )
        assert torch.equal(mine["mask_logits"], theirs["mask_logits"])

    def test_a_query_without_another_video_of_its_class(
        self, make: Any, tiny_sprites: Path, tmp_path: Path, caplog: Any
    ) -> None:
        shutil.copytree(tiny_sprites, tmp_path / "benchmark")
        benchmark = load_benchmark(tmp_path / "benchmark")
        (lonely, name), *_ = benchmark.queries["train"]
        supports = benchmark.supports["train"] | {name: [lonely]}
        fewer = dataclasses.replace(
            benchmark, supports={**benchmark.supports, "train": supports}
        )
        fewer.save(tmp_path / "benchmark")
        task = make(benchmark=str(tmp_path / "benchmark"), train_shots=2)
        assert (lonely, name) not in task.queries
        assert len(task.queries) == len(benchmark.queries["train"]) - 1
        assert f"video {lonely} of {name}" in caplog.text
        others = [v for v, n in benchmark.queries["train"] if n == name and v != lonely]
        assert others and {v for v, n in task.queries if n == name} == set(others)
        assert len(make(fuser=False, benchmark=str(tmp_path / "benchmark")).queries) == len(
            benchmark.queries["train"]
        )
        none: dict[str, list[int]] = {name: [] for name in benchmark.supports["train"]}
        dataclasses.replace(
            benchmark, supports={**benchmark.supports, "train": none}
        ).save(tmp_path / "benchmark")
        with refused("vis.train_shots"):
            make(benchmark=str(tmp_path / "benchmark"), train_shots=2)

    @pytest.mark.parametrize(
        "spoil",
        [
            lambda state: state.pop("instance_queries"),
            lambda state: state.update(instance_queries=torch.zeros(5, 12)),
            lambda state: state.update(more=torch.zeros(1)),
        ],
    )
    def test_weights_of_another_configuration(
        self, make: Any, tmp_path: Path, spoil: Any
    ) -> None:
        task = make()
        state = dict(task.module.model.state_dict())
        spoil(state)
        save_weights(tmp_path, "vis", state, task.settings)
        with refused():
            load_vis(tmp_path)
        (tmp_path / "vis.safetensors").write_bytes(b"short")
        with refused():
            load_vis(tmp_path)

    @pytest.mark.parametrize("parts", [2, 4])
    def test_parts_of_a_batch_sum_to_the_whole(self, make: Any, parts: int) -> None:
        """Batch 4 is batch 1 or 2 with accumulation, in losses and in gradients."""
        whole, divided = make(episodes_per_batch=4), make(episodes_per_batch=4, accumulate=parts)
        batch = whole.batch(0, 0, 1)
        # Unlike numbers of tracks and of frames, or a mean of means would do as well.
        batch["targets"][1] |= {
            name: batch["targets"][1][name][:0] for name in ("masks", "boxes_cxcywh", "present")
        }
        batch["targets"][2]["valid_frames"] = torch.tensor([True, False, False])
        pieces = divided.parts(batch)
        assert len(pieces) == parts
        expected = whole.module(batch)
        expected["loss"].backward()
        found: dict[str, float] = {}
        for piece in pieces:
            losses = divided.module(piece)
            losses["loss"].backward()
            found = {name: found.get(name, 0.0) + value.item() for name, value in losses.items()}
        assert found == pytest.approx({k: v.item() for k, v in expected.items()}, rel=1e-4)
        for name, parameter in divided.module.named_parameters():
            other = whole.module.get_parameter(name)
            torch.testing.assert_close(parameter.grad, other.grad, rtol=2e-2, atol=2e-4)

    def test_training_in_parts(self, make: Any) -> None:
        histories = [
            run_plain(make(episodes_per_batch=4, accumulate=parts), Schedule(steps=3, **LOOP))
            for parts in (1, 4)
        ]
        for one, other in zip(*histories, strict=True):
            assert other["loss"] == pytest.approx(one["loss"], rel=2e-2)

    def test_padding_frames_do_not_count(self, make: Any) -> None:
        task = make()
        module, batch = task.module.eval(), task.batch(0, 0, 1)
        for target in batch["targets"]:
            target["valid_frames"] = torch.tensor([True, True, False])
        generator = torch.Generator().manual_seed(0)

        def loss_and_gradient() -> tuple[dict[str, Any], list[torch.Tensor]]:
            module.zero_grad()
            losses = module(batch)
            losses["loss"].backward()
            values = {name: value.item() for name, value in losses.items()}
            return values, [p.grad.clone() for p in module.parameters()]

        losses, gradients = loss_and_gradient()
        for target in batch["targets"]:
            for name in ("masks", "boxes_cxcywh"):
                part = target[name][:, 2]
                part.copy_(torch.rand(part.shape, generator=generator))
            target["present"][:, 2] = ~target["present"][:, 2]
        batch["common"][:, 2] = torch.rand(batch["common"][:, 2].shape, generator=generator)
        spoilt, moved = loss_and_gradient()
        assert spoilt == pytest.approx(losses, rel=1e-5)
        torch.testing.assert_close(moved, gradients, rtol=1e-4, atol=1e-5)
        for target in batch["targets"]:
            target["valid_frames"] = torch.tensor([True, True, True])
        counted, _ = loss_and_gradient()
        for name in ("loss", "common", "dice", "focal"):
            assert counted[name] != pytest.approx(losses[name], rel=1e-3)
