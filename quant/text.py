"""Bytes that somebody gave us as text."""

import contextlib

from quant.errors import UserError

_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def decode_text(data: bytes, where: str) -> str:
    """UTF-8 bytes as text, without a byte order mark. Raises UserError (usage) that names the place and what was found instead.

    where  the file or stream, as the user knows it
    """
    found = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    if found is None and len(data) > 1 and (data[0] == 0) != (data[1] == 0):  # Latin letters in UTF-16 without a mark
        with contextlib.suppress(UnicodeDecodeError):  # else no text at all
            data[: len(data) & ~1].decode("utf-16-be" if data[0] == 0 else "utf-16-le")
            found = "UTF-16"
    if found:
        raise UserError(f"{where} is {found} text; UTF-8 is expected: save or convert it as UTF-8 first", "usage")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as why:
        at, byte = why.start, why.object[why.start]
        raise UserError(f"{where} is not valid UTF-8: byte 0x{byte:02x} at position {at:,}; convert it first", "usage") from None
