"""Triplets of an invented jargon, whose concepts have several names, and of plain English.

An anchor names a concept within a phrasing. The positive names it otherwise, in another phrasing; the hard negative has
the anchor's phrasing and a name of another concept, so it shares most words with the anchor. A model that has not seen
the jargon therefore prefers the negative. Held-out triplets have phrasings that no training triplet has. The general
triplets control what the adaptation costs: their positive shares most words with the anchor.
"""

import random

from datamodules.rows import Row
from support.seeding import derive_seed

#: names of every concept
CONCEPTS = {
    "retransmission": ("harq loop", "echo guard", "resend engine"),
    "paging": ("pager cell", "wake beacon", "idle caller"),
    "handover": ("xfer leg", "cell hop", "anchor swap"),
    "admission": ("rac gate", "bearer door", "entry ruler"),
    "beamforming": ("beam loom", "array steer", "lobe weaver"),
    "slicing": ("net slice", "lane carver", "tenant split"),
    "charging": ("cdr mint", "tariff node", "quota clerk"),
    "backhaul": ("xhaul pipe", "trunk spine", "mast link"),
    "timing": ("ptp clock", "phase drum", "sync keeper"),
    "policy": ("pcf book", "rule oracle", "flow judge"),
    "roaming": ("visit plane", "guest path", "border hub"),
    "core": ("amf root", "session brain", "core warden"),
}
TRAINING = (
    "how do i restart the {}",
    "alarm raised by the {} on site two",
    "the {} must be upgraded tonight",
    "please check the logs of the {}",
    "why is the {} so slow today",
    "traffic through the {} has doubled",
    "replace the {} before noon",
    "the report about the {} is late",
    "who maintains the {} in the north",
    "a fault in the {} was cleared",
)
HELD_OUT = (
    "we tested the {} for one week",
    "is the {} covered by our contract",
    "new settings for the {} are ready",
    "customers complain about the {}",
    "draw a map of the {} and its ports",
)
_GENERAL = (
    "the {} cat sleeps on the sofa",
    "we cooked {} soup for dinner",
    "her {} bicycle stands in the rain",
    "they sold the {} house by the lake",
    "a {} train leaves at noon",
    "the teacher reads a {} story",
)
_ADJECTIVES = ("old", "small", "quiet", "green", "warm", "heavy", "late", "simple")


def jargon(size: int, seed: int, held_out: bool) -> list[Row]:
    """Triplets of the jargon, in training phrasings or in held-out ones."""
    rng = random.Random(derive_seed("jargon", seed, held_out))
    frames = HELD_OUT if held_out else TRAINING
    rows: list[Row] = []
    for number in range(size):
        concept, other = rng.sample(sorted(CONCEPTS), 2)
        name, synonym = rng.sample(CONCEPTS[concept], 2)
        frame, second = rng.sample(frames, 2)
        rows.append(
            {
                "id": str(number),
                "anchor": frame.format(name),
                "positive": second.format(synonym),
                "negative": frame.format(rng.choice(CONCEPTS[other])),
                "concept": concept,
                "domain": "jargon",
            }
        )
    return rows


def general(size: int, seed: int) -> list[Row]:
    """Triplets of plain English: the positive has one word changed, the negative another sentence."""
    rng = random.Random(derive_seed("general", seed))
    rows: list[Row] = []
    for number in range(size):
        frame, other = rng.sample(_GENERAL, 2)
        first, second, third = rng.sample(_ADJECTIVES, 3)
        rows.append(
            {
                "id": f"general {number}",
                "anchor": frame.format(first),
                "positive": frame.format(second),
                "negative": other.format(rng.choice((first, third))),
                "concept": frame,
                "domain": "general",
            }
        )
    return rows
