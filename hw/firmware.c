/* The compact machine's firmware: executes the instructions of seriatim.isa, of which NumPy's sim/isasim.py is the definition.
 *
 * Each of the three queues has the next of its instructions at hand, decoded; one is executed where its semaphores allow it. The
 * core has no multiplier, so addresses are added up where that is as easy. An error stops at once. */

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef int i32;

struct field { u8 bits, lo; u16 hi; };   /* bits: 7 signed, 6:0 width; hi 0: all that fit */
struct instr { u8 first, count, queue, unused; };

#include "contract.h"

#define SCRATCH ((volatile u32 *)(REGION_SCRATCH << 28))
#define REGISTER ((volatile u32 *)(REGION_REGISTERS << 28))
#define WORK ((volatile u32 *)(REGION_WORK << 28))
#define MEMORY(address) (*(volatile u32 *)(REGION_MEMORY << 28 | (address)))
#define CSR SCRATCH
#define QUEUES 3

static struct head { u32 waits, pc, op, f[61]; } heads[QUEUES]; /* `waits`: there is one; 64 words, since a product takes long */
_Static_assert(FIELDS_MOST <= 61, "an instruction has more fields than a head has room for");
static u8 sems[SEM_COUNT];
static u32 some; /* semaphores above zero, as a mask */
static u32 since, steps_since; /* cycles and steps that have been counted */

__attribute__((naked, section(".text.start"))) void _start(void) { __asm__("la sp, stack\n j boot"); }
__attribute__((naked)) static void again(void) { __asm__("la sp, stack\n j idle"); }

/* What the compiler calls for a product. */
u32 __mulsi3(u32 a, u32 b) {
    u32 product = 0;
    for (; b; b >>= 1, a += a) if (b & 1) product += a;
    return product;
}

/* A product of sizes, at most LARGE: more than any buffer has words, and little enough to be added to. */
#define LARGE (1u << 24)
__attribute__((noinline)) static u32 times(u32 a, u32 b) {
    u32 product = 0;
    for (; b; b >>= 1, a += a) {
        if (a > LARGE) a = LARGE;
        if (b & 1) product += a;
        if (product > LARGE) product = LARGE;
    }
    return product;
}

/* How far the last of `rounds` steps is from the first. */
__attribute__((noinline)) static u32 reach(u32 rounds, u32 step) { return times(step, rounds - 1); }

/* Counters. */

__attribute__((noinline)) static void count(u32 counter, u32 n) {
    volatile u32 *lo = CSR + COUNTERS + 2 * counter;
    u32 sum = lo[0] + n;
    if (sum < n) lo[1]++;
    lo[0] = sum;
}

/* What has passed since the last call counts for `cause`, but for `busy` cycles of it. */
static void spend(u32 cause, u32 busy) {
    u32 now = REGISTER[OWN_CYCLES];
    if (busy) count(COUNTER_BUSY, busy);
    count(cause, now - since - busy);
    since = now;
}

/* Errors. */

__attribute__((noreturn, noinline)) static void end(u32 status) {
    spend(COUNTER_STALL_FETCH, 0);
    REGISTER[OWN_STATUS] = status | STATUS_INTERRUPT;
    again();
    __builtin_unreachable();
}

/* Where an AXI access went wrong, that is why. One that hung has been reported, and the next program may have been started. */
__attribute__((noreturn, noinline)) static void stop(u32 cause) {
    u32 fault = REGISTER[OWN_FAULT];
    REGISTER[OWN_FAULT] = 0;
    if (fault & FAULT_HUNG) { again(); __builtin_unreachable(); }
    if (fault) cause = fault & FAULT_READ ? CAUSE_AXI_READ : CAUSE_AXI_WRITE;
    CSR[CSR_CAUSE] = cause;
    end(STATUS_ERROR);
}

static void check(void) { if (REGISTER[OWN_FAULT]) stop(CAUSE_NONE); }

__attribute__((noinline)) static void require(u32 holds, u32 cause) { if (!holds) stop(cause); }

__attribute__((noinline)) static void inside(u32 last, u32 words) { require(last < words, CAUSE_BUFFER_RANGE); }

/* `size` bytes from `address` on, between the registers `limits` and the next. */
static void allowed(u32 address, u32 size, u32 limits) {
    u32 base = CSR[limits], limit = CSR[limits + 1];
    require(!(address & 3) && !(address >> 31) && address >= base && address <= limit && size <= limit - address, CAUSE_DRAM_RANGE);
}

