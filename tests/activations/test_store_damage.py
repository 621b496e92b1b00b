"""Shards that are not what was written: found on opening and on resume, collected again, nothing else touched."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.helpers.store_batches import INFO, batch_of, contents, described, edit_manifest, go_on, write
from tide.activations.store import ActivationStore
from tide.activations.writer import StoreWriter
from tide.errors import TideError

OTHER = "shard-00000.safetensors"
HURT = "shard-00001.safetensors"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def swap(store: Path) -> None:
    (store / OTHER).replace(store / "x")
    (store / HURT).replace(store / OTHER)
    (store / "x").replace(store / HURT)


DAMAGES = {
    "truncated": lambda store: (store / HURT).write_bytes((store / HURT).read_bytes()[:-1]),
    "half": lambda store: (store / HURT).write_bytes((store / HURT).read_bytes()[:1500]),
    "empty": lambda store: (store / HURT).write_bytes(b""),
    "zeros": lambda store: (store / HURT).write_bytes(bytes((store / HURT).stat().st_size)),
    "missing": lambda store: (store / HURT).unlink(),
    "swapped": swap,
    "doubled": lambda store: shutil.copy(store / OTHER, store / HURT),
    "flipped": lambda store: flip(store / HURT, -1),
    "flipped in the header": lambda store: flip(store / HURT, 20),
    "appended": lambda store: (store / HURT).write_bytes((store / HURT).read_bytes() + b"x"),
    "foreign": lambda store: (store / HURT).write_text("not a shard"),
    "all": lambda store: [file.write_bytes(b"") for file in store.glob("shard-*")],
    "linked": lambda store: ((store / HURT).replace(store.parent / "away"), (store / HURT).symlink_to("../away")),
}
#: What only reading everything tells.
HIDDEN = {"flipped"}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "store"
    go_on(path)
    assert ActivationStore(path).complete
    return path


@pytest.fixture
def store(whole, tmp_path) -> Path:
    return shutil.copytree(whole, tmp_path / "store")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_is_found_and_collected_again_to_the_same_bits(store, whole, damage):
    DAMAGES[damage](store)
    if damage in HIDDEN:
        opened = ActivationStore(store)
        with pytest.raises(TideError, match=r"another SHA-256\); run `tide collect --resume`"):
            opened.verify()
    else:
        with pytest.raises(TideError, match=r"safetensors.*; run `tide collect --resume`|is a link"):
            ActivationStore(store)
    untouched = {name: (store / name).stat().st_mtime_ns for name in ("shard-00002.safetensors",)}
    writer = go_on(store)
    assert not writer.damaged
    assert contents(store) == contents(whole)
    ActivationStore(store).verify()
    if damage != "all":
        assert {name: (store / name).stat().st_mtime_ns for name in untouched} == untouched
        assert writer.n_written == (2 if damage == "swapped" else 1)


def test_a_whole_store_is_not_written_anew(store, whole):
    go_on(store)
    assert contents(store) == contents(whole)
    assert go_on(store).n_written == 0


def test_shards_without_their_manifest_are_not_written_over(store, whole):
    (store / "manifest.json").unlink()
    for resume in (False, True):
        with pytest.raises(TideError, match=r"store holds shards and no manifest\.json; copy it back, or choose"):
            StoreWriter(store, info=INFO, resume=resume)
    assert {**contents(store), "manifest.json": ""} == {**contents(whole), "manifest.json": ""}


def test_damage_and_interruption_at_once(store, whole, tmp_path):
    """The shard in the middle is damaged and the last is not written yet."""
    half = tmp_path / "half"
    go_on(half, 4)
    flip(half / OTHER, -5)
    assert go_on(half).n_written == 2
    assert contents(half) == contents(whole)


def test_an_interrupted_repair_goes_on(store, whole):
    DAMAGES["all"](store)
    writer = StoreWriter(store, info=INFO, resume=True)
    assert writer.wanted(6) == [(0, 2), (2, 4), (4, 6)]
    for sample in range(3):
        writer.add(batch_of(sample), [described(sample)])
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    with pytest.raises(TideError, match="shard-00001"):
        ActivationStore(store)
    assert go_on(store).n_written == 2
    assert contents(store) == contents(whole)


def test_a_store_with_damaged_shards_is_not_marked_complete(store):
    DAMAGES["missing"](store)
    StoreWriter(store, info=INFO, resume=True).close()
    with pytest.raises(TideError, match=HURT):
        ActivationStore(store)
    go_on(store)
    assert ActivationStore(store).complete


def test_a_damaged_shard_is_not_collected_from_other_data(store):
    DAMAGES["missing"](store)
    writer = StoreWriter(store, info=INFO, resume=True)
    writer.add(batch_of(2), [described(2)])
    with pytest.raises(
        TideError,
        match=r"is damaged, and samples 2\.\.3 of the data are not those that it was "
        "collected from; restore the data, without images that were added since, or collect into another folder",
    ):
        writer.add(batch_of(3), [described(30)])


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_a_damaged_shard_held_is_known(store, damage):
    DAMAGES[damage](store)
    assert StoreWriter(store, info=INFO, resume=True).recorded == {place: described(place) for place in range(6)}


@pytest.mark.parametrize("said", ["", "[]", '[["2.png", "image 2", "x"]]', "[" * 10**5, '[["2.png"], 3]', None])
def test_a_faulty_record_beside_a_damaged_shard_counts_as_none(store, whole, said):
    DAMAGES["missing"](store)
    beside = store / "samples-00001.json"
    beside.unlink()
    if said is not None:
        beside.write_text(said)
    recorded = StoreWriter(store, info=INFO, resume=True).recorded
    assert recorded == {place: described(place) for place in (0, 1, 4, 5)}
    go_on(store)
    assert contents(store) == contents(whole)


# -- stores of former versions, whose manifests say less ------------------------------------------------------


def forget(path: Path, *names: str) -> None:
    """Makes the manifest one of a former version."""
    edit_manifest(path, lambda manifest: [shard.pop(name, None) for shard in manifest["shards"] for name in names])


FORMER = ("sha256", "first_sample", "samples", "data")


def test_a_former_store_reads_and_is_completed_on_resume(store, whole):
    fingerprint = ActivationStore(store).fingerprint
    forget(store, *FORMER)
    before = ActivationStore(store)
    before.verify()
    assert before.fingerprint == fingerprint
    go_on(store)
    manifest = ActivationStore(store).manifest
    assert [shard["sha256"] for shard in manifest["shards"]] == [
        shard["sha256"] for shard in ActivationStore(whole).manifest["shards"]
    ]
    assert [(shard["first_sample"], shard["samples"]) for shard in manifest["shards"]] == [(0, 2), (2, 2), (4, 2)]


@pytest.mark.parametrize("numbers", [(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), (0, 1, 2)], ids=str)
def test_damaged_shards_of_a_former_store_are_placed_by_their_neighbours(tmp_path, numbers):
    path = write(tmp_path / "store")
    before = torch.cat([ActivationStore(path).read(i).x for i in range(3)])
    forget(path, *FORMER)
    for number in numbers:
        (path / f"shard-{number:05d}.safetensors").write_bytes(b"")
    go_on(path)
    found = ActivationStore(path)
    found.verify()
    assert torch.equal(torch.cat([found.read(i).x for i in range(len(found.shards))]), before)
    assert len(found) == 240
    go_on(path, 8)  # a new shard's name is none of those in use
    assert ActivationStore(path).read(len(found.shards)).sample.unique().tolist() == [6, 7]


# -- lying shards and manifests -------------------------------------------------------------------------------


def lie(path: Path, **tensors: torch.Tensor) -> None:
    """Rewrites a shard with other tensors, and a manifest that agrees with it."""
    file = path / HURT
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file({**load_file(file), **tensors}, file, metadata=metadata)
    forget(path, "sha256")
    edit_manifest(path, lambda manifest: manifest["shards"][1].update(bytes=file.stat().st_size))


@pytest.mark.parametrize(
    ("tensors", "fault"),
    [
        ({"group": torch.full((80,), 4, dtype=torch.int32)}, r"groups 4\.\.4, not 0\.\.3"),
        ({"group": torch.full((80,), -1, dtype=torch.int32)}, r"groups -1\.\.-1, not"),
        ({"group": torch.full((80,), 2**31 - 1, dtype=torch.int32)}, r"groups 2147483647\.\.2147483647"),
        ({"token": torch.full((80,), -3, dtype=torch.int32)}, "token -3"),
        ({"x": torch.full((80, 3), float("nan"))}, "x holds NaN or inf"),
        ({"timestep": torch.full((4,), float("inf"))}, "timestep holds NaN or inf"),
        ({"conditioning": torch.full((4, 2), float("nan"))}, "conditioning holds NaN or inf"),
        ({"sample": torch.tensor([2] * 40 + [9] * 39 + [3])}, r"samples 2\.\.9, not 2\.\.3"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_values_that_no_collection_writes(store, tensors, fault):
    lie(store, **tensors)
    found = ActivationStore(store)
    with pytest.raises(TideError, match=fault):
        found.verify()
    if "group" in tensors:
        with pytest.raises(TideError, match="names groups that it does not hold"):
            found.read(1)
    assert StoreWriter(store, info=INFO, resume=True).wanted(6) == [(2, 4)]


@pytest.mark.parametrize(
    ("tensors", "fault"),
    [
        ({"x": torch.zeros(80, 4)}, r"x is F32 \[80, 4\], not F32 \[80, 3\]"),
        ({"x": torch.zeros(79, 3)}, r"x is F32 \[79, 3\]"),
        ({"x": torch.zeros(80, 3, dtype=torch.float16)}, r"x is F16"),
        ({"sample": torch.zeros(80, dtype=torch.int32)}, "sample is I32"),
        ({"token": torch.zeros(3, dtype=torch.int32)}, "token is I32"),
        ({"timestep": torch.zeros(3)}, "timestep is F32"),
        ({"timestep": torch.zeros(4, dtype=torch.float64)}, "timestep is F64"),
        ({"group": torch.zeros(80, 1, dtype=torch.int32)}, "group is I32"),
        ({"conditioning": torch.zeros(4, 3)}, "conditioning is F32"),
        ({"more": torch.zeros(4, 3)}, "tensor more is foreign"),
        ({"samples": torch.zeros(4, 3, dtype=torch.uint8)}, r"samples is U8 \[4, 3\]"),
        ({"samples": torch.zeros(4)}, "samples is F32"),
        ({"sample": torch.full((80,), 5)}, r"samples 5\.\.5, not 2\.\.3"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(value),
)
def test_tensors_of_other_shapes_and_dtypes_are_found_on_opening(store, tensors, fault):
    lie(store, **tensors)
    with pytest.raises(TideError, match=fault):
        ActivationStore(store)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["shards"][0].update(file="../store/shard-00000.safetensors"),
        lambda m: m["shards"][0].update(file="/etc/passwd"),
        lambda m: m["shards"][0].update(file="shard-00001.safetensors"),
        lambda m: m["shards"][0].update(file="sub/shard-00000.safetensors"),
        lambda m: m["shards"][0].update(file="shard-00000.safetensors\n"),
        lambda m: m["shards"][0].update(file="manifest.json"),
        lambda m: m["shards"][0].update(file=3),
        lambda m: m["shards"][0].update(rows=-80),
        lambda m: m["shards"][0].update(rows=80.0),
        lambda m: m["shards"][0].update(rows=10**30),
        lambda m: m["shards"][0].update(groups=0),
        lambda m: m["shards"][0].update(bytes=True),
        lambda m: m["shards"][0].update(first_sample=-1),
        lambda m: m["shards"][0].update(samples=0),
        lambda m: m["shards"][0].update(sha256=None),
        lambda m: m["shards"][0].pop("rows"),
        lambda m: m.update(shards={}),
        lambda m: m.update(shards=[[]]),
        lambda m: m.update(rows=7),
        lambda m: m.update(rows="240"),
        lambda m: m.update(info=[]),
        lambda m: m.update(next_sample=-2),
        lambda m: m.update(next_sample=7),
        lambda m: m["shards"][0].update(first_sample=10**12),
        lambda m: m["shards"][0].update(samples=10**12),
        lambda m: m.update(complete=1),
        lambda m: m.update(paired="yes"),
        lambda m: m.update(d_model=0),
        lambda m: m.update(d_model="3"),
        lambda m: m.update(dtype="int4"),
        lambda m: m.update(dtype=[]),
        lambda m: m.update(d_conditioning=-1),
        lambda m: m.pop("d_model"),
        lambda m: m.update(format=["tide-activations/1"]),
    ],
)
def test_a_lying_manifest_is_refused_in_one_line(store, change):
    edit_manifest(store, change)
    for read in (ActivationStore, lambda path: StoreWriter(path, resume=True)):
        with pytest.raises(TideError) as error:
            read(store)
        assert "\n" not in str(error.value).replace(".safetensors\\n", "")


def test_a_copy_of_a_shard_that_is_listed_as_one_more_is_refused(store):
    """Its rows would count twice."""
    (store / "shard-00009.safetensors").write_bytes((store / "shard-00000.safetensors").read_bytes())
    edit_manifest(store, lambda m: m["shards"].append({**m["shards"][0], "file": "shard-00009.safetensors"}))
    edit_manifest(store, lambda m: m.update(rows=m["rows"] + m["shards"][0]["rows"]))
    for read in (ActivationStore, lambda path: StoreWriter(path, resume=True)):
        with pytest.raises(TideError, match="a shard is listed twice"):
            read(store)


@pytest.mark.parametrize("said", [b"{", b"3", b"[[1]]", b"[" * 10**5, b"\xff"], ids=lambda said: repr(said[:5]))
def test_a_faulty_record_of_the_samples_counts_as_none(store, said):
    lie(store, samples=torch.frombuffer(bytearray(said), dtype=torch.uint8))
    recorded = StoreWriter(store, info=INFO, resume=True).recorded
    assert recorded == {place: described(place) for place in (0, 1, 4, 5)}


def test_the_fingerprint_tells_what_is_read(store, whole, tmp_path):
    assert ActivationStore(store).fingerprint == ActivationStore(whole).fingerprint
    go_on(store, 7)
    grown = ActivationStore(store).fingerprint
    assert grown != ActivationStore(whole).fingerprint
    other = write(tmp_path / "other", n=42)
    assert ActivationStore(other).fingerprint not in (grown, ActivationStore(whole).fingerprint)
