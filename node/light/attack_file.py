"""Two histories that both verify, written down for people and, if it is an offence, for the chain.

`blyan evidence submit FILE` reads it (node/cli/evidence.py).
"""

from __future__ import annotations

import json
from pathlib import Path

from chain.codec import encode
from chain.light import Attack


def file_name(attack: Attack) -> str:
    return f"blyan-attack-{attack.blocks[0].header.height}.json"


def write_attack(attack: Attack, path: Path) -> str:
    """Write both histories to a file; what to do with it, for the one who reads of the attack."""
    item = attack.evidence()
    content = {
        "height": attack.blocks[0].header.height,
        "blocks": [encode(block).hex() for block in attack.blocks],
        "evidence": None if item is None else encode(item).hex(),
    }
    path.write_text(json.dumps(content, indent=1) + "\n")
    if item is None:
        return f"both are in {path}; certified in different views, they convict nobody by rule"
    return f"both are in {path}: `blyan evidence submit {path}` has the signers slashed"
