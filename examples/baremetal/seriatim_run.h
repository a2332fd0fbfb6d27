/* Runs a program on the accelerator, without an operating system.
 *
 * Needs seriatim.h of `seriatim emit`; the job's numbers are those of layout.json of `seriatim dump`.
 */
#ifndef SERIATIM_RUN_H
#define SERIATIM_RUN_H

#include <stdint.h>

#include "seriatim.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Byte addresses as the machine sees them; limits are the first byte beyond. */
struct seriatim_job {
    uint32_t prog_base, prog_bytes;
    uint32_t read_base, read_limit;
    uint32_t write_base, write_limit;
    uint32_t watchdog; /* cycles without progress; 0: never */
};

/* How a run ended. `cause` is SERIATIM_CAUSE_NONE where all is well, else `error_pc` is the byte offset of the instruction. */
struct seriatim_result {
    enum seriatim_cause cause;
    uint32_t error_pc;
    uint64_t cycles;
};

/* 1 where the machine whose registers are at `base` is the one that seriatim.h describes, else 0. */
int seriatim_present(volatile uint32_t *base);

/* Starts the program, waits for its end by polling, acknowledges. Program, image and inputs are in memory already, caches flushed. */
struct seriatim_result seriatim_run(volatile uint32_t *base, const struct seriatim_job *job);

#ifdef __cplusplus
}
#endif

#endif
