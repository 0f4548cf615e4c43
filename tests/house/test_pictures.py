"""The pictures of the README are what the program draws, to the byte, and the README shows them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from pictures import IMAGES, RICH, ROOT, SCHEMES, pictures

README = (ROOT / "README.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"\.github/images/([\w-]+)-light\.svg", README)


def test_the_pictures_are_what_the_program_draws() -> None:
    drawn = dict(pictures())
    assert {path.name for path in IMAGES.iterdir()} == drawn.keys()
    for name, picture in drawn.items():
        there = (IMAGES / name).read_text(encoding="utf-8")
        if name.startswith(("live", "quickstart")) and not there.startswith(RICH):
            continue  # another rich may draw another terminal
        assert picture == there, f"{name}: draw it again with python tests/house/pictures.py, and look at it"


@pytest.mark.parametrize("name", sorted(path.name for path in IMAGES.glob("*.svg")))
def test_a_picture_is_an_svg_that_needs_nobody(name: str) -> None:
    picture = (IMAGES / name).read_text(encoding="utf-8")
    assert ET.fromstring(picture).tag == "{http://www.w3.org/2000/svg}svg"
    assert re.findall(r"https?://(?!www\.w3\.org|www\.textualize\.io)[^\"') ]+", picture) == []


def test_the_readme_shows_each_in_light_and_dark_with_words_for_who_cannot_see_it() -> None:
    assert sorted(SHOWN) == sorted({path.name.rpartition("-")[0] for path in IMAGES.iterdir()})
    for name in SHOWN:
        for scheme in SCHEMES:
            assert f".github/images/{name}-{scheme}.svg" in README
        assert re.search(rf'<img alt="[^"]{{30,}}" src=".github/images/{name}-light.svg">', README)
