"""Bytes that somebody gave us as text."""

import codecs
import contextlib

from quant.errors import UserError

_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def without_mark(data: bytes, where: str) -> bytes:
    """Bytes without UTF-8's byte order mark. Raises UserError (usage) for the marks of UTF-16 and UTF-32."""
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            raise _other_encoding(where, name)
    return data.removeprefix(codecs.BOM_UTF8)


def _other_encoding(where: str, name: str) -> UserError:
    return UserError(f"{where} is {name} text; UTF-8 is expected: save or convert it as UTF-8 first", "usage")


def decode_text(data: bytes, where: str) -> str:
    """UTF-8 bytes as text, without a byte order mark. Raises UserError (usage) that names the place and what was found instead.

    where  the file or stream, as the user knows it
    """
    data = without_mark(data, where)
    if len(data) > 1 and (data[0] == 0) != (data[1] == 0):  # Latin letters in UTF-16 without a mark
        with contextlib.suppress(UnicodeDecodeError):  # else no text at all
            data[: len(data) & ~1].decode("utf-16-be" if data[0] == 0 else "utf-16-le")
            raise _other_encoding(where, "UTF-16")
    try:
        return data.decode()
    except UnicodeDecodeError as why:
        at, byte = why.start, why.object[why.start]
        raise UserError(f"{where} is not valid UTF-8: byte 0x{byte:02x} at position {at:,}; convert it first", "usage") from None