/* Instructions. */

/* The instruction at `at`, whose opcode is known. */
static void decode(struct head *head, u32 at, u32 pc) {
    u32 word = MEMORY(at), op = word & 0xFF, have = 24;
    count(COUNTER_READ_BEATS, INSTR_WORDS);
    count(COUNTER_FETCH_BEATS, INSTR_WORDS);
    const struct field *field = FIELDS + INSTRS[op].first;
    word >>= 8;
    u32 left = INSTR_WORDS - 1, wrong = 0;
    for (u32 i = 0; i < INSTRS[op].count; i++, field++) {
        u32 bits = field->bits & 0x7F, value = word, taken = bits;
        if (bits > have) {
            at += 4, left--;
            word = MEMORY(at);
            value |= word << have;
            taken = bits - have;
            have += 32;
        }
        have -= bits;
        word = taken < 32 ? word >> taken : 0;
        value &= MASK[bits];
        if (field->bits >> 7) value |= -(value & ~(MASK[bits] >> 1));
        wrong |= value < field->lo || (field->hi && value > field->hi);
        head->f[i] = value;
    }
    while (left--) at += 4, word |= MEMORY(at);
    require(!word && !wrong, CAUSE_ILLEGAL_FIELD);
    head->op = op;
    head->pc = pc;
}

/* Brings the next instruction of queue `q`, from `pc` on, into its head. */
static void find(u32 q, u32 pc) {
    struct head *head = heads + q;
    CSR[CSR_ERROR_PC] = pc;
    u32 at = CSR[CSR_PROG_BASE] + pc, room = CSR[CSR_PROG_BYTES] - INSTR_BYTES, known = 0, queue = 0;
    for (; (i32)pc <= (i32)room; pc += INSTR_BYTES, at += INSTR_BYTES) {
        u32 op = *(volatile u8 *)&MEMORY(at);
        known = op < sizeof INSTRS / sizeof *INSTRS && INSTRS[op].count;
        queue = known ? INSTRS[op].queue : QUEUE_FETCH;
        if (queue == QUEUE_FETCH || queue == q + 1) break;
        known = 0;
    }
    CSR[CSR_ERROR_PC] = pc;
    check();
    require((i32)pc <= (i32)room, CAUSE_PROGRAM_RANGE);
    require(known, CAUSE_ILLEGAL_OPCODE);
    decode(head, at, pc);
    check();
    head->waits = queue != QUEUE_FETCH;
    spend(COUNTER_STALL_FETCH, 0);
}

__attribute__((noinline)) static u32 wrap(u32 row, u32 base, u32 words) { return words && row >= base + words ? row - words : row; }

static void copy(volatile u32 *to, u32 from, u32 words) {
    for (; words >= 4; words -= 4, from += 16, to += 4)
        to[0] = MEMORY(from), to[1] = MEMORY(from + 4), to[2] = MEMORY(from + 8), to[3] = MEMORY(from + 12);
    for (; words; words--, from += 4) *to++ = MEMORY(from);
}

static void one_slice(u32 slice, u32 slices) { require(slice + slices == 1, CAUSE_ILLEGAL_FIELD); }

static u32 load(const u32 *f) {
    u32 buffer = f[LOAD_BUFFER], words = f[LOAD_WORDS], base = f[LOAD_BASE], dram = f[LOAD_DRAM];
    one_slice(f[LOAD_SLICE], f[LOAD_SLICES]);
    if (buffer >= BUFFER_WGT) {
        require(f[LOAD_NY] == 1 && f[LOAD_NX] == 1, CAUSE_ILLEGAL_FIELD);
        u32 of_params = buffer == BUFFER_PRM, size = of_params ? 4 * words : words;
        inside(base + words - 1, of_params ? PRM_WORDS : WGT_WORDS);
        allowed(dram, 4 * size, CSR_READ_BASE);
        copy(SCRATCH + (of_params ? PRM_AT + 4 * base : WGT_AT + base), dram, size);
        count(COUNTER_READ_BEATS, size);
        return of_params ? COUNTER_STALL_PARAM : COUNTER_STALL_WGT;
    }
    u32 of_res = buffer == BUFFER_RES, row = wrap(base, f[LOAD_RING_BASE], f[LOAD_RING_WORDS]);
    REGISTER[TILE_VALID] = 1;
    for (u32 y = f[LOAD_NY]; y; y--) {
        u32 at = row, from = dram;
        for (u32 x = f[LOAD_NX]; x; x--, at += words, from += f[LOAD_X_PITCH]) {
            inside(at + words - 1, of_res ? RES_WORDS : ACT_WORDS);
            allowed(from, 4 * words, CSR_READ_BASE);
            copy(WORK + at + (of_res ? RES_BASE : ACT_BASE), from, words);
            count(COUNTER_READ_BEATS, words);
        }
        row = wrap(row + f[LOAD_ROW_PITCH], f[LOAD_RING_BASE], f[LOAD_RING_WORDS]);
        dram += f[LOAD_Y_PITCH];
    }
    return of_res ? COUNTER_STALL_RES : COUNTER_STALL_ACT;
}

