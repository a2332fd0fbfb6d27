"""`Seriatim`: the accelerator."""

from amaranth.hdl import Cat, Module, Mux, ResetInserter, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from seriatim.config import Config
from seriatim.csr import ACTIVITY_COUNTERS, Cause, Counter
from seriatim.errors import ConfigError
from seriatim.isa import Queue

from . import axi
from .activity import ARRAY_ACTIVITY, MEMORY_ACTIVITY, MemoryActivity
from .buffers import Banks, Flags
from .compact import Compact
from .counters import Counters
from .csr import LITE, Registers
from .execute import Execute
from .fetch import Fetch
from .load import Load, param_layout
from .observe import observe, observe_signature
from .semaphores import UNITS, Semaphores
from .sleep import Sleep, units
from .store import Store

LOAD, EXEC, STORE = 1, 0, 2
"""Units as takers of semaphores: execute goes first."""


class Seriatim(wiring.Component):
    """Fetch, load, execute and store around the buffers: `seriatim.isa` says what it does, `seriatim.csr` has its registers.

    A start clears every unit and the counters. The machine is done when END was fetched, all queues are empty, all units idle and
    every AXI burst is answered. The first error halts it: bursts in flight are completed (reads swallowed, writes without bytes
    enabled), then it stops. The watchdog stops it at once; what is then in flight is swallowed whenever it comes.

    Members
    -------
    s_axil : AXI4-Lite slave. m_axi : AXI4 master. irq : interrupt, level.
    clk_*, wake_* : with `sleep`, see there.
    observe : what a trace is made of (`observe=True` alone).
    """

    def __init__(self, config: Config, simulation: bool = False, *, sleep: bool = False, observe: bool = False):
        self.config, self.simulation, self.sleep, self.observed = config, simulation, Sleep(sleep, units(config)), observe
        read, write = axi.read_signature(config), axi.write_signature(config)
        super().__init__({
            "s_axil": In(LITE),
            "m_axi": Out(wiring.Signature({**read.members, **write.members})),
            "irq": Out(1),
        } | self.sleep.ports() | ({"observe": Out(observe_signature(config))} if observe else {}))

    def elaborate(self, platform):
        m = Module()
        c = self.config
        start, halt = Signal(), Signal()
        running = Signal()
        put, domain = self.sleep.put, self.sleep.domain
        restart = ResetInserter(dict.fromkeys(("sync", domain("patch")), start))  # the patch builder is a part of load
        registers = Registers(c)
        m.submodules.registers = put("registers", registers)
        m.submodules.reader = reader = axi.Reader(c)
        m.submodules.writer = writer = axi.Writer(c)
        fetch, load, store, semaphores = Fetch(c), Load(c, self.sleep), Store(c), Semaphores()
        m.submodules.fetch, m.submodules.load = put("fetch", restart(fetch)), put("load", restart(load))
        m.submodules.store, m.submodules.semaphores = put("store", restart(store)), put("semaphores", restart(semaphores))
        m.submodules.execute = execute = Execute(c, self.simulation, self.sleep)
        m.submodules.counters = counters = Counters(c, self.simulation)
        loaded = {"writer": domain("load")}
        m.submodules.act = act = Banks(c.m, c.act_words, c.k, **loaded)
        m.submodules.act_flags = flags = Flags(c.m, c.act_words, **loaded)
        m.submodules.res = res = Banks(c.m, c.res_words, c.k, **loaded, reader=domain("drain"))
        m.submodules.wgt = wgt = Banks(c.n, c.wgt_words, c.k, **loaded)
        m.submodules.prm = prm = Banks(c.n, c.prm_words, param_layout(), shared=load.prm_ports, **loaded, reader=domain("drain"))
        m.submodules.out = out = Banks(c.m, c.out_words, c.k, shared=c.m, writer=domain("drain"), reader=domain("store"))
        self.sleep.connect(m, self, {
            "fetch": fetch.awake, "load": load.awake, "patch": load.patch_awake, "store": store.awake,
            "drain": execute.drain_awake, "pool": execute.pool_awake, "semaphores": semaphores.awake,
            "registers": registers.awake, "shift": execute.shift_awake,
        }, start)

        # AXI.
        wiring.connect(m, wiring.flipped(self.s_axil), registers.bus)
        for unit in (reader, writer):
            for name, member in unit.bus.signature.members.items():
                mine, its = getattr(self.m_axi, name), getattr(unit.bus, name)
                m.d.comb += mine.eq(its) if member.flow == Out else its.eq(mine)
        wiring.connect(m, fetch.request, reader.fetch)
        wiring.connect(m, load.request, reader.load)
        wiring.connect(m, store.request, writer.request)
        wiring.connect(m, store.beats, writer.data)
        m.d.comb += [
            fetch.beat_valid.eq(reader.fetch_valid), fetch.beat_data.eq(reader.data), fetch.beat_error.eq(reader.error),
            load.beat_valid.eq(reader.load_valid), load.beat_data.eq(reader.data), load.beat_error.eq(reader.error),
            load.read_base.eq(registers.read_base), load.read_limit.eq(registers.read_limit),
            store.write_base.eq(registers.write_base), store.write_limit.eq(registers.write_limit),
            store.written.eq(writer.idle), store.write_error.eq(writer.error),
            fetch.run.eq(running), fetch.base.eq(registers.prog_base), fetch.size.eq(registers.prog_bytes),
            reader.clear.eq(start), reader.halt.eq(halt), writer.halt.eq(halt), execute.clear.eq(start),
        ]

        # Queues and semaphores.
        units = {LOAD: load, EXEC: execute, STORE: store}
        for i, unit in units.items():
            wiring.connect(m, getattr(fetch, {LOAD: "load", EXEC: "exec", STORE: "store"}[i]), unit.instr)
            m.d.comb += [
                semaphores.take_valid[i].eq(unit.take_valid), semaphores.take_mask[i].eq(unit.take_mask),
                unit.take_ok.eq(semaphores.take_ok[i]), unit.halt.eq(halt),
                semaphores.give_valid[i].eq(unit.give_valid), semaphores.give_mask[i].eq(unit.give_mask),
                semaphores.give_pc[i].eq(unit.give_pc),
            ]
        m.d.comb += [execute.lack.eq(semaphores.lack[EXEC]), fetch.halt.eq(halt)]

        # Buffers.
        m.d.comb += [
            act.we.eq(load.act_we), flags.we.eq(load.act_we), flags.wdata.eq(load.act_flag),
            res.we.eq(load.res_we), wgt.we.eq(load.wgt_we), prm.we.eq(load.prm_we),
            flags.en.eq(execute.act_en), flags.raddr.eq(execute.act_addr), execute.act_valid.eq(flags.rdata),
            out.we.eq(execute.out_we), out.waddr.eq(execute.out_addr), out.en.eq(store.out_en), out.raddr.eq(store.out_addr),
        ]
        for banks in (act, flags, res, wgt, prm):
            m.d.comb += banks.waddr.eq(load.addr)
        for banks in (act, res, wgt):
            m.d.comb += banks.wdata[0].eq(load.data)
        m.d.comb += [mine.eq(its) for mine, its in zip(prm.wdata, load.prm_data)]
        for name, banks in (("act", act), ("res", res), ("wgt", wgt), ("prm", prm)):
            m.d.comb += [banks.en.eq(getattr(execute, f"{name}_en")), banks.raddr.eq(getattr(execute, f"{name}_addr"))]
            for mine, its in zip(getattr(execute, f"{name}_data"), banks.rdata):
                if name == "prm":
                    m.d.comb += [mine.b.eq(its.b), mine.m.eq(its.m)]
                else:
                    m.d.comb += mine.eq(its)
        m.d.comb += [mine.eq(its) for mine, its in zip(out.wdata, execute.out_data)]
        m.d.comb += [mine.eq(its) for mine, its in zip(store.out_data, out.rdata)]

        # Counters.
        waiting = execute.cause == Counter.STALL_FETCH
        last_stores = fetch.ended & fetch.exec_empty & ~execute.busy & waiting
        events = {
            Counter.READ_BEATS: reader.beat, Counter.WRITE_BEATS: writer.beat, Counter.ARRAY_STEPS: execute.array_step,
            Counter.POOL_STEPS: execute.pool_step, Counter.REQUANTS: execute.requant_step,
            Counter.FETCH_BEATS: reader.fetch_valid,
        }
        m.d.comb += [
            counters.clear.eq(start), counters.running.eq(running),
            counters.cause.eq(Mux(last_stores, Counter.STALL_STORE, execute.cause)),
            counters.events.eq(Mux(running, Cat(events[counter] for counter in Counters.EVENTS), 0)),
            counters.mark_valid.eq(execute.mark_valid), counters.mark_layer.eq(execute.mark_layer),
            execute.mark_done.eq(counters.mark_done), counters.profile_addr.eq(registers.profile_addr),
            registers.layer.eq(counters.layer), registers.profile_lo.eq(counters.profile_data[:32]),
            registers.profile_hi.eq(counters.profile_data[32:]),
        ]
        m.d.comb += [mine.eq(its) for mine, its in zip(registers.counters, counters.values)]
        if self.simulation:
            m.submodules.activity = restart(activity := MemoryActivity(c))
            m.d.comb += [
                activity.act_writes.eq(load.act_we), activity.res_writes.eq(load.res_we),
                activity.wgt_writes.eq(load.wgt_we), activity.prm_writes.eq(load.prm_we),
                activity.res_reads.eq(execute.res_en), activity.out_writes.eq(execute.out_we[0]),
                activity.psum_reads.eq(execute.psum_read), activity.psum_writes.eq(execute.psum_write),
                activity.shift_steps.eq(execute.shift_step), activity.shift_act_reads.eq(execute.shift_act),
                activity.shift_wgt_reads.eq(execute.shift_wgt),
            ]
            values = dict(zip(MEMORY_ACTIVITY + ARRAY_ACTIVITY, [*activity.values, *execute.activity]))
            m.d.comb += [counters.activity[i].eq(values[counter]) for i, counter in enumerate(ACTIVITY_COUNTERS)]

        self._control(m, registers, start, running, halt, units, fetch, semaphores, reader, writer)
        if self.observed:
            queues = [fetch.queues[{LOAD: Queue.LOAD, EXEC: Queue.EXEC, STORE: Queue.STORE}[i]] for i in range(UNITS)]
            m.d.comb += observe(self.observe, [units[i] for i in range(UNITS)], queues, semaphores, running, counters, execute)
        return m

    def _control(self, m, registers, start, running, halt, units, fetch, semaphores, reader, writer):
        """Start, done, errors, watchdog, interrupt."""
        load, execute, store = units[LOAD], units[EXEC], units[STORE]
        done, pending = Signal(), Signal()
        cause, error_pc = Signal(Cause), Signal(32)
        idle, finished, hung = Signal(), Signal(), Signal()
        failed, what, where = Signal(), Signal(Cause), Signal(32)

        queues = Cat(fetch.load_empty, fetch.exec_empty, fetch.store_empty).all()
        m.d.comb += [
            start.eq(registers.ctrl[0] & ~running),
            idle.eq(reader.idle & writer.idle),
            finished.eq(running & idle & (halt | (fetch.ended & queues & ~load.busy & ~execute.busy & ~store.busy & ~failed
                                                  & ~Cat(unit.give_valid for unit in units.values()).any()))),
        ]

        # No progress for WATCHDOG cycles.
        silent = Signal(32)
        progress = Signal()  # in the cycle before: what moves is known late in a cycle
        m.d.sync += progress.eq(Cat(
            execute.array_step, execute.pool_step, execute.requant_step, reader.beat, writer.beat, load.progress, start,
            *(unit.give_valid for unit in units.values()), *(unit.instr.ready for unit in units.values()),
        ).any())
        with m.If(progress):
            m.d.sync += silent.eq(0)
        with m.Elif(running):
            m.d.sync += silent.eq(silent + 1)
        m.d.comb += hung.eq(running & (silent >= registers.watchdog) & (registers.watchdog != 0) & ~progress)
        oldest = fetch.pc
        for unit in (store, execute, load):
            oldest = Mux(unit.instr.valid & (unit.instr.payload.pc < oldest), unit.instr.payload.pc, oldest)

        with m.If(hung):
            m.d.comb += [failed.eq(1), what.eq(Cause.WATCHDOG), where.eq(oldest)]
        for unit in (execute, load, store, fetch):
            with m.If(unit.error_valid):
                m.d.comb += [failed.eq(1), what.eq(unit.error_cause), where.eq(unit.error_pc)]
        with m.If(semaphores.overflow):
            m.d.comb += [failed.eq(1), what.eq(Cause.TOKEN_OVERFLOW), where.eq(semaphores.overflow_pc)]
        with m.If(running & failed & ~halt):
            m.d.sync += [halt.eq(1), cause.eq(what), error_pc.eq(where)]
        with m.If(finished | hung):
            m.d.sync += [running.eq(0), done.eq(~halt & ~hung), pending.eq(1)]
        with m.If(registers.ctrl[1]):
            m.d.sync += pending.eq(0)
        with m.If(start):
            m.d.sync += [running.eq(1), done.eq(0), pending.eq(0), halt.eq(0), cause.eq(Cause.NONE), error_pc.eq(0)]
        m.d.comb += [
            self.irq.eq(pending & registers.irq_enable[0]),
            registers.status.eq(Cat(running, done, cause != Cause.NONE, pending)),
            registers.cause.eq(cause), registers.error_pc.eq(error_pc),
        ]


def machine(config: Config, simulation: bool = False) -> wiring.Component:
    """The accelerator of `config`, whichever has its ports."""
    return Compact(config, simulation) if config.compact else Seriatim(config, simulation)


def simulated(config: Config, observe: bool = False) -> wiring.Component:
    """Its simulation build. Raises ConfigError where it cannot be observed."""
    if not config.compact:
        return Seriatim(config, simulation=True, sleep=True, observe=observe)
    if observe:
        raise ConfigError(f"a trace of the compact {config} machine: it has no units side by side; trace one without compact=1")
    return machine(config, simulation=True)
