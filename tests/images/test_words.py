"""Which captions hold a word, in several scripts and spellings."""

from __future__ import annotations

import pytest

from tide.errors import TideError
from tide.images.words import concept_of, folded, holds, words_of

YES = [
    ("A Cat.", "cat"),
    ("a cat's paw", "cat"),
    ("it\u2019s a cat", "it's"),
    ("digit:seven,blue", "seven"),
    ("c++ code", "c++"),
    ("a 7, in red", "7"),
    ("a fire  truck\nin red", "Fire Truck"),
    ("a fire-truck", "fire truck"),
    ("a fire truck", "fire-truck"),
    ("state\u2011of the art", "state of"),
    ("red_seven_01", "seven"),
    ("long_hair, smile", "long hair"),
    ("a t\u00adshirt", "tshirt"),
    ("cafe\u0301 noir", "caf\u00e9"),
    ("caf\u00e9 noir", "cafe\u0301"),
    ("CAF\u00c9", "caf\u00e9"),
    ("\uff32\uff25\uff24 dot", "red"),
    ("STRASSE", "stra\u00dfe"),
    ("Красный дом", "красный"),
    ("一只猫在草地上", "猫"),
    ("猫cat狗", "cat"),
    ("赤いリンゴ", "リンゴ"),
    ("ไม้แดงสวย", "แดง"),
    ("लाल घर", "लाल"),
    ("🐱 here", "🐱"),
    ("cat, category", "cat"),
    ("category, cat", "cat"),
]
NO = [
    ("a category", "cat"),
    ("two fire trucks", "fire truck"),
    ("fire in a truck", "fire truck"),
    ("a 17", "7"),
    ("cafe", "caf\u00e9"),
    ("красные дома", "красный"),
    ("लाल घर", "ल"),
    ("", "cat"),
]


@pytest.mark.parametrize(("caption", "word"), YES)
def test_holds(caption, word):
    assert holds(folded(caption), concept_of(word))


@pytest.mark.parametrize(("caption", "word"), NO)
def test_does_not_hold(caption, word):
    assert not holds(folded(caption), concept_of(word))


@pytest.mark.parametrize("word", ["", " ", "-", "\u200b", "_ -"])
def test_a_word_of_nothing(word):
    with pytest.raises(TideError, match="holds no letter; give a word of the captions"):
        concept_of(word)


@pytest.mark.parametrize(
    ("caption", "words"),
    [
        ("A Cat, a category.", {"a", "cat", "category"}),
        ("I don\u2019t 'quote' cats' 's", {"i", "don't", "quote", "cats", "s"}),
        ("red_seven_01 fire-truck", {"red", "seven", "01", "fire", "truck"}),
        ("cafe\u0301 Stra\u00dfe", {"caf\u00e9", "strasse"}),
        ("\u043a\u0440\u0430\u0441\u043d\u044b\u0439", {"\u043a\u0440\u0430\u0441\u043d\u044b\u0439"}),
        ("लाल घर", {"लाल", "घर"}),
        ("一只猫cat", {"一", "只", "猫", "cat"}),
        ("リンゴ แดง 赤", {"赤"}),
        ("c++ & 🐱 '", {"c"}),
        ("'", set()),
        ("", set()),
    ],
)
def test_words_of_a_caption(caption, words):
    found = words_of(folded(caption))
    assert found == words
    assert all(holds(folded(caption), concept_of(each)) for each in found)
