"""Requantisation of N accumulators a cycle."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

RES_BITS = 17
"""A residual of up to 16 planes, signed or not, as a signed number."""
MULTIPLIER_STAGES = 2
"""Registers that `multiplier_stages` adds, if it is not 0."""
HALF = 16
"""Bits of the low half of a number that is wider than a multiplier."""
MULTIPLIER_BITS = 18
"""Signed numbers that a multiplier of an FPGA takes."""


class Requant(wiring.Component):
    """q = clip((m * acc + m2 * res + b) >> shift, lo, hi) in `lanes` lanes. Where there are thresholds, `encode` puts the number
    of those that are not above q in its place.

    Products and sum are 64 bits (the compiler proves that they fit); the shift is arithmetic and rounds down. With
    `multiplier_stages` a multiplication is one of halves, which a fast FPGA clock needs: a register behind the multipliers, one
    behind the sums of what they give.
    Throughput: one row a cycle. Latency: `latency` cycles. What all lanes share, `m2`, `shift`, `lo` and `hi`, holds while a row
    is under way; `m` and `b` are read with the row.

    Members
    -------
    valid, tag, acc, res, m, b : a row.
    m2, shift, lo, hi : of the layer.
    q_valid, q_tag, q : the row's results.
    early_valid, early_tag : announce them one cycle before.
    awake : see `sleep`.
    """

    def __init__(self, lanes: int, tag_bits: int, thresholds: int = 0, multiplier_stages: int = 0):
        self.lanes, self.multiplier_stages = lanes, multiplier_stages
        self.latency = (5 if thresholds else 4) + multiplier_stages
        encoder = {"encode": In(1), "thresholds": In(signed(32)).array(thresholds)} if thresholds else {}
        super().__init__(encoder | {
            "valid": In(1),
            "tag": In(tag_bits),
            "acc": In(signed(32)).array(lanes),
            "res": In(signed(RES_BITS)).array(lanes),
            "m": In(signed(32)).array(lanes),
            "b": In(signed(64)).array(lanes),
            "m2": In(signed(32)),
            "shift": In(6),
            "lo": In(signed(32)),
            "hi": In(signed(32)),
            "early_valid": Out(1),
            "early_tag": Out(tag_bits),
            "q_valid": Out(1),
            "q_tag": Out(tag_bits),
            "q": Out(signed(32)).array(lanes),
            "awake": Out(1),
        })

    def elaborate(self, platform):
        m = Module()
        valid = [self.valid]
        tag = [self.tag]
        for stage in range(1, self.latency + 1):
            valid.append(Signal(name=f"valid_{stage}"))
            tag.append(Signal.like(self.tag, name=f"tag_{stage}", reset_less=True))
            m.d.sync += [valid[stage].eq(valid[stage - 1]), tag[stage].eq(tag[stage - 1])]
        m.d.comb += [
            self.early_valid.eq(valid[-2]), self.early_tag.eq(tag[-2]),
            self.q_valid.eq(valid[-1]), self.q_tag.eq(tag[-1]), self.awake.eq(Cat(valid).any()),
        ]
        for lane in range(self.lanes):
            product = Signal(signed(64), name=f"product_{lane}", reset_less=True)
            residual = Signal(signed(64), name=f"residual_{lane}", reset_less=True)
            total = Signal(signed(64), name=f"total_{lane}", reset_less=True)
            shifted = Signal(signed(64), name=f"shifted_{lane}", reset_less=True)
            q = Signal(signed(32), name=f"q_{lane}", reset_less=True)
            multiplied = valid[self.multiplier_stages:]
            if self.multiplier_stages:
                self._multiply(m, valid, lane, product, residual)
            else:
                with m.If(valid[0]):
                    m.d.sync += [
                        product.eq(self.m[lane] * self.acc[lane] + self.b[lane]),
                        residual.eq(self.m2 * self.res[lane]),
                    ]
            with m.If(multiplied[1]):
                m.d.sync += total.eq(product + residual)
            with m.If(multiplied[2]):
                m.d.sync += shifted.eq(total >> self.shift)
            with m.If(multiplied[3]):
                m.d.sync += q.eq(Mux(shifted < self.lo, self.lo, Mux(shifted > self.hi, self.hi, shifted)))
            if hasattr(self, "thresholds"):
                code = Signal(signed(32), name=f"code_{lane}", reset_less=True)
                with m.If(multiplied[4]):
                    m.d.sync += code.eq(Mux(self.encode, sum(q >= threshold for threshold in self.thresholds), q))
                q = code
            m.d.comb += self.q[lane].eq(q)
        return m

    def _multiply(self, m: Module, valid, lane: int, product, residual):
        """`product` and `residual`, `MULTIPLIER_STAGES` cycles later. Low halves, `HALF` bits, are unsigned."""

        def halves(value):
            return [value[:HALF], value[HALF:].as_signed()] if len(value) > MULTIPLIER_BITS else [value]

        def weighted(parts):
            """The sum of parts, each HALF bits above the one before."""
            return sum((part << HALF * i for i, part in enumerate(parts[1:], 1)), parts[0])

        sums = []
        for name, a, b in (("m_acc", self.acc[lane], self.m[lane]), ("m2_res", self.res[lane], self.m2)):
            rows = []
            for i, x in enumerate(halves(a)):
                parts = [Signal(signed(36), name=f"{name}_{i}{j}_{lane}", reset_less=True) for j in range(len(halves(b)))]
                row = Signal(signed(53), name=f"{name}_{i}_{lane}", reset_less=True)
                with m.If(valid[0]):
                    m.d.sync += [part.eq(x * y) for part, y in zip(parts, halves(b))]
                with m.If(valid[1]):
                    m.d.sync += row.eq(weighted(parts))
                rows.append(row)
            sums.append(weighted(rows))
        bias = [self.b[lane], *(Signal(signed(64), name=f"bias_{i}_{lane}", reset_less=True) for i in range(MULTIPLIER_STAGES))]
        for i in range(MULTIPLIER_STAGES):
            with m.If(valid[i]):
                m.d.sync += bias[i + 1].eq(bias[i])
        with m.If(valid[2]):
            m.d.sync += [product.eq(sums[0] + bias[-1]), residual.eq(sums[1])]
