"""One large JSON object read member by member, so that memory holds a window and not the text.

Headers of checkpoints may have 100 MB and an index of a sharded one tens: parsed whole, each byte
would cost ten. Names, values of interest and nesting have limits; everything else is passed over,
but its grammar is checked (RFC 8259, UTF-8 throughout).
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from chain.errors import DecodeError

WINDOW_BYTES = 1 << 20  # read at once
MAX_NESTING = 32  # of values that are passed over
_LONGEST_ESCAPE = 12  # bytes of \uD83D\uDE00, which is one character
_MAX_NUMBER = 64  # bytes of a number or literal that is passed over
_SPACE = re.compile(rb"[ \t\n\r]*")
# An escape; half of a pair of surrogates alone is none, as it has no UTF-8.
_ESCAPE = (
    rb'\\(?:["\\/bfnrt]|u(?:[0-9a-ce-fA-CE-F][0-9a-fA-F]{3}|[dD][0-7][0-9a-fA-F]{2}'
    rb"|[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}))"
)
_INSIDE = re.compile(rb'[^"\\\x00-\x1f]*(?:' + _ESCAPE + rb'[^"\\\x00-\x1f]*)*')
_TEXT = re.compile(rb'"' + _INSIDE.pattern + rb'"')
_FLAT = re.compile(rb"\{[^{}]*\}")
_SCALAR = re.compile(rb"(?:-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?|true|false|null)(?![\w.+-])")


class JsonScanner:
    """A cursor over JSON text. All methods raise DecodeError where the text is not JSON."""

    def __init__(self, read: Callable[[int], bytes], total_bytes: int) -> None:
        """`read(n)` gives the next n bytes; the text has `total_bytes` of them."""
        self._read, self._left = read, total_bytes
        self._window, self._at = b"", 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")()

    def members(self, most: int) -> Iterator[str]:
        """The names of an object's members. The caller takes each value before the next name.

        A name has at most `most` bytes. Names may repeat: only the caller knows what that means.
        """
        self._take(b"{")
        if self._peek() == b"}":
            self._take(b"}")
            return
        while True:
            name = self.text(most)
            self._take(b":")
            yield name
            if self._peek() == b"}":
                self._take(b"}")
                return
            self._take(b",")

    def text(self, most: int) -> str:
        """A string of at most `most` bytes as it stands in the text."""
        raw = self._match(_TEXT, most, "a string")
        try:
            text: str = raw[1:-1].decode() if b"\\" not in raw else json.loads(raw)
        except ValueError as error:
            raise DecodeError(f"not JSON: {error}") from None
        return text

    def flat_object(self, most: int) -> dict[str, Any]:
        """A small object without objects inside; a name in it twice is refused."""
        raw = self._match(_FLAT, most, "an object without objects inside")
        try:
            found: dict[str, Any] = json.loads(
                raw, object_pairs_hook=_distinct, parse_constant=_no_constant, parse_int=_integer
            )
        except ValueError as error:
            raise DecodeError(f"not JSON: {error}") from None
        return found

    def skip(self, depth: int = 0) -> None:
        """Pass over any value."""
        first = self._peek()
        if depth > MAX_NESTING:
            raise DecodeError(f"values nested more than {MAX_NESTING} deep")
        if first == b'"':
            self.skip_text()
        elif first == b"{":
            self._skip_inside(b"{", b"}", depth)
        elif first == b"[":
            self._skip_inside(b"[", b"]", depth)
        else:
            self._match(_SCALAR, _MAX_NUMBER, "a value")

    def skip_text(self) -> None:
        """Pass over a string of any length."""
        self._take(b'"')
        while True:
            found = _INSIDE.match(self._window, self._at)
            self._at = found.end() if found else self._at
            if self._window[self._at : self._at + 1] == b'"':
                self._at += 1
                return
            if len(self._window) - self._at >= _LONGEST_ESCAPE or not self._more():
                raise DecodeError("not JSON: a string without end, or with a bad escape")

    def is_null(self) -> bool:
        """Take a `null` if one stands here."""
        if self._peek() != b"n":
            return False
        self._match(_SCALAR, _MAX_NUMBER, "a value")
        return True

    def end(self) -> None:
        """Nothing but white space may follow, to the last byte."""
        if self._peek():
            raise DecodeError("not JSON: more text after the end of the object")

    # --- the window -----------------------------------------------------------------

    def _skip_inside(self, opening: bytes, closing: bytes, depth: int) -> None:
        self._take(opening)
        if self._peek() == closing:
            self._take(closing)
            return
        while True:
            if opening == b"{":
                self.skip_text()
                self._take(b":")
            self.skip(depth + 1)
            if self._peek() == closing:
                self._take(closing)
                return
            self._take(b",")

    def _peek(self) -> bytes:
        """The next byte that is no white space; empty at the end."""
        while True:
            found = _SPACE.match(self._window, self._at)
            self._at = found.end() if found else self._at
            if self._at < len(self._window):
                return self._window[self._at : self._at + 1]
            if not self._more():
                return b""

    def _take(self, expected: bytes) -> None:
        found = self._peek()
        if found != expected:
            raise DecodeError(f"not JSON: {_shown(found)} where {_shown(expected)} was expected")
        self._at += 1

    def _match(self, pattern: re.Pattern[bytes], most: int, what: str) -> bytes:
        """The bytes of a token of at most `most` bytes."""
        self._peek()
        # One byte beyond, so that what ends with the window is not taken for the whole token.
        while len(self._window) - self._at <= most and self._more():
            pass
        found = pattern.match(self._window, self._at, self._at + most + 1)
        if found is None or len(found.group()) > most:
            start = self._window[self._at : self._at + 24]
            raise DecodeError(f"not JSON, or too long: expected {what} at {_shown(start)}")
        self._at = found.end()
        return found.group()

    def _more(self) -> bool:
        """Read on; False at the end of the text."""
        if not self._left:
            return False
        chunk = self._read(min(WINDOW_BYTES, self._left))
        if not chunk:
            raise DecodeError("the text ends before its length")
        self._left -= len(chunk)
        try:
            self._utf8.decode(chunk, final=not self._left)
        except UnicodeDecodeError as error:
            raise DecodeError(f"not UTF-8: {error.reason}") from None
        self._window, self._at = self._window[self._at :] + chunk, 0
        return True


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise DecodeError("not sound: a name twice in one object")
    return found


def _integer(digits: str) -> int | None:
    """None for -0, which is no size: `safetensors` takes it for a fraction."""
    return None if digits == "-0" else int(digits)


def _no_constant(name: str) -> None:
    raise DecodeError(f"not JSON: {name}")


def _shown(raw: bytes) -> str:
    return repr(raw.decode(errors="replace")) if raw else "the end of the text"
