// Host popcount in place of Verilator's portable one; included before each generated file.
#pragma once
#include "verilated.h"

#define VL_COUNTONES_I(word) (static_cast<IData>(__builtin_popcount(word)))
#define VL_COUNTONES_Q(word) (static_cast<IData>(__builtin_popcountll(word)))

static inline IData seriatim_countones_w(int words, WDataInP const value) {
    IData sum = 0;
    for (int i = 0; i < words; ++i) sum += __builtin_popcount(value[i]);
    return sum;
}
#define VL_COUNTONES_W(words, value) seriatim_countones_w(words, value)
