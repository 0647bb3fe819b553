"""One JSON array -> its elements, one at a time.

Where an element ends, Python's own JSON scanner says fastest. Where it cannot (the element is
malformed, or long, or goes on behind what was read), only brackets, strings and commas are looked
at: what lies between them is judged later, element by element, so that one bad element costs no
other. A file ends early only where nobody could tell any more where an element ends.
"""

import io
import json
import re
from collections.abc import Iterator

from congrad_cli.records.compression import ByteStream, Fault
from congrad_cli.records.record import Item

CHUNK = 1 << 18
QUICK = 1 << 20
"""In a longer window Python's scanner is not tried: its objects take many times the bytes."""
SHOWN = 32
"""So many bytes of what is wrong are shown."""
BLANK = b" \t\r\n"
QUOTE, BACKSLASH, COMMA, END = b'"\\,]'
CLOSERS = {ord("["): ord("]"), ord("{"): ord("}")}
INSIDE = re.compile(rb'["\[\]{}]')
OUTSIDE = re.compile(rb'["\[\]{},]')
BLANKS = re.compile(r"[ \t\r\n]+")
scan_value = json.JSONDecoder().raw_decode


def read_array(stream: ByteStream, name: str, longest: int, held: int) -> Iterator[Item]:
    """The elements of the array that ``stream`` holds, each with the white space around it.

    An element longer than ``longest`` bytes is damaged; one longer than ``held`` ends the file.
    What stands behind the array is damage, each line for itself.
    """
    array = _Array(stream, held)
    first = True
    while (raw := array.next_element()) is not None:
        body = raw.lstrip(BLANK)
        line = array.line + raw.count(b"\n", 0, len(raw) - len(body))
        damage = None
        if not body:
            if first and array.closed:
                array.line = line
                break
            damage = Fault("not-json", "nothing stands between two commas or brackets.",
                           "remove the comma that is too much").at(name, line)
        elif len(raw) > longest:
            damage = too_long(longest).at(name, line)
        yield Item(line, raw, damage)
        array.line += raw.count(b"\n")
        first = False
    if array.fault is None:
        for raw in array.lines_behind():
            if raw.strip(BLANK):
                yield Item(array.line, raw, _behind(raw).at(name, array.line))
            array.line += raw.count(b"\n")
    fault = array.fault or stream.fault
    if fault is not None:
        yield Item(array.line, array.rest, fault.at(name, array.line))


def _behind(raw: bytes) -> Fault:
    return Fault("not-json", "text after the array's closing bracket.", f"saw: {_shown(raw)}",
                 "a file is one array, or one object on each line")


def too_long(limit: int) -> Fault:
    """What is said of a record of more than ``limit`` bytes."""
    return Fault("too-long", f"a record of more than {limit >> 20} MiB.",
                 "no pair is that long: are newlines or commas missing?")


