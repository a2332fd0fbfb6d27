"""What went over a link, kept in a file and played back where no board is.

A recording is a text file: its name and version, then an exchange a line, the bodies of request and response in hexadecimal. What
differs from run to run is left out: sequence numbers, what a PING carries, what was sent twice.
"""

from pathlib import Path

from seriatim.errors import LinkError
from seriatim.sim import files

from .protocol import HEADER, Command, Decoder, encode

FORMAT = "seriatim link recording 1"


class Tape:
    """Exchanges (request, response) in order, and how many of them have been played."""

    def __init__(self, name: str):
        self.name, self.exchanges, self.played = name, [], 0

    @classmethod
    def load(cls, path: str | Path) -> "Tape":
        """Raises LinkError where the file is none of ours."""
        tape = cls(str(path))
        try:
            first, *lines = Path(path).read_text().splitlines()
            tape.exchanges = [tuple(map(bytes.fromhex, line.split())) for line in lines]
        except (OSError, ValueError) as e:
            raise LinkError(f"{path}: no recording can be read: {e}; --record FILE writes one") from e
        if first != FORMAT or any(len(exchange) != 2 for exchange in tape.exchanges):
            raise LinkError(f"{path}: begins with {first[:40]!r}, not {FORMAT!r}: record it again with this version")
        return tape

    def save(self, path: str | Path) -> None:
        """Writes the exchanges that were answered."""
        files.write(path, "".join([FORMAT, "\n", *(f"{a.hex()} {b.hex()}\n" for a, b in self.exchanges if b)]))

    def play(self, request: bytes) -> bytes:
        """The response to a request, which has to be the recording's next one. Raises LinkError where it is not."""
        if self.played == len(self.exchanges):
            raise LinkError(f"{self.name}: all {self.played} exchanges are played, and {_what(request)} comes: {_AGAIN}")
        wanted, response = self.exchanges[self.played]
        if _lasting(request) != _lasting(wanted):
            raise LinkError(f"{self.name}: exchange {self.played} is {_what(wanted)}, and {_what(request)} comes: {_AGAIN}")
        self.played += 1
        return request[:HEADER.size] + response[HEADER.size:]


_AGAIN = "the program, its data or the driver are not those that were recorded; record them again"


def _lasting(request: bytes) -> bytes:
    """What of a request is the same in each run."""
    return request[1:3] if request[1] == Command.PING else request[1:]


def _what(request: bytes) -> str:
    _, command, count, address = HEADER.unpack_from(request)
    data = request[HEADER.size:]
    return f"{Command(command).name} of {count} words at {address:#x}" + (f" ({data[:8].hex()}...)" if data else "")


class Recorder:
    """A port that keeps what goes over another one in `tape`, and writes that to `path` when it is closed."""

    def __init__(self, port, tape: Tape, path: str | Path):
        self._port, self._tape, self._path, self.name = port, tape, path, port.name
        self._to_board, self._from_board = Decoder(), Decoder()
        self._pending: dict[int, int] = {}  # exchange by sequence number

    def write(self, data: bytes) -> None:
        for request in self._to_board.feed(data):
            if request[0] not in self._pending:  # else it is sent again
                self._pending[request[0]] = len(self._tape.exchanges)
                self._tape.exchanges.append((request, b""))
        self._port.write(data)

    def read(self) -> bytes:
        data = self._port.read()
        for response in self._from_board.feed(data):
            at = self._pending.get(response[0])
            if at is not None and response.startswith(self._tape.exchanges[at][0][:HEADER.size]):
                self._tape.exchanges[at] = self._tape.exchanges[at][0], response
                del self._pending[response[0]]
        return data

    def close(self) -> None:
        self._port.close()
        self._tape.save(self._path)


class Player:
    """A port behind which `tape` is the board."""

    def __init__(self, tape: Tape):
        self._tape, self.name = tape, tape.name
        self._decoder, self._answers = Decoder(), b""

    def write(self, data: bytes) -> None:
        for request in self._decoder.feed(data):
            self._answers += encode(self._tape.play(request))

    def read(self) -> bytes:
        data, self._answers = self._answers, b""
        return data

    def close(self) -> None:
        pass
