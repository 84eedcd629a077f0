"""Numbers of tokens as people write them."""

import re

from quant.errors import UserError


def size_of(text: str) -> int:
    """`32768`, `32k` (32,000) or `32K` (32,768) as a number; raises UserError."""
    found = re.fullmatch(r"(\d{1,12})([kKmM]?)", text.strip())
    if found is None or int(found[1]) == 0:
        raise UserError(f"{text!r} is not a size; write it like 8192, 32k or 64K", "usage")
    return int(found[1]) * {"": 1, "k": 1000, "K": 1024, "m": 10**6, "M": 1 << 20}[found[2]]