class _Array:
    """A window on the array that begins with the element being read.

    ``line`` is where the window begins. After the last element either ``closed`` is true or
    ``fault`` says what happened, at ``line``; ``rest`` is then what was read of the element.
    """

    def __init__(self, stream: ByteStream, held: int) -> None:
        self.line, self.closed, self.rest = 1, False, b""
        self.fault: Fault | None = None
        self._stream, self._held = stream, held
        self._data, self._start, self._at = b"", 0, 0
        self._closers = bytearray()  # those that are still to come, the next one last
        self._text, self._char = "", 0  # the window as text, and where in it the element begins
        while piece := stream.read(CHUNK):
            before, bracket, self._data = piece.partition(b"[")
            self.line += before.count(b"\n")
            if bracket:
                self._decode()
                break

    def next_element(self) -> bytes | None:
        """The next element's bytes, or None after the last one."""
        while not self.closed and self.fault is None:
            raw = b"" if self._closers else self._scan()
            if raw or self._find_end():
                raw = raw or self._slice()
                self.closed = self._data[self._at] == END
                self._at += 1
                self._start = self._at
                return raw
            if self.fault is None:
                self._grow()
        return None

    def lines_behind(self) -> Iterator[bytes]:
        """The lines behind the closing bracket; one of more than ``held`` bytes in pieces."""
        begun = io.BytesIO(self._data[self._start :])
        while line := begun.readline():
            yield line if line.endswith(b"\n") else line + self._stream.readline(self._held)
        while line := self._stream.readline(self._held):
            yield line

    def _scan(self) -> bytes:
        """The element, with ``_at`` at its end, by Python's scanner; nothing if that cannot say."""
        text, begin = self._text, self._char
        try:
            end = _after_blanks(text, scan_value(text, _after_blanks(text, begin))[1])
        except (ValueError, RecursionError):
            return b""
        if text[end : end + 1] not in (",", "]"):
            return b""
        raw = text[begin:end].encode("utf-8", "surrogateescape")
        self._char, self._at = end + 1, self._start + len(raw)
        return raw

    def _slice(self) -> bytes:
        raw = self._data[self._start : self._at]
        self._char += len(raw.decode("utf-8", "surrogateescape")) + 1 if self._text else 0
        return raw

    def _decode(self) -> None:
        quick = len(self._data) <= QUICK
        self._text = self._data.decode("utf-8", "surrogateescape") if quick else ""
        self._char = 0

    def _find_end(self) -> bool:
        """Go on to the comma or bracket that ends the element; False where more is needed."""
        data, at, closers = self._data, self._at, self._closers
        while (match := (INSIDE if closers else OUTSIDE).search(data, at)) is not None:
            at = match.start()
            seen = data[at]
            if seen == QUOTE:
                end = _string_end(data, at)
                if data.find(b"\n", at, end if end > 0 else len(data)) >= 0:
                    return self._fail(data.index(b"\n", at), "a string does not end on its line.",
                                      "a quote is missing, or a newline stands where \\n should")
                if end < 0:
                    self._at = at
                    return False
                at = end
            elif seen in CLOSERS:
                closers.append(CLOSERS[seen])
            elif closers:
                if closers.pop() != seen:
                    return self._fail(at, f"a bracket is closed by '{chr(seen)}'.")
            elif seen in (COMMA, END):
                self._at = at
                return True
            else:
                return self._fail(at, "a closing '}' that was never opened.")
            at += 1
        self._at = len(data)
        return False

    def _fail(self, at: int, what: str, *hints: str) -> bool:
        self.rest = self._data[self._start : at + 1]
        before = self._data[max(self._start, at + 1 - SHOWN) : at + 1]
        self.line += self.rest.count(b"\n", 0, at - self._start)
        self.fault = Fault("not-json", what, f"saw: {_shown(before)}", *hints)
        return False

    def _grow(self) -> None:
        """Read on. The window doubles, so that a long string is not searched again too often."""
        data = self._data[self._start :]
        self._at -= self._start
        self._start = 0
        if len(data) > self._held:
            self.fault = too_long(self._held)
            return
        piece = self._stream.read(min(max(CHUNK, len(data)), self._held + 1 - len(data)))
        self._data = data + piece
        self._decode()
        if not piece:
            self.line += data.rstrip(BLANK).count(b"\n")
            self.rest = data
            self.fault = self._stream.fault or Fault(
                "cut-off", "the array is not closed.", "the file was cut off, or its ']' is missing"
            )


def _string_end(data: bytes, start: int) -> int:
    """Where the string that begins at ``start`` has its closing quote; -1 if not in ``data``."""
    at = start
    while (at := data.find(b'"', at + 1)) >= 0:
        before = at - 1
        while data[before] == BACKSLASH:
            before -= 1
        if (at - before) % 2:
            return at
    return -1


def _after_blanks(text: str, at: int) -> int:
    blanks = BLANKS.match(text, at)
    return blanks.end() if blanks else at


def _shown(seen: bytes) -> str:
    return repr(seen[:SHOWN].decode("utf-8", "backslashreplace").strip())