static u32 fill(const u32 *f) {
    u32 row = wrap(f[FILL_BASE], f[FILL_RING_BASE], f[FILL_RING_WORDS]), planes = f[FILL_PLANES];
    require(f[FILL_MASK] < 2, CAUSE_ILLEGAL_FIELD);
    REGISTER[TILE_VALID] = f[FILL_VALID];
    for (u32 y = f[FILL_NY]; y; y--) {
        inside(row + f[FILL_WORDS] - 1, ACT_WORDS);
        u32 plane = planes;
        if (f[FILL_MASK])
            for (u32 w = 0; w < f[FILL_WORDS]; w++) {
                plane--;
                WORK[ACT_BASE + row + w] = f[FILL_CODE] >> plane & 1 ? ~0u : 0;
                if (!plane) plane = planes;
            }
        row = wrap(row + f[FILL_ROW_PITCH], f[FILL_RING_BASE], f[FILL_RING_WORDS]);
    }
    return COUNTER_STALL_ACT;
}

static u32 patch(const u32 *f) {
    u32 channels = f[PATCH_CHANNELS], lane = 0, at = f[PATCH_BASE];
    u32 lanes = times(times(channels, f[PATCH_KW]), f[PATCH_KH]), words = 8 * ((lanes + K - 1) / K);
    require(f[PATCH_SEG_BYTES] * f[PATCH_KH] <= LINE_BYTES, CAUSE_BUFFER_RANGE);
    inside(at + times(f[PATCH_NX], words) - 1, ACT_WORDS);
    one_slice(f[PATCH_SLICE], f[PATCH_SLICES]);

    i32 least = 0x7FFFFFFF, most = -1, left = f[PATCH_X0]; /* columns of the image that are read */
    for (u32 x = 0; x < f[PATCH_NX]; x++, left += f[PATCH_SW]) {
        i32 column = left;
        for (u32 t = 0; t < f[PATCH_KW]; t++, column += f[PATCH_DW])
            if (column >= 0 && column < (i32)f[PATCH_WIDTH]) {
                if (column < least) least = column;
                if (column > most) most = column;
            }
    }
    u32 first = 0, size = 0;
    if (most >= 0) {
        first = least * channels & ~3u;
        size = ((most * channels + channels + 3) & ~3u) - first;
    }
    i32 top = f[PATCH_Y0];
    u32 begin = f[PATCH_DRAM] + top * f[PATCH_Y_PITCH];
    u32 down = f[PATCH_DH] * f[PATCH_Y_PITCH], row = begin;
    for (u32 r = 0; r < f[PATCH_KH]; r++, top += f[PATCH_DH], row += down)
        if (size && top >= 0 && top < (i32)f[PATCH_HEIGHT]) {
            require(size <= f[PATCH_SEG_BYTES], CAUSE_BUFFER_RANGE);
            allowed(row + first, size, CSR_READ_BASE);
            count(COUNTER_READ_BEATS, size >> 2);
        }

    REGISTER[TILE_VALID] = 1;
    REGISTER[TILE_OUT_PLANES] = 8;
    left = f[PATCH_X0];
    for (u32 x = 0; x < f[PATCH_NX]; x++, left += f[PATCH_SW]) {
        i32 y = f[PATCH_Y0];
        row = begin;
        for (u32 r = 0; r < f[PATCH_KH]; r++, y += f[PATCH_DH], row += down) {
            i32 column = left;
            for (u32 t = 0; t < f[PATCH_KW]; t++, column += f[PATCH_DW]) {
                u32 there = y >= 0 && y < (i32)f[PATCH_HEIGHT] && column >= 0 && column < (i32)f[PATCH_WIDTH];
                u32 byte = there ? row + column * channels : 0;
                for (u32 c = 0; c < channels; c++, byte++) {
                    u32 value = f[PATCH_CODE];
                    if (there) value = *(volatile u8 *)&MEMORY(byte);
                    REGISTER[TILE_OUT] = ACT_BASE + at;
                    REGISTER[TILE_LANE] = lane;
                    REGISTER[TILE_VALUE] = value;
                    REGISTER[OWN_PACK] = 0;
                    if (++lane == K) lane = 0, at += 8;
                }
            }
        }
        if (lane) lane = 0, at += 8;
    }
    return COUNTER_STALL_ACT;
}

