"""Self-supervision on a tiny corpus: pairs, queue, momentum, and the same batch on any ranks."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from selfshot.benchmarks.manifest import Benchmark, load_benchmark, read_corpus, read_corpus_labels
from selfshot.data.video import sample_frames
from selfshot.errors import UserError
from selfshot.models.projection import ProjectionHead
from selfshot.models.trained_encoder import load_encoder
from selfshot.training import contrast
from selfshot.training import encoder as encoder_task
from selfshot.training.batches import load_batches
from selfshot.training.contrast import NO_VIDEO
from selfshot.training.encoder import EncoderTask
from selfshot.training.loop import Schedule, batch_maker, run_plain, seed_step
from selfshot.training.probe import NeighbourProbe

LOOP: dict[str, Any] = {"warmup_steps": 2, "weight_decay": 1e-4, "clip_norm": 1.0, "log_every": 1}


def _losses(history: list[dict[str, Any]]) -> list[float]:
    return [point["loss"] for point in history]


class TestEncoder:
    """Self-supervision on the corpus."""

    @pytest.fixture
    def make(self, encoder_settings: dict[str, Any], change: Any) -> Iterator[Any]:
        made: list[EncoderTask] = []

        def build(**changes: Any) -> EncoderTask:
            made.append(EncoderTask(**change(encoder_settings, "encoder", **changes)))
            return made[-1]

        yield build
        for task in made:
            task.decoder.close()

    def test_batches_are_pure(self, make: Any, check_pure: Any) -> None:
        check_pure(make(), make())

    def test_ranks_share_the_global_batch(self, make: Any) -> None:
        task = make()
        for step in (0, 5):
            whole = task.batch(step, 0, 1)
            assert whole["frames"].shape == (4, 2, 2, 32, 32, 3)
            assert len(set(whole["videos"].tolist())) == 4
            frames = dict(zip(whole["videos"].tolist(), whole["frames"], strict=True))
            parts = [task.batch(step, rank, 2) for rank in range(2)]
            assert [len(part["videos"]) for part in parts] == [2, 2]
            united = [v for part in parts for v in part["videos"].tolist()]
            assert sorted(united) == sorted(frames)
            for part in parts:
                for video, crops in zip(part["videos"].tolist(), part["frames"], strict=True):
                    assert torch.equal(crops, frames[video]), "whichever rank draws the crops"

    def test_batches_of_processes_are_those_of_a_thread(self, make: Any) -> None:
        """The whitening has started the decoder by then, which the workers must not share."""
        task = make(adapter="whitened")
        task.start()
        steps = range(6)
        with load_batches(batch_maker(task, 0, 1), steps) as batches:
            expected = [batch for _, batch in batches]
        with load_batches(batch_maker(task, 0, 1), steps, workers=2) as batches:
            given = [batch for _, batch in batches]
        for ours, theirs in zip(given, expected, strict=True):
            assert all(torch.equal(ours[name], theirs[name]) for name in ("frames", "videos"))

    def test_crops_are_consecutive_parts_of_the_clip(self, make: Any, tiny_sprites: Path) -> None:
        task = make(videos_per_batch=13, queue_length=0)
        batch = task.batch(0, 0, 1)
        rows, mirrored = read_corpus(tiny_sprites), set()
        for video, crops in zip(batch["videos"].tolist(), batch["frames"], strict=True):
            whole = sample_frames(
                tiny_sprites / "corpus" / rows[video]["uri"], num_frames=4, height=32, width=32
            )
            for crop, part in zip(crops.numpy(), (whole[:2], whole[2:]), strict=True):
                flipped = not np.array_equal(crop, part)
                np.testing.assert_array_equal(crop[:, :, ::-1] if flipped else crop, part)
                mirrored.add(flipped)
        assert sorted(batch["videos"].tolist()) == list(range(13)) and mirrored == {False, True}

    def test_a_broken_clip_is_replaced(self, make: Any) -> None:
        task = make()
        expected = task.batch(2, 0, 1)["videos"].tolist()
        spoilt = expected[1]
        task.clips[spoilt] = task.clips[spoilt] | {"uri": "missing.mp4"}
        replaced = task.batch(2, 0, 1)["videos"].tolist()
        assert len(replaced) == 4 and spoilt not in replaced
        assert replaced[:3] == [expected[0], *expected[2:]] and task.broken.keys() == {spoilt}
        assert task.batch(2, 0, 1)["videos"].tolist() == replaced
        task.clips = [row | {"uri": "missing.mp4"} for row in task.clips]
        with pytest.raises(UserError, match=r"can be used \(0 of 13 on .*; clip_\d+: No such file"):
            task.batch(3, 0, 1)
        with pytest.raises(UserError, match="14 is more than the 13 clips"):
            make(videos_per_batch=14, queue_length=0)

    def test_clips_shorter_than_a_crop_are_quarantined(self, make: Any) -> None:
        task = make(num_frames=99)
        with pytest.raises(UserError, match=r"clip_\d+: it has \d+ frames where 99 are needed"):
            task.batch(0, 0, 1)

    @pytest.mark.parametrize("loss", ["rank", "nce"])
    def test_pairs_and_queue(self, make: Any, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
        task = make(loss=loss, queue_length=16)
        seen: dict[str, Tensor] = {}

        def note(
            anchors: Tensor, keys: Tensor, positive: Tensor, negative: Tensor, **_: Any
        ) -> Any:
            seen.update(keys=keys, positive=positive, negative=negative)
            return anchors.sum()

        name = "rank_loss" if loss == "rank" else "mil_nce_loss"
        monkeypatch.setattr(contrast, name, note)
        history: list[tuple[Tensor, Tensor]] = []
        for step in range(4):
            batch = task.batch(step, 0, 1)
            module = task.module
            places = module.queue_videos.clone()
            module(batch)
            videos = batch["videos"].repeat_interleave(2)
            every_video = torch.cat([videos, places])
            assert seen["positive"].shape == seen["negative"].shape == (8, 8 + 16)
            for i, j in np.ndindex(8, 24):
                own = videos[i] == every_video[j]
                assert seen["positive"][i, j] == (own and j < 8 and i != j)
                assert seen["negative"][i, j] == (not own and every_video[j] != NO_VIDEO)
            assert not seen["keys"].requires_grad
            history.insert(0, (seen["keys"][:8].clone(), videos))
            task.after_step(step)
            newest_keys = torch.cat([keys for keys, _ in history])[:16]
            newest_videos = torch.cat([v for _, v in history])[:16]
            assert torch.equal(module.queue[: len(newest_keys)], newest_keys)
            assert torch.equal(module.queue_videos[: len(newest_videos)], newest_videos)
            assert (module.queue_videos[len(newest_videos) :] == NO_VIDEO).all()
        assert {"queue", "queue_videos"} <= set(module.state_dict()), "kept in checkpoints"

    @pytest.mark.parametrize("crops", [2, 3])
    def test_moco_has_one_positive(
        self, make: Any, crops: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = make(loss="moco", crops_per_video=crops, queue_length=4 * crops)
        seen: dict[str, Tensor] = {}
        real = contrast.mil_nce_loss

        def note(
            anchors: Tensor, keys: Tensor, positive: Tensor, negative: Tensor, **more: Any
        ) -> Any:
            seen.update(positive=positive, negative=negative)
            return real(anchors, keys, positive, negative, **more)

        monkeypatch.setattr(contrast, "mil_nce_loss", note)
        for step in range(2):
            batch = task.batch(step, 0, 1)
            places = task.module.queue_videos.clone()
            assert torch.isfinite(task.module(batch)["loss"])
            task.after_step(step)
        videos = batch["videos"].repeat_interleave(crops)
        every_video = torch.cat([videos, places])
        for i, j in np.ndindex(4 * crops, 8 * crops):
            video, crop = divmod(i, crops)
            assert seen["positive"][i, j] == (j == video * crops + (crop + 1) % crops)
            other = videos[i] != every_video[j] and every_video[j] != NO_VIDEO
            assert seen["negative"][i, j] == other

    def test_a_batch_in_parts(self, make: Any) -> None:
        task = make(accumulate=2, queue_length=16, loss="nce")
        whole = task.batch(0, 0, 1)
        parts = task.parts(whole)
        assert [len(part["videos"]) for part in parts] == [2, 2]
        assert torch.equal(torch.cat([part["frames"] for part in parts]), whole["frames"])
        alone = make(loss="nce", queue_length=16).module
        halves = [
            alone({name: part[name] for name in ("frames", "videos")})["loss"] for part in parts
        ]
        losses = [task.module(part)["loss"] for part in parts]
        torch.testing.assert_close(sum(losses), sum(halves) / 2)
        task.after_step(0)
        videos = whole["videos"].repeat_interleave(2)
        assert torch.equal(task.module.queue_videos[:8], videos), "keys of all parts are kept"
        history = run_plain(task, Schedule(steps=2, **LOOP))
        assert all(0 <= point["nearest_is_positive"] <= 1 for point in history)

    def test_the_farthest_positive_alone_of_clips_that_change(
        self, make: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        more = {"crops_per_video": 3, "queue_length": 12, "loss": "nce", "positives": "farthest"}
        task = make(positive_cosine=0.0, **more)
        assert task.module(task.batch(0, 0, 1))["loss"].item() == 0, "no anchor counts"
        seen: dict[str, Tensor] = {}
        real = contrast.mil_nce_loss

        def note(
            anchors: Tensor, keys: Tensor, positive: Tensor, negative: Tensor, **given: Any
        ) -> Any:
            seen.update(anchors=anchors, keys=keys, positive=positive)
            return real(anchors, keys, positive, negative, **given)

        monkeypatch.setattr(contrast, "mil_nce_loss", note)
        task = make(positive_cosine=1.0, **more)
        batch = task.batch(0, 0, 1)
        task.module(batch)
        keys = seen["keys"][:12].double()
        similarity = keys @ keys.T
        least = []
        for i in range(12):
            own = [j for j in range(i // 3 * 3, i // 3 * 3 + 3) if j != i]
            far = min(own, key=lambda j, i=i: float(similarity[i, j]))
            assert seen["positive"][i].nonzero().flatten().tolist() == [far]
            least.append(float(similarity[i, far]))
        middle = float(np.median(least))
        chosen = make(positive_cosine=middle, **more)
        outputs = chosen.module(batch)
        counted = [value < middle for value in least]
        assert outputs["anchors"].item() == pytest.approx(np.mean(counted))
        assert 0 < len(seen["anchors"]) == sum(counted) < 12

    def test_a_whitening_is_of_the_farthest_crops(
        self, make: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(encoder_task, "WHITENING_CLIPS", 7)
        monkeypatch.setattr(encoder_task, "WHITENING_SHRINKAGE", 0.5)
        more = {"layers": 0, "crops_per_video": 3, "queue_length": 12}
        plain = make(**more).module.encoder.eval()
        task = make(adapter="whitened", **more)
        encoder = task.module.encoder
        assert torch.equal(encoder.adapter.map, torch.eye(32)), "it is fitted by `start` alone"
        task.start()
        assert encoder.training and not list(encoder.adapter.parameters())
        order = np.random.default_rng([1, 29]).permutation(len(task.clips))[:7]
        second_moment = np.zeros((32, 32))
        for number in order:
            with torch.no_grad():
                vectors = plain(torch.from_numpy(task._frames(int(number)))).double().numpy()
            pairs = [(0, 1), (0, 2), (1, 2)]
            i, j = min(pairs, key=lambda pair, v=vectors: float(v[pair[0]] @ v[pair[1]]))
            second_moment += np.outer(vectors[i] - vectors[j], vectors[i] - vectors[j]) / 7
        raised = second_moment + 0.5 * np.trace(second_moment) / 32 * np.eye(32)
        ours = encoder.adapter.map.double().numpy()
        product = ours @ raised @ ours
        np.testing.assert_allclose(product / product[0, 0], np.eye(32), atol=2e-3)
        again = make(adapter="whitened", **more)
        again.start()
        for one in (again.module.encoder, task.module.momentum_encoder):
            assert torch.equal(one.adapter.map, encoder.adapter.map)

    def test_a_whitening_is_fitted_once_before_the_first_step(
        self, make: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fitted: list[EncoderTask] = []
        fit = EncoderTask._fit_whitening

        def count(task: EncoderTask, *args: Any, **kwargs: Any) -> Tensor:
            fitted.append(task)
            return fit(task, *args, **kwargs)

        monkeypatch.setattr(EncoderTask, "_fit_whitening", count)
        task = make(adapter="whitened_linear", layers=0, steps=2)
        assert not fitted
        run_plain(task, Schedule(steps=2, **LOOP))
        assert fitted == [task]

    def test_the_queue_ages(self, make: Any) -> None:
        task = make(queue_length=24)
        ages = []
        for step in range(5):
            ages.append(task.module(task.batch(step, 0, 1))["queue_age"].item())
            task.after_step(step)
        assert ages == pytest.approx([0, 1, 1.5, 2, 2]), "three batches of eight fit"
        assert task.module.queue_ages.tolist() == [1] * 8 + [2] * 8 + [3] * 8

    @pytest.fixture
    def small_head(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A head of 11 hidden and 7 output channels."""
        head = functools.partial(ProjectionHead, hidden=11, out=7)
        monkeypatch.setattr(encoder_task, "ProjectionHead", head)

    @pytest.mark.usefixtures("small_head")
    def test_a_head_is_trained_and_left_out_of_retrieval(self, make: Any, tmp_path: Path) -> None:
        task = make(head="mlp", steps=2)
        assert task.module.queue.shape == (16, 7)
        before = {name: value.clone() for name, value in task.module.head.state_dict().items()}
        run_plain(task, Schedule(steps=2, **LOOP))
        after = task.module.head.state_dict()
        assert not torch.equal(before["layers.0.weight"], after["layers.0.weight"])
        slow = task.module.momentum_head.state_dict()["layers.0.weight"]
        assert not torch.equal(slow, after["layers.0.weight"])
        assert not torch.equal(slow, before["layers.0.weight"])
        task.export(tmp_path)
        frames = task.batch(0, 0, 1)["frames"][:, 0].numpy()
        assert load_encoder(tmp_path).embed(frames).shape == (4, 32)

    @pytest.mark.parametrize(
        ("spoil", "expected"),
        [
            (lambda state: state.pop("blocks.0.norm1.bias"), "blocks.0.norm1.bias is missing"),
            (
                lambda state: state.update({"blocks.0.norm1.bias": torch.zeros(5)}),
                "blocks.0.norm1.bias is 5 where 32 is wanted",
            ),
            (
                lambda state: state.update({"blocks.0.ls1.gamma": torch.zeros(12)}),
                "blocks.0.ls1.gamma is one weight too many",
            ),
        ],
    )
    def test_weights_of_another_encoder(
        self, make: Any, tmp_path: Path, spoil: Any, expected: str
    ) -> None:
        make().export(tmp_path)
        state = load_file(tmp_path / "encoder.safetensors")
        spoil(state)
        save_file(state, tmp_path / "encoder.safetensors")
        with pytest.raises(UserError, match=f"encoder.safetensors: .*{expected}"):
            load_encoder(tmp_path)

    def test_crops_are_augmented(self, make: Any) -> None:
        plain, changed = make(), make(augmentation="moco")
        a, b = plain.batch(1, 0, 1), changed.batch(1, 0, 1)
        assert torch.equal(a["videos"], b["videos"]) and a["frames"].shape == b["frames"].shape
        assert not any(torch.equal(*pair) for pair in zip(a["frames"], b["frames"], strict=True))

    def test_it_describes_its_batch(self, make: Any) -> None:
        task = make()
        batch = task.batch(0, 0, 1)
        ids = [task.clips[video]["clip_id"] for video in batch["videos"].tolist()]
        assert task.describe(batch) == f"clips {', '.join(ids)}"

    def test_the_probe_is_a_search_among_labelled_clips(
        self, make: Any, tiny_sprites: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        few = functools.partial(NeighbourProbe, queries=5, clips=11, num_frames=2)
        monkeypatch.setattr(encoder_task, "NeighbourProbe", few)
        task = make(probe_every=2, steps=4)
        task.module.train()
        found = task.probe()
        assert task.module.encoder.training and task.module.training
        with monkeypatch.context() as patched:
            # Parsing the annotations takes seconds in a large benchmark: once is enough.
            patched.setattr(Benchmark, "reader", None)
            assert found == task.probe(), "nothing is drawn anew"
        labels = read_corpus_labels(tiny_sprites)
        benchmark = load_benchmark(tiny_sprites)
        assert task._probe is not None and len(task._probe.rows) == 11
        names = [labels[row["clip_id"]] for row in task._probe.rows]
        rows = [str(tiny_sprites / "corpus" / row["uri"]) for row in task._probe.rows]
        clips = np.stack([sample_frames(r, num_frames=2, height=32, width=32) for r in rows])
        reader = benchmark.reader(tiny_sprites)
        encoder = task.module.encoder.eval()
        at_1, at_5, chance = [], [], []
        with torch.no_grad():
            vectors = encoder(torch.from_numpy(clips)).numpy()
            for video, wanted in benchmark.queries["val"]:
                frames = reader.frames(video)[[0, 2]]
                cosine = vectors @ encoder(torch.from_numpy(frames[None])).numpy()[0]
                order = sorted(range(11), key=lambda i: -cosine[i])
                right = [names[i] == wanted for i in order]
                at_1.append(right[0])
                at_5.append(sum(right[:5]) / 5)
                chance.append(sum(right) / 11)
        assert found["probe_precision_1"] == pytest.approx(np.mean(at_1))
        assert found["probe_precision_5"] == pytest.approx(np.mean(at_5))
        assert found["probe_chance"] == pytest.approx(np.mean(chance))
        history = run_plain(task, Schedule(steps=4, **LOOP | {"log_every": 3}))
        assert [point["step"] for point in history] == [0, 2, 3, 4]
        assert [("probe_precision_5" in point) for point in history] == [True, True, False, True]
        assert history[0]["probe_precision_5"] == pytest.approx(found["probe_precision_5"])
        assert all(point["clips_per_s"] > 0 and point["grad_norm"] > 0 for point in history[1:])

    def test_without_a_queue(self, make: Any) -> None:
        task = make(queue_length=0)
        assert np.isfinite(_losses(run_plain(task, Schedule(steps=2, **LOOP)))).all()

    def test_two_ranks_have_the_loss_of_one(
        self, make: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        task = make(loss="nce")
        module = task.module.eval()
        parts = [task.batch(0, rank, 2) for rank in range(2)]
        whole = module({key: torch.cat([part[key] for part in parts]) for key in parts[0]})
        keys = [module._embed_twice(part)[1] for part in parts]
        videos = [part["videos"].repeat_interleave(2) for part in parts]
        losses = []
        for rank, part in enumerate(parts):

            class TwoRanks:
                """What `torch.distributed` says on this rank."""

                is_available = is_initialized = staticmethod(lambda: True)
                get_world_size = staticmethod(lambda: 2)
                get_rank = staticmethod(lambda rank=rank: rank)

                @staticmethod
                def all_gather(into: list[Tensor], mine: Tensor, rank: int = rank) -> None:
                    everyone = keys if mine.is_floating_point() else videos
                    torch.testing.assert_close(everyone[rank], mine)
                    for place, value in zip(into, everyone, strict=True):
                        place.copy_(value)

            monkeypatch.setattr(contrast, "dist", TwoRanks)
            losses.append(module(part)["loss"])
        torch.testing.assert_close(torch.stack(losses).mean(), whole["loss"], rtol=1e-4, atol=1e-5)

    def test_momentum_rises_to_one(self, make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        task, used = make(steps=10), []
        monkeypatch.setattr(
            task.module, "after_step", lambda momentum: used.append(momentum)
        )
        for step in range(11):
            task.after_step(step)
        assert used[0] == pytest.approx(0.9) and used[10] == pytest.approx(1.0)
        assert used == sorted(used) and used[9] > 0.99
        assert used[5] == pytest.approx(0.95)

    @pytest.mark.usefixtures("small_head")
    def test_what_a_checkpoint_holds_is_enough(self, make: Any, tmp_path: Path) -> None:
        """A task built anew goes on from module, optimiser and step with the same bits."""
        more = {
            "loss": "nce", "steps": 8, "queue_length": 24,
            "augmentation": "moco", "head": "mlp",
        }  # fmt: skip

        def go_on(task: EncoderTask, optimiser: torch.optim.Optimizer, steps: range) -> None:
            task.module.train()
            for step in steps:
                seed_step(3, step, 0)
                optimiser.zero_grad()
                task.module(task.batch(step, 0, 1))["loss"].backward()
                optimiser.step()
                task.after_step(step)

        def begin() -> tuple[EncoderTask, torch.optim.Optimizer]:
            task = make(**more)
            return task, torch.optim.AdamW(task.parameter_groups()[0]["params"], lr=1e-3)

        whole, optimiser = begin()
        go_on(whole, optimiser, range(8))
        first, optimiser = begin()
        go_on(first, optimiser, range(5))
        state = {"module": first.module.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save(state, tmp_path / "checkpoint.pt")
        torch.manual_seed(99)
        again, optimiser = begin()
        kept = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
        again.module.load_state_dict(kept["module"])
        optimiser.load_state_dict(kept["optimiser"])
        go_on(again, optimiser, range(5, 8))
        for name, value in whole.module.state_dict().items():
            assert torch.equal(value, again.module.state_dict()[name]), name

    def test_the_momentum_encoder_follows(self, make: Any) -> None:
        task = make(momentum=0.5)
        start = {k: v.clone() for k, v in task.module.encoder.state_dict().items()}
        run_plain(task, Schedule(steps=1, **LOOP))
        name = "blocks.0.attention.out.weight"
        fast = task.module.encoder.state_dict()[name]
        slow = task.module.momentum_encoder.state_dict()[name]
        assert not torch.equal(fast, start[name])
        torch.testing.assert_close(slow, (start[name] + fast) / 2)
        for key, value in task.module.encoder.state_dict().items():
            if key.startswith("backbone."):
                assert torch.equal(value, start[key]), "the backbone is frozen"
        moved = {id(p) for group in task.parameter_groups() for p in group["params"]}
        assert not moved & {id(p) for p in task.module.momentum_encoder.parameters()}
        assert not moved & {id(p) for p in task.module.encoder.backbone.parameters()}

    @pytest.mark.parametrize("loss", ["rank", "nce"])
    def test_it_learns_one_batch(self, make: Any, loss: str) -> None:
        task = make(loss=loss, queue_length=0, learning_rate=5e-3, steps=15)
        batch = task.batch(0, 0, 1)
        task.batch = lambda step, rank, world_size: batch
        losses = _losses(run_plain(task, Schedule(steps=15, **LOOP)))
        assert np.mean(losses[-3:]) < 0.95 * losses[0]

    @pytest.mark.parametrize(
        ("backbone", "more", "dim"),
        [
            ("pretrained", {}, 32),
            ("scratch", {}, 12),
            ("pretrained", {"adapter": "linear", "layers": 0}, 32),
            ("pretrained", {"adapter": "whitened_linear", "layers": 0}, 32),
            ("efficientnet_lite0", {"dim": 12}, 12),
            ("efficientnet_lite0", {"train_backbone": True, "layers": 0}, 1280),
            ("timm/resnet10t", {"dim": 12, "weights": "random"}, 12),
            (
                "timm/resnet10t",
                {"dim": 12, "weights": "random", "train_backbone": True, "frame_side": 64},
                12,
            ),
            (
                "timm/test_vit",
                {"layers": 0, "weights": "random", "pooling": "network", "adapter": "linear"},
                64,
            ),
            ("video_vit", {"vit_size": "tiny", "vit_patch": 8}, 192),
        ],
    )
    def test_export_and_load(
        self, make: Any, backbone: str, more: dict[str, Any], dim: int, tmp_path: Path
    ) -> None:
        task = make(backbone=backbone, steps=2, **more)
        trained = {id(p) for group in task.parameter_groups() for p in group["params"]}
        expected = backbone in ("scratch", "video_vit") or more.get("train_backbone", False)
        phi = task.module.encoder
        inside = phi if backbone == "video_vit" else phi.backbone
        assert any(id(p) in trained for p in inside.parameters()) == expected
        run_plain(task, Schedule(steps=1, **LOOP))
        task.export(tmp_path)
        batch = task.batch(4, 0, 1)["frames"][:, 0]
        # Loading sets how this process multiplies convolutions, so it comes before both.
        loaded = load_encoder(tmp_path)
        with torch.no_grad():
            ours = task.module.encoder.eval()(batch)
        vectors = loaded.embed(batch.numpy())
        assert vectors.dtype == np.float32
        np.testing.assert_array_equal(vectors, ours.numpy())
        windows, foreground = loaded.windows(batch.numpy(), 3)
        assert windows.shape == (*foreground.shape, dim) and foreground.min() >= 0
        size = (tmp_path / "encoder.safetensors").stat().st_size
        packaged = backbone == "efficientnet_lite0" and not expected
        assert size < 1e6 or not packaged, "a packaged backbone is not copied"
        assert not expected or backbone == "scratch" or size > 1e7
