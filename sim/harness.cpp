// Runs the Verilated `seriatim_top` against an AXI4 memory held in the caller's buffer, through a C ABI. No Python runs per cycle.
//
// One cycle: drive the inputs (functions of the memory's state alone), let the outputs settle, sample the handshakes, clock edge,
// update the memory's state. Time is counted in rising edges. Compiled with
//   AXI_BITS            data width of m_axi: 32, 64, 128 or 256
//   BOTH_EDGES          1: the Verilog's registers take both edges of clk, so that a cycle is one eval
//   "ports.h"           SERIATIM_PORTS(X): X(name, bits) for each port of the top, generated from the Verilog
//
// The memory: one read beat and one write beat a cycle, independently; read data from `latency` cycles after its address, in order;
// a write's response `latency` cycles after its last beat, and only then is the data visible to reads (AXI promises no more, so
// that a machine which does not wait for its responses fails here).

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "Vseriatim.h"
#include "Vseriatim___024root.h"
#include "ports.h"
#include "verilated.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr uint32_t kBytes = AXI_BITS / 8;
constexpr uint32_t kSize = kBytes == 4 ? 2 : kBytes == 8 ? 3 : kBytes == 16 ? 4 : 5;
constexpr uint32_t kMaxBeats = 256;
enum Resp : uint8_t { OKAY = 0, SLVERR = 2, DECERR = 3 };
enum Reason : int32_t { IRQ = 0, LIMIT = 1, PROTOCOL = 2, FINISHED = 3 };

struct Params {  // mirrored by sim/verilated.py
    uint64_t base;
    uint64_t size;
    uint32_t latency;
    uint32_t outstanding;
    uint32_t read_num, read_den;    // read bandwidth in beats a cycle
    uint32_t write_num, write_den;  // write bandwidth
    uint32_t stall_percent;         // chance that the memory holds back each ready and valid in a cycle
    uint32_t error_resp;            // what the injected errors answer
    uint64_t seed;
    int64_t read_error_beat;    // number of the read beat, since reset, that answers error_resp; -1: none
    int64_t write_error_burst;  // number of the write burst, since reset, that answers error_resp and writes nothing; -1: none
    int64_t read_hang_beat;     // from this read beat on nothing is answered; -1: never
    int64_t write_hang_burst;   // from this write burst on nothing is answered; -1: never
    uint64_t settle_cycles;     // cycles with an extra eval that looks for combinational input-to-output paths (BOTH_EDGES only)
};

struct Stats {  // mirrored by sim/verilated.py
    uint64_t cycles;
    uint64_t read_beats, read_bursts;
    uint64_t write_beats, write_bursts;
    uint64_t read_errors, write_errors;  // beats and bursts that were answered with an error, injected or outside the memory
    uint64_t read_wait_cycles;           // rvalid without rready
    uint64_t write_wait_cycles;          // wready without wvalid while a burst's data is due
    uint64_t settled;                    // 1: a combinational path was seen, and every cycle settles
};

struct ReadBurst {
    uint64_t addr;
    uint64_t ready_at;
    uint32_t beats;
};

struct WriteBurst {
    uint64_t addr;
    uint64_t ready_at;
    uint64_t number;
    uint32_t beats;
    uint32_t got;
    uint8_t data[kMaxBeats * kBytes];
    uint32_t strobe[kMaxBeats];
};

struct Event {  // mirrored by sim/verilated.py
    uint64_t cycle;
    uint64_t value;
    uint64_t port;
};

// What Vseriatim::eval() calls, once it has initialised the model, apart from housekeeping for threads and dynamic data.
}  // namespace
void Vseriatim___024root___eval(Vseriatim___024root* model);
namespace {

class Harness {
public:
    Harness(uint8_t* mem, const Params& params)
        : mem_{mem}, p_{params}, context_{new VerilatedContext}, top_{new Vseriatim{context_.get(), "top"}},
          reads_(params.outstanding), writes_(params.outstanding) {
        static_assert(sizeof(top_->m_axi_rdata) == kBytes, "m_axi_rdata is not AXI_BITS wide");
        static_assert(sizeof(top_->m_axi_wdata) == kBytes, "m_axi_wdata is not AXI_BITS wide");
        settle_left_ = p_.settle_cycles;
        limited_read_ = p_.read_num != p_.read_den;
        limited_write_ = p_.write_num != p_.write_den;
        top_->clk = 0;
        idle_inputs();
        top_->eval();
        reset(4);
    }
    ~Harness() { top_->final(); }

