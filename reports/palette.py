"""Colours by name: the style sheet holds their light and dark values, so charts follow the reader's theme."""

import zlib
from collections.abc import Iterable

SLOTS = 10  # --e0 … --e9 in style.css, which colour-blind readers can distinguish; --e0 is the reference's grey
FIXED = {
    "reference": 0,
    "torch": 1,
    "deepspeed": 2,
    "megatron": 3,
    "trl": 4,
    "sdpa_flash": 5,
    "peft": 6,
    "flash_attn": 7,
    "fairscale": 8,
    "transformers": 9,
}
DASHES = {"solid": [1, 0], "dashed": [5, 2], "dotted": [2, 2]}  # by CSS names, for the legends
SHADES = 6  # --p0 … --p5, from light to dark, for the parts of one stack


def slots(engines: Iterable[str]) -> dict[str, int]:
    """A colour for each engine: its own, or the first free one from the position of its name's hash."""
    taken = {engine: FIXED[engine] for engine in engines if engine in FIXED}
    for engine in sorted(set(engines) - set(taken)):
        start = zlib.crc32(engine.encode()) % (SLOTS - 1)
        order = [1 + (start + step) % (SLOTS - 1) for step in range(SLOTS - 1)]
        taken[engine] = next((slot for slot in order if slot not in taken.values()), order[0])
    return taken


def engine_colour(slot: int) -> str:
    return f"var(--e{slot})"


def shade(place: int) -> str:
    return f"var(--p{place % SHADES})"
