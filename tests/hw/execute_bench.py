"""Execute in Verilator with memories in C++, and random instructions for it."""

import ctypes
import hashlib
from functools import cache
from pathlib import Path

import numpy as np

from seriatim import isa
from seriatim.config import Config
from seriatim.csr import Counter
from seriatim.errors import ToolError
from seriatim.formats import Kind
from seriatim.hw.convert import SIM, to_verilog
from seriatim.hw.execute import Execute
from seriatim.isa import Output
from seriatim.sim import build, shiftadd

CONFIGS = {
    "2x4x32": Config(2, 4, 32, 32, act_words=400, wgt_words=160, prm_words=24, res_words=200, out_words=300, psum_words=120),
    "3x8x32": Config(3, 8, 32, 32, act_words=300, wgt_words=160, prm_words=24, res_words=200, out_words=300, psum_words=120),
    "1x1x32": Config(1, 1, 32, 32, act_words=300, wgt_words=160, prm_words=40, res_words=200, out_words=300, psum_words=120),
    "5x32x32": Config(5, 32, 32, 32, act_words=300, wgt_words=160, prm_words=40, res_words=200, out_words=300, psum_words=120),
    "4x16x128": Config(4, 16, 128, 32, act_words=300, wgt_words=160, prm_words=40, res_words=200, out_words=300, psum_words=120),
    "7x8x64": Config(),
    "2x4x32 shift": Config(2, 4, 32, 32, act_words=400, wgt_words=160, prm_words=24, res_words=200, out_words=300, psum_words=120,
                           shift_lanes=4),
    "3x2x32 shift": Config(3, 2, 32, 32, act_words=300, wgt_words=160, prm_words=24, res_words=200, out_words=300, psum_words=120,
                           shift_lanes=2, shift_a_bits=5, shift_w_bits=8, shift_span=17, shift_classes=1, shift_acc_bits=37),
}

DRIVER = r"""
#include "Vseriatim.h"
#include "verilated.h"
#include <cstdint>
#include <cstring>
#include <memory>
constexpr int M = %(m)d, N = %(n)d, KB = %(kb)d;
struct Memories { const uint8_t *act, *valid, *wgt, *res; const int64_t *b; const int32_t *m; uint8_t *out; };
struct Result { uint64_t cycles, causes[8], array_steps, pool_steps, requants, gives, error_cause, error_pc, writes_outside; };

struct Bench {
    VerilatedContext context;
    std::unique_ptr<Vseriatim> top{new Vseriatim{&context}};
    uint64_t random = 88172645463325252ull;
    uint32_t rnd() { random ^= random << 13; random ^= random >> 7; random ^= random << 17; return random >> 20; }
    void edge() { top->clk = 1; top->eval(); top->clk = 0; top->eval(); }
};

#pragma GCC visibility push(default)
extern "C" {
void *bench_new() {
    auto *b = new Bench;
    b->top->rst = 1; b->edge(); b->edge(); b->top->rst = 0;
    return b;
}
void bench_clear(Bench *b) { b->top->clear = 1; b->edge(); b->top->clear = 0; b->edge(); }

// Runs `count` instructions of 17 words; `stall`: per cent of cycles in which semaphores and instructions keep the unit waiting.
int bench_run(Bench *b, const uint32_t *program, int count, Memories mem, uint64_t limit, int stall, uint32_t *gives,
              Result *result) {
    auto &t = *b->top;
    std::memset(result, 0, sizeof *result);
    int next = 0;
    for (uint64_t idle = 0; result->cycles < limit; ++result->cycles) {
        if (!t.instr_valid && next < count && (int)(b->rnd() %% 100) >= stall) {
            std::memcpy(&t.instr_payload, program + 17 * next, 68);
            t.instr_valid = 1;
        }
        t.take_ok = (int)(b->rnd() %% 100) >= stall;
        t.lack = 1;
        t.mark_done = t.mark_valid && (int)(b->rnd() %% 100) >= stall;
        t.eval();
        bool ready = t.instr_valid && t.instr_ready;
        bool act = t.act_en, wgt = t.wgt_en, res = t.res_en, prm = t.prm_en;
        int act_at = t.act_addr, wgt_at = t.wgt_addr, res_at = t.res_addr, prm_at = t.prm_addr;
        if (t.give_valid) gives[result->gives++] = t.give_mask;
        result->causes[t.cause]++;
        result->array_steps += t.array_step; result->pool_steps += t.pool_step; result->requants += t.requant_step;
        if (t.error_valid) { result->error_cause = t.error_cause; result->error_pc = t.error_pc; t.instr_valid = 0; break; }
        if (act_at >= %(act_words)d && act) result->writes_outside++;
        if (t.out_we && t.out_addr >= %(out_words)d) result->writes_outside++;
        else if (t.out_we) {
            uint8_t *word = mem.out + (uint64_t)t.out_addr * M * KB;
            %(write)s
        }
        idle = next == count && !t.busy && !t.instr_valid ? idle + 1 : 0;
        if (idle > 30) break;
        t.clk = 1; t.eval();
        if (ready) { t.instr_valid = 0; ++next; if (next < count && stall == 0) {
            std::memcpy(&t.instr_payload, program + 17 * next, 68); t.instr_valid = 1; } }
        if (act) {
            const uint8_t *word = mem.act + (uint64_t)act_at * M * KB;
            uint32_t valid = 0;
            for (int i = 0; i < M; ++i) valid |= mem.valid[act_at * M + i] << i;
            t.act_valid = valid;
            %(act)s
        }
        if (wgt) { const uint8_t *word = mem.wgt + (uint64_t)wgt_at * N * KB; %(wgt)s }
        if (res) { const uint8_t *word = mem.res + (uint64_t)res_at * M * KB; %(res)s }
        if (prm) { const int64_t *pb = mem.b + prm_at * N; const int32_t *pm = mem.m + prm_at * N; %(prm)s }
        t.clk = 0; t.eval();
    }
    return next;
}
}
"""


