"""The log of guards: what is told of an image, in words and as JSON lines."""

from __future__ import annotations

import json

from tide.guards import GuardLog, Sighting


def sighting(**more) -> Sighting:
    return Sighting("house", 0, 1, [900.0, 800.0, 700.0], [0.1, 0.9, 0.2], [0.5, 0.5, 0.5], **more)


def test_the_first_call_above_the_threshold_counts():
    assert (sighting().first, sighting().flagged) == (1, True)
    broken = Sighting("house", 0, 0, [900.0], [float("nan")], [0.5])
    assert broken.flagged, "what is not known is not let through"
    quiet = Sighting("house", 0, 0, [900.0], [0.5], [0.5])
    assert (quiet.first, quiet.flagged) == (None, False)
    assert str(quiet) == "run 0, image 0: house not met"
    late = Sighting("house", 0, 0, [900.0, 800.0], [0.1, 0.9], [0.5, 0.5])
    assert (late.let_through, sighting().let_through) == (True, False)
    assert str(late).endswith("met at call 1, still there in the last call")
    assert GuardLog([late, sighting()]).summary == (
        "The guard of house met it in 2 of 2 images, in 1 of them to the last call."
    )
    acts = sighting(words=[2], refuge=[3, 4], moved={2: 5, 3: 6})
    assert str(acts) == (
        "run 0, image 1: house met at call 1, words mapped in 1 call, sent to the refuge at call 3, "
        "11 tokens moved in 2 calls"
    )


def test_a_log_says_of_each_guard_what_it_met():
    log = GuardLog([sighting(), Sighting("house", 0, 0, [900.0], [0.0], [0.5]), Sighting("ornate", 0, 0)])
    assert log.summary == "The guard of house met it in 1 of 2 images. The guard of ornate met nothing in 1 image."
    assert [each.image for each in log.flagged] == [1]
    assert str(log).splitlines() == [log.summary, str(sighting())]
    assert GuardLog().summary == "No image was drawn."


def test_a_file_gets_a_line_for_each_image(tmp_path):
    log = GuardLog([sighting(moved={2: 5}), Sighting("house", 0, 0)])
    log.write(tmp_path / "log.jsonl")
    log.write(tmp_path / "log.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert (rows[0]["concept"], rows[0]["flagged"], rows[0]["first"], rows[0]["moved"]) == ("house", True, 1, {"2": 5})