/* Looks at every act address of CONV and POOL, whose windows reach `words` beyond their rows' begin; returns the first row. */
__attribute__((noinline))
static u32 windows(u32 base, u32 words, u32 ny, u32 sy, u32 kh, u32 skh, u32 ring_base, u32 ring_words) {
    u32 first = wrap(base, ring_base, ring_words);
    for (u32 at = first; ny; ny--, at = wrap(at + sy, ring_base, ring_words))
        for (u32 r = kh, tap = at; r; r--, tap = wrap(tap + skh, ring_base, ring_words)) inside(tap + words, ACT_WORDS);
    return first;
}

static u32 conv(const u32 *f) {
    u32 output = f[CONV_OUTPUT], ng = f[CONV_NG], nx = f[CONV_NX], planes = f[CONV_OUT_PLANES], res_planes = f[CONV_RES_PLANES];
    u32 ring_base = f[CONV_RING_BASE], ring_words = f[CONV_RING_WORDS];
    require(f[CONV_ENGINE] == ENGINE_BIT_SERIAL && f[CONV_A_KIND] <= KIND_BIPOLAR && f[CONV_W_KIND] <= KIND_BIPOLAR
            && output != OUTPUT_CODES && (output != OUTPUT_PLANES || planes <= MAX_PLANES), CAUSE_UNSUPPORTED);
    require(ng <= TILES_PER_WORD, CAUSE_ILLEGAL_FIELD);

    /* Every address is looked at before the first step. */
    u32 taps = f[CONV_KH] * f[CONV_KW], words = reach(f[CONV_NC], f[CONV_SC]) + f[CONV_A_BITS] - 1;
    words += reach(f[CONV_KW], f[CONV_SKW]) + reach(ng, f[CONV_SG]) + reach(nx, f[CONV_SX]);
    u32 row = windows(f[CONV_ACT_BASE], words, f[CONV_NY], f[CONV_SY], f[CONV_KH], f[CONV_SKH], ring_base, ring_words), positions = nx * f[CONV_NY], tiles = times(positions, ng);
    inside(f[CONV_WGT_BASE] + reach(ng, f[CONV_WGT_G]) + reach(taps, f[CONV_WGT_TAP]) + times(f[CONV_NC], f[CONV_W_BITS]) - 1, WGT_WORDS);
    if (f[CONV_PSUM_ADD] || output == OUTPUT_PSUM) inside(f[CONV_PSUM_BASE] + tiles - 1, PSUM_WORDS);
    u32 out_words = output == OUTPUT_INT32 ? ng : planes;
    if (output != OUTPUT_PSUM) {
        inside(f[CONV_PRM_BASE] + ng - 1, PRM_WORDS);
        if (res_planes) inside(f[CONV_RES_BASE] + reach(positions, f[CONV_RES_PITCH]) + res_planes - 1, RES_WORDS);
        inside(f[CONV_OUT_BASE] + times(positions, out_words) - 1, OUT_WORDS);
        count(COUNTER_REQUANTS, tiles);
    }

    static const u8 SAME[][2] = { /* register, field */
        {TILE_RING_WORDS, CONV_RING_WORDS}, {TILE_SKH, CONV_SKH}, {TILE_SKW, CONV_SKW}, {TILE_SG, CONV_SG}, {TILE_SC, CONV_SC},
        {TILE_WGT_G, CONV_WGT_G}, {TILE_WGT_TAP, CONV_WGT_TAP}, {TILE_W_BITS, CONV_W_BITS}, {TILE_A_KIND, CONV_A_KIND},
        {TILE_W_KIND, CONV_W_KIND}, {TILE_OUTPUT, CONV_OUTPUT}, {TILE_PSUM_ADD, CONV_PSUM_ADD}, {TILE_OUT_PLANES, CONV_OUT_PLANES},
        {TILE_RES_PLANES, CONV_RES_PLANES}, {TILE_RES_SIGNED, CONV_RES_SIGNED}, {TILE_SHIFT, CONV_SHIFT}};
    static const u8 LESS_ONE[][2] = {{TILE_A_LAST, CONV_A_BITS}, {TILE_W_LAST, CONV_W_BITS}, {TILE_KH, CONV_KH}, {TILE_KW, CONV_KW},
                                     {TILE_NC, CONV_NC}, {TILE_NG, CONV_NG}};
    for (u32 i = 0; i < sizeof SAME / sizeof *SAME; i++) REGISTER[SAME[i][0]] = f[SAME[i][1]];
    for (u32 i = 0; i < sizeof LESS_ONE / sizeof *LESS_ONE; i++) REGISTER[LESS_ONE[i][0]] = f[LESS_ONE[i][1]] - 1;
    SCRATCH[RESCALE_AT] = f[CONV_M2];
    SCRATCH[RESCALE_AT + 1] = f[CONV_LO];
    SCRATCH[RESCALE_AT + 2] = f[CONV_HI];
    REGISTER[TILE_RING_END] = ring_words ? ring_base + ring_words : ~0u;
    REGISTER[TILE_WGT] = WGT_AT + f[CONV_WGT_BASE];
    REGISTER[TILE_PRM] = PRM_AT + 4 * f[CONV_PRM_BASE];

    u32 out = OUT_BASE + f[CONV_OUT_BASE], res = RES_BASE + f[CONV_RES_BASE], psum = PSUM_AT + f[CONV_PSUM_BASE];
    for (u32 y = f[CONV_NY]; y; y--, row = wrap(row + f[CONV_SY], ring_base, ring_words)) {
        REGISTER[TILE_ROW] = row;
        for (u32 x = nx, at = 0; x; x--, at += f[CONV_SX]) {
            REGISTER[TILE_X] = at;
            REGISTER[TILE_OUT] = out;
            REGISTER[TILE_RES] = res;
            REGISTER[TILE_PSUM] = psum;
            REGISTER[OWN_GO] = 0;
            out += out_words, res += f[CONV_RES_PITCH], psum += ng;
        }
    }
    return COUNTER_STALL_DRAIN;
}

