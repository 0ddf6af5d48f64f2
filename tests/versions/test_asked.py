"""The releases that a user names."""

from pathlib import Path

import pytest

from harness.versions.asked import Asked, parse, releases
from tests.versions.wheels import PACKAGE, factors


def index(package: str) -> list[str]:
    return ["0.9", "0.10", "0.10.1", "0.11"]


def test_releases_are_listed_oldest_first_and_once() -> None:
    assert parse("lib==0.10, 0.9,0.10.0", index) == Asked("lib", ("0.9", "0.10.0"))


def test_a_range_is_every_release_of_the_index_between_two() -> None:
    assert parse("lib==0.10..0.11,0.8", index).versions == ("0.8", "0.10", "0.10.1", "0.11")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lib", "'lib' names no releases; write deepspeed==0.19.2,0.19.5"),
        ("lib==", "'lib==' names no releases"),
        ("==0.1", "'==0.1' names no releases"),
        ("lib==newest", "'newest' in 'lib==newest' is no version"),
        ("lib==0.11..0.9", "'0.11..0.9': 0.9 is older than 0.11"),
        ("lib==0.12..0.13", "the package index has no release of lib from 0.12 to 0.13"),
    ],
)
def test_what_is_wrong_with_a_request_is_told(text: str, message: str) -> None:
    with pytest.raises(ValueError) as told:
        parse(text, index)
    assert message in str(told.value)


def test_the_index_is_that_of_pips_own_configuration(index: Path) -> None:
    factors(index, _9=1, _10=1)
    assert releases(PACKAGE) == ["1.9", "1.10"]


def test_a_package_that_the_index_does_not_have_is_told(index: Path) -> None:
    with pytest.raises(ValueError, match=r"pip finds no releases of faultlib: .*No matching distribution"):
        releases(PACKAGE)
