// One cluster of blocks: which thread runs next, barriers, deadlocks, the beginning and the end.

#include <algorithm>
#include <map>

#include "engine.hpp"

namespace sim {

namespace {

uint32_t lowest(uint32_t bits) { return __builtin_ctz(bits); }
uint32_t highest(uint32_t bits) { return 31 - __builtin_clz(bits); }

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
        const Block& block = *engine.threads[who.second].block;
        std::string rank = block.rank == 0 ? "" : " of rank " + std::to_string(block.rank);
        all += " [" + std::to_string(who.first) + " threads, first " +
               std::to_string(who.second - block.first) + rank + ": " + what + "]";
    }
    fail(*culprit, culprit->site, "deadlock:%s%s", all.c_str(), describe_mbarriers(engine).c_str());
}

// Everything before the barrier happened before everything behind it, for the threads that took
// part.
void pass(Engine& engine, uint32_t warp, uint32_t lanes) {
    for (; lanes != 0; lanes &= lanes - 1) {
        Thread& thread = engine.threads[warp * kLanes + lowest(lanes)];
        thread.now = thread.block_sync = thread.warp_sync = engine.clock;
    }
}

void reset(Engine& engine, Barrier& barrier) {
    barrier.arrived = 0;
    std::fill_n(barrier.waiting, engine.warp_count, 0u);
}

void reset(Engine& engine) {
    engine.failed = false;
    engine.alive = engine.count;
    engine.block_start = ++engine.clock;
    engine.ready_warps = 0;
    engine.current_warp = engine.timing.order == 1 ? engine.warp_count - 1 : 0;
    for (uint32_t rank = 0; rank < engine.block_count; ++rank) {
        for (Barrier& barrier : engine.blocks[rank].barriers) reset(engine, barrier);
        engine.blocks[rank].alive = engine.blocks[rank].count;
    }
    reset(engine, engine.cluster_barrier);
    reset_warpgroups(engine);
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
    }
    // NaN in bf16, fp16 and fp32, for whatever the checks do not see.
    for (uint32_t rank = 0; rank < engine.block_count; ++rank) {
        Block& block = engine.blocks[rank];
        memset(block.grid.shared, 0xFF, block.grid.shared_bytes);
        if (block.static_bytes != 0) memset(block.statics, 0xFF, block.static_bytes);
    }
}

// Forgets what is under way, so that the next block does not find it.
void clean(Engine& engine) {
    for (uint32_t i = 0; i < engine.count; ++i) reset_copies(engine.threads[i]);
    reset_bulk(engine);
    forget_mbarriers(engine);
}

// Nobody can run: the latest time for something asynchronous to happen. Products and loads take
// turns, in an order of the launch's.
bool progress(Engine& engine) {
    uint32_t order = engine.timing.order;
    bool loads_first = order == 2 ? draw(engine) % 2 != 0 : order != 0;
    if (loads_first) return deliver_load(engine) || serve_products(engine);
    return serve_products(engine) || deliver_load(engine);
}

// Counts an arrival; returns whether it was the last one.
bool arrive(Thread& thread, int id, int threads, const void* site) {
    Block& block = *thread.block;
    if (id < 0 || id >= static_cast<int>(kBarriers)) {
        fail(thread, site, "barrier %d: there are barriers 0 to 15", id);
    }
    uint32_t wanted = threads < 0 ? block.count : threads;
    bool whole = wanted == block.count;
    if ((wanted % kLanes != 0 && !whole) || wanted == 0 || wanted > block.count) {
        fail(thread, site,
             "barrier %d: count %u of a block of %u threads: not a multiple of 32, or too many", id,
             wanted, block.count);
    }
    Barrier& barrier = block.barriers[id];
    if (barrier.arrived == 0) barrier.expected = wanted;
    if (barrier.expected != wanted) {
        fail(thread, site, "barrier %d: count %u where others said %u", id, wanted,
             barrier.expected);
    }
    if (++barrier.arrived < wanted) return false;
    barrier.arrived = 0;
    return true;
}

}  // namespace

uint64_t draw(Engine& engine) {
    uint64_t& x = engine.random;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return x;
}

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

Thread& next_thread(Thread& thread) {
    Engine& engine = *thread.engine;
    Thread* next = pick(engine);
    while (next == nullptr) {
        if (!progress(engine)) report_deadlock(thread);
        next = pick(engine);
    }
    return *next;
}

void wait_here(Thread& thread, const char* what, long a, long b, const void* site) {
    thread.waits = what;
    thread.wait_a = a;
    thread.wait_b = b;
    thread.site = site;
    Thread& next = next_thread(thread);
    if (&next != &thread) switch_to(thread, next);
}

void release(Engine& engine, uint32_t* waiting, const Thread& last) {
    ++engine.clock;
    for (uint32_t w = 0; w < engine.warp_count; ++w) {
        uint32_t lanes = waiting[w];
        waiting[w] = 0;
        pass(engine, w, lanes);
        make_ready(engine, w, w == last.warp ? lanes & ~(1u << last.lane) : lanes);
    }
}

void barrier(int id, int threads) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    bool last = arrive(thread, id, threads, site);
    Barrier& barrier = thread.block->barriers[id];
    barrier.waiting[thread.warp] |= 1u << thread.lane;
    if (last) return release(*thread.engine, barrier.waiting, thread);
    wait_here(thread, "at barrier %ld, which expects %ld", id, barrier.expected, site);
}

void barrier_arrive(int id, int threads) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    if (arrive(thread, id, threads, site)) {
        release(*thread.engine, thread.block->barriers[id].waiting, thread);
    } else {
        ++thread.engine->clock;
    }
    // Its work from here on is not ordered before that of the waiting threads.
    thread.now = thread.engine->clock;
}

uint32_t cluster_rank() { return self().block->rank; }

void cluster_sync() {
    const void* site = SIM_SITE;
    Thread& thread = self();
    Engine& engine = *thread.engine;
    Barrier& barrier = engine.cluster_barrier;
    barrier.waiting[thread.warp] |= 1u << thread.lane;
    if (++barrier.arrived == engine.count) {
        barrier.arrived = 0;
        return release(engine, barrier.waiting, thread);
    }
    wait_here(thread, "at the barrier of the cluster, which expects %ld", engine.count, 0, site);
}

void finish_thread(Thread& thread) {
    check_stores_read(thread);
    check_products_ended(thread);
    if (thread.block->alive > 1) return;
    check_loads_landed(thread);
    check_registers(thread);
}

void finish_cluster(Thread& last) {
    Engine& engine = *last.engine;
    for (uint32_t i = 0; i < engine.count; ++i) finish_stores(engine.threads[i]);
}

// Runs the blocks of a cluster from the grid's block `first` on. Returns whether they ran to their
// end; else the engine's report says why.
bool run_cluster(Engine& engine, uint64_t first) {
    for (uint32_t rank = 0; rank < engine.block_count; ++rank) {
        Grid& grid = engine.blocks[rank].grid;
        uint64_t at = first + rank, x = grid.grid_size.x, y = grid.grid_size.y;
        grid.block = {static_cast<uint32_t>(at % x), static_cast<uint32_t>(at / x % y),
                      static_cast<uint32_t>(at / x / y)};
    }
    reset(engine);
    run_fibers(engine, *pick(engine));
    clean(engine);
    if (!engine.failed) return true;
    for (uint32_t i = 0; i < engine.count; ++i) {
        Thread& thread = engine.threads[i];
        if (thread.state == State::kStarted) engine.free_stacks.push_back(thread.stack);
    }
    write_report(engine);
    return false;
}

}  // namespace sim
