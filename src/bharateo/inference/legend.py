"""The classes of a person: their ids, and colours that people know for what they are called."""

from __future__ import annotations

import colorsys
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from bharateo.artefacts import shortened
from bharateo.errors import ConfigError
from bharateo.landcover import BHARATEO_CLASSES, Colour, LandCoverClass

OKABE_ITO: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66),
    (0, 114, 178), (213, 94, 0), (204, 121, 167), (90, 90, 90),
)  # fmt: skip
"""Eight colours that colour-blind people tell apart. Source: Okabe and Ito 2008, "Color Universal
Design", with a grey that shows on black in place of black."""

_GOLDEN = 0.618034
"""Hues this far apart on the circle never come near each other again."""

_APART = 60
"""Two colours of a map differ by this much at least, in one of red, green and blue or in sum."""

_WORDS = """
3182bd water river lake pond sea ocean canal reservoir tank stream
3182bd पानी जल नदी तालाब झील समुद्र सागर नहर जलाशय
3182bd pani paani jal nadi talab talaab jheel jhil samudra sagar nahar jalashay
238443 tree forest wood woodland jungle
238443 पेड़ वृक्ष जंगल वन
238443 ped vriksh vriksha jangal
789628 orchard plantation garden बाग बगीचा बागान bagh bagicha bagaan
bcbd22 crop cropland field farm farmland agriculture agricultural cultivated
bcbd22 paddy rice wheat sugarcane cotton
bcbd22 खेत फसल फ़सल कृषि खेती धान गेहूँ गेहूं गन्ना कपास
bcbd22 khet fasal krishi kheti dhan gehun ganna kapas
ffd92f mustard सरसों sarson
7fbf7b grass grassland meadow pasture lawn park
7fbf7b घास चारागाह मैदान ghas ghaas charagah maidan
9e9a63 shrub shrubland scrub bush झाड़ी झाड़ियाँ jhadi jhadiyan
d73027 built building builtup urban town city village settlement house housing residential
d73027 शहर नगर गाँव गांव बस्ती मकान घर इमारत आबादी निर्मित
d73027 shahar shehar nagar gaon basti makan ghar imarat abadi
963c6e industry industrial factory mine mining quarry
963c6e उद्योग कारखाना खदान udyog karkhana khadan
8c3c1e kiln भट्ठा भट्टा bhatta bhattha
6e6e73 road street highway railway runway सड़क मार्ग रेलवे sadak marg
d9a441 bare barren soil fallow earth desert
d9a441 बंजर मिट्टी परती मरुस्थल रेगिस्तान banjar mitti parti registan
f0dcaa sand beach dune रेत बालू ret baalu balu
967d69 rock stone चट्टान पत्थर chattan patthar
2ca25f wetland marsh swamp bog आर्द्रभूमि दलदल daldal
006d5b mangrove मैंग्रोव
96d2f5 snow ice glacier बर्फ़ बर्फ हिम हिमनद barf himnad
d7d7de cloud बादल badal
464655 shadow छाया chhaya
"""
"""Colours, and the words for what has them: English, Hindi, and Hindi in Latin letters. Where
BharatEO has such a class it is that class's colour (``landcover.BHARATEO_CLASSES``)."""

_DENIALS = {"no", "non", "not", "other", "without", "अन्य", "नहीं", "गैर", "anya", "nahin", "gair"}
"""Words with which a name says that it is something else."""


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _rgb(hexadecimal: str) -> Colour:
    red, green, blue = bytes.fromhex(hexadecimal)
    return red, green, blue


_COLOUR_OF = {
    _normal(word): _rgb(colour)
    for colour, *words in map(str.split, _WORDS.strip().splitlines())
    for word in words
}