    void reset(uint32_t cycles) {
        idle_inputs();
        top_->rst = 1;
        const Awake awake{*this};
        for (uint32_t i = 0; i < cycles; ++i) edge();
        top_->rst = 0;
#if BOTH_EDGES
        eval();
#endif
        rng_ = p_.seed * 0x9E3779B97F4A7C15ull + 0x2545F4914F6CDD1Dull;
        read_head_ = read_count_ = read_beat_ = 0;
        aw_head_ = aw_tail_ = w_next_ = write_count_ = 0;
        rvalid_ = bvalid_ = false;
        read_number_ = write_number_ = 0;
        read_credit_ = write_credit_ = 0;
        held_ar_ = held_aw_ = held_w_ = false;
        error_.clear();
        std::memset(&stats_, 0, sizeof stats_);
        cycle_ = 0;
        events_.clear();
        for (auto& w : watches_) w.last = ~w.current();
        record_events();
    }

    void sleep(bool enabled) { awake_ = !enabled; }

    int step(uint64_t n) {
        for (uint64_t i = 0; i < n; ++i) {
            tick([] {});
            if (VL_UNLIKELY(stopped_)) return reason();
        }
        return LIMIT;
    }

    int run_until_irq(uint64_t limit, uint64_t* cycles) {
        const uint64_t start = cycle_;
        int why = top_->irq ? IRQ : LIMIT;
        while (why == LIMIT && cycle_ - start < limit) {
            tick([] {});
            if (top_->irq) why = IRQ;
            if (VL_UNLIKELY(stopped_)) why = reason();
        }
        *cycles = cycle_ - start;
        return why;
    }

    // AXI4-Lite transfers; they return the response, or -1 where the machine did not answer.
    int csr_write(uint32_t addr, uint32_t data) {
        const Awake awake{*this};
        top_->s_axil_awaddr = addr & 0xFFF;
        top_->s_axil_awvalid = 1;
        top_->s_axil_wdata = data;
        top_->s_axil_wstrb = 0xF;
        top_->s_axil_wvalid = 1;
        top_->s_axil_bready = 1;
        for (int i = 0; i < kCsrLimit; ++i) {
            bool aw = false, w = false, b = false;
            int resp = 0;
            tick([&] {
                aw = top_->s_axil_awvalid && top_->s_axil_awready;
                w = top_->s_axil_wvalid && top_->s_axil_wready;
                b = top_->s_axil_bvalid;
                resp = top_->s_axil_bresp;
            });
            if (aw) top_->s_axil_awvalid = 0;
            if (w) top_->s_axil_wvalid = 0;
            if (b) {
                top_->s_axil_bready = 0;
                return resp;
            }
        }
        top_->s_axil_awvalid = top_->s_axil_wvalid = top_->s_axil_bready = 0;
        return -1;
    }

    int csr_read(uint32_t addr, uint32_t* data) {
        const Awake awake{*this};
        top_->s_axil_araddr = addr & 0xFFF;
        top_->s_axil_arvalid = 1;
        top_->s_axil_rready = 1;
        for (int i = 0; i < kCsrLimit; ++i) {
            bool ar = false, r = false;
            int resp = 0;
            tick([&] {
                ar = top_->s_axil_arvalid && top_->s_axil_arready;
                r = top_->s_axil_rvalid;
                resp = top_->s_axil_rresp;
                *data = top_->s_axil_rdata;
            });
            if (ar) top_->s_axil_arvalid = 0;
            if (r) {
                top_->s_axil_rready = 0;
                return resp;
            }
        }
        top_->s_axil_arvalid = top_->s_axil_rready = 0;
        return -1;
    }