class Memories(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("act", "valid", "wgt", "res", "b", "m", "out")]


class Result(ctypes.Structure):
    _fields_ = [("cycles", ctypes.c_uint64), ("causes", ctypes.c_uint64 * 8)] + [
        (name, ctypes.c_uint64) for name in ("array_steps", "pool_steps", "requants", "gives", "error_cause", "error_pc",
                                             "writes_outside")]


def tools() -> bool:
    """Whether this machine can build."""
    try:
        build.compiler(), build.verilator_root()
    except ToolError:
        return False
    return True


def verilate(verilog: str, top: str, driver: str, level: str = "-O1") -> ctypes.CDLL:
    """The library of module `top` and of `driver`, which sees it as Vseriatim; built unless the cache has it."""

    def make(folder: Path):
        (folder / "top.sv").write_text(verilog)
        (folder / "driver.cpp").write_text(driver)
        (folder / "popcount.h").write_text((build.HERE / "popcount.h").read_text())
        build._verilate(folder, top)
        root = build.verilator_root() / "include"
        sources = sorted(folder.glob("Vseriatim*.cpp")) + [folder / "driver.cpp"]
        (folder / "all.cpp").write_text("".join(f'#include "{source.name}"\n' for source in sources))
        build.run([build.compiler(), *build.CXX_FLAGS, *build.architecture(), level, f"-I{folder}", f"-I{root}",
                   f"-I{root / 'vltstd'}", "-include", "popcount.h", "-shared", str(folder / "all.cpp"),
                   *map(str, build._runtime()), "-o", str(folder / "bench.so")], "the C++ compiler")

    name = hashlib.sha256((verilog + driver + level).encode()).hexdigest()[:24]
    return ctypes.CDLL(str(build.cached("bench", name, make, None) / "bench.so"))


