"""What the pictures of emoji-datasource are called in captions: words that say what is seen.

The package gives Unicode's names, which are older than the pictures: "BLACK" and "WHITE" there mean filled and
outlined, and "NEGATIVE SQUARED LATIN CAPITAL LETTER A" is a red button.
"""

from __future__ import annotations

import re
import unicodedata

#: By the package's short name: names of Unicode that do not say what the picture shows, or that break a pattern which
#: others follow ("woman surfing", "man surfing", "person surfing").
_SHOWN = {
    "+1": "thumbs up",
    "-1": "thumbs down",
    "adult": "person",
    "arrow_down": "down arrow",
    "arrow_left": "left arrow",
    "arrow_right": "right arrow",
    "arrow_up": "up arrow",
    "baby_symbol": "baby symbol",
    "bearded_person": "person with beard",
    "bicyclist": "person biking",
    "black_circle": "black circle",
    "black_large_square": "black square",
    "black_nib": "pen nib",
    "bow": "person bowing",
    "clubs": "club suit",
    "cop": "police officer",
    "dancer": "woman dancing",
    "diamonds": "diamond suit",
    "eight_pointed_black_star": "eight pointed star",
    "exclamation": "red exclamation mark",
    "face_palm": "person facepalming",
    "facepunch": "oncoming fist",
    "fist": "raised fist",
    "golfer": "person golfing",
    "grey_exclamation": "grey exclamation mark",
    "grey_question": "grey question mark",
    "guardsman": "guard",
    "haircut": "person getting haircut",
    "handball": "person playing handball",
    "heart": "red heart",
    "hearts": "heart suit",
    "information_desk_person": "person tipping hand",
    "juggling": "person juggling",
    "keycap_star": "keycap star",
    "kneeling_person": "person kneeling",
    "massage": "person getting massage",
    "mountain_bicyclist": "person mountain biking",
    "negative_squared_cross_mark": "cross mark button",
    "no_good": "person gesturing no",
    "ok_woman": "person gesturing ok",
    "older_adult": "older person",
    "person_in_tuxedo": "person in tuxedo",
    "person_with_ball": "person bouncing ball",
    "person_with_blond_hair": "person with blond hair",
    "person_with_pouting_face": "person pouting",
    "phone": "telephone",
    "point_down": "hand pointing down",
    "point_left": "hand pointing left",
    "point_right": "hand pointing right",
    "point_up": "finger pointing up",
    "point_up_2": "hand pointing up",
    "pray": "folded hands",
    "question": "red question mark",
    "raised_hands": "raised hands",
    "raising_hand": "person raising hand",
    "recycle": "recycling symbol",
    "relaxed": "relaxed smiling face",
    "rowboat": "person rowing boat",
    "runner": "person running",
    "santa": "santa claus",
    "scissors": "scissors",
    "shrug": "person shrugging",
    "skin-tone-2": "light skin tone",
    "skin-tone-3": "medium light skin tone",
    "skin-tone-4": "medium skin tone",
    "skin-tone-5": "medium dark skin tone",
    "skin-tone-6": "dark skin tone",
    "sleuth_or_spy": "detective",
    "spades": "spade suit",
    "standing_person": "person standing",
    "star": "star",
    "sunny": "sun",
    "surfer": "person surfing",
    "swimmer": "person swimming",
    "walking": "person walking",
    "water_polo": "person playing water polo",
    "white_check_mark": "check mark button",
    "white_circle": "white circle",
    "white_frowning_face": "frowning face",
    "white_large_square": "white square",
}
#: Patterns in the lower-case names, replaced in this order.
_REWRITTEN = (
    (r"^(\w+): bald$", r"bald \1"),
    (r"^(man|woman|person): (.*)", r"\1 with \2"),
    (r"^(?:negative )?(?:squared|circled) (?:latin capital )?(.*)", r"\1 button"),
    (r"^large (\w+) (circle|square)$", r"\1 \2"),
    (r"(hands?) sign$", r"\1"),
    (r" symbol$", ""),
    (r"&", " and "),
    (r"['\u2019\u0300-\u036f]", ""),
    (r"[^a-z0-9]+", " "),
)


def shown_name(name: str, short: str) -> str:
    """Lower-case words for an entry of emoji.json with this ``name`` and ``short`` (its ``short_name``)."""
    if short in _SHOWN:
        return _SHOWN[short]
    words = unicodedata.normalize("NFKD", name.lower())
    for pattern, replacement in _REWRITTEN:
        words = re.sub(pattern, replacement, words)
    return words.strip()


def plain(text: str) -> str:
    """A short name or a category as lower-case words: "Animals & Nature" gives "animals and nature"."""
    return " ".join(re.sub(r"[^a-z0-9]+", " ", text.lower().replace("&", " and ")).split())