    // The low 256 bits of a port; returns its width, 0 where there is none of that name.
    uint32_t peek(const char* name, uint8_t out[32]) const {
        std::memset(out, 0, 32);
#define X(port, width)                                                                     \
    if (!std::strcmp(name, #port)) {                                                       \
        std::memcpy(out, &top_->port, sizeof(top_->port) < 32 ? sizeof(top_->port) : 32);  \
        return width;                                                                      \
    }
        SERIATIM_PORTS(X)
#undef X
        return 0;
    }

    // Records each change of a port of up to 64 bits from now on; returns the number its events carry, -1 where that cannot be.
    int watch(const char* name) {
#define X(port, width)                                                        \
    if (!std::strcmp(name, #port) && width <= 64) {                           \
        watches_.push_back({&top_->port, sizeof(top_->port), 0});             \
        watches_.back().last = ~watches_.back().current();                    \
        record_events();                                                      \
        return static_cast<int>(watches_.size()) - 1;                         \
    }
        SERIATIM_PORTS(X)
#undef X
        return -1;
    }

    const char* error() const { return error_.c_str(); }
    bool irq() const { return top_->irq; }
    Stats stats() const {
        Stats s = stats_;
        s.cycles = cycle_;
        return s;
    }
    const std::vector<Event>& events() const { return events_; }
    void clear_events() { events_.clear(); }

private:
    static constexpr int kCsrLimit = 10000;

    struct Watch {
        const void* port;
        size_t bytes;
        uint64_t last;
        uint64_t current() const {
            uint64_t v = 0;
            std::memcpy(&v, port, bytes < 8 ? bytes : 8);
            return v;
        }
    };

    void idle_inputs() {
        top_->s_axil_awvalid = top_->s_axil_wvalid = top_->s_axil_bready = 0;
        top_->s_axil_arvalid = top_->s_axil_rready = 0;
        top_->m_axi_awready = top_->m_axi_wready = top_->m_axi_bvalid = 0;
        top_->m_axi_arready = top_->m_axi_rvalid = 0;
        top_->m_axi_rlast = 0;
        top_->m_axi_rresp = top_->m_axi_bresp = 0;
        top_->rst = 0;
    }

    // Units sleep (hw/sleep.py) in cycles in which they do not ask to be clocked, but never while an Awake lives.
    struct Awake {
        explicit Awake(Harness& harness) : awake_{harness.awake_}, before_{awake_} { awake_ = 1; }
        ~Awake() { awake_ = before_; }
        uint8_t& awake_;
        const uint8_t before_;
    };

    inline void eval() { Vseriatim___024root___eval(top_->rootp); }

    inline void rise() {  // BOTH_EDGES: the next edge, rising or falling
#if BOTH_EDGES
        top_->clk ^= 1;
#define X(unit) top_->clk_##unit ^= top_->wake_##unit | awake_;
#else
        top_->clk = 1;
#define X(unit) top_->clk_##unit = top_->wake_##unit | awake_;
#endif
        SERIATIM_UNITS(X)
#undef X
        eval();
    }

    inline void fall() {
#if !BOTH_EDGES
        top_->clk = 0;
#define X(unit) top_->clk_##unit = 0;
        SERIATIM_UNITS(X)
#undef X
        eval();
#endif
    }

    inline void edge() {
        fall();
        rise();
    }

    inline bool chance() {  // true: hold back
        rng_ ^= rng_ << 13;
        rng_ ^= rng_ >> 7;
        rng_ ^= rng_ << 17;
        return (rng_ >> 11) % 100 < p_.stall_percent;
    }

    template <class F>
    inline void tick(F&& at_sample) {
        drive();
#if BOTH_EDGES
        if (VL_UNLIKELY(settle_left_ != 0)) settle();
#endif
        fall();
        at_sample();
        const bool ar = top_->m_axi_arvalid & arready_;
        const bool r = rvalid_ & top_->m_axi_rready;
        const bool aw = top_->m_axi_awvalid & awready_;
        const bool w = top_->m_axi_wvalid & wready_;
        const bool b = bvalid_ & top_->m_axi_bready;
        check();
        if (ar) accept_read();
        if (w) accept_data();  // before accept_write: wready_ spoke of a burst that was there already
        if (aw) accept_write();
        if (rvalid_) {
            if (r) finish_beat();
            else ++stats_.read_wait_cycles;
        }
        if (wready_ && !w) ++stats_.write_wait_cycles;
        if (b) finish_write();
        rise();
        ++cycle_;
        if (VL_UNLIKELY(!watches_.empty())) record_events();
        if (VL_UNLIKELY(context_->gotFinish())) stopped_ = true;
    }

    // ---- what the memory drives

    inline void drive() {
        const bool stalls = p_.stall_percent != 0;
        if (VL_UNLIKELY(limited_read_)) {
            read_credit_ += p_.read_num;
            if (read_credit_ > 2 * p_.read_den) read_credit_ = 2 * p_.read_den;
        }
        if (VL_UNLIKELY(limited_write_)) {
            write_credit_ += p_.write_num;
            if (write_credit_ > 2 * p_.write_den) write_credit_ = 2 * p_.write_den;
        }
        arready_ = read_count_ < p_.outstanding && !(stalls && chance());
        awready_ = write_count_ < p_.outstanding && !(stalls && chance());
        wready_ = w_next_ != aw_tail_ && (!limited_write_ || write_credit_ >= p_.write_den) && !(stalls && chance());
        top_->m_axi_arready = arready_;
        top_->m_axi_awready = awready_;
        top_->m_axi_wready = wready_;
        if (!rvalid_) {
            if (read_count_ && cycle_ >= reads_[read_head_].ready_at && !hangs(read_number_, p_.read_hang_beat)
                && (!limited_read_ || read_credit_ >= p_.read_den) && !(stalls && chance()))
                present_beat();
            top_->m_axi_rvalid = rvalid_;
        }
        if (!bvalid_) {
            if (aw_head_ != w_next_ && cycle_ >= slot(aw_head_).ready_at && !hangs(slot(aw_head_).number, p_.write_hang_burst)
                && !(stalls && chance()))
                present_response();
            top_->m_axi_bvalid = bvalid_;
        }
    }

    static inline bool hangs(uint64_t number, int64_t from) { return from >= 0 && number >= static_cast<uint64_t>(from); }
    inline bool inside(uint64_t addr) const { return addr >= p_.base && addr - p_.base + kBytes <= p_.size; }
    inline WriteBurst& slot(uint64_t index) { return writes_[index % p_.outstanding]; }

    inline void present_beat() {
        const ReadBurst& burst = reads_[read_head_];
        const uint64_t addr = burst.addr + uint64_t{read_beat_} * kBytes;
        uint8_t resp = OKAY;
        if (VL_LIKELY(inside(addr))) {
            std::memcpy(static_cast<void*>(&top_->m_axi_rdata), mem_ + (addr - p_.base), kBytes);
        } else {
            std::memset(static_cast<void*>(&top_->m_axi_rdata), 0, kBytes);
            resp = DECERR;
        }
        if (VL_UNLIKELY(static_cast<int64_t>(read_number_) == p_.read_error_beat)) resp = p_.error_resp;
        if (VL_UNLIKELY(resp != OKAY)) ++stats_.read_errors;
        top_->m_axi_rresp = resp;
        top_->m_axi_rlast = read_beat_ + 1 == burst.beats;
        rvalid_ = true;
    }

    inline void finish_beat() {
        rvalid_ = false;
        ++read_number_;
        ++stats_.read_beats;
        if (limited_read_) read_credit_ -= p_.read_den;
        if (++read_beat_ == reads_[read_head_].beats) {
            read_beat_ = 0;
            if (++read_head_ == p_.outstanding) read_head_ = 0;
            --read_count_;
        }
    }

    inline void present_response() {
        WriteBurst& burst = slot(aw_head_);
        uint8_t resp = OKAY;
        const uint64_t last = burst.addr + uint64_t{burst.beats - 1} * kBytes;
        if (VL_UNLIKELY(!inside(burst.addr) || !inside(last))) resp = DECERR;
        if (VL_UNLIKELY(static_cast<int64_t>(burst.number) == p_.write_error_burst)) resp = p_.error_resp;
        if (VL_LIKELY(resp == OKAY)) commit(burst);
        else ++stats_.write_errors;
        top_->m_axi_bresp = resp;
        bvalid_ = true;
    }

    inline void commit(const WriteBurst& burst) {
        uint8_t* to = mem_ + (burst.addr - p_.base);
        constexpr uint32_t all = kBytes == 32 ? 0xFFFFFFFFu : (1u << (kBytes & 31)) - 1;
        for (uint32_t beat = 0; beat < burst.beats; ++beat, to += kBytes) {
            const uint8_t* from = burst.data + beat * kBytes;
            const uint32_t strobe = burst.strobe[beat];
            if (VL_LIKELY(strobe == all)) {
                std::memcpy(to, from, kBytes);
            } else {
                for (uint32_t i = 0; i < kBytes; ++i)
                    if (strobe >> i & 1) to[i] = from[i];
            }
        }
    }

    inline void finish_write() {
        bvalid_ = false;
        ++aw_head_;
        --write_count_;
        ++stats_.write_bursts;
    }

    // ---- what the memory accepts

    inline void accept_read() {
        const uint64_t addr = top_->m_axi_araddr;
        const uint32_t beats = top_->m_axi_arlen + 1u;
        check_burst("ar", addr, beats, top_->m_axi_arsize, top_->m_axi_arburst);
        uint32_t tail = read_head_ + read_count_;
        if (tail >= p_.outstanding) tail -= p_.outstanding;
        reads_[tail] = {addr & ~uint64_t{kBytes - 1}, cycle_ + p_.latency, beats};
        ++read_count_;
        ++stats_.read_bursts;
    }

    inline void accept_write() {
        const uint64_t addr = top_->m_axi_awaddr;
        const uint32_t beats = top_->m_axi_awlen + 1u;
        check_burst("aw", addr, beats, top_->m_axi_awsize, top_->m_axi_awburst);
        WriteBurst& burst = slot(aw_tail_);
        burst.addr = addr & ~uint64_t{kBytes - 1};
        burst.beats = beats;
        burst.got = 0;
        burst.number = write_number_++;
        ++aw_tail_;
        ++write_count_;
    }

    inline void accept_data() {
        WriteBurst& burst = slot(w_next_);
        std::memcpy(burst.data + burst.got * kBytes, &top_->m_axi_wdata, kBytes);
        burst.strobe[burst.got] = top_->m_axi_wstrb;
        ++burst.got;
        ++stats_.write_beats;
        if (limited_write_) write_credit_ -= p_.write_den;
        const bool last = burst.got == burst.beats;
        if (VL_UNLIKELY(last != (top_->m_axi_wlast != 0)))
            complain("wlast is %d on beat %u of %u of the write burst to 0x%llx", top_->m_axi_wlast, burst.got, burst.beats,
                     static_cast<unsigned long long>(burst.addr));
        if (last) {
            burst.ready_at = cycle_ + p_.latency;
            ++w_next_;
        }
    }

    // ---- the protocol's rules

    void check_burst(const char* channel, uint64_t addr, uint32_t beats, uint32_t size, uint32_t burst) {
        const uint64_t first = addr & ~uint64_t{kBytes - 1};
        const auto a = static_cast<unsigned long long>(addr);
        if (VL_UNLIKELY(burst != 1)) complain("%sburst is %u at 0x%llx: the memory takes INCR (1) only", channel, burst, a);
        if (VL_UNLIKELY(size != kSize))
            complain("%ssize is %u at 0x%llx: the memory takes full beats (%u) only", channel, size, a, kSize);
        if (VL_UNLIKELY((first ^ (first + uint64_t{beats} * kBytes - 1)) >> 12))
            complain("%s burst of %u beats at 0x%llx crosses a 4 KB boundary", channel, beats, a);
    }

    struct Address {
        uint64_t addr;
        uint32_t len, size, burst;
        bool operator!=(const Address& o) const { return addr != o.addr || len != o.len || size != o.size || burst != o.burst; }
    };

    // A valid that waits must stay, with its payload.
    inline void check() {
        const bool arvalid = top_->m_axi_arvalid, awvalid = top_->m_axi_awvalid, wvalid = top_->m_axi_wvalid;
        if (VL_UNLIKELY(held_ar_)) held("ar", arvalid, ar_ != read_address());
        if (VL_UNLIKELY(held_aw_)) held("aw", awvalid, aw_ != write_address());
        if (VL_UNLIKELY(held_w_))
            held("w", wvalid, std::memcmp(w_, &top_->m_axi_wdata, kBytes) || w_strobe_ != top_->m_axi_wstrb
                                  || w_last_ != (top_->m_axi_wlast != 0));
        held_ar_ = arvalid & !arready_;
        held_aw_ = awvalid & !awready_;
        held_w_ = wvalid & !wready_;
        if (held_ar_) ar_ = read_address();
        if (held_aw_) aw_ = write_address();
        if (held_w_) {
            std::memcpy(w_, &top_->m_axi_wdata, kBytes);
            w_strobe_ = top_->m_axi_wstrb;
            w_last_ = top_->m_axi_wlast != 0;
        }
    }
    Address read_address() const { return {top_->m_axi_araddr, top_->m_axi_arlen, top_->m_axi_arsize, top_->m_axi_arburst}; }
    Address write_address() const { return {top_->m_axi_awaddr, top_->m_axi_awlen, top_->m_axi_awsize, top_->m_axi_awburst}; }

    void held(const char* channel, bool valid, bool differs) {
        if (!valid) complain("%svalid was dropped before %sready", channel, channel);
        else if (differs) complain("the %s payload changed while %svalid waited for %sready", channel, channel, channel);
    }

    template <class... A>
    __attribute__((noinline)) void complain(const char* format, A... args) {
        stopped_ = true;
        if (!error_.empty()) return;  // the first one tells
        char text[256], line[320];
        std::snprintf(text, sizeof text, format, args...);
        std::snprintf(line, sizeof line, "cycle %llu: %s", static_cast<unsigned long long>(cycle_), text);
        error_ = line;
    }

    int reason() {
        stopped_ = false;
        return context_->gotFinish() ? FINISHED : PROTOCOL;
    }

#if BOTH_EDGES
    // Outputs must not follow inputs within the cycle, for they are sampled before the inputs take effect. Looks for that, and where
    // it happens settles for good.
    __attribute__((noinline)) void settle() {
        const uint64_t before = outputs();
        eval();
        if (outputs() != before) {
            settle_left_ = ~uint64_t{0};
            stats_.settled = 1;
        } else if (settle_left_ != ~uint64_t{0}) {
            --settle_left_;
        }
    }
    uint64_t outputs() const {  // the control outputs, and a hash of the payloads
        uint64_t h = 0;
        const auto mix = [&h](const auto& port) {
            uint8_t bytes[sizeof port];
            std::memcpy(bytes, &port, sizeof port);
            for (uint8_t byte : bytes) h = (h ^ byte) * 0x100000001B3ull;
        };
        mix(top_->m_axi_arvalid), mix(top_->m_axi_awvalid), mix(top_->m_axi_wvalid), mix(top_->m_axi_rready);
        mix(top_->m_axi_bready), mix(top_->m_axi_araddr), mix(top_->m_axi_arlen), mix(top_->m_axi_awaddr);
        mix(top_->m_axi_awlen), mix(top_->m_axi_wdata), mix(top_->m_axi_wstrb), mix(top_->m_axi_wlast);
        mix(top_->s_axil_awready), mix(top_->s_axil_wready), mix(top_->s_axil_bvalid), mix(top_->s_axil_bresp);
        mix(top_->s_axil_arready), mix(top_->s_axil_rvalid), mix(top_->s_axil_rdata), mix(top_->s_axil_rresp);
        mix(top_->irq);
        return h;
    }
#endif

    void record_events() {
        for (size_t i = 0; i < watches_.size(); ++i) {
            const uint64_t now = watches_[i].current();
            if (now == watches_[i].last) continue;
            watches_[i].last = now;
            events_.push_back({cycle_, now, i});
        }
    }

    uint8_t* mem_;
    Params p_;
    std::unique_ptr<VerilatedContext> context_;
    std::unique_ptr<Vseriatim> top_;
    uint64_t cycle_ = 0;
    uint64_t rng_ = 1, settle_left_ = 0;
    bool stopped_ = false;
    uint8_t awake_ = 0;
    bool arready_ = false, awready_ = false, wready_ = false, rvalid_ = false, bvalid_ = false;
    bool limited_read_ = false, limited_write_ = false;
    uint64_t read_credit_ = 0, write_credit_ = 0;

    std::vector<ReadBurst> reads_;  // a ring: read_head_ is being served
    uint32_t read_head_ = 0, read_count_ = 0, read_beat_ = 0;
    uint64_t read_number_ = 0;

    std::vector<WriteBurst> writes_;  // a ring by running number: [aw_head_, w_next_) wait to answer, [w_next_, aw_tail_) for data
    uint64_t aw_head_ = 0, w_next_ = 0, aw_tail_ = 0, write_number_ = 0;
    uint32_t write_count_ = 0;

    bool held_ar_ = false, held_aw_ = false, held_w_ = false, w_last_ = false;
    Address ar_{}, aw_{};
    uint8_t w_[kBytes] = {};
    uint32_t w_strobe_ = 0;

    Stats stats_{};
    std::string error_;
    std::vector<Watch> watches_;
    std::vector<Event> events_;
};

}  // namespace

EXPORT void* seriatim_create(uint8_t* mem, const Params* params) { return new Harness{mem, *params}; }
EXPORT void seriatim_destroy(void* h) { delete static_cast<Harness*>(h); }
EXPORT void seriatim_reset(void* h, uint32_t cycles) { static_cast<Harness*>(h)->reset(cycles); }
EXPORT void seriatim_sleep(void* h, int32_t enabled) { static_cast<Harness*>(h)->sleep(enabled); }
EXPORT int32_t seriatim_step(void* h, uint64_t n) { return static_cast<Harness*>(h)->step(n); }
EXPORT int32_t seriatim_run_until_irq(void* h, uint64_t limit, uint64_t* cycles) {
    return static_cast<Harness*>(h)->run_until_irq(limit, cycles);
}
EXPORT int32_t seriatim_csr_read(void* h, uint32_t addr, uint32_t* data) { return static_cast<Harness*>(h)->csr_read(addr, data); }
EXPORT int32_t seriatim_csr_write(void* h, uint32_t addr, uint32_t data) { return static_cast<Harness*>(h)->csr_write(addr, data); }
EXPORT int32_t seriatim_irq(void* h) { return static_cast<Harness*>(h)->irq(); }
EXPORT uint32_t seriatim_peek(void* h, const char* name, uint8_t* out) { return static_cast<Harness*>(h)->peek(name, out); }
EXPORT int32_t seriatim_watch(void* h, const char* name) { return static_cast<Harness*>(h)->watch(name); }
EXPORT uint64_t seriatim_events(void* h, const Event** first) {
    const auto& events = static_cast<Harness*>(h)->events();
    *first = events.data();
    return events.size();
}
EXPORT void seriatim_clear_events(void* h) { static_cast<Harness*>(h)->clear_events(); }
EXPORT void seriatim_stats(void* h, Stats* out) { *out = static_cast<Harness*>(h)->stats(); }
EXPORT const char* seriatim_error(void* h) { return static_cast<Harness*>(h)->error(); }
EXPORT uint32_t seriatim_axi_bits() { return AXI_BITS; }
EXPORT uint32_t seriatim_params_bytes() { return sizeof(Params); }
