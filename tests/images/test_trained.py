"""Which images trained a checkpoint, and which are left to measure it on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from tide.errors import TideError
from tide.images.identity import PIXELS, Sample, digest
from tide.images.trained import TrainedOn, unseen

SAMPLES = tuple(Sample(f"{i}.png", digest(str(i)), digest("")) for i in range(6))


@dataclass(frozen=True)
class Images:
    """A source of ``samples``."""

    samples: tuple[Sample, ...] = SAMPLES

    def without(self, digests):
        return replace(self, samples=tuple(each for each in self.samples if each.image not in digests))

    def samples_before(self, n):
        return list(self.samples[:n])


def test_the_images_that_trained_are_left_out():
    """A copy under another name is the same image."""
    copy = SAMPLES[1]._replace(name="copy.png")
    found = unseen(Images((*SAMPLES, copy)), TrainedOn.of(["photos"], SAMPLES[:2]), least=4)
    assert (found.kind, found.words) == ("held-out", "held-out images")
    assert found.source.samples == SAMPLES[2:]


@pytest.mark.parametrize("trained", [SAMPLES, SAMPLES[:3]], ids=["none left", "too few left"])
def test_where_too_few_are_left_all_are_training_images(trained):
    found = unseen(Images(), TrainedOn.of(["photos"], trained), least=4)
    assert (found.kind, found.words, found.source) == ("training", "training images", Images())


def test_few_images_of_other_data_are_held_out():
    found = unseen(Images(SAMPLES[3:5]), TrainedOn.of(["photos"], SAMPLES[:3]), least=4)
    assert (found.kind, found.source.samples) == ("held-out", SAMPLES[3:5])


def test_a_checkpoint_without_a_record_claims_nothing():
    found = unseen(Images(), None, least=1)
    assert (found.kind, found.words, found.source) == ("unrecorded", "images", Images())


def test_prompts_that_images_were_sampled_from_are_no_images():
    prompts = [Sample(f"prompt {i}", "", digest(str(i))) for i in range(3)]
    trained_on = TrainedOn.of(["prompts.txt"], prompts)
    assert trained_on.images == frozenset()
    assert unseen(Images(), trained_on, least=6).kind == "unrecorded"


@pytest.mark.parametrize("trained", ["files", "pixels"])
def test_a_file_and_its_pixels_cannot_be_compared(trained):
    """The same pictures, once as a folder and once as a list of PIL images."""
    pixels = tuple(each._replace(image=PIXELS + digest(each.name)) for each in SAMPLES)
    ways = {"files": SAMPLES, "pixels": pixels}
    own = unseen(Images(ways[trained]), TrainedOn.of(["photos"], ways[trained][:2]), least=4)
    assert (own.kind, own.source.samples) == ("held-out", ways[trained][2:])
    (other,) = (ways[each] for each in ways if each != trained)
    assert unseen(Images(other), TrainedOn.of(["photos"], ways[trained]), least=4).kind == "unrecorded"


def test_data_are_named_once_and_digests_checked():
    assert TrainedOn.of(["a", "b", "a"], []).data == ("a", "b")
    with pytest.raises(TideError, match=r"^image 3 is not the digest of an image; collect these activations again$"):
        TrainedOn.of(["a"], [SAMPLES[0], Sample("3.png", "image 3", "")])
