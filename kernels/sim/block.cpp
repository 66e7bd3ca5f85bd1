// One block: which thread runs next, barriers, deadlocks.

#include <algorithm>
#include <map>

#include "engine.hpp"

namespace sim {

namespace {

uint32_t lowest(uint32_t bits) { return __builtin_ctz(bits); }
uint32_t highest(uint32_t bits) { return 31 - __builtin_clz(bits); }

uint64_t draw(Engine& engine) {
    uint64_t& x = engine.random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return x;
}

uint32_t any(Engine& engine, uint32_t bits) {
    for (uint64_t skip = draw(engine) % __builtin_popcount(bits); skip > 0; --skip)
        bits &= bits - 1;
    return lowest(bits);
}

uint32_t next_warp(Engine& engine) {
    uint32_t ready = engine.ready_warps, at = engine.current_warp;
    bool stay = ready >> at & 1;
    switch (engine.timing.order) {
        case 0: {
            // The rest of the warp first, then the warps above it: a warp's stacks stay in the
            // cache.
            uint32_t above = ready & ~((2u << at) - 1);
            return stay ? at : lowest(above != 0 ? above : ready);
        }
        case 1: {
            uint32_t below = ready & ((1u << at) - 1);
            return stay ? at : highest(below != 0 ? below : ready);
        }
        default:
            return stay && draw(engine) % 8 != 0 ? at : any(engine, ready);
    }
}

[[noreturn]] void report_deadlock(Thread& thread) {
    Engine& engine = *thread.engine;
    // The report is of a thread that waits, not of the last one that ran.
    const Thread* culprit = &thread;
    std::map<std::string, std::pair<uint32_t, uint32_t>> groups;  // what: how many, the first
    for (uint32_t i = 0; i < engine.count; ++i) {
        const Thread& one = engine.threads[i];
        char text[160];
        if (one.state == State::kDone) {
            snprintf(text, sizeof text, "exited");
        } else {
            if (culprit->state == State::kDone) culprit = &one;
            int used = snprintf(text, sizeof text, one.waits, one.wait_a, one.wait_b);
            snprintf(text + used, sizeof text - used, " (@%p@)", one.site);
        }
        ++groups.emplace(text, std::make_pair(0u, i)).first->second.first;
    }
    std::string all;
    for (const auto& [what, who] : groups) {
        all += " [" + std::to_string(who.first) + " threads, first " + std::to_string(who.second) +
               ": " + what + "]";
    }
    fail(*culprit, culprit->site, "deadlock:%s", all.c_str());
}

// Everything before the barrier happened before everything behind it, for the threads that took
// part.
void pass(Engine& engine, uint32_t warp, uint32_t lanes) {
    for (; lanes != 0; lanes &= lanes - 1) {
        Thread& thread = engine.threads[warp * kLanes + lowest(lanes)];
        thread.now = thread.block_sync = thread.warp_sync = engine.clock;
    }
}

void reset(Engine& engine) {
    engine.failed = false;
    engine.alive = engine.count;
    engine.block_start = ++engine.clock;
    engine.ready_warps = 0;
    engine.current_warp = engine.timing.order == 1 ? engine.warp_count - 1 : 0;
    for (Barrier& barrier : engine.barriers) {
        barrier.arrived = 0;
        std::fill_n(barrier.waiting, engine.warp_count, 0u);
    }
    for (uint32_t w = 0; w < engine.warp_count; ++w) {
        Warp& warp = engine.warps[w];
        warp.exited = warp.ready = 0;
        for (Meeting& meeting : warp.meetings) meeting.arrived = 0;
        make_ready(engine, w, warp.valid);
    }
    for (uint32_t i = 0; i < engine.count; ++i) {
        Thread& thread = engine.threads[i];
        thread.state = State::kFresh;
        thread.stack = nullptr;
        thread.now = thread.block_sync = thread.warp_sync = engine.clock;
        reset_copies(thread);
    }
    // NaN in bf16, fp16 and fp32, for whatever the checks do not see.
    memset(engine.grid.shared, 0xFF, engine.grid.shared_bytes);
    if (engine.static_bytes != 0) memset(engine.statics, 0xFF, engine.static_bytes);
}

}  // namespace

void make_ready(Engine& engine, uint32_t warp, uint32_t lanes) {
    if (lanes == 0) return;
    engine.warps[warp].ready |= lanes;
    engine.ready_warps |= 1u << warp;
}

Thread* pick(Engine& engine) {
    if (engine.ready_warps == 0) return nullptr;
    uint32_t w = next_warp(engine);
    engine.current_warp = w;
    Warp& warp = engine.warps[w];
    uint32_t order = engine.timing.order;
    uint32_t lane = order == 0   ? lowest(warp.ready)
                    : order == 1 ? highest(warp.ready)
                                 : any(engine, warp.ready);
    warp.ready &= ~(1u << lane);
    if (warp.ready == 0) engine.ready_warps &= ~(1u << w);
    return &engine.threads[w * kLanes + lane];
}

void wait_here(Thread& thread, const char* what, long a, long b, const void* site) {
    thread.waits = what;
    thread.wait_a = a;
    thread.wait_b = b;
    thread.site = site;
    Thread* next = pick(*thread.engine);
    if (next == nullptr) report_deadlock(thread);
    if (next != &thread) switch_to(thread, *next);
}

void barrier(int id, int threads) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    Engine& engine = *thread.engine;
    if (id < 0 || id >= static_cast<int>(kBarriers)) {
        fail(thread, site, "barrier %d: there are barriers 0 to 15", id);
    }
    uint32_t wanted = threads < 0 ? engine.count : threads;
    bool whole = wanted == engine.count;
    if ((wanted % kLanes != 0 && !whole) || wanted == 0 || wanted > engine.count) {
        fail(thread, site,
             "barrier %d: count %u of a block of %u threads: not a multiple of 32, or too many", id,
             wanted, engine.count);
    }
    Barrier& barrier = engine.barriers[id];
    if (barrier.arrived == 0) barrier.expected = wanted;
    if (barrier.expected != wanted) {
        fail(thread, site, "barrier %d: count %u where others said %u", id, wanted,
             barrier.expected);
    }
    barrier.waiting[thread.warp] |= 1u << thread.lane;
    if (++barrier.arrived < wanted) {
        return wait_here(thread, "at barrier %ld, which expects %ld", id, wanted, site);
    }
    barrier.arrived = 0;
    ++engine.clock;
    for (uint32_t w = 0; w < engine.warp_count; ++w) {
        uint32_t lanes = barrier.waiting[w];
        barrier.waiting[w] = 0;
        pass(engine, w, lanes);
        make_ready(engine, w, w == thread.warp ? lanes & ~(1u << thread.lane) : lanes);
    }
}

// Returns whether the block ran to its end; else the engine's report says why.
bool run_block(Engine& engine, uint3 block) {
    engine.grid.block = block;
    reset(engine);
    run_fibers(engine, *pick(engine));
    if (!engine.failed) return true;
    for (uint32_t i = 0; i < engine.count; ++i) {
        Thread& thread = engine.threads[i];
        if (thread.state == State::kStarted) engine.free_stacks.push_back(thread.stack);
    }
    write_report(engine);
    return false;
}

}  // namespace sim