static u32 pool(const u32 *f) {
    u32 planes = f[POOL_PLANES], ng = f[POOL_NG], nx = f[POOL_NX], ring_base = f[POOL_RING_BASE], ring_words = f[POOL_RING_WORDS];
    require(planes <= MAX_PLANES, CAUSE_UNSUPPORTED);
    u32 group = times(ng, planes), words = group - 1 + reach(f[POOL_KW], f[POOL_SKW]) + reach(nx, f[POOL_SX]);
    u32 row = windows(f[POOL_ACT_BASE], words, f[POOL_NY], f[POOL_SY], f[POOL_KH], f[POOL_SKH], ring_base, ring_words);
    u32 out = f[POOL_OUT_BASE];
    u32 found = times(f[POOL_NY] * nx, group);
    inside(out + found - 1, OUT_WORDS);
    count(COUNTER_POOL_STEPS, times(found, f[POOL_KH] * f[POOL_KW]));

    for (u32 y = f[POOL_NY]; y; y--, row = wrap(row + f[POOL_SY], ring_base, ring_words))
        for (u32 x = nx, left = 0; x; x--, left += f[POOL_SX])
            for (u32 g = 0, at_g = left; g < ng; g++, at_g += planes, out += planes) {
                volatile u32 *best = WORK + OUT_BASE + out;
                u32 tap = row, first = 1;
                for (u32 r = f[POOL_KH]; r; r--, tap = wrap(tap + f[POOL_SKH], ring_base, ring_words)) {
                    u32 at = tap + at_g;
                    for (u32 t = f[POOL_KW]; t; t--, at += f[POOL_SKW]) {
                        u32 more = 0, less = 0, invert = f[POOL_IS_SIGNED] ? ~0u : 0; /* lanes in which the new code is so */
                        for (u32 j = 0; j < planes; j++, invert = 0) {
                            u32 new = WORK[ACT_BASE + at + j], old = first ? new : best[j];
                            u32 decides = ~(more | less) & (new ^ old), wins = decides & (new ^ invert);
                            more |= wins;
                            less |= decides & ~wins;
                            best[j] = (more & new) | (~more & old);
                        }
                        first = 0;
                    }
                }
            }
    return COUNTER_STALL_DRAIN;
}

