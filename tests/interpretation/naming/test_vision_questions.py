"""What a vision-language model sees and is asked, and which of its answers are answers."""

from __future__ import annotations

import numpy as np
import pytest

from tests.helpers.vision_server import Asked
from tide.errors import TideError
from tide.interpretation.naming.vision_client import NoAnswerError
from tide.interpretation.naming.vision_questions import detection_question, naming_question, read_fits, read_name
from tide.pictures import INK


def grey(value: int, size: int = 64) -> np.ndarray:
    return np.full((size, size, 3), value, np.uint8)


def asked(parts: list) -> Asked:
    return Asked("", {}, {"messages": [{"role": "user", "content": parts}]})


def test_where_a_latent_fires_is_marked():
    heat = np.zeros((4, 4), np.float32)
    heat[:, 2:] = 1
    question = asked(naming_question([(grey(60), heat), (grey(60), heat / 4)], [grey(90)]))
    strong, weak, silent = question.pictures
    assert strong.shape == (256, 256, 3)
    is_line = (abs(strong.astype(int) - INK) < 60).all(2).sum(0)
    assert 90 <= is_line.argmax() <= 170
    assert is_line.max() > 200
    np.testing.assert_allclose(strong[100, 200], 60, atol=4)
    np.testing.assert_allclose(strong[100, 20], 111, atol=4)  # faded
    assert not (abs(weak.astype(int) - INK) < 60).all(2).any()  # of the strongest image's strength
    np.testing.assert_allclose(silent, 90, atol=3)
    assert question.text.splitlines()[1:] == ["It fires, 1:", "It fires, 2:", "It is silent, 1:"]
    assert '{"name": "..."}' in question.text


def test_pictures_to_be_found_are_numbered_and_not_marked():
    question = asked(detection_question('red "roof"', [grey(10), grey(200, 1000)]))
    first, second = question.pictures
    np.testing.assert_allclose(first, 10, atol=3)
    np.testing.assert_allclose(second, 200, atol=3)
    assert 256 <= max(second.shape) <= 512
    assert question.text.splitlines()[-2:] == ["Picture 1:", "Picture 2:"]
    assert 'Which of these 2 pictures show the following? "red \\"roof\\""' in question.text
    assert '{"fits": [...]}' in question.text


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32)], ids=["grey", "float"])
def test_what_is_no_image(image):
    with pytest.raises(TideError, match=r"an image is .*; give uint8 \[H, W, 3\]"):
        detection_question("roof", [image])


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ('{"name": "red roof"}', "red roof"),
        ('Here it is:\n```json\n{"name": " red\\n roof "}\n```\nDone.', "red roof"),
        ('{"name": ""}', ""),
    ],
)
def test_names_in_answers(answer, name):
    assert read_name(answer) == name


@pytest.mark.parametrize(
    "answer", ["", "a roof", '{"name": ', "[1]", '{"title": "roof"}', '{"name": 5}', '{"name": null}', '{"a":' * 9999]
)
def test_answers_without_a_name(answer):
    with pytest.raises(NoAnswerError, match=r"its answer (is not JSON|holds no name)") as error:
        read_name(answer)
    assert len(str(error.value)) < 150


@pytest.mark.parametrize(
    ("answer", "fits"),
    [
        ('{"fits": [1, 3, 3]}', [True, False, True]),
        ('{"fits": []}', [False] * 3),
        ('I see {"fits": [2]}', [False, True, False]),
    ],
)
def test_pictures_that_fit(answer, fits):
    assert read_fits(answer, 3) == fits


@pytest.mark.parametrize("answer", ["none", '{"fits": 1}', '{"fits": [4]}', '{"fits": [0]}', '{"fits": [true]}', "{}"])
def test_answers_without_pictures(answer):
    with pytest.raises(NoAnswerError, match=r"its answer (is not JSON|holds no numbers of the 3 pictures)"):
        read_fits(answer, 3)
