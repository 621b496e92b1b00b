"""The state that several ranks write: whole or not there, and readable in any number of them."""

from __future__ import annotations

import errno
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from tests.helpers.ranks import run_ranks
from tests.helpers.trainings import assert_same
from tide.errors import TideError
from tide.files import read_json
from tide.training.shared_state import DESCRIBED, last_shared, read_shared, remove_shared, write_shared
from tide.world import Grid, World


def tensors(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "model.W_enc": torch.randn(96, 8, generator=generator),
        "model.W_dec": torch.randn(96, 8, generator=generator),
        "optimizer.0.step": torch.tensor(float(step)),
        "silent_for": torch.arange(96) + step,
        "half": torch.randn(3, generator=generator).bfloat16(),
    }


def here() -> World:
    import torch.distributed as dist

    return World(dist.get_rank(), dist.get_world_size())


def written(folder: str) -> list[str]:
    """Two states, one after the other, then one that rank 1 has no room for."""
    world, resume = here(), Path(folder)
    for step in (4, 8):
        write_shared(resume, step, tensors(step), {"step": step}, world)
    write = HuggingFaceStorageWriter.write_data

    def full(*arguments):
        if world.number == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments)

    with mock.patch.object(HuggingFaceStorageWriter, "write_data", full):
        try:
            write_shared(resume, 12, tensors(12), {"step": 12}, world)
        except TideError as error:
            return [str(error)]
    return ["nothing was raised"]


#: The tensors with a row for each latent.
BY_LATENT = frozenset({"model.W_enc", "model.W_dec", "silent_for"})


def divided(folder: str) -> None:
    """The state of two rows of two ranks, each with half of the latents."""
    world = here()
    grid = Grid(world.number, world.count, 2)
    own = slice(48 * grid.latents.number, 48 * grid.latents.number + 48)
    parts = {name: each[own] if name in BY_LATENT else each for name, each in tensors(4).items()}
    write_shared(Path(folder), 4, parts, {"step": 4}, grid, BY_LATENT)


def read_in_parts(folder: str) -> dict[str, torch.Tensor]:
    world = here()
    return dict(read_shared(Path(folder), Grid(world.number, world.count, world.count), BY_LATENT))


@pytest.fixture(scope="module")
def resume(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "resume"
    (folder.parent / "said").write_text("\n".join(each for (each,) in run_ranks(written, 3, str(folder))))
    return folder


def test_a_rank_without_room_ends_all_of_them_and_the_former_state_stays(resume):
    for line in (resume.parent / "said").read_text().splitlines():
        assert "step 12 was not saved (rank 1: " in line
        assert "No space left on device" in line
        assert line.endswith(f"what {resume.parent} held is kept")
    assert last_shared(resume) == resume / "step-8"


def test_one_process_reads_what_all_have_written(resume):
    folder = last_shared(resume)
    assert folder is not None
    assert_same(dict(sorted(read_shared(folder).items())), dict(sorted(tensors(8).items())))
    # Each tensor is written once, by one rank of the three.
    sizes = [each.stat().st_size for each in folder.glob("*.safetensors")]
    assert len(sizes) == 3
    assert sum(sizes) < 1.5 * sum(each.nbytes for each in tensors(8).values())
    assert read_json(folder / DESCRIBED) == {"step": 8}


def test_ranks_that_divide_the_latents_write_and_read_their_own(tmp_path):
    """Each row once; read by one process, and in three parts."""
    run_ranks(divided, 4, str(tmp_path))
    folder = last_shared(tmp_path)
    assert folder is not None
    whole = tensors(4)
    assert_same(dict(sorted(read_shared(folder).items())), dict(sorted(whole.items())))
    assert sum(each.stat().st_size for each in folder.glob("*.safetensors")) < 1.5 * sum(
        each.nbytes for each in whole.values()
    )
    for rank, found in enumerate(run_ranks(read_in_parts, 3, str(folder))):
        own = {name: each[32 * rank : 32 * rank + 32] if name in BY_LATENT else each for name, each in whole.items()}
        assert_same(dict(sorted(found.items())), dict(sorted(own.items())))


def test_a_damaged_file_is_one_line(resume, tmp_path):
    damaged = tmp_path / "step-8"
    damaged.mkdir()
    for file in (resume / "step-8").iterdir():
        content = file.read_bytes()
        (damaged / file.name).write_bytes(content[:100] if file.name.startswith("shard-00001") else content)
    with pytest.raises(TideError, match=r"shard-00001.*safetensors"):
        read_shared(damaged)


def test_all_states_are_removed_but_the_one_named(tmp_path):
    for name in ("step-1", "step-20", ".step.tmp", "other"):
        (tmp_path / name).mkdir()
    assert last_shared(tmp_path) == tmp_path / "step-20"
    remove_shared(tmp_path, but=1)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["other", "step-1"]
    remove_shared(tmp_path)
    assert last_shared(tmp_path) is None
