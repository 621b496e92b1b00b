"""Parts of a store: which images each takes, what the folder of all of them holds, and what is refused."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.store_batches import assert_same_rows, contents, edit_manifest, rows_of
from tide.activations import ActivationStore, CollectOptions, Prompts, Source, StoreWriter, stores
from tide.activations.parts import Part, found_parts, part_of_environment
from tide.activations.to_disk import collect_to_disk, recorded_hold_out
from tide.data import open_source
from tide.errors import TideError
from tide.images.folder import Folder
from tide.runs import contents as run_contents
from tide.training import TrainConfig, from_stores

N = 11
OPTIONS = CollectOptions(token_fraction=1 / 4, batch_size=2)
PLAIN = TrainConfig(n_latents=96, k=8, batch_tokens=64, steps=4, modulation=False)


@pytest.fixture(scope="module")
def source(adapter) -> Source:
    return open_source("scenes", adapter, images=N, batch_size=2)


@pytest.fixture(scope="module")
def whole(adapter, source, tmp_path_factory) -> Path:
    """What one process collects."""
    path = tmp_path_factory.mktemp("whole") / "s"
    collect_to_disk(adapter, source, path, blocks=(3,), options=OPTIONS, say=lambda text: None)
    return path


@pytest.fixture(scope="module")
def three(adapter, source, tmp_path_factory) -> Path:
    """The same in three parts; not to be changed."""
    path = tmp_path_factory.mktemp("three") / "s"
    for index in (2, 0, 1):
        part_of(adapter, source, path, index, 3)
    return path


def part_of(adapter, source, path: Path, index: int, of: int, **further):
    given = {"blocks": (3,), "options": OPTIONS, "say": lambda text: None, **further}
    return collect_to_disk(adapter, source, path, part=(index, of), **given)


# -- shares ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 1000])
@pytest.mark.parametrize("of", [1, 2, 3, 64, 1500])
@pytest.mark.parametrize("per_pass", [1, 8])
def test_shares_are_whole_passes_that_follow_one_another(n, of, per_pass):
    shares = [Part(i, of).share(n, per_pass) for i in range(of)]
    assert [first for first, _ in shares] == [0, *(end for _, end in shares[:-1])]
    assert shares[-1][1] == n
    assert all(first % per_pass == 0 for first, end in shares if first < end)
    passes = [-(-(end - first) // per_pass) for first, end in shares]
    assert max(passes) - min(passes) <= 1


@pytest.mark.parametrize(
    ("index", "of", "message"),
    [
        (0, 0, "0 parts are none; give R/W with W of at least 1, such as 0/64"),
        (0, 10**5, "100000 parts are too many; give at most 99999"),
        (64, 64, "part 64 of 64 does not exist; they are 0 to 63"),
        (-1, 2, "part -1 of 2 does not exist; they are 0 to 1"),
    ],
)
def test_a_part_that_does_not_exist(adapter, source, tmp_path, index, of, message):
    with pytest.raises(TideError) as error:
        part_of(adapter, source, tmp_path / "s", index, of)
    assert str(error.value) == message
    assert not (tmp_path / "s").exists()


SLURM = {f"SLURM_ARRAY_TASK_{name}": value for name, value in {"ID": "12", "MIN": "10", "COUNT": "4"}.items()}


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({}, None),
        ({"RANK": "3", "WORLD_SIZE": "8"}, Part(3, 8)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"WORLD_SIZE": "8"}, None),
        (SLURM, Part(2, 4)),
        ({**SLURM, "RANK": "0", "WORLD_SIZE": "1"}, Part(2, 4)),
        ({**SLURM, "RANK": "1", "WORLD_SIZE": "2"}, Part(1, 2)),
        ({**SLURM, "SLURM_ARRAY_TASK_STEP": "2"}, Part(1, 4)),
        ({**SLURM, "SLURM_ARRAY_TASK_COUNT": "1"}, None),
    ],
    ids=str,
)
def test_the_part_that_a_launcher_names(environment, part):
    assert part_of_environment(environment) == part


@pytest.mark.parametrize("changed", [{"SLURM_ARRAY_TASK_ID": "19"}, {"SLURM_ARRAY_TASK_STEP": "4"}], ids=str)
def test_an_array_of_unequal_steps_is_refused(changed):
    with pytest.raises(
        TideError, match=r"^task \d+ of the Slurm array is not one of 4 in equal steps; give --part R/W"
    ):
        part_of_environment({**SLURM, **changed})


# -- one store of parts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", [1, 2, 6, 8])
def test_parts_have_the_rows_of_one_collection(adapter, source, whole, tmp_path, of):
    found = [part_of(adapter, source, tmp_path / "s", index, of) for index in range(of)]
    assert [each.images for each in found] == [end - first for first, end in shares(of)]
    assert_same_rows(tmp_path / "s", whole)
    store, one = ActivationStore(tmp_path / "s"), ActivationStore(whole)
    assert (len(store), store.complete, store.info, store.samples()) == (len(one), True, one.info, one.samples())
    store.verify()


def shares(of: int) -> list[tuple[int, int]]:
    return [Part(i, of).share(N, OPTIONS.batch_size) for i in range(of)]


def test_a_part_is_an_ordinary_store(adapter, three):
    path = three / "part-00001-of-00003"
    store = ActivationStore(path)
    first, end = shares(3)[1]
    assert sorted(set(rows_of(path).sample.tolist())) == list(range(first, end))
    assert store.info["part"] == {"index": 1, "of": 3, "images": N, "listing": ""}
    holds = run_contents(path)
    assert holds is not None
    assert (holds.data["images"], holds.measured["images"], holds.measured["rows"]) == (
        end - first,
        end - first,
        len(store),
    )
    assert not (three / "run.json").exists()  # no process writes what others write too


def test_the_store_of_parts_is_read_in_shuffled_batches(three):
    store = ActivationStore(three)
    batches = list(store.batches(16, seed=1))
    assert sum(map(len, batches)) == len(store) == N * 2 * 16
    found = {(int(s), int(t), float(x)) for b in batches for s, t, x in zip(b.sample, b.token, b.x[:, 0], strict=True)}
    assert len(found) == len(store)
    whole = rows_of(three)
    assert found == {
        (int(s), int(t), float(x)) for s, t, x in zip(whole.sample, whole.token, whole.x[:, 0], strict=True)
    }


def test_a_training_takes_the_parts_as_one_store(three, whole):
    job, one = from_stores(three, PLAIN), from_stores(whole, PLAIN)
    assert job.described["stores"][0]["rows"] == one.described["stores"][0]["rows"]
    assert job.model.trained_on == one.model.trained_on
    assert next(job.batches(0)).x.shape == (64, 192)
    both = from_stores([three, whole], PLAIN)
    assert len(next(both.batches(3))) == 64


def test_several_blocks_have_parts_of_their_own(adapter, source, whole, tmp_path):
    for index in (0, 1):
        part_of(adapter, source, tmp_path / "s", index, 2, blocks=(1, 3))
    assert sorted(path.name for path in (tmp_path / "s/block-3").iterdir()) == [Part(0, 2).name, Part(1, 2).name]
    assert_same_rows(tmp_path / "s/block-3", whole)
    with pytest.raises(TideError, match="holds stores of several blocks; give one of them: "):
        from_stores(tmp_path / "s", PLAIN)


def test_prompts_are_divided_as_images_are(adapter, tmp_path):
    prompts = Prompts(
        "five", (64, 64), tuple(f"a {colour} house" for colour in ("red", "blue", "green", "grey", "tan"))
    )
    options = CollectOptions(n_timesteps=2, token_fraction=1 / 4, paired=False, batch_size=2)
    collect_to_disk(adapter, prompts, tmp_path / "one", blocks=(3,), options=options)
    for index in (0, 1):
        part_of(adapter, prompts, tmp_path / "two", index, 2, options=options)
    assert_same_rows(tmp_path / "two", tmp_path / "one")


def test_parts_beyond_the_passes_are_empty_and_whole(adapter, tmp_path):
    few = open_source("scenes", adapter, images=2, batch_size=2)
    said: list[str] = []
    for index in range(3):
        found = part_of(adapter, few, tmp_path / "s", index, 3, say=said.append)
        assert (found.images, found.rows) == ((2, 64) if index == 2 else (0, 0))
    assert [text.rpartition("; ")[2] for text in said] == [
        "part 0 of 3 takes 0 images",
        "part 1 of 3 takes 0 images",
        "part 2 of 3 takes 2 images",
    ]
    assert len(ActivationStore(tmp_path / "s")) == 64
    with pytest.raises(TideError, match="part-00000-of-00003 holds no activations yet"):
        ActivationStore(tmp_path / "s" / Part(0, 3).name)


# -- data ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (64, 64), (40 * i, 0, 0)).save(folder / f"{i}.png")
    return folder


def opened(adapter, folder: Path) -> Source:
    return open_source(folder, adapter, images=6, batch_size=2)


@pytest.mark.filterwarnings("ignore:.*caption")
def test_a_part_reads_the_files_of_its_own_images_alone(adapter, photos, tmp_path, monkeypatch):
    """Reading those before them would have the last part read everything."""
    read: list[str] = []
    digest = Folder.digest
    monkeypatch.setattr(Folder, "digest", lambda self, i: read.append(self.name(i)) or digest(self, i))
    part_of(adapter, opened(adapter, photos), tmp_path / "s", 2, 3)
    names = [sample.name for sample in ActivationStore(tmp_path / "s" / Part(2, 3).name).samples() or ()]
    assert sorted(set(read)) == sorted(names)
    read.clear()
    part_of(adapter, opened(adapter, photos), tmp_path / "s", 2, 3, resume=True)
    assert sorted(set(read)) == sorted(names)


@pytest.mark.filterwarnings("ignore:.*caption")
def test_images_that_were_added_between_two_parts_are_found(adapter, photos, tmp_path):
    """The order of the images is another one then: some would be collected twice, and some not at all."""
    part_of(adapter, opened(adapter, photos), tmp_path / "s", 0, 3)
    Image.new("RGB", (64, 64)).save(photos / "new.png")
    with pytest.raises(TideError, match=r"part-00001-of-00003 is not of the same collection as .*part-00000-of-00003 "):
        part_of(adapter, opened(adapter, photos), tmp_path / "s", 1, 3)
    with pytest.raises(TideError, match=r"collected with other options \(part.listing "):
        part_of(adapter, opened(adapter, photos), tmp_path / "s", 0, 3, resume=True)


# -- what is refused -------------------------------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(TideError) as error:
        ActivationStore(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def copied(three, tmp_path) -> Path:
    return Path(shutil.copytree(three, tmp_path / "copy"))


def test_missing_parts_are_named(copied):
    shutil.rmtree(copied / Part(1, 3).name)
    assert refused(copied) == (
        f"{copied} is not whole: part 1 of 3 is missing or unfinished; run `tide collect --part 1/3 --resume` with the "
        "options of the others"
    )
    edit_manifest(copied / Part(2, 3).name, lambda manifest: manifest.update(complete=False))
    assert "parts 1, 2 of 3 are missing or unfinished; run `tide collect --part 1/3 --resume` with the" in refused(
        copied
    )


def test_of_many_missing_parts_some_are_named(copied, tmp_path):
    few = tmp_path / "few"
    shutil.copytree(copied / Part(0, 3).name, few / Part(0, 64).name)
    assert "parts 1, 2, 3, 4, 5, 6, 7, 8 and 55 more of 64 are missing" in refused(few)


def test_parts_of_two_numbers_are_refused(adapter, source, copied):
    with pytest.raises(TideError, match=r"holds parts of 3, not of 2; give --part R/3$"):
        part_of(adapter, source, copied, 0, 2)
    shutil.copytree(copied / Part(0, 3).name, copied / Part(0, 2).name)
    assert refused(copied) == f"{copied} holds parts of 2 and parts of 3; remove those that do not belong there"


def test_a_renamed_part_is_found(copied):
    shutil.rmtree(copied / Part(1, 3).name)
    shutil.copytree(copied / Part(0, 3).name, copied / Part(1, 3).name)
    assert "part-00001-of-00003 was not collected as part 1 of 3; give the folder its former name" in refused(copied)


def test_images_of_another_part_are_found(copied):
    def shift(manifest):
        manifest["shards"][0]["first_sample"] += 4
        manifest["next_sample"] += 4

    edit_manifest(copied / Part(0, 3).name, shift)
    assert "shard-00000.safetensors holds images of another part; collect it again" in refused(copied)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda info: info["weights"].update(transformer="0" * 16), "weights.transformer"),
        (lambda info: info.update(seed=1), "seed 0, now 1"),
        (lambda info: info.update(token_fraction=0.5), "token_fraction 0.25, now 0.5"),
        (lambda info: info["part"].update(listing="other"), 'listing "", now "other"'),
    ],
    ids=["model", "seed", "options", "data"],
)
def test_parts_of_different_collections_are_not_one_store(copied, change, named):
    edit_manifest(copied / Part(2, 3).name, lambda manifest: change(manifest["info"]))
    said = refused(copied)
    assert said.startswith(f"{copied / Part(2, 3).name} is not of the same collection as {copied / Part(0, 3).name} (")
    assert named in said


def test_another_number_of_threads_is_the_same_collection(copied):
    edit_manifest(copied / Part(2, 3).name, lambda manifest: manifest["info"].update(threads=99))
    assert ActivationStore(copied).complete


def test_a_part_of_other_options_is_refused_before_it_is_collected(adapter, source, copied):
    shutil.rmtree(copied / Part(1, 3).name)
    with pytest.raises(TideError, match=r"is not of the same collection as .* \(seed 0, now 1\); use the same options"):
        part_of(adapter, source, copied, 1, 3, seed=1)
    assert not (copied / Part(1, 3).name).exists()


def test_a_whole_store_and_parts_do_not_mix(adapter, source, whole, copied):
    with pytest.raises(TideError, match="already holds activations that one process collected; choose another folder"):
        part_of(adapter, source, whole, 0, 2)
    with pytest.raises(TideError, match=r"holds parts 0, 1, 2 of 3 of a store; give --part, or choose another folder"):
        collect_to_disk(adapter, source, copied, blocks=(3,), options=OPTIONS)
    shutil.copy(whole / "manifest.json", copied)
    assert "holds a whole store and parts of one" in refused(copied)


def test_a_damaged_shard_of_a_part_is_named_and_mended(adapter, source, whole, copied):
    shard = copied / Part(1, 3).name / "shard-00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(TideError, match=r"part-00001-of-00003/shard-00000\.safetensors is not the shard that the man"):
        from_stores(copied, PLAIN)
    before = {index: contents(copied / Part(index, 3).name) for index in (0, 2)}
    part_of(adapter, source, copied, 1, 3, resume=True)
    assert_same_rows(copied, whole)
    assert {index: contents(copied / Part(index, 3).name) for index in (0, 2)} == before


def test_a_full_disk_fails_one_part_and_harms_no_other(adapter, source, whole, copied, monkeypatch):
    monkeypatch.setattr(stores, "SMALLEST_SHARD", 1)
    shutil.rmtree(copied / Part(1, 3).name)
    write, calls = StoreWriter._write, []

    def full(self, name, pending):
        calls.append(name)
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(self, name, pending)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "_write", full)
        with pytest.raises(OSError, match="No space left"):
            part_of(adapter, source, copied, 1, 3)
    assert "part 1 of 3 is missing or unfinished" in refused(copied)
    part_of(adapter, source, copied, 1, 3, resume=True)
    assert_same_rows(copied, whole)


def test_a_quota_is_divided_among_the_parts(adapter, source, tmp_path):
    with pytest.raises(TideError, match=r"and .*part-00000-of-00003 may take 36\.4 KB"):
        part_of(adapter, source, tmp_path / "s", 0, 3, quota=100_000)
    assert not (tmp_path / "s").exists()


def test_the_share_that_is_held_out_is_that_of_any_part(copied):
    edit_manifest(copied / Part(2, 3).name, lambda manifest: manifest["info"].update(hold_out=0.25))
    shutil.rmtree(copied / Part(0, 3).name)
    shutil.rmtree(copied / Part(1, 3).name)
    assert recorded_hold_out(copied) == 0.25


def test_other_folders_are_no_parts(tmp_path):
    for name in ("part-1-of-3", "part-00003-of-00003", "part-00000-of-00002.bak", "part-a-of-b"):
        (tmp_path / name).mkdir()
    (tmp_path / "part-00000-of-00002").write_text("a file")
    assert found_parts(tmp_path) == {}
