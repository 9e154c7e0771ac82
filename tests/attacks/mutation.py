"""How the fuzz programs spoil what was valid: bytes, and trees of lists, numbers and text.

Every choice comes from the case's own `random.Random`, so a case is replayed by its number.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

_EDGES = [0, 1, 2, 7, 8, 15, 16, 31, 32, 127, 128, 255, 256, 4095, 4096, 65535, 65536]
_EDGES += [2**n + d for n in (18, 22, 31, 32, 48, 53, 60, 63, 64) for d in (-1, 0, 1)]


def spoil_bytes(random: Random, data: bytes, times: int) -> bytes:
    """`times` random changes of a byte string."""
    made = bytearray(data)
    for _ in range(times):
        at = random.randrange(len(made) + 1)
        span = min(random.choice((1, 1, 2, 4, 8, 32, 100)), len(made) - at)
        match random.randrange(8):
            case 0 | 1 if at < len(made):
                made[at] ^= 1 << random.randrange(8)
            case 2 if at < len(made):
                made[at] = random.choice(b'\x00\x01\x7f\x80\xff"\\{}[],:-0919eE.u \n')
            case 3:
                del made[at : at + span]
            case 4:
                made[at:at] = random.randbytes(span or 1)
            case 5:
                made[at:at] = made[at : at + span]
            case 6:
                source = random.randrange(len(made) + 1)
                made[at : at + span] = made[source : source + span]
            case _ if random.random() < 0.3:
                del made[at:]
    return bytes(made)


def number(random: Random, old: int = 0) -> int:
    """A number near the old one or at an edge, often one that fits nowhere."""
    match random.randrange(6):
        case 0:
            return old + random.choice((-1, 1))
        case 1:
            return old ^ 1 << random.randrange(64)
        case 2:
            return -old
        case 3:
            return random.randrange(2 ** random.randrange(1, 66))
        case _:
            return random.choice(_EDGES)


def anything(random: Random, depth: int = 0) -> Any:
    """A value of any kind that both JSON and MessagePack can say, except bytes."""
    match random.randrange(8):
        case 0:
            return None
        case 1:
            return random.random() < 0.5
        case 2:
            return random.choice((0.0, -1.5, 1e300, 1e-7))
        case 3:
            return "".join(random.choices('aé\u0000\ud7ff😀."\\', k=random.randrange(6)))
        case 4 if depth < 3:
            return [anything(random, depth + 1) for _ in range(random.randrange(4))]
        case 5 if depth < 3:
            return {str(i): anything(random, depth + 1) for i in range(random.randrange(3))}
        case 6:
            deep: Any = []
            for _ in range(random.choice((1, 5, 13, 40))):
                deep = [deep]
            return deep
        case _:
            return number(random)


def spoil_tree(random: Random, tree: Any, leaf: Callable[[Random, Any], Any]) -> Any:
    """One random change somewhere in a tree of lists: a leaf by `leaf`, or the list around it."""
    if not isinstance(tree, list) or not tree:
        return leaf(random, tree)
    made = list(tree)
    at = random.randrange(len(made))
    if random.random() < 0.85:
        made[at] = spoil_tree(random, made[at], leaf)
        return made
    match random.randrange(7):
        case 0:
            del made[at]
        case 1:
            made.insert(at, made[at])
        case 2:
            made.insert(at, anything(random))
        case 3:
            other = random.randrange(len(made))
            made[at], made[other] = made[other], made[at]
        case 4:
            made = made[:at]
        case 5:
            made[at] = anything(random)
        case _:
            made += made[at:] * random.choice((1, 3, 50))
    return made
