"""The cycle model of the compact machine: what its firmware does for each instruction, one after the other.

The cycles of `Tile` are exact. The firmware's come from counts of what it does (words copied, bytes of patches, positions, ...)
with a cost each, `COSTS`, which `tools/fit_sequential.py` finds by least squares from layers that run on the RTL. An access of
memory takes its latency besides.
"""

from collections import Counter as Tally
from collections.abc import Iterator

from seriatim import isa
from seriatim.config import Config, Memory
from seriatim.isa import Output, Queue, Sem

from .model import Prediction

TILE_CYCLES = 11
"""Between the steps of two column tiles, but for planes, residual and shift."""
PSUM_CYCLES = 4
"""The same where sums go to the psum memory."""
COSTS: dict[str, float] = {
    "access": 33, "byte": 159, "byte read": 68, "decode CONV": 11082, "decode END": 1013, "decode FILL": 691,
    "decode LOAD": 2041, "decode MARK": 0, "decode PATCH": 5405, "decode POOL": 3191, "decode STORE": 614, "looked at": 1137,
    "pooled code": 41, "pooled plane": 113, "pooled row": 324, "position": 77, "row": 152, "segment": 261, "start": 0,
    "tap": 0, "tap of an image": 295, "window": 97, "word filled": 212, "word read": 0, "word written": 19,
}
ACCESS = "access"
"""Accesses of memory: each takes its latency."""


def work(name: str, f: dict[str, int]) -> Tally:
    """What an instruction takes: cycles of `Tile`, and how often the firmware does what `COSTS` has."""
    done = Tally()
    if name == "LOAD":
        segments = f["slices"] * f["ny"] * f["nx"]
        words = segments * f["words"] * (4 if f["buffer"] == isa.Buffer.PRM else 1)
        done |= {"row": f["ny"], "segment": segments, "word read": words, ACCESS: words}
    elif name == "FILL":
        done |= {"row": f["ny"], "word filled": f["ny"] * f["words"] * f["mask"].bit_count()}
    elif name == "PATCH":
        taps = f["nx"] * f["kh"] * f["kw"]
        inside = _inside(f)
        done |= {"tap": taps, "tap of an image": inside, "byte": taps * f["channels"], "byte read": inside * f["channels"],
                 ACCESS: inside * f["channels"]}
    elif name == "CONV":
        positions = f["ny"] * f["nx"]
        steps = f["kh"] * f["kw"] * f["nc"] * f["a_bits"] * f["w_bits"]
        tail = PSUM_CYCLES
        if f["output"] != Output.PSUM:
            tail = TILE_CYCLES + f["shift"] + (f["out_planes"] if f["output"] == Output.PLANES else 1)
            tail += f["res_planes"] + 1 if f["res_planes"] else 0
        done |= {"window": f["ny"] * f["kh"], "position": positions, "cycle": positions * f["ng"] * (steps + tail)}
    elif name == "POOL":
        windows = f["ny"] * f["nx"] * f["ng"]
        done |= {"window": f["ny"] * f["kh"], "pooled row": windows * f["kh"], "pooled code": windows * f["kh"] * f["kw"],
                 "pooled plane": windows * f["kh"] * f["kw"] * f["planes"]}
    elif name == "STORE":
        segments = f["ny"] * f["nx"]
        done |= {"row": f["ny"], "segment": segments, "word written": segments * f["words"], ACCESS: segments * f["words"]}
    return done


def _inside(f: dict[str, int]) -> int:
    """Taps of a PATCH that are inside its image, over all positions."""
    rows = sum(0 <= f["y0"] + r * f["dh"] < f["height"] for r in range(f["kh"]))
    return rows * sum(0 <= f["x0"] + x * f["sw"] + t * f["dw"] < f["width"] for x in range(f["nx"]) for t in range(f["kw"]))


def order(program: bytes) -> Iterator[tuple[str, dict[str, int], Tally]]:
    """The instructions as the firmware executes them, each with what it and the search for the queue's next one take. The first
    stands for the start."""
    listing = [isa.decode(program[at:at + isa.INSTR_BYTES]) for at in range(0, len(program), isa.INSTR_BYTES)]
    queues = [Queue.LOAD, Queue.EXEC, Queue.STORE]
    tokens = dict.fromkeys(Sem, 0)
    heads: dict[Queue, int] = {}

    def find(queue: Queue, at: int) -> Tally:
        first = at
        while listing[at][0].queue not in (queue, Queue.FETCH):
            at += 1
        heads[queue] = at
        looked = at - first + 1
        return Tally({"looked at": looked, f"decode {listing[at][0].name}": 1, ACCESS: looked + isa.INSTR_BYTES // 4})

    started = Tally({"start": 1})
    for queue in queues:
        started += find(queue, 0)
    yield "", {}, started
    going = True
    while going:
        going = False
        for queue in queues:
            while True:
                instr, fields = listing[heads[queue]]
                if instr.queue is not queue or any(s & fields["wait"] and not tokens[s] for s in Sem):
                    break
                for s in Sem:
                    tokens[s] += bool(s & fields["signal"]) - bool(s & fields["wait"])
                yield instr.name, fields, work(instr.name, fields) + find(queue, heads[queue] + 1)
                going = True


def cycles(done: Tally, memory: Memory) -> float:
    """Cycles of what is counted."""
    return done["cycle"] + done[ACCESS] * memory.latency + sum(COSTS[what] * n for what, n in done.items() if what != "cycle")


def predict(program: bytes, config: Config, memory: Memory) -> Prediction:
    """What `program` takes on the compact machine with `memory`."""
    now, marks = 0.0, []
    for name, _, done in order(program):
        if name == "MARK":
            marks.append(now)
        now += cycles(done, memory)
    edges = [0, *marks[1:], now]
    return Prediction(round(now), tuple(round(b) - round(a) for a, b in zip(edges, edges[1:])) if marks else ())
