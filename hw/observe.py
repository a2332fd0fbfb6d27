"""What a traced simulation sees of the machine: ports that only its build has."""

from amaranth.hdl import Cat, Mux
from amaranth.lib import wiring
from amaranth.lib.wiring import Out

from seriatim import isa
from seriatim.config import Config

PC_BITS = 32


def observe_signature(config: Config) -> wiring.Signature:
    """Ports of the top, each of up to 64 bits so that the harness can watch it. Units in the order of the top's semaphores.

    running : a program runs. cause : the counter that this cycle belongs to.
    stepping_on : the sequencer has an instruction.
    mark : bit 0: the counters are being copied; above it the layer.
    head : of each unit's queue: bit 0: there is one; above it its byte offset in the program.
    wait : of each unit: bit 0: the head may not start yet; above it the semaphores that it lacks.
    gave : of each unit: bit 0: an instruction has finished; above it its byte offset in the program.
    queue : instructions in each unit's queue, the head included.
    level : of each semaphore.
    """
    units = 3
    return wiring.Signature({
        "running": Out(1),
        "cause": Out(4),
        "stepping_on": Out(1),
        "mark": Out(9),
        "head": Out(1 + PC_BITS).array(units),
        "wait": Out(1 + isa.SEM_COUNT).array(units),
        "gave": Out(1 + PC_BITS).array(units),
        "queue": Out(range(config.queue + 2)).array(units),
        "level": Out(isa.SEM_BITS).array(isa.SEM_COUNT),
    })


def port_names(config: Config) -> list[str]:
    """Names of the ports on the top, as its Verilog has them."""
    members = observe_signature(config).members
    return [f"observe_{name}{number}" for name, member in members.items()
            for number in ([f"_{i}" for i in range(member.dimensions[0])] if member.dimensions else [""])]


def observe(ports, units, queues, semaphores, running, counters, execute):
    """Assignments of `ports`; `units` and `queues` in the order of the semaphores' takers."""
    yield ports.running.eq(running)
    yield ports.cause.eq(counters.cause)
    yield ports.stepping_on.eq(execute.sequencer.running)
    yield ports.mark.eq(Mux(execute.mark_valid, Cat(1, execute.mark_layer), 0))
    for i, (unit, queue) in enumerate(zip(units, queues)):
        waiting = unit.take_valid & ~semaphores.take_ok[i]
        yield ports.head[i].eq(Mux(unit.instr.valid, Cat(1, unit.instr.payload.pc), 0))
        yield ports.wait[i].eq(Mux(waiting, Cat(1, semaphores.lack[i]), 0))
        yield ports.gave[i].eq(Mux(unit.give_valid, Cat(1, unit.give_pc), 0))
        yield ports.queue[i].eq(queue.count + queue.head.valid)
    for port, level in zip(ports.level, semaphores.levels):
        yield port.eq(level)
