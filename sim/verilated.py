"""`VerilatedTop`: the Verilated accelerator and its AXI memory, driven from Python without Python in any cycle."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np

from seriatim.config import Memory
from seriatim.errors import MachineError, ToolError

_u32, _u64, _i32, _i64, _ptr = ctypes.c_uint32, ctypes.c_uint64, ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p


class Resp(IntEnum):
    """AXI responses."""

    OKAY, EXOKAY, SLVERR, DECERR = range(4)


class Reason(IntEnum):
    """Why a run ended."""

    IRQ, LIMIT, PROTOCOL, FINISHED = range(4)


@dataclass(frozen=True)
class MemoryModel(Memory):
    """How the simulated AXI memory behaves: a `Memory` with faults. The defaults are the model of every published figure.

    Members
    -------
    stall_percent : chance that the memory holds back each of its ready and valid signals in a cycle, by a generator of `seed`.
    read_error_beat, write_error_burst : the number, since reset, of the read beat or write burst that answers `error`.
    read_hang_beat, write_hang_burst : from this one on nothing is answered.
    settle_cycles : first cycles that look for outputs which follow inputs within the cycle (an extra eval each). Where one does,
        every later cycle takes the extra eval and `Stats.settled` says so.

    An address outside the memory answers DECERR whatever is set here.
    """

    stall_percent: int = 0
    seed: int = 0
    error: Resp = Resp.SLVERR
    read_error_beat: int | None = None
    write_error_burst: int | None = None
    read_hang_beat: int | None = None
    write_hang_burst: int | None = None
    settle_cycles: int = 4096

    def __post_init__(self):
        def require(holds: bool, message: str) -> None:
            if not holds:
                raise ValueError(message)

        super().__post_init__()
        require(0 <= self.stall_percent <= 99, f"stall_percent={self.stall_percent}: 0 to 99, or nothing would ever move")
        for name in ("read_error_beat", "write_error_burst", "read_hang_beat", "write_hang_burst"):
            value = getattr(self, name)
            require(value is None or value >= 0, f"{name}={value}: a number from 0 on, or None for never")


@dataclass(frozen=True)
class Stats:
    """What the memory counted since reset: its own view, to hold against the machine's counters."""

    cycles: int
    read_beats: int
    read_bursts: int
    write_beats: int
    write_bursts: int
    read_errors: int
    write_errors: int
    read_wait_cycles: int
    write_wait_cycles: int
    settled: bool


@dataclass(frozen=True)
class Run:
    """One `run_until_irq`: cycles it took, and why it ended (`IRQ` or `LIMIT`)."""

    cycles: int
    reason: Reason


@dataclass(frozen=True)
class Event:
    """A watched port took `value` with the clock edge that ended cycle number `cycle` - 1."""

    cycle: int
    port: str
    value: int


class _Params(ctypes.Structure):
    _fields_ = [("base", _u64), ("size", _u64), ("latency", _u32), ("outstanding", _u32), ("read_num", _u32), ("read_den", _u32),
                ("write_num", _u32), ("write_den", _u32), ("stall_percent", _u32), ("error_resp", _u32), ("seed", _u64),
                ("read_error_beat", _i64), ("write_error_burst", _i64), ("read_hang_beat", _i64), ("write_hang_burst", _i64),
                ("settle_cycles", _u64)]


class _Stats(ctypes.Structure):
    _fields_ = [(name, _u64) for name in Stats.__dataclass_fields__]


class _Event(ctypes.Structure):
    _fields_ = [("cycle", _u64), ("value", _u64), ("port", _u64)]


