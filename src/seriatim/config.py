"""`Config`: the one description of a machine, from which hardware, compiler, simulator and drivers take every size."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property

from .csr import PROFILE_KEPT
from .errors import ConfigError
from .formats import MAX_PLANES


def _require(holds: bool, message: str):
    if not holds:
        raise ConfigError(message)


@dataclass(frozen=True)
class Config:
    """Geometry and memories of one accelerator.

    Members
    -------
    m, n, k : rows (output positions), columns (output channels) and lanes (input channels) of the bit-serial array.
    axi_bits : width of the AXI4 data bus.
    act_words : act buffer, words of M x (K + 1) bits (K lanes and one validity bit for each row's slice).
    wgt_words : wgt buffer, words of N x K bits.
    prm_words : param buffer, words of N x 96 bits (m and b of N channels).
    res_words : residual buffer, words of M x K bits.
    out_words : out buffer, words of M x K bits.
    psum_words : psum memory, words of N accumulators.
    line_bytes : each of the two line memories of the patch builder.
    max_planes : widest tensor that the packer writes and the residual port reads.
    marks : layers whose counters the profile memory holds; 0 leaves it out.
    queue : instructions that each of the load, execute and store queues holds.
    outstanding : AXI bursts in flight each way.
    multiplier_stages : registers in the multiplications of requantisation: 0, or 2 where an FPGA's clock is to be fast.
    compact : 1: the machine for the smallest FPGAs, whose instructions a processor executes one after the other beside a single
        row and column (M = N = 1, K = 32, 32 bits of AXI); `queue`, `outstanding` and `multiplier_stages` mean nothing then.
    shift_lanes : lanes of each of the M x N sums of the shift-add array; 0: there is none, and its other members mean nothing.
    shift_a_bits, shift_w_bits : widest codes of activations and weights that it takes.
    shift_span : largest shift of a product, in octaves.
    shift_classes : residue classes of an octave.
    shift_acc_bits : width of its accumulators, and of the psum memory then.
    """

    m: int = 7
    n: int = 8
    k: int = 64
    axi_bits: int = 64
    act_words: int = 2816
    wgt_words: int = 1184
    prm_words: int = 128
    res_words: int = 512
    out_words: int = 384
    psum_words: int = 256
    line_bytes: int = 2048
    max_planes: int = 16
    marks: int = 64
    queue: int = 8
    outstanding: int = 8
    multiplier_stages: int = 0
    compact: int = 0
    shift_lanes: int = 0
    shift_a_bits: int = 8
    shift_w_bits: int = 5
    shift_span: int = 31
    shift_classes: int = 8
    shift_acc_bits: int = 48

    def __post_init__(self):
        for name, value in asdict(self).items():
            _require(isinstance(value, int), f"{name}={value!r}: every member of Config is an integer")
        _require(1 <= self.m <= 32, f"m={self.m}: 1 to 32 rows (an instruction's slice mask has 32 bits)")
        _require(self.axi_bits in (32, 64, 128, 256), f"axi_bits={self.axi_bits}: AXI data is 32, 64, 128 or 256 bits wide")
        _require(self.k in (32, 64, 128, 256), f"k={self.k}: lanes are 32, 64, 128 or 256")
        _require(self.k % self.axi_bits == 0,
                 f"k={self.k} with axi_bits={self.axi_bits}: a K-lane word is a whole number of beats; narrow the bus")
        _require(self.n >= 1 and self.k % self.n == 0,
                 f"n={self.n} with k={self.k}: N divides K, so that column tiles fill whole words")
        _require(self.n * 128 % self.axi_bits == 0,
                 f"n={self.n} with axi_bits={self.axi_bits}: N params of 128 bits are a whole number of beats")
        _require(1 <= self.max_planes <= MAX_PLANES, f"max_planes={self.max_planes}: 1 to {MAX_PLANES}")
        for name in ("act_words", "wgt_words", "prm_words", "res_words", "out_words", "psum_words"):
            _require(16 <= getattr(self, name) < 1 << 16, f"{name}={getattr(self, name)}: 16 to 65535 (16-bit addresses)")
        _require(self.line_bytes % 64 == 0 and 64 <= self.line_bytes < 1 << 16,
                 f"line_bytes={self.line_bytes}: a multiple of 64 below 65536")
        _require(0 <= self.marks <= 256, f"marks={self.marks}: 0 to 256 (a layer number has 8 bits)")
        _require(2 <= self.queue <= 64, f"queue={self.queue}: 2 to 64")
        _require(1 <= self.outstanding <= 64, f"outstanding={self.outstanding}: 1 to 64")
        _require(self.multiplier_stages in (0, 2), f"multiplier_stages={self.multiplier_stages}: 0 or 2")
        _require(self.compact in (0, 1), f"compact={self.compact}: 0 or 1")
        if self.compact:
            _require((self.m, self.n, self.k, self.axi_bits, self.shift_lanes) == (1, 1, 32, 32, 0),
                     f"compact=1 with m={self.m}, n={self.n}, k={self.k}, axi_bits={self.axi_bits}, "
                     f"shift_lanes={self.shift_lanes}: the compact machine has one row and one column of 32 lanes, 32 bits of "
                     "AXI and no shift-add array")
        if self.shift_lanes:
            self._check_shift()

    def _check_shift(self):
        for name in ("shift_a_bits", "shift_w_bits"):
            _require(2 <= getattr(self, name) <= 8, f"{name}={getattr(self, name)}: codes of 2 to 8 bits")
        least = max(self.shift_a_bits, self.shift_w_bits)
        _require(self.shift_lanes > 0 and self.k % self.shift_lanes == 0 and self.k // self.shift_lanes >= least,
                 f"shift_lanes={self.shift_lanes} with k={self.k}: it divides K into at least {least} slices, since a cycle "
                 "reads one plane")
        _require(1 <= self.shift_span <= 40, f"shift_span={self.shift_span}: 1 to 40 octaves")
        _require(self.shift_classes in (1, 2, 4, 8), f"shift_classes={self.shift_classes}: 1, 2, 4 or 8")
        _require(32 <= self.shift_acc_bits <= 48, f"shift_acc_bits={self.shift_acc_bits}: 32 to 48")

    @property
    def peak(self) -> int:
        """Binary multiply-accumulates of one cycle."""
        return self.m * self.n * self.k

    @property
    def shift_peak(self) -> int:
        """Multiply-accumulates of one cycle of the shift-add array."""
        return self.m * self.n * self.shift_lanes

    @property
    def acc_bits(self) -> int:
        """Width of the sums that are drained."""
        return self.shift_acc_bits if self.shift_lanes else 32

    @property
    def tiles_per_word(self) -> int:
        """Column tiles whose N outputs fill one K-lane word."""
        return self.k // self.n

    @property
    def axi_bytes(self) -> int:
        return self.axi_bits // 8

    @property
    def word_bytes(self) -> int:
        """Bytes of one K-lane word in memory (act, residual and output tensors)."""
        return self.k // 8

    @property
    def wgt_word_bytes(self) -> int:
        return self.n * self.k // 8

    @property
    def prm_word_bytes(self) -> int:
        """Bytes in memory of the params of one column tile: for each channel b (int64), m (int32), 4 bytes of zero."""
        return self.n * 16

    @property
    def geometry(self) -> int:
        """What register GEOMETRY shows."""
        return self.m | (self.n & 0xFFF) << 8 | (self.k & 0xFFF) << 20

    @property
    def raw_words(self) -> int:
        """K-lane words that hold the N int32 outputs of one row and column tile."""
        return -(-self.n * 32 // self.k)

    @cached_property
    def on_chip_bytes(self) -> int:
        """Bytes of all on-chip memories."""
        bits = (self.act_words * self.m * (self.k + 1) + self.wgt_words * self.n * self.k + self.prm_words * self.n * 96
                + (self.res_words + self.out_words) * self.m * self.k + self.psum_words * self.n * self.acc_bits
                + 2 * self.line_bytes * 8 + self.marks * PROFILE_KEPT * 64)
        return -(-bits // 8)

    @cached_property
    def hash(self) -> int:
        """32-bit fingerprint that the hardware shows in a CSR and every artefact carries."""
        text = json.dumps(asdict(self), sort_keys=True)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")

    def __str__(self):
        return f"{self.m}x{self.n}x{self.k}"


@dataclass(frozen=True)
class Memory:
    """The memory behind the AXI port, as the compiler's cycle model expects it. The defaults are those of every published figure.

    Members
    -------
    latency : cycles from a read's address to its first data, and from a write's last data to its response.
    outstanding : bursts taken at a time, each way.
    read_bandwidth, write_bandwidth : beats per cycles, as (beats, cycles); at most one beat a cycle.
    """

    latency: int = 100
    outstanding: int = 8
    read_bandwidth: tuple[int, int] = (1, 1)
    write_bandwidth: tuple[int, int] = (1, 1)

    def __post_init__(self):
        _require(1 <= self.latency < 1 << 32, f"latency={self.latency}: data come at least 1 cycle after their address")
        _require(1 <= self.outstanding <= 4096, f"outstanding={self.outstanding}: 1 to 4096 bursts")
        for name in ("read_bandwidth", "write_bandwidth"):
            beats, cycles = getattr(self, name)
            _require(1 <= beats <= cycles, f"{name}={beats, cycles}: at least 1 beat, at most 1 a cycle")
