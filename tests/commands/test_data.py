"""Training data in every layout: the same order for any number of readers, exact resume, corrupt samples."""

import json
import logging
import os
import pickle
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import make_folder, make_parquet, make_shards, picture
from PIL import Image
from torch import Tensor

from commands.pretrain.data.corruption import CorruptionCount
from commands.pretrain.data.folder_source import FolderSource
from commands.pretrain.data.micro_batches import Batch, make_loader, micro_batches
from commands.pretrain.data.parquet_source import ParquetSource
from commands.pretrain.data.pictures import CorruptSample, DataError, decode, to_float
from commands.pretrain.data.shard_source import ShardSource, scan_shard
from commands.pretrain.data.sources import Source
from commands.pretrain.data.training_data import TrainingData

SIZE, SEED, BATCH = 32, 7, 8


def open_layout(layout: str, folder: Path, count: int = 60) -> Source:
    if layout == "folder":
        return FolderSource(make_folder(folder, count))
    if layout == "shards":
        return ShardSource(make_shards(folder, [7, count - 30, 23]), window=2)
    return ParquetSource(make_parquet(folder / "a.parquet", count, 9).parent, window=3, column="image")


def test_an_alpha_channel_is_a_mask_where_it_is_asked_for(tmp_path: Path) -> None:
    pixels = Image.new("RGBA", (48, 40), (10, 20, 30, 0))
    pixels.paste((10, 20, 30, 255), (0, 0, 24, 40))
    pixels.save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(picture(3))
    plain, source = FolderSource(tmp_path), FolderSource(tmp_path)
    source.alpha_mask = True
    assert plain.read(0, SIZE).mask is None
    masked, whole = source.read(0, SIZE), source.read(1, SIZE)
    assert torch.equal(masked.image, plain.read(0, SIZE).image), "colors stay where alpha is 0"
    assert masked.mask is not None and masked.mask.shape == (1, SIZE, SIZE)
    assert masked.mask[:, :, : SIZE // 2 - 2].min() == 255 and masked.mask[:, :, SIZE // 2 + 2 :].max() == 0
    assert whole.mask is not None and whole.mask.min() == 255


def numbers(images: Tensor) -> list[int]:
    """Which pictures these are: their number is in the red and green values."""
    return [int(image[0, 0, 0]) + 256 * int(image[1, 0, 0]) for image in images]


def run(
    data: TrainingData, steps: int, first: int = 0, workers: int = 0, process: int = 0, processes: int = 1
) -> list[Batch]:
    batches = micro_batches(first, steps, BATCH, 2, process, processes)
    return list(make_loader(data, batches, workers))


@pytest.mark.parametrize("layout", ["folder", "shards", "parquet"])
def test_every_layout_gives_every_picture_once_an_epoch(layout: str, tmp_path: Path) -> None:
    data = TrainingData([open_layout(layout, tmp_path)], [1], SIZE, SEED)
    assert data.rows == 60
    seen = [numbers(data[index].picture.image[None])[0] for index in range(60)]
    assert sorted(seen) == list(range(60))
    assert seen != sorted(seen)


@pytest.mark.parametrize("layout", ["folder", "shards", "parquet"])
def test_two_workers_see_the_order_of_none(layout: str, tmp_path: Path) -> None:
    data = TrainingData([open_layout(layout, tmp_path)], [1], SIZE, SEED)
    alone, together = run(data, 3), run(data, 3, workers=2)
    assert [b.indices.tolist() for b in alone] == [b.indices.tolist() for b in together]
    assert all(torch.equal(a.images, b.images) for a, b in zip(alone, together, strict=True))


def test_the_processes_of_a_run_share_out_the_order_of_one(tmp_path: Path) -> None:
    sources = [open_layout("shards", tmp_path / "s"), open_layout("folder", tmp_path / "f")]
    data = TrainingData(sources, [0.7, 0.3], SIZE, SEED)
    alone = [numbers(batch.images) for batch in run(data, 3)]
    steps = [list(chain.from_iterable(alone[step * 4 : step * 4 + 4])) for step in range(3)]
    shares = [[numbers(b.images) for b in run(data, 3, process=r, processes=2, workers=r)] for r in range(2)]
    pairs = [[batch for share in shares for batch in share[step * 2 : step * 2 + 2]] for step in range(3)]
    together = [list(chain.from_iterable(pair)) for pair in pairs]
    assert together == steps


def test_a_run_goes_on_at_any_step_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    sources = [open_layout("shards", tmp_path / "s"), open_layout("parquet", tmp_path / "p")]
    whole = run(TrainingData(sources, [3, 1], SIZE, SEED), 12)
    again = TrainingData(
        [ShardSource(tmp_path / "s", 2), ParquetSource(tmp_path / "p", 3, "image")], [3, 1], SIZE, SEED
    )
    resumed = run(again, 12, first=9)
    assert [b.indices.tolist() for b in resumed] == [b.indices.tolist() for b in whole[9 * 4 :]]
    assert all(torch.equal(a.images, b.images) for a, b in zip(resumed, whole[9 * 4 :], strict=True))


@pytest.mark.parametrize("layout", ["folder", "shards", "parquet"])
def test_data_that_was_read_from_can_be_sent_to_a_worker(layout: str, tmp_path: Path) -> None:
    data = TrainingData([open_layout(layout, tmp_path)], [1], SIZE, SEED)
    first = data[5].picture.image
    copy = pickle.loads(pickle.dumps(data))  # what a worker gets where processes are not forked
    assert torch.equal(copy[5].picture.image, first)


def test_reading_touches_no_global_random_stream(tmp_path: Path) -> None:
    data = TrainingData([open_layout("folder", tmp_path)], [1], SIZE, SEED)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run(data, 2, workers=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_corrupt_picture_is_replaced_counted_once_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = FolderSource(make_folder(tmp_path, 120, corrupt=[17]))
    data = TrainingData([source], [1], SIZE, SEED)
    count = CorruptionCount(data.rows, most=0.01)
    with caplog.at_level(logging.WARNING):
        seen = []
        for batch in run(data, 30, workers=2):
            count.add(batch.corrupt)
            seen += numbers(batch.images)
    assert len(seen) == 240
    assert set(seen) == set(range(120)) - {17}
    assert len(count.found) == 1
    assert "01/00017.png" in caplog.text
    repeated = [numbers(batch.images) for batch in run(data, 30)]
    assert list(chain.from_iterable(repeated)) == seen


def test_more_than_one_percent_corrupt_stops_the_run(tmp_path: Path) -> None:
    data = TrainingData([FolderSource(make_folder(tmp_path, 100, corrupt=[3, 50]))], [1], SIZE, SEED)
    count = CorruptionCount(data.rows, most=0.01)
    with pytest.raises(DataError, match=r"2 of 100 samples are corrupt, more than 1\.00%"):
        for batch in run(data, 13):
            count.add(batch.corrupt)


def test_the_count_of_corrupt_samples_survives_a_resume() -> None:
    count, again = CorruptionCount(100, 0.01), CorruptionCount(100, 0.01)
    count.add([(4, "a"), (4, "a")])
    again.load_state_dict(count.state_dict())
    with pytest.raises(DataError, match="2 of 100"):
        again.add([(5, "b")])


def test_data_of_corrupt_pictures_only_ends_with_a_sentence(tmp_path: Path) -> None:
    data = TrainingData([FolderSource(make_folder(tmp_path, 3, corrupt=range(3)))], [1], SIZE, SEED)
    with pytest.raises(DataError, match="100 samples in a row"):
        data[0]


@pytest.mark.parametrize("cut", ["in a picture", "in a header"])
def test_a_shard_cut_in_the_middle_loses_its_tail_only(cut: str, tmp_path: Path) -> None:
    make_shards(tmp_path, [200, 40])
    shard = tmp_path / "part-001.tar"
    whole = scan_shard(shard)
    offset, size = whole.places[39].tolist()
    with shard.open("r+b") as file:
        file.truncate(offset + size // 2 if cut == "in a picture" else offset - 200)
    index = scan_shard(shard)
    assert index.cut
    assert index.keys == whole.keys[:39]
    source = ShardSource(tmp_path, window=2)
    assert source.parts == (200, 40)
    with pytest.raises(CorruptSample, match="part-001.tar: sample 39: the shard ends after 39 of 40"):
        source.read(239, SIZE)
    data = TrainingData([source], [1], SIZE, SEED)
    count = CorruptionCount(data.rows, most=0.01)
    seen = []
    for batch in run(data, 30):
        count.add(batch.corrupt)
        seen += numbers(batch.images)
    assert set(seen) == set(range(239))
    assert len(count.found) == 1


def test_a_damaged_header_ends_a_shard_and_is_noticed(tmp_path: Path) -> None:
    shard = make_shards(tmp_path, [10]) / "part-000.tar"
    offset = int(scan_shard(shard).places[5][0])
    with shard.open("r+b") as file:
        file.seek(offset - 512)
        file.write(b"\xff" * 512)
    index = scan_shard(shard)
    assert len(index.keys) == 5
    assert index.cut


def test_a_whole_shard_is_not_called_cut(tmp_path: Path) -> None:
    index = scan_shard(make_shards(tmp_path, [10]) / "part-000.tar")
    assert not index.cut
    assert len(index.keys) == 10


def test_a_file_that_is_no_tar_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no archive" * 200)
    with pytest.raises(DataError, match=r"a\.tar could not be read as a tar"):
        ShardSource(tmp_path, window=1)


@pytest.mark.parametrize("layout", ["folder", "shards", "parquet"])
def test_empty_data_is_refused(layout: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no|has no row|does not exist"):
        open_layout(layout, tmp_path, 0) if layout == "folder" else (
            ShardSource(tmp_path, 1) if layout == "shards" else ParquetSource(tmp_path, 1, "image")
        )


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    make_folder(tmp_path / "elsewhere", 5)
    make_folder(tmp_path / "data", 4)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "data" / "again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "data" / "circle").symlink_to(tmp_path / "data", target_is_directory=True)
    assert FolderSource(tmp_path / "data").parts == (14,)


def test_a_folder_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "data", 4)
    (tmp_path / "data" / "closed").mkdir()
    scan = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"closed cannot be read \(Permission denied\)"):
        FolderSource(tmp_path / "data")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_workers_error_is_one_sentence(workers: int, tmp_path: Path) -> None:
    make_folder(tmp_path / "bad", 4, corrupt=range(4))
    data = TrainingData([FolderSource(tmp_path / "bad")], [1], SIZE, seed=0)
    with pytest.raises(DataError, match=r"^100 samples in a row could not be read, .*: prepare the data again\.$"):
        list(make_loader(data, micro_batches(0, 1, 4, 4), workers))


@pytest.mark.parametrize("workers", [0, 1])
def test_sources_with_and_without_masks_mix_unless_masks_are_wanted(workers: int, tmp_path: Path) -> None:
    make_folder(tmp_path / "data", 8)
    sources = [FolderSource(tmp_path / "data"), FolderSource(tmp_path / "data")]
    sources[1].alpha_mask = True
    data = TrainingData(sources, [1, 1], SIZE, seed=0)
    batches = list(make_loader(data, micro_batches(0, 4, 8, 8), workers, masks=False))
    assert len(batches) == 4 and all(batch.masks is None for batch in batches)
    with pytest.raises(DataError, match="^Some data sources have masks and some have none: use sources of one sort.$"):
        list(make_loader(data, micro_batches(0, 4, 8, 8), workers))


def test_a_shard_of_garbage_counts_as_corrupt(tmp_path: Path) -> None:
    make_shards(tmp_path / "data", [30, 30])
    manifest: dict[str, Any] = {"shards": []}
    for path in sorted((tmp_path / "data").glob("*.tar")):
        manifest["shards"].append({"name": path.name, "samples": 30, "bytes": path.stat().st_size})
    (tmp_path / "data" / "manifest.json").write_text(json.dumps(manifest))
    path.write_bytes(b"no archive" * 500)
    data = TrainingData([ShardSource(tmp_path / "data", window=2)], [1], SIZE, seed=0)
    count = CorruptionCount(data.rows, most=1.0)
    for batch in run(data, 15):
        count.add(batch.corrupt)
    assert len(count.found) >= 20 and all(path.name in text for text in count.found.values())


def test_a_parquet_file_without_the_column_says_what_it_has(tmp_path: Path) -> None:
    path = make_parquet(tmp_path / "a.parquet", 4, 2, struct=False)
    assert numbers(ParquetSource(path, 1, "image").read(3, SIZE).image[None]) == [3]
    with pytest.raises(DataError, match=r"no column 'picture'.*image, label"):
        ParquetSource(path, 1, "picture")
    with pytest.raises(DataError, match=r"Column 'label' of .* holds .*, not the bytes of pictures"):
        ParquetSource(path, 1, "label")


def test_a_batch_that_cannot_be_shared_out_is_refused() -> None:
    with pytest.raises(DataError, match="batch of 8 cannot be shared evenly by 3"):
        list(micro_batches(0, 1, 8, 2, 0, 3))


@pytest.mark.parametrize(("width", "height"), [(64, 32), (32, 64), (48, 48), (20, 30)])
def test_pictures_become_a_centered_square(width: int, height: int) -> None:
    image = decode(picture(5, width, height), SIZE).image
    assert image.shape == (3, SIZE, SIZE)
    assert image[:, 0, 0].tolist() == [5, 0, 77]


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGBA"), ("PNG", "L"), ("PNG", "P"), ("JPEG", "CMYK"), ("WEBP", "RGB")]
)
def test_any_mode_becomes_three_channels(kind: str, mode: str) -> None:
    image = decode(picture(200, 40, 40, kind, mode), SIZE).image
    assert image.shape == (3, SIZE, SIZE)
    assert image.dtype == torch.uint8


def test_sixteen_bit_gray_is_scaled_not_clipped() -> None:
    import io

    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.full((SIZE, SIZE), 32768, dtype=np.uint16)).save(file, "PNG")
    assert decode(file.getvalue(), SIZE).image.unique().tolist() == [128]


def test_floats_lie_between_zero_and_one() -> None:
    assert to_float(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [0.0, 1.0]