_ABI = {
    "create": (_ptr, [_ptr, ctypes.POINTER(_Params)]),
    "destroy": (None, [_ptr]),
    "reset": (None, [_ptr, _u32]),
    "sleep": (None, [_ptr, _i32]),
    "step": (_i32, [_ptr, _u64]),
    "run_until_irq": (_i32, [_ptr, _u64, ctypes.POINTER(_u64)]),
    "csr_read": (_i32, [_ptr, _u32, ctypes.POINTER(_u32)]),
    "csr_write": (_i32, [_ptr, _u32, _u32]),
    "irq": (_i32, [_ptr]),
    "peek": (_u32, [_ptr, ctypes.c_char_p, ctypes.c_char_p]),
    "watch": (_i32, [_ptr, ctypes.c_char_p]),
    "events": (_u64, [_ptr, ctypes.POINTER(ctypes.POINTER(_Event))]),
    "clear_events": (None, [_ptr]),
    "stats": (None, [_ptr, ctypes.POINTER(_Stats)]),
    "error": (ctypes.c_char_p, [_ptr]),
    "axi_bits": (_u32, []),
    "params_bytes": (_u32, []),
}


class VerilatedTop:
    """The top module of a library that `sim.build.build` made, out of reset, on a memory.

    Parameters
    ----------
    library : path of the shared library.
    memory : the memory's bytes, a C-contiguous `uint8` array. The machine reads and writes this very buffer: a write is in it
        once its response has been sent.
    base : byte address of `memory[0]` on the bus.
    model : how the memory behaves.

    Any call that clocks the machine raises MachineError where it broke a rule of AXI (`stats` and `memory` can still be looked
    at). Not for use from two threads at once.
    """

    CHUNK = 500_000
    """Cycles that one call into the library may take: between calls Ctrl-C gets through and `progress` is told."""

    def __init__(self, library: Path | str, memory: np.ndarray, *, base: int = 0, model: MemoryModel | None = None):
        self._handle = None
        if memory.dtype != np.uint8 or memory.ndim != 1 or not memory.flags.c_contiguous or not memory.flags.writeable:
            raise TypeError(f"memory is {memory.dtype} of shape {memory.shape}: it must be a writable, contiguous vector of "
                            "uint8 (numpy.zeros(size, numpy.uint8))")
        try:
            self._library = ctypes.CDLL(str(library))
        except OSError as e:
            raise ToolError(f"could not load the simulator {library}: {e}; delete its folder to have it built again") from e
        for name, (result, arguments) in _ABI.items():
            function = getattr(self._library, f"seriatim_{name}")
            function.restype, function.argtypes = result, arguments
            setattr(self, f"_{name}", function)
        assert self._params_bytes() == ctypes.sizeof(_Params), "harness.cpp and verilated.py differ in Params"
        self.memory, self.base, self.model = memory, base, model or MemoryModel()
        self.axi_bits: int = self._axi_bits()
        if memory.size % (self.axi_bits // 8) or base % (self.axi_bits // 8):
            raise ValueError(f"memory of {memory.size} bytes at {base:#x}: both must be multiples of {self.axi_bits // 8} bytes")
        m = self.model
        params = _Params(base, memory.size, m.latency, m.outstanding, *m.read_bandwidth, *m.write_bandwidth, m.stall_percent,
                         int(m.error), m.seed, *(-1 if v is None else v for v in (m.read_error_beat, m.write_error_burst,
                                                                                m.read_hang_beat, m.write_hang_burst)),
                         m.settle_cycles)
        self._watched: list[str] = []
        self._handle = self._create(memory.ctypes.data, ctypes.byref(params))

    def close(self) -> None:
        """Frees the model; nothing else may be called afterwards."""
        if self._handle is not None:
            self._destroy(self._handle)
            self._handle = None

    def __enter__(self) -> "VerilatedTop":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __del__(self):
        self.close()

    def reset(self, cycles: int = 4) -> None:
        """Holds `rst` for some cycles; clears the memory's queues and statistics (not its bytes) and starts time at 0."""
        self._reset(self._handle, cycles)

    def sleep(self, enabled: bool) -> None:
        """Whether units that ask for no clock rest (they do at first); it changes nothing but the speed."""
        self._sleep(self._handle, enabled)

    def step(self, cycles: int) -> None:
        """Advances the clock."""
        while cycles > 0:
            part = min(cycles, self.CHUNK)
            self._check(self._step(self._handle, part))
            cycles -= part

    def run_until_irq(self, max_cycles: int, progress: Callable[[int], None] | None = None) -> Run:
        """Clocks until `irq` is high, or for `max_cycles`; `progress(cycles so far)` is called every `CHUNK` cycles."""
        total, part = 0, _u64()
        while True:
            reason = self._run_until_irq(self._handle, min(self.CHUNK, max_cycles - total), ctypes.byref(part))
            total += part.value
            self._check(reason)
            if reason == Reason.IRQ or total >= max_cycles:
                return Run(total, Reason(reason))
            if progress:
                progress(total)

    def csr_read(self, address: int) -> int:
        """One AXI4-Lite read of 32 bits (takes a few cycles). Raises MachineError where it is not answered OKAY."""
        data = _u32()
        self._check_csr("read", address, self._csr_read(self._handle, address, ctypes.byref(data)))
        return data.value

    def csr_write(self, address: int, data: int) -> None:
        """One AXI4-Lite write of 32 bits (takes a few cycles). Raises MachineError where it is not answered OKAY."""
        self._check_csr("write", address, self._csr_write(self._handle, address, data & 0xFFFF_FFFF))

    @property
    def irq(self) -> bool:
        return bool(self._irq(self._handle))

    @property
    def cycles(self) -> int:
        """Cycles since reset."""
        return self.stats.cycles

    @property
    def stats(self) -> Stats:
        raw = _Stats()
        self._stats(self._handle, ctypes.byref(raw))
        values = {name: getattr(raw, name) for name, _ in _Stats._fields_}
        return Stats(**values | {"settled": bool(raw.settled)})

    def peek(self, port: str) -> int:
        """The present value of a port of the top module (its low 256 bits)."""
        out = ctypes.create_string_buffer(32)
        bits = self._peek(self._handle, port.encode(), out)
        if not bits:
            raise ValueError(f"no port {port!r} on the top module; internal signals are for sim.pyveri")
        return int.from_bytes(out.raw, "little") & ((1 << bits) - 1)

    def watch(self, port: str) -> None:
        """Records each change of a port from now on (and its value now), for `events`."""
        if self._watch(self._handle, port.encode()) < 0:
            raise ValueError(f"cannot watch {port!r}: there is no such port of up to 64 bits on the top module")
        self._watched.append(port)

    def changes(self) -> dict[str, np.ndarray]:
        """The events by port, as rows of (cycle, value), uint64; and forgets them."""
        first = ctypes.POINTER(_Event)()
        count = self._events(self._handle, ctypes.byref(first))
        words = (_u64 * (3 * count)).from_address(ctypes.addressof(first.contents)) if count else []
        found = np.array(words, np.uint64).reshape(count, 3)
        ports = {name: found[found[:, 2] == i, :2] for i, name in enumerate(self._watched)}
        self._clear_events(self._handle)
        return ports

    def events(self, clear: bool = False) -> list[Event]:
        """What the watched ports did since reset, or since they were last cleared, in order."""
        first = ctypes.POINTER(_Event)()
        count = self._events(self._handle, ctypes.byref(first))
        events = [Event(e.cycle, self._watched[e.port], e.value) for e in first[:count]]
        if clear:
            self._clear_events(self._handle)
        return events

    def _check(self, reason: int) -> None:
        if reason == Reason.FINISHED:
            raise MachineError("the simulated design called $finish")
        error = self._error(self._handle).decode()
        if error:
            raise MachineError(f"the accelerator broke a rule of AXI at {error}; this is a fault of the hardware design")

    def _check_csr(self, what: str, address: int, resp: int) -> None:
        self._check(Reason.LIMIT)
        if resp < 0:
            raise MachineError(f"the CSR {what} at {address:#05x} was not answered within 10,000 cycles")
        if resp != Resp.OKAY:
            raise MachineError(f"the CSR {what} at {address:#05x} was answered {Resp(resp).name}: no such register, or it "
                               f"refuses to be {'read' if what == 'read' else 'written'}")