@cache
def library(config: Config):
    """Execute for `config`, Verilated."""
    def copies(count, text):
        return " ".join(text.format(i=i) for i in range(count))

    driver = DRIVER % dict(
        m=config.m, n=config.n, kb=config.word_bytes, act_words=config.act_words, out_words=config.out_words,
        write=copies(config.m, "if (t.out_we >> {i} & 1) std::memcpy(word + {i} * KB, &t.out_data_{i}, KB);"),
        act=copies(config.m, "std::memcpy(&t.act_data_{i}, word + {i} * KB, KB);"),
        wgt=copies(config.n, "std::memcpy(&t.wgt_data_{i}, word + {i} * KB, KB);"),
        res=copies(config.m, "std::memcpy(&t.res_data_{i}, word + {i} * KB, KB);"),
        prm=copies(config.n, "t.prm_data_{i}_b = pb[{i}]; t.prm_data_{i}_m = pm[{i}];"))
    lib = verilate(to_verilog(Execute(config), "execute", SIM), "execute", driver)
    lib.bench_new.restype = ctypes.c_void_p
    lib.bench_clear.argtypes = [ctypes.c_void_p]
    lib.bench_run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, Memories, ctypes.c_uint64, ctypes.c_int,
                              ctypes.c_void_p, ctypes.POINTER(Result)]
    return lib


class Bench:
    """One Execute, with the buffers of an isasim Machine."""

    def __init__(self, machine):
        self.config = c = machine.config
        self.lib = library(c)
        self.handle = self.lib.bench_new()
        self.out = np.packbits(machine.out, axis=-1, bitorder="little")
        self.arrays = [np.ascontiguousarray(a) for a in (
            np.packbits(machine.act, axis=-1, bitorder="little"), machine.valid,
            np.packbits(machine.wgt, axis=-1, bitorder="little"),
            np.packbits(machine.res, axis=-1, bitorder="little"), machine.prm_b, machine.prm_m.astype(np.int32))]

    def run(self, program: list, stall: int = 0, limit: int = 1_000_000) -> tuple[Result, list[int]]:
        """Executes (name, fields) pairs; returns the counts and the signals given."""
        words = np.zeros((len(program), 17), np.uint32)
        for i, (name, fields) in enumerate(program):
            words[i, :16] = np.frombuffer(isa.encode(name, **fields), np.uint32)
            words[i, 16] = 64 * i
        result, gives = Result(), np.zeros(len(program) + 1, np.uint32)
        memories = Memories(*(a.ctypes.data for a in (*self.arrays, self.out)))
        self.lib.bench_run(self.handle, words.ctypes.data, len(program), memories, limit, stall, gives.ctypes.data, result)
        assert result.cycles < limit, "the unit hangs"
        return result, gives[:result.gives].tolist()

    def clear(self):
        self.lib.bench_clear(self.handle)

    @property
    def out_bits(self):
        return np.unpackbits(self.out, axis=-1, bitorder="little")


