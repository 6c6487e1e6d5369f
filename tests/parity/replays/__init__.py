"""Recordings of the authors' networks and sessions, played again by ours, one module per network.

write: files like the authors', with the weights of the recordings. build: our method with them. REPLAYS: by the start
of a recording's file name, what plays it: takes the recording, and takes out of it what has no counterpart here;
returns our outputs by the recording's names, less out_ and the marks of thinning.
"""

import re
from collections.abc import Mapping
from typing import Any

THINNED = re.compile(r"_(ch|step|s)(\d+)(?=_|$)|_s(?=_|$)")


def find(name: str, ours: Mapping[str, Any]) -> Any:
    """Our output of a recorded name: of that name, or of it without the marks of thinning."""
    if name in ours:
        return ours[name]
    plain = THINNED.sub("", name)
    return ours[plain] if plain in ours else ours[plain.removesuffix("_sum")]
