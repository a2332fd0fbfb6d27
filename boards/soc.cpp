// Runs a Verilated board (a shell, whose pins are a UART's) through a C ABI: bytes in, bytes out, time in clock cycles.
//
// Compiled with
//   BOTH_EDGES          1: the Verilog's registers take both edges of clk, so that a cycle is one eval
// The far end of the UART is here: it sends and samples bits of `divisor` cycles, as the board does, and knows nothing of it but
// rx, tx and `broken`, the first rule of a memory chip that was broken.

#include <cstdint>
#include <deque>
#include <memory>

#include "Vseriatim.h"
#include "verilated.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

class Board {
public:
    explicit Board(uint32_t divisor) : divisor_{divisor}, context_{new VerilatedContext}, top_{new Vseriatim{context_.get(), "top"}} {
        top_->clk = 0;
        top_->rx = 1;
        top_->rst = 1;
        top_->eval();
        for (int i = 0; i < 4; ++i) edge();
        top_->rst = 0;
    }
    ~Board() { top_->final(); }

    void send(const uint8_t* bytes, uint64_t count) { to_board_.insert(to_board_.end(), bytes, bytes + count); }

    uint64_t take(uint8_t* bytes, uint64_t room) {
        uint64_t count = 0;
        for (; count < room && !from_board_.empty(); ++count) {
            bytes[count] = from_board_.front();
            from_board_.pop_front();
        }
        return count;
    }

    // Returns the cycles since the line last moved.
    uint64_t run(uint64_t cycles) {
        for (uint64_t i = 0; i < cycles; ++i) {
            drive();
            sample();
            edge();
            ++cycle_;
            ++quiet_;
        }
        return quiet_;
    }

    uint64_t cycle() const { return cycle_; }
    uint32_t broken() const { return top_->broken; }

private:
    void edge() {
#if BOTH_EDGES
        top_->clk ^= 1;
        top_->eval();
#else
        top_->clk = 0;
        top_->eval();
        top_->clk = 1;
        top_->eval();
#endif
    }

    void drive() {
        if (send_wait_) {
            --send_wait_;
            return;
        }
        if (!send_bits_) {
            if (to_board_.empty()) return;
            send_bits_ = 1u << 9 | to_board_.front() << 1;  // start, data, stop; the highest one is the stop bit
            send_left_ = 10;
            to_board_.pop_front();
        }
        quiet_ = 0;
        top_->rx = send_bits_ & 1;
        send_bits_ >>= 1;
        if (--send_left_ == 0) send_bits_ = 0;
        send_wait_ = divisor_ - 1;
    }

    void sample() {
        if (!take_left_) {
            if (top_->tx) return;
            take_left_ = 10;
            take_wait_ = divisor_ / 2;
        }
        quiet_ = 0;
        if (take_wait_) {
            --take_wait_;
            return;
        }
        take_wait_ = divisor_ - 1;
        take_bits_ = take_bits_ >> 1 | top_->tx << 9;
        if (--take_left_ == 0 && (take_bits_ >> 9 & 1) && !(take_bits_ & 1)) from_board_.push_back(take_bits_ >> 1 & 0xFF);
    }

    const uint32_t divisor_;
    std::unique_ptr<VerilatedContext> context_;
    std::unique_ptr<Vseriatim> top_;
    uint64_t cycle_ = 0, quiet_ = 0;
    std::deque<uint8_t> to_board_, from_board_;
    uint32_t send_bits_ = 0, send_left_ = 0, send_wait_ = 0;
    uint32_t take_bits_ = 0, take_left_ = 0, take_wait_ = 0;
};

}  // namespace

EXPORT void* board_create(uint32_t divisor) { return new Board{divisor}; }
EXPORT void board_destroy(void* h) { delete static_cast<Board*>(h); }
EXPORT void board_send(void* h, const uint8_t* bytes, uint64_t count) { static_cast<Board*>(h)->send(bytes, count); }
EXPORT uint64_t board_take(void* h, uint8_t* bytes, uint64_t room) { return static_cast<Board*>(h)->take(bytes, room); }
EXPORT uint64_t board_run(void* h, uint64_t cycles) { return static_cast<Board*>(h)->run(cycles); }
EXPORT uint32_t board_broken(void* h) { return static_cast<Board*>(h)->broken(); }
EXPORT uint64_t board_cycle(void* h) { return static_cast<Board*>(h)->cycle(); }