def fill(machine, rng):
    """Full-range random buffers, but a zero act word and a neutral param word at the end of theirs. Eight words share their
    validity."""
    for name in ("act", "res", "wgt"):
        array = getattr(machine, name)
        array[:] = rng.integers(0, 2, array.shape, np.uint8)
    valid = rng.integers(0, 4, (-(-len(machine.valid) // 8), machine.config.m)) > 0
    machine.valid[:] = np.repeat(valid, 8, axis=0)[:len(machine.valid)]
    limit = int(rng.choice([1 << 62, 1 << 40, 1 << 20]))
    machine.prm_b[:] = rng.integers(-limit, limit, machine.prm_b.shape)
    limit = int(rng.choice([1 << 31, 1 << 16, 1 << 6]))
    machine.prm_m[:] = rng.integers(-limit, limit, machine.prm_m.shape)
    machine.act[-1], machine.prm_b[-1], machine.prm_m[-1] = 0, 0, 1


def shape_taps(rng, depth: int, inner: int, f: dict, strides: tuple, align: int = 1):
    """Chooses bases and a ring such that every address of the taps is inside `depth`, or returns False."""
    def below(low, high):
        return int(rng.integers(low, high)) // align * align

    offset = inner + sum((f[count] - 1) * f[stride] for count, stride in strides)
    rows = (f["ny"] - 1) * f["sy"] + (f["kh"] - 1) * f["skh"]
    room = depth - 1 - offset
    if rng.integers(2):
        if rows >= room:
            return False
        f["act_base"], f["ring_words"] = below(0, room - rows), 0
        return True
    least = max(f["sy"], f["skh"], 1)
    if least >= room:
        return False
    f["ring_words"] = below(least + align, room + align)
    if f["ring_words"] >= room:
        return False
    f["ring_base"] = below(0, room - f["ring_words"])
    f["act_base"] = f["ring_base"] + below(0, f["ring_words"])
    return True


def random_kinds(rng, c: Config) -> dict:
    """Formats that the shift-add engine may be given."""
    a_kind, w_kind = (int(rng.choice((Kind.UINT, Kind.INT, Kind.LOG, Kind.LOG, Kind.CODEBOOK))) for _ in "aw")
    return dict(a_kind=a_kind, w_kind=w_kind, a_bits=int(rng.integers(1, c.shift_a_bits + 1)),
                w_bits=int(rng.integers(1, c.shift_w_bits + 1)))


def random_format(rng, c: Config) -> dict:
    most = c.k // c.shift_lanes
    steps = {f"{side}_step": int(rng.choice((1, 1, 2, c.shift_classes, 7))) for side in "aw"}
    steps["drop"] = int(rng.choice((0, 0, 1, rng.integers(0, 32))))
    return steps | dict(a_signed=int(rng.integers(2)), w_signed=int(rng.integers(2)),
                        scaled=int(rng.integers(min(2, c.shift_classes))),
                        slices=int(rng.choice((1, most, most, rng.integers(1, most + 1)))),
                        signal=int(rng.integers(0, 1 << isa.SEM_COUNT)))


def random_table(rng) -> dict:
    table = int(rng.integers(2))
    most = 1 << (int(rng.choice((3, 8, 15))) if table == isa.Table.VALUES else int(rng.choice((4, 12, 31))))
    entries = [-most, most - 1, *rng.integers(-most, most, 6).tolist()]
    return dict(table=table, half=int(rng.integers(2))) | {f"entry_{i}": v for i, v in enumerate(sorted(entries))}


def random_conv(rng, c: Config, form: dict | None = None) -> dict:
    """A CONV that touches no word outside its buffers; with `form` of the shift-add engine."""
    def pick(*values):
        return int(rng.choice(values))

    while True:
        f = dict(ny=pick(1, 1, 2, 3), nx=pick(1, 2, 3, 5), ng=int(rng.integers(1, min(c.tiles_per_word, 6) + 1)),
                 kh=pick(1, 1, 2, 3), kw=pick(1, 1, 2, 3), nc=pick(1, 1, 2), sy=int(rng.integers(0, 40)),
                 sx=int(rng.integers(0, 12)),
                 sg=pick(0, 0, 3), skh=int(rng.integers(0, 40)), skw=int(rng.integers(0, 12)), sc=pick(1, 4, 8),
                 a_kind=pick(0, 1, 2), w_kind=pick(0, 1, 2), a_bits=pick(1, 1, 2, 3, 8), w_bits=pick(1, 1, 2, 3, 9),
                 output=pick(*list(Output)[:None if c.shift_lanes else 3]), psum_add=pick(0, 0, 1),
                 out_planes=pick(1, 2, 4, 8, 16),
                 res_planes=pick(0, 0, 1, 4, 8, 16), res_signed=pick(0, 1), res_pitch=pick(0, 1, 8, 16),
                 m2=int(rng.integers(-1 << 31, 1 << 31)),
                 shift=int(rng.integers(0, 64)), signal=int(rng.integers(0, 1 << isa.SEM_COUNT)),
                 wait=int(rng.integers(0, 1 << isa.SEM_COUNT)))
        align = 1
        if f["a_kind"] == Kind.BIPOLAR:  # the planes of a word are valid together
            align = 8
            f.update({name: f[name] // 8 * 8 for name in ("sy", "sx", "sg", "skh", "skw", "sc")})
        f["lo"], f["hi"] = sorted(int(v) for v in rng.integers(-1 << 31, 1 << 31, 2))
        if rng.integers(2):
            f["lo"], f["hi"] = 0, (1 << f["out_planes"]) - 1
            f["m2"] >>= 16
        f["wgt_tap"] = pick(0, f["nc"] * f["w_bits"])
        f["wgt_g"] = pick(0, 1, f["kh"] * f["kw"] * f["wgt_tap"])
        positions = f["ny"] * f["nx"]
        if form is not None:
            f |= dict(engine=isa.Engine.SHIFT_ADD, **random_kinds(rng, c))
            if shiftadd.refusal(f, form, c):
                continue
        steps = positions * f["ng"] * f["kh"] * f["kw"] * f["nc"] * f["a_bits"] * f["w_bits"]
        wgt = (f["ng"] - 1) * f["wgt_g"] + (f["kh"] * f["kw"] - 1) * f["wgt_tap"] + f["nc"] * f["w_bits"]
        psum = positions * f["ng"] * c.m
        out = {Output.PSUM: 0, Output.INT32: positions * f["ng"] * c.raw_words}.get(f["output"], positions * f["out_planes"])
        res = (positions - 1) * f["res_pitch"] + f["res_planes"]
        if (steps > 4000 or wgt > c.wgt_words or psum > c.psum_words or out > c.out_words or res > c.res_words
                or f["out_planes"] > c.max_planes):
            continue
        if not shape_taps(rng, c.act_words, f["a_bits"] - 1, f, (("nx", "sx"), ("ng", "sg"), ("kw", "skw"), ("nc", "sc")), align):
            continue
        for name, size, depth in (("wgt_base", wgt, c.wgt_words), ("psum_base", psum, c.psum_words),
                                  ("out_base", out, c.out_words), ("res_base", res, c.res_words),
                                  ("prm_base", f["ng"], c.prm_words - 1)):
            f[name] = int(rng.integers(0, depth - size + 1))
        return f


def random_pool(rng, c: Config) -> dict:
    def pick(*values):
        return int(rng.choice(values))

    while True:
        f = dict(ny=pick(1, 2, 3), nx=pick(1, 2, 3), ng=pick(1, 2, 3), kh=pick(1, 2, 3), kw=pick(1, 2, 3),
                 sy=int(rng.integers(0, 40)), sx=int(rng.integers(0, 20)), skh=int(rng.integers(0, 40)),
                 skw=int(rng.integers(0, 20)), planes=pick(1, 2, 3, 8, 16), is_signed=pick(0, 1),
                 signal=int(rng.integers(0, 1 << isa.SEM_COUNT)), wait=int(rng.integers(0, 1 << isa.SEM_COUNT)))
        out = f["ny"] * f["nx"] * f["ng"] * f["planes"]
        if out > c.out_words or f["planes"] > c.max_planes:
            continue
        if not shape_taps(rng, c.act_words, f["ng"] * f["planes"] - 1, f, (("nx", "sx"), ("kw", "skw"))):
            continue
        f["out_base"] = int(rng.integers(0, c.out_words - out + 1))
        return f


def dump_psum(c: Config) -> list[list]:
    """Programs that copy the psum memory to the out buffer, a part each."""
    programs = []
    step = min(c.psum_words // c.m, c.out_words // c.raw_words)
    for first in range(0, c.psum_words // c.m, step):
        nx = min(step, c.psum_words // c.m - first)
        programs.append([("CONV", dict(nx=nx, act_base=c.act_words - 1, a_kind=Kind.UINT, w_kind=Kind.UINT, output=Output.INT32,
                                       psum_add=1, psum_base=first * c.m, prm_base=c.prm_words - 1, lo=-1 << 31, hi=(1 << 31) - 1,
                                       out_planes=1))])
    return programs


def stalls(result: Result) -> dict:
    return {Counter(i).name: n for i, n in enumerate(result.causes) if n}
