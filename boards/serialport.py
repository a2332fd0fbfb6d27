"""A serial port (or a pseudo-terminal) as `Link` wants one."""

import serial

from seriatim.errors import LinkError

WAIT_S = 0.02
"""How long a read waits for a first byte."""


class SerialPort:
    """The port named `name` at `baud`, opened for this process alone; or what pyserial opens by a URL, such as `socket://HOST:PORT`
    for a board at another computer. Raises LinkError where it cannot be opened, and from then on where it has gone."""

    def __init__(self, name: str, baud: int):
        self.name = name
        try:
            alone = {} if "://" in name else {"exclusive": True}
            self._serial = serial.serial_for_url(name, baud, timeout=WAIT_S, **alone)
            self._serial.reset_input_buffer()
        except (OSError, ValueError) as e:
            raise LinkError(f"{name} at {baud} baud cannot be opened: {e}; is the board plugged in, may you use it (Debian: "
                            "group dialout), and does no other program have it?") from e

    def write(self, data: bytes) -> None:
        try:
            self._serial.write(data)
        except (OSError, TypeError) as e:
            raise self._gone(e) from e

    def read(self) -> bytes:
        try:
            return self._serial.read(max(1, self._serial.in_waiting))
        except (OSError, TypeError) as e:  # pyserial meets its own closed descriptor, a None, where another thread closes it
            raise self._gone(e) from e

    def _gone(self, why: Exception) -> LinkError:
        return LinkError(f"{self.name} has gone ({why}): was the board unplugged? Plug it in and run again; nothing was kept "
                         "of what was under way")

    def close(self) -> None:
        self._serial.close()