def known_colour(name: str) -> Colour | None:
    """The colour people know for a class of this name, None where nothing in it is known.

    The last known word decides, as in both languages it says what the thing is: a forest road is
    a road.
    """
    words = [word for word in re.split(r"[\s_\-/,;:.()&+|]+", _normal(name)) if word]
    if _DENIALS & {*words}:
        return None
    for word in reversed(words):
        for form in (word, word.removesuffix("s"), word.removesuffix("es")):
            if form in _COLOUR_OF:
                return _COLOUR_OF[form]
    return None


def palette_for(names: Sequence[str]) -> tuple[Colour, ...]:
    """A colour for every name, no two alike: those that people know, shades of them where several
    names mean the same, and colours that differ from all these for other names.
    """
    colours: dict[int, Colour] = {}

    def distance(colour: Colour) -> int:
        """From the nearest colour that is taken."""
        apart = (np.abs(np.subtract(colour, each)).sum() for each in colours.values())
        return min(map(int, apart), default=765)

    for number, name in enumerate(names):
        if known := known_colour(name):
            shades = (_shade(known, change) for change in (0, 0.18, -0.15, 0.3, -0.25))
            free = [each for each in shades if distance(each) >= _APART]
            if free:
                colours[number] = free[0]
    spare = [*OKABE_ITO, *map(_of_hue, range(2 * len(names)))]
    for number in range(len(names)):
        if number not in colours:
            far = (each for each in spare if distance(each) >= _APART)
            colours[number] = next(far, None) or max(spare, key=distance)
    return tuple(colours[number] for number in range(len(names)))


def _shade(colour: Colour, change: float) -> Colour:
    """The same hue, lighter or darker."""
    hue, light, much = colorsys.rgb_to_hls(*(value / 255 for value in colour))
    return _whole(colorsys.hls_to_rgb(hue, min(max(light + change, 0.1), 0.92), much))


def _of_hue(number: int) -> Colour:
    return _whole(colorsys.hsv_to_rgb(number * _GOLDEN % 1, 0.65, 0.85 - number // 8 % 3 * 0.2))


def _whole(rgb: Sequence[float]) -> Colour:
    red, green, blue = (round(255 * value) for value in rgb)
    return red, green, blue


def own_classes(names: Sequence[str]) -> tuple[LandCoverClass, ...]:
    """A person's classes with ids 0, 1, ... and the colours of ``palette_for``.

    Where all are names of land-cover classes they are those, with their ids and colours.
    """
    known = {each.name: each for each in BHARATEO_CLASSES}
    if {*names} <= {*known}:
        return tuple(known[name] for name in names)
    named = zip(names, palette_for(names), strict=True)
    return tuple(LandCoverClass(number, *each) for number, each in enumerate(named))


def parse_colours(texts: Sequence[str]) -> dict[str, Colour]:
    """Colours by class, as they are given: ``water=#0064c8``.

    Raises:
        ConfigError: a text is none, or a class is given two colours.
    """
    found: dict[str, Colour] = {}
    for text in texts:
        name, _, colour = text.rpartition("=")
        if not name or not re.fullmatch("#[0-9a-fA-F]{6}", colour):
            raise ConfigError(
                f"--colour {shortened(repr(text))} is not CLASS=#RRGGBB: write e.g. "
                "--colour 'water=#0064c8'"
            )
        if name in found:
            raise ConfigError(f"--colour {shortened(name)}: two colours are given; leave one out")
        found[name] = _rgb(colour[1:])
    return found


def recoloured(
    classes: Sequence[LandCoverClass], colours: Mapping[str, Colour]
) -> tuple[LandCoverClass, ...]:
    """The classes, those that are named in colours of a person's choice.

    Raises:
        ConfigError: a name is none of theirs.
    """
    names = [each.name for each in classes]
    if unknown := [name for name in colours if name not in names]:
        raise ConfigError(
            f"--colour {shortened(unknown[0])}: there is no such class; the map's are "
            f"{', '.join(map(shortened, names))}"
        )
    return tuple(replace(each, colour=colours.get(each.name, each.colour)) for each in classes)
