"""The bytes of a file, unpacked on the way where it is gzip or zstd.

Damage does not raise: the stream ends early, and its ``fault`` says why, so that a reader can
give what came before. No more is held than a buffer and what one piece of packed bytes can unpack
to, so that a small file that unpacks to terabytes costs time, not memory.
"""

import io
import zlib
from collections.abc import Callable
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from congrad_cli.errors import InputError
from congrad_cli.records.record import BadRecord, DataFile

BUFFER = 1 << 20
PACKED_GZIP = 1 << 16
PACKED_ZSTD = 512
"""zstd unpacks whatever it is given at once, at most 32768 bytes for each."""
UNPACKED = 1 << 17
"""The most that gzip unpacks at once."""

MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}
SUFFIXES = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd"}


class Fault:
    """Why a file cannot be read to its end: the code of a damage, what it is, and the cure."""

    def __init__(self, code: str, what: str, *hints: str) -> None:
        self.code, self.what, self.hints = code, what, hints

    def at(self, name: str, line: int) -> BadRecord:
        """The error for a place."""
        return BadRecord(name, line, self.code, self.what, *self.hints)


def compression_of(head: bytes) -> str | None:
    """"gzip", "zstd" or None, by a file's first bytes."""
    if head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50:
        return "zstd"  # a frame to skip; some writers put one first
    return next((kind for kind, magic in MAGIC.items() if head.startswith(magic)), None)


class ByteStream:
    """The unpacked bytes of a file, read once from the start. A context manager.

    Raises :class:`InputError` where the file cannot be opened or read, or zstandard is missing.
    """

    def __init__(self, file: DataFile) -> None:
        self._name = file.name
        try:
            self._file: BinaryIO = file.path.open("rb", buffering=BUFFER)
        except OSError as error:
            raise cannot_read(file.name, error) from error
        self.compression: str | None = None
        self._unpacked: _Unpacked | None = None
        self._reader: BinaryIO = self._file
        try:
            self._unpack()
        except BaseException:
            self._file.close()
            raise

    def _unpack(self) -> None:
        head = self._guarded(self._file.read, 4)
        self._guarded(self._file.seek, 0)
        self.compression = compression_of(head)
        if self.compression == "gzip":
            self._unpacked = _Unpacked(self._file, _gzip_member, PACKED_GZIP, padding=True)
        elif self.compression == "zstd":
            self._unpacked = _Unpacked(self._file, _zstd_frames(self._name), PACKED_ZSTD)
        if self._unpacked is not None:
            self._reader = io.BufferedReader(self._unpacked, BUFFER)

    @property
    def fault(self) -> Fault | None:
        """Why the bytes ended early; None while they have not."""
        return None if self._unpacked is None else self._unpacked.fault

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, fewer only at the end."""
        data: bytes = self._guarded(self._reader.read, size)
        return data

    def readline(self, size: int) -> bytes:
        """The next bytes up to a newline, that included, and at most ``size``."""
        data: bytes = self._guarded(self._reader.readline, size)
        return data

    def _guarded(self, call: Callable[[int], Any], argument: int) -> Any:
        try:
            return call(argument)
        except OSError as error:
            raise cannot_read(self._name, error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


def cannot_read(name: str, error: OSError) -> InputError:
    """What a user is told of a file that the system does not give."""
    return InputError(f"{name}: cannot be read ({error.strerror or error}).")


class _Member(Protocol):
    """One gzip member or zstd frame, as zlib's decompression objects are."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, size: int, /) -> bytes: ...
    def rest(self, data: bytes, /) -> bytes: ...


class _Unpacked(io.RawIOBase):
    """Any number of members, one after the other, as one stream."""

    def __init__(
        self, file: BinaryIO, new_member: Callable[[], _Member], size: int, padding: bool = False
    ) -> None:
        self.fault: Fault | None = None
        self._file, self._new_member, self._size, self._padding = file, new_member, size, padding
        self._member: _Member | None = None
        self._members = 0
        self._packed = b""
        self._ready = memoryview(b"")
        self._full = False  # the last call gave all it was allowed to: ask again before reading on

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            if not self._next():
                return 0
        size = min(len(buffer), len(self._ready))
        buffer[:size] = self._ready[:size]
        self._ready = self._ready[size:]
        return size

    def _next(self) -> bool:
        """Unpack some more into ``_ready``, perhaps nothing; False at the end."""
        if self.fault is not None:
            return False
        if not self._packed and not self._full:
            self._packed = self._file.read(self._size)
            if not self._packed:
                if self._member is not None:
                    self.fault = Fault("cut-off", "the compressed data ends too early.",
                                       "the file was cut off: copy or download it again")
                return False
        if self._member is None:
            if self._padding and self._members:
                self._packed = self._packed.lstrip(b"\0")  # tapes and some tools pad with zeros
                if not self._packed:
                    return True
            self._member = self._new_member()
            self._members += 1
        self._advance(self._member)
        return True

    def _advance(self, member: _Member) -> None:
        try:
            out = member.decompress(self._packed, UNPACKED)
        except _UnpackError as error:
            out = member.rest(self._packed)
            self.fault = Fault("corrupt", f"the compressed data is damaged ({error}).",
                               "copy or download the file again")
        self._full = len(out) == UNPACKED
        self._packed = member.unconsumed_tail
        if member.eof:
            self._packed, self._member, self._full = member.unused_data, None, False
        self._ready = memoryview(out)


class _UnpackError(Exception):
    pass


class _GzipMember:
    """zlib's object, kept together with its state before the last call."""

    def __init__(self) -> None:
        self._now = self._before = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._now.eof

    @property
    def unused_data(self) -> bytes:
        return self._now.unused_data

    @property
    def unconsumed_tail(self) -> bytes:
        return self._now.unconsumed_tail

    def decompress(self, data: bytes, size: int, /) -> bytes:
        self._before = self._now.copy()
        try:
            return self._now.decompress(data, size)
        except zlib.error as error:
            said = str(error).partition(": ")[2]  # "Error -3 while decompressing data: ..."
            raise _UnpackError(said or str(error)) from error

    def rest(self, data: bytes, /) -> bytes:
        """What a failed call had unpacked before it failed, which zlib does not tell."""
        out = bytearray()
        try:
            for at in range(len(data)):
                out += self._before.decompress(data[at : at + 1])
        except zlib.error:
            pass
        return bytes(out)


def _gzip_member() -> _Member:
    return _GzipMember()


class _ZstdFrame:
    """zstandard's object in zlib's manner."""

    unconsumed_tail = b""

    def __init__(self, frame: Any, failure: type[Exception]) -> None:
        self._frame, self._failure = frame, failure

    @property
    def eof(self) -> bool:
        return bool(self._frame.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._frame.unused_data)

    def decompress(self, data: bytes, _size: int, /) -> bytes:
        try:
            return bytes(self._frame.decompress(data))
        except self._failure as error:
            raise _UnpackError(str(error).removeprefix("zstd decompressor error: ")) from error

    def rest(self, _data: bytes, /) -> bytes:
        """Nothing: zstandard keeps no state to go back to. Pieces are small for this too."""
        return b""


def _zstd_frames(name: str) -> Callable[[], _Member]:
    zstandard = import_zstandard(name)
    context = zstandard.ZstdDecompressor()
    return lambda: _ZstdFrame(context.decompressobj(), zstandard.ZstdError)


def import_zstandard(name: str) -> Any:
    """The package; ``name`` is the file that needs it."""
    try:
        import zstandard
    except ImportError as error:
        raise InputError(f"{name} needs the package zstandard.",
                         "pip install 'congrad-cli[zst]'") from error
    return zstandard
