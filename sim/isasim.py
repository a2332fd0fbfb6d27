"""The ISA simulator: every instruction executed plainly in NumPy. It is the living definition of `seriatim.isa`.

It has no notion of time. The three queues advance one instruction at a time in an order that `order` chooses; a program whose
result depends on that order has a race. Buffers hold bits (uint8, 0 or 1), so that each step reads as the manual says it.
"""

from collections import deque

import numpy as np

from seriatim import isa
from seriatim.config import Config
from seriatim.csr import Cause, Counter
from seriatim.errors import MachineError, ProgramError
from seriatim.formats import Kind
from seriatim.isa import Buffer, Engine, Output, Queue, Sem, Table
from seriatim.sim import shiftadd
from seriatim.sim.activity import Activity
from seriatim.sim.requant import requant


class Stop(Exception):
    """An instruction broke a rule of the machine."""

    def __init__(self, cause: Cause, message: str):
        super().__init__(message)
        self.cause = cause


def _bits(data: np.ndarray, width: int) -> np.ndarray:
    """Little-endian bytes (..., width / 8) as bits (..., width)."""
    return np.unpackbits(data.reshape(*data.shape[:-1], width // 8), axis=-1, bitorder="little")


def plane_values(planes: np.ndarray, kind: Kind) -> np.ndarray:
    """Values (float64, exact) of codes whose planes, most significant first, are the first axis."""
    bits = planes.shape[0]
    weights = 2.0 ** np.arange(bits - 1, -1, -1)
    if kind == Kind.INT:
        weights[0] = -weights[0]
    value = np.tensordot(weights, planes, axes=1)
    return 2 * value - (2.0 ** bits - 1) if kind == Kind.BIPOLAR else value


class Machine:
    """Buffers and semaphores of one accelerator, and a method for each instruction.

    `memory` is a uint8 array whose first byte has address `base`. `read_range` and
    `write_range` are the (first, beyond last) bytes that LOAD and PATCH, and STORE, may touch.
    """

    def __init__(self, config: Config, memory: np.ndarray, base: int = 0, read_range=None, write_range=None):
        self.config, self.memory, self.base = config, memory, base
        whole = (base, base + len(memory))
        self.read_range, self.write_range = read_range or whole, write_range or whole
        c = config
        self.act = np.zeros((c.act_words, c.m, c.k), np.uint8)
        self.valid = np.zeros((c.act_words, c.m), np.uint8)
        self.res = np.zeros((c.res_words, c.m, c.k), np.uint8)
        self.wgt = np.zeros((c.wgt_words, c.n, c.k), np.uint8)
        self.prm_b = np.zeros((c.prm_words, c.n), np.int64)
        self.prm_m = np.zeros((c.prm_words, c.n), np.int64)
        self.out = np.zeros((c.out_words, c.m, c.k), np.uint8)
        self.psum = np.zeros((c.psum_words, c.n), np.int64)
        self.format = isa.decode(isa.encode("FORMAT"))[1]
        self.tables = {table: np.zeros(2 * isa.TABLE_PART, np.int64) for table in Table}
        self.sems = dict.fromkeys(Sem, 0)
        self.counters = dict.fromkeys(Counter, 0)
        self.activity = Activity()
        self.marks: dict[int, dict[Counter, int]] = {}

    # Addresses

    def _dram(self, addr: int, size: int, write: bool = False) -> np.ndarray:
        addr &= 0xFFFFFFFF
        limits = self.write_range if write else self.read_range
        if addr % self.config.axi_bytes:
            raise Stop(Cause.DRAM_RANGE, f"address {addr:#x} is not a multiple of the beat, {self.config.axi_bytes} bytes")
        if not limits[0] <= addr <= addr + size <= limits[1]:
            raise Stop(Cause.DRAM_RANGE, f"bytes {addr:#x}..{addr + size:#x} are outside {limits[0]:#x}..{limits[1]:#x}")
        at = addr - self.base
        if at < 0 or at + size > len(self.memory):
            raise Stop(Cause.AXI_WRITE if write else Cause.AXI_READ, f"bytes {addr:#x}..{addr + size:#x}: there is no memory")
        return self.memory[at:at + size]

    @staticmethod
    def _in(name: str, addr, depth: int):
        worst = np.max(addr)
        if worst >= depth:
            raise Stop(Cause.BUFFER_RANGE, f"{name} word {worst}: the buffer has {depth}")
        return addr

    def _slices(self, f) -> range:
        if f["slice"] + f["slices"] > self.config.m:
            raise Stop(Cause.ILLEGAL_FIELD, f"slices up to {f['slice'] + f['slices'] - 1}: the array has {self.config.m} rows")
        return range(f["slices"])

    @staticmethod
    def _row(f, at, step) -> np.ndarray:
        """Row addresses at + i * step for i in `step`'s index array, wrapped once each time the ring's end is reached."""
        rows = at + step
        if f["ring_words"]:
            end = f["ring_base"] + f["ring_words"]
            rows = np.where(rows >= end, rows - f["ring_words"], rows)
        return rows

    def _rows(self, f, base: int, pitch: int, count: int) -> list[int]:
        rows, at = [], self._row(f, base, 0)
        for _ in range(count):
            rows.append(int(at))
            at = self._row(f, at, pitch)
        return rows

    # Load queue

    def load(self, f):
        c, buffer = self.config, Buffer(f["buffer"])
        slices = self._slices(f)
        if buffer in (Buffer.WGT, Buffer.PRM):
            if (f["slices"], f["ny"], f["nx"]) != (1, 1, 1):
                raise Stop(Cause.ILLEGAL_FIELD, "LOAD to WGT or PRM has one slice, row and segment")
            size = c.wgt_word_bytes if buffer is Buffer.WGT else c.prm_word_bytes
            depth = c.wgt_words if buffer is Buffer.WGT else c.prm_words
            words = self._in(buffer.name, f["base"] + np.arange(f["words"]), depth)
            data = self._dram(f["dram"], f["words"] * size)
            if buffer is Buffer.WGT:
                self.wgt[words] = _bits(data.reshape(-1, c.n, c.k // 8), c.k)
            else:
                params = data.reshape(-1, c.n, 16)
                self.prm_b[words] = np.ascontiguousarray(params[..., :8]).view("<i8")[..., 0]
                self.prm_m[words] = np.ascontiguousarray(params[..., 8:12]).view("<i4")[..., 0]
            self.counters[Counter.READ_BEATS] += len(data) // c.axi_bytes
            self.counters[Counter.WGT_WRITES if buffer is Buffer.WGT else Counter.PRM_WRITES] += f["words"] * c.n
            return
        target, depth = (self.act, c.act_words) if buffer is Buffer.ACT else (self.res, c.res_words)
        size = f["words"] * c.word_bytes
        rows = self._rows(f, f["base"], f["row_pitch"], f["ny"])
        for s in slices:
            for y, row in enumerate(rows):
                for x in range(f["nx"]):
                    dram = f["dram"] + s * f["slice_pitch"] + y * f["y_pitch"] + x * f["x_pitch"]
                    words = self._in(buffer.name, row + x * f["words"] + np.arange(f["words"]), depth)
                    target[words, f["slice"] + s] = _bits(self._dram(dram, size).reshape(f["words"], -1), c.k)
                    if buffer is Buffer.ACT:
                        self.valid[words, f["slice"] + s] = 1
        self.counters[Counter.READ_BEATS] += f["slices"] * f["ny"] * f["nx"] * size // c.axi_bytes
        writes = Counter.ACT_WRITES if buffer is Buffer.ACT else Counter.RES_WRITES
        self.counters[writes] += f["slices"] * f["ny"] * f["nx"] * f["words"]

    def fill(self, f):
        if f["mask"] >> self.config.m:
            raise Stop(Cause.ILLEGAL_FIELD, f"slice mask {f['mask']:#x}: the array has {self.config.m} rows")
        mask = [s for s in range(self.config.m) if f["mask"] >> s & 1]
        w = np.arange(f["words"])
        bit = f["code"] >> (f["planes"] - 1 - w % f["planes"]) & 1
        for row in self._rows(f, f["base"], f["row_pitch"], f["ny"]):
            words = self._in("ACT", row + w, self.config.act_words)
            for s in mask:
                self.act[words, s] = bit[:, None]
                self.valid[words, s] = f["valid"]
            self.counters[Counter.ACT_WRITES] += len(mask) * f["words"]

    def patch(self, f):
        c, axi = self.config, self.config.axi_bytes
        width = f["width"] * f["channels"]
        lanes = f["kh"] * f["kw"] * f["channels"]
        count = -(-lanes // c.k)
        if f["kh"] * f["seg_bytes"] > c.line_bytes:
            raise Stop(Cause.BUFFER_RANGE, f"{f['kh']} segments of {f['seg_bytes']} bytes: a line memory has {c.line_bytes}")
        x = np.arange(f["nx"])[:, None, None] * f["sw"] + np.arange(f["kw"])[None, :, None] * f["dw"] + f["x0"]
        at = x * f["channels"] + np.arange(f["channels"])  # byte of the row, (nx, kw, channels)
        inside = (at >= 0) & (at < width)
        words = self._in("ACT", f["base"] + np.arange(f["nx"] * count * 8), c.act_words)
        for s in self._slices(f):
            patch = np.full((f["nx"], f["kh"], f["kw"] * f["channels"]), f["code"], np.uint8)
            for r in range(f["kh"]):
                row = f["y0"] + s * f["y_step"] + r * f["dh"]
                if not 0 <= row < f["height"] or not inside.any():
                    continue
                first = at[inside].min() // axi * axi
                size = -(-(at[inside].max() + 1) // axi) * axi - first
                if size > f["seg_bytes"]:
                    raise Stop(Cause.BUFFER_RANGE, f"{size} bytes of an image row: seg_bytes is {f['seg_bytes']}")
                line = self._dram(f["dram"] + row * f["y_pitch"] + first, int(size))
                self.counters[Counter.READ_BEATS] += int(size) // axi
                patch[:, r] = np.where(inside, line[np.where(inside, at - first, 0)], f["code"]).reshape(f["nx"], -1)
            padded = np.zeros((f["nx"], count * c.k), np.uint8)
            padded[:, :lanes] = patch.reshape(f["nx"], lanes)
            planes = np.unpackbits(padded.reshape(f["nx"], count, 1, c.k), axis=2)  # most significant first
            self.act[words, f["slice"] + s] = planes.reshape(-1, c.k)
            self.valid[words, f["slice"] + s] = 1
            self.counters[Counter.ACT_WRITES] += len(words)

    # Execute queue

    def _taps(self, f) -> np.ndarray:
        """Act word addresses (position, kh, kw) of a tile's windows."""
        rows = [self._rows(f, row, f["skh"], f["kh"]) for row in self._rows(f, f["act_base"], f["sy"], f["ny"])]
        x = np.arange(f["nx"]) * f["sx"]
        at = np.array(rows)[:, None, :, None] + x[None, :, None, None] + np.arange(f["kw"]) * f["skw"]
        return at.reshape(f["ny"] * f["nx"], f["kh"], f["kw"])

    def conv(self, f):
        c, output = self.config, Output(f["output"])
        serial = f["engine"] == Engine.BIT_SERIAL
        reason = self._foreign(f) if serial else shiftadd.refusal(f, self.format, c)
        if reason:
            raise Stop(Cause.UNSUPPORTED, reason)
        if output in (Output.PLANES, Output.CODES):
            self._planes(f["out_planes"])
        if output is Output.CODES and not c.shift_lanes:
            raise Stop(Cause.UNSUPPORTED, "output in codes: this machine has no thresholds")
        if f["ng"] > c.tiles_per_word:
            raise Stop(Cause.ILLEGAL_FIELD, f"ng = {f['ng']}: {c.tiles_per_word} column tiles fill a word")
        taps = self._taps(f)
        positions, ng = len(taps), f["ng"]
        acc = self._bit_serial(f, taps) if serial else self._shift_add(f, taps)
        psum = f["psum_base"] + np.arange(positions * ng * c.m).reshape(positions, ng, c.m)
        if f["psum_add"]:
            acc = shiftadd.wrap(acc + self.psum[self._in("PSUM", psum, c.psum_words)], c.acc_bits)
            self.counters[Counter.PSUM_READS] += psum.size
        if output is Output.PSUM:
            self.psum[self._in("PSUM", psum, c.psum_words)] = acc
            self.counters[Counter.PSUM_WRITES] += psum.size
            return
        g = self._in("PRM", f["prm_base"] + np.arange(ng), c.prm_words)
        m, b = self.prm_m[g][None, :, None, :], self.prm_b[g][None, :, None, :]
        acc = shiftadd.wrap(acc >> self.format["drop"], 32)
        q = requant(acc, m, b, f["shift"], f["lo"], f["hi"], self._residual(f, positions, ng), f["m2"])
        self.counters[Counter.REQUANTS] += positions * ng * c.m
        self.counters[Counter.RES_READS] += positions * ng * f["res_planes"]
        self.counters[Counter.OUT_WRITES] += positions * (ng * c.raw_words if output is Output.INT32 else f["out_planes"])
        if output is Output.INT32:
            raw = np.zeros((positions, ng, c.m, c.raw_words * c.k // 32), "<i4")
            raw[..., :c.n] = q
            bits = _bits(raw.view(np.uint8).reshape(positions, ng, c.m, c.raw_words, -1), c.k)
            at = self._in("OUT", f["out_base"] + np.arange(positions * ng * c.raw_words), c.out_words)
            self.out[at] = bits.transpose(0, 1, 3, 2, 4).reshape(-1, c.m, c.k)
            return
        if output is Output.CODES:
            q = (q[..., None] >= self.tables[Table.THRESHOLDS][:isa.THRESHOLDS]).sum(-1)
        lanes = np.zeros((positions, c.m, c.k), np.int64)
        lanes[:, :, :ng * c.n] = q.transpose(0, 2, 1, 3).reshape(positions, c.m, -1)
        bit = np.arange(f["out_planes"] - 1, -1, -1)[None, :, None, None]
        at = self._in("OUT", f["out_base"] + np.arange(positions * f["out_planes"]), c.out_words)
        self.out[at] = (lanes[:, None] >> bit & 1).reshape(-1, c.m, c.k)

    @staticmethod
    def _foreign(f) -> str | None:
        """Why the bit-serial engine refuses the formats."""
        if max(f["a_kind"], f["w_kind"]) > Kind.BIPOLAR:
            return f"the bit-serial engine with formats {f['a_kind']}, {f['w_kind']}"
        return None

    def _operands(self, f, taps: np.ndarray):
        """For each column tile the act words' bits (plane, p, kh, kw, c, M, K), the wgt words' (plane, tap, c, N, K), and the
        act words' addresses; both bits and addresses of act are the same objects where the tiles share them."""
        c, nc, w_bits = self.config, f["nc"], f["w_bits"]
        words = taps[..., None] + np.arange(nc) * f["sc"]  # (p, kh, kw, c)
        tap = np.arange(f["kh"] * f["kw"])[:, None] * f["wgt_tap"] + np.arange(nc) * w_bits
        at = None
        for g in range(f["ng"]):
            if at is None or f["sg"]:
                at = self._in("ACT", words + g * f["sg"] + np.arange(f["a_bits"]).reshape(-1, 1, 1, 1, 1), c.act_words)
                bits = self.act[at]
            wgt = f["wgt_base"] + g * f["wgt_g"] + tap + np.arange(w_bits).reshape(-1, 1, 1)
            yield bits, self.wgt[self._in("WGT", wgt, c.wgt_words)], at

    def _bit_serial(self, f, taps: np.ndarray) -> np.ndarray:
        """Sums (p, g, M, N) of the bit-serial engine."""
        c, kinds = self.config, (Kind(f["a_kind"]), Kind(f["w_kind"]))
        positions, a_bits, w_bits = len(taps), f["a_bits"], f["w_bits"]
        acc = np.empty((positions, f["ng"], c.m, c.n), np.int64)
        last, act, act_planes, wgt_planes = None, None, [], []
        for g, (bits, wgt, at) in enumerate(self._operands(f, taps)):
            if bits is not last:
                last = bits
                if kinds[0] is Kind.BIPOLAR:  # each plane is -1 or +1, or 0 where its word is invalid
                    valid = self.valid[at][..., None]
                    act = np.tensordot(2.0 ** np.arange(a_bits - 1, -1, -1), (2.0 * bits - 1) * valid, axes=1)
                    planes = bits * valid
                else:
                    act = plane_values(bits, kinds[0])  # (p, kh, kw, c, M, K)
                    planes = bits
                act = act.reshape(positions, -1, c.m, c.k).transpose(0, 2, 1, 3).reshape(positions * c.m, -1)
                planes = planes.reshape(a_bits, positions, -1, c.m, c.k)
            act_planes.append(planes)
            wgt_planes.append(wgt.reshape(w_bits, -1, c.n, c.k))
            wgt = plane_values(wgt, kinds[1]).reshape(-1, c.n, c.k).transpose(1, 0, 2).reshape(c.n, -1)
            acc[:, g] = np.rint(act @ wgt.T).astype(np.int64).reshape(positions, c.m, c.n)
        self.counters[Counter.ARRAY_STEPS] += positions * f["ng"] * f["kh"] * f["kw"] * f["nc"] * a_bits * w_bits
        self.activity.conv(act_planes, wgt_planes)
        self._switched()
        return acc

    def _shift_add(self, f, taps: np.ndarray) -> np.ndarray:
        """Sums (p, g, M, N) of the shift-add engine."""
        c, positions = self.config, len(taps)
        lanes = self.format["slices"] * c.shift_lanes
        acc = np.empty((positions, f["ng"], c.m, c.n), np.int64)
        for g, (bits, wgt, _) in enumerate(self._operands(f, taps)):
            act = bits[..., :lanes].reshape(f["a_bits"], positions, -1, c.m, lanes).transpose(0, 1, 3, 2, 4)
            wgt = wgt[..., :lanes].reshape(f["w_bits"], -1, c.n, lanes).transpose(0, 2, 1, 3)
            acc[:, g] = shiftadd.sums(act.reshape(f["a_bits"], positions * c.m, -1), wgt.reshape(f["w_bits"], c.n, -1), f,
                                      self.format, self.tables[Table.VALUES], c).reshape(positions, c.m, c.n)
        words = positions * f["ng"] * f["kh"] * f["kw"] * f["nc"]
        steps, passes = words * shiftadd.steps(f, self.format), f["a_bits"] if shiftadd.by_planes(f) else 1
        self.counters[Counter.ARRAY_STEPS] += steps
        self.counters[Counter.SHIFT_STEPS] += steps
        self.counters[Counter.SHIFT_ACT_READS] += words * f["a_bits"]
        self.counters[Counter.SHIFT_WGT_READS] += words * f["w_bits"] * passes
        return acc

    def set_format(self, f):
        c = self.config
        self._shift_only("FORMAT")
        if f["scaled"] and c.shift_classes == 1:
            raise Stop(Cause.UNSUPPORTED, "FORMAT with scaled: this machine has one residue class")
        if f["slices"] * c.shift_lanes > c.k:
            raise Stop(Cause.ILLEGAL_FIELD, f"{f['slices']} slices: a word has {c.k // c.shift_lanes}")
        self.format = f

    def set_table(self, f):
        self._shift_only("TABLE")
        first = f["half"] * isa.TABLE_PART
        entries = np.array([f[f"entry_{i}"] for i in range(isa.TABLE_PART)])
        if f["table"] == Table.VALUES:
            entries = shiftadd.wrap(entries, 16)
        self.tables[Table(f["table"])][first:first + isa.TABLE_PART] = entries

    def _shift_only(self, name: str):
        if not self.config.shift_lanes:
            raise Stop(Cause.UNSUPPORTED, f"{name}: this machine has no shift-add engine")

    def _switched(self):
        """Brings the array's activity into the counters."""
        self.counters |= {Counter.ARRAY_ONES: self.activity.ones, Counter.ACT_FLIPS: self.activity.act.flips,
                          Counter.WGT_FLIPS: self.activity.wgt.flips}

    def _residual(self, f, positions: int, ng: int):
        """Residual codes (p, g, M, N), or None."""
        c, planes = self.config, f["res_planes"]
        if not planes:
            return None
        at = f["res_base"] + np.arange(positions) * f["res_pitch"] + np.arange(planes)[:, None]
        code = plane_values(self.res[self._in("RES", at, c.res_words)], Kind.INT if f["res_signed"] else Kind.UINT)
        code = code.astype(np.int64)[:, :, :ng * c.n].reshape(positions, c.m, ng, c.n)
        return code.transpose(0, 2, 1, 3)

    def _planes(self, planes: int):
        if planes > self.config.max_planes:
            raise Stop(Cause.UNSUPPORTED, f"{planes} planes: this machine packs {self.config.max_planes}")

    def pool(self, f):
        c, planes, ng = self.config, f["planes"], f["ng"]
        self._planes(planes)
        taps = self._taps(f)
        at = taps[:, :, :, None] + np.arange(ng) * planes + np.arange(planes).reshape(-1, 1, 1, 1, 1)
        bits = self.act[self._in("ACT", at, c.act_words)]  # (plane, p, kh, kw, g, M, K)
        code = plane_values(bits, Kind.INT if f["is_signed"] else Kind.UINT)
        best = code.max(axis=(1, 2)).astype(np.int64)  # (p, g, M, K)
        bit = np.arange(planes - 1, -1, -1)[None, None, :, None, None]
        at = self._in("OUT", f["out_base"] + np.arange(len(taps) * ng * planes), c.out_words)
        self.out[at] = (best[:, :, None] >> bit & 1).reshape(-1, c.m, c.k)
        self.counters[Counter.POOL_STEPS] += taps.size * ng * planes
        self.counters[Counter.OUT_WRITES] += len(taps) * ng * planes
        self.activity.pool(bits.transpose(1, 4, 2, 3, 0, 5, 6).reshape(-1, c.m, c.k))
        self._switched()

    def mark(self, f):
        self.marks[f["layer"]] = dict(self.counters)

    # Store queue

    def store(self, f):
        c, size = self.config, f["words"] * self.config.word_bytes
        for s in self._slices(f):
            at = f["base"]
            for y in range(f["ny"]):
                for x in range(f["nx"]):
                    words = self._in("OUT", at + np.arange(f["words"]), c.out_words)
                    dram = f["dram"] + s * f["slice_pitch"] + y * f["y_pitch"] + x * f["x_pitch"]
                    data = np.packbits(self.out[words, f["slice"] + s], axis=-1, bitorder="little")
                    self._dram(dram, size, write=True)[:] = data.reshape(-1)
                    at += f["words"]
        self.counters[Counter.WRITE_BEATS] += f["slices"] * f["ny"] * f["nx"] * size // c.axi_bytes

    # Program

    def step(self, instr: isa.Instr, fields: dict):
        """Executes one decoded instruction (semaphores apart)."""
        METHODS[instr.name](self, fields)

    def _ready(self, fields) -> bool:
        return all(self.sems[s] for s in Sem if s & fields["wait"])

    def _signal(self, fields):
        for s in Sem:
            if s & fields["signal"]:
                self.sems[s] += 1
                if self.sems[s] >> isa.SEM_BITS:
                    raise Stop(Cause.TOKEN_OVERFLOW, f"semaphore {s.name} above {(1 << isa.SEM_BITS) - 1}")

    def run(self, program: bytes, order: str | int = "load", trace=None):
        """Runs `program` to its END. `order`: which queue goes first where several can ("load", "store"), or a seed for a random
        choice each time. `trace(pc, instr, fields)` is called after each instruction. Raises MachineError with the
        cause and pc of the first error, WATCHDOG where the queues wait for each other for ever."""
        rng = np.random.default_rng(order) if isinstance(order, int) else None
        names = [Queue.LOAD, Queue.EXEC, Queue.STORE][::-1 if order == "store" else 1]
        queues = {q: deque() for q in names}
        fetched, ended = 0, False
        pc = 0
        try:
            while True:
                while not ended:
                    pc = fetched
                    if fetched + isa.INSTR_BYTES > len(program):
                        raise Stop(Cause.PROGRAM_RANGE, f"the program has {len(program)} bytes and no END")
                    try:
                        instr, fields = isa.decode(program[fetched:fetched + isa.INSTR_BYTES])
                    except ProgramError as error:
                        known = program[fetched] in isa.BY_OPCODE
                        raise Stop(Cause.ILLEGAL_FIELD if known else Cause.ILLEGAL_OPCODE, str(error)) from None
                    if instr.queue is Queue.FETCH:
                        ended = True
                    elif len(queues[instr.queue]) < self.config.queue:
                        queues[instr.queue].append((fetched, instr, fields))
                    else:
                        break
                    fetched += isa.INSTR_BYTES
                ready = [q for q in names if queues[q] and self._ready(queues[q][0][2])]
                if not ready:
                    if ended and not any(queues.values()):
                        return
                    heads = [f"{q.name.lower()} at {queues[q][0][0]:#x}" for q in names if queues[q]]
                    pc = min(queues[q][0][0] for q in names if queues[q])
                    raise Stop(Cause.WATCHDOG, f"every queue waits: {', '.join(heads)}")
                queue = rng.choice(ready) if rng else ready[0]
                pc, instr, fields = queues[queue].popleft()
                for s in Sem:
                    if s & fields["wait"]:
                        self.sems[s] -= 1
                self.step(instr, fields)
                if trace:
                    trace(pc, instr, fields)
                self._signal(fields)
        except Stop as stop:
            message = f"the machine stopped with {stop.cause.name} at {pc:#x}: {stop}"
            raise MachineError(message, cause=stop.cause, pc=pc) from None


METHODS = {"LOAD": Machine.load, "FILL": Machine.fill, "PATCH": Machine.patch, "CONV": Machine.conv, "POOL": Machine.pool,
           "STORE": Machine.store, "MARK": Machine.mark, "FORMAT": Machine.set_format, "TABLE": Machine.set_table}
"""What executes each instruction."""
