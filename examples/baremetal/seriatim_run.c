#include "seriatim_run.h"

static uint32_t get(volatile uint32_t *base, unsigned offset) {
    return base[offset / 4u];
}

static void put(volatile uint32_t *base, unsigned offset, uint32_t value) {
    base[offset / 4u] = value;
}

int seriatim_present(volatile uint32_t *base) {
    return get(base, SERIATIM_REG_ID) == SERIATIM_ID && get(base, SERIATIM_REG_ISA_VERSION) == SERIATIM_ISA_VERSION &&
           get(base, SERIATIM_REG_CONFIG_HASH) == SERIATIM_CONFIG_HASH;
}

struct seriatim_result seriatim_run(volatile uint32_t *base, const struct seriatim_job *job) {
    struct seriatim_result result;
    unsigned counter;

    put(base, SERIATIM_REG_PROG_BASE, job->prog_base);
    put(base, SERIATIM_REG_PROG_BYTES, job->prog_bytes);
    put(base, SERIATIM_REG_READ_BASE, job->read_base);
    put(base, SERIATIM_REG_READ_LIMIT, job->read_limit);
    put(base, SERIATIM_REG_WRITE_BASE, job->write_base);
    put(base, SERIATIM_REG_WRITE_LIMIT, job->write_limit);
    put(base, SERIATIM_REG_WATCHDOG, job->watchdog);
    put(base, SERIATIM_REG_IRQ_ENABLE, 0u); /* this driver polls */
    put(base, SERIATIM_REG_CTRL, SERIATIM_CTRL_START);
    while (get(base, SERIATIM_REG_STATUS) & SERIATIM_STATUS_BUSY) {
    }
    put(base, SERIATIM_REG_CTRL, SERIATIM_CTRL_ACKNOWLEDGE);

    result.cause = (enum seriatim_cause)get(base, SERIATIM_REG_CAUSE);
    result.error_pc = get(base, SERIATIM_REG_ERROR_PC);
    result.cycles = 0; /* the first eight counters, busy and stalled, add up to them */
    for (counter = SERIATIM_COUNTER_BUSY; counter <= SERIATIM_COUNTER_STALL_FETCH; counter++)
        result.cycles += (uint64_t)get(base, SERIATIM_REG_COUNTER_HI(counter)) << 32 | get(base, SERIATIM_REG_COUNTER_LO(counter));
    return result;
}