static u32 store(const u32 *f) {
    u32 words = f[STORE_WORDS], at = f[STORE_BASE], dram = f[STORE_DRAM];
    one_slice(f[STORE_SLICE], f[STORE_SLICES]);
    for (u32 y = f[STORE_NY]; y; y--, dram += f[STORE_Y_PITCH]) {
        u32 to = dram;
        for (u32 x = f[STORE_NX]; x; x--, to += f[STORE_X_PITCH]) {
            inside(at + words - 1, OUT_WORDS);
            allowed(to, 4 * words, CSR_WRITE_BASE);
            for (u32 w = 0; w < words; w++) MEMORY(to + 4 * w) = WORK[OUT_BASE + at + w];
            count(COUNTER_WRITE_BEATS, words);
            at += words;
        }
    }
    return COUNTER_STALL_STORE;
}

static u32 mark(const u32 *f) {
    u32 layer = f[MARK_LAYER];
    CSR[CSR_LAYER] = layer;
    if (layer < MARKS)
        for (u32 i = 0; i < 2 * PROFILE_KEPT; i++) SCRATCH[PROFILE_AT + layer * 2 * PROFILE_KEPT + i] = CSR[COUNTERS + i];
    return COUNTER_STALL_FETCH;
}

static void execute(u32 q) {
    struct head *head = heads + q;
    const u32 *f = head->f;
    u32 cause = COUNTER_STALL_FETCH, busy = 0;
    CSR[CSR_ERROR_PC] = head->pc;
    for (u32 s = 0, bit = 1, mask = f[0]; mask; s++, bit += bit, mask >>= 1)
        if (mask & 1 && !--sems[s]) some -= bit;
    switch (head->op) {
    case OP_LOAD: cause = load(f); break;
    case OP_FILL: cause = fill(f); break;
    case OP_PATCH: cause = patch(f); break;
    case OP_CONV: cause = conv(f); break;
    case OP_POOL: cause = pool(f); break;
    case OP_STORE: cause = store(f); break;
    case OP_MARK: cause = mark(f); break;
    default: stop(CAUSE_UNSUPPORTED);
    }
    check();
    if (head->op == OP_CONV) {
        busy = REGISTER[OWN_STEPS] - steps_since;
        steps_since += busy;
        count(COUNTER_ARRAY_STEPS, busy);
    }
    spend(cause, busy);
    some |= f[1];
    for (u32 s = 0, mask = f[1]; mask; s++, mask >>= 1)
        if (mask & 1) {
            require(sems[s] < SEM_MOST, CAUSE_TOKEN_OVERFLOW);
            sems[s]++;
        }
    find(q, head->pc + INSTR_BYTES);
}

static void run(void) {
    since = steps_since = 0;
    CSR[CSR_CAUSE] = CAUSE_NONE;
    for (u32 i = 0; i < 2 * COUNTER_COUNT; i++) CSR[COUNTERS + i] = 0;
    for (u32 s = 0; s < SEM_COUNT; s++) sems[s] = 0;
    some = 0;
    CSR[CSR_ERROR_PC] = 0;
    require(!(CSR[CSR_PROG_BASE] >> 31), CAUSE_PROGRAM_RANGE);
    for (u32 q = 0; q < QUEUES; q++) find(q, 0);
    for (u32 going = 1; going;) {
        going = 0;
        for (u32 q = 0; q < QUEUES; q++)
            while (heads[q].waits && !(heads[q].f[0] & ~some)) execute(q), going = 1;
    }
    u32 oldest = ~0u;
    for (u32 q = 0; q < QUEUES; q++) if (heads[q].waits && heads[q].pc < oldest) oldest = heads[q].pc;
    if (oldest != ~0u) { /* every queue waits */
        while (!CSR[CSR_WATCHDOG]);
        CSR[CSR_ERROR_PC] = oldest;
        stop(CAUSE_WATCHDOG);
    }
    CSR[CSR_ERROR_PC] = 0;
    end(STATUS_DONE);
}

__attribute__((used, noreturn)) static void idle(void) {
    for (;;) {
        (void)REGISTER[OWN_START]; /* waits */
        run();
    }
}

__attribute__((used, noreturn)) static void boot(void) {
    for (u32 i = 0; i < CSR_SIZE; i++) CSR[i] = 0;
    for (u32 i = 0; i < sizeof IDENTITY / sizeof *IDENTITY; i++) CSR[i] = IDENTITY[i];
    REGISTER[OWN_FAULT] = 0;
    REGISTER[OWN_STATUS] = 0;
    idle();
}
