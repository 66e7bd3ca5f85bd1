// mbarriers: arrivals, bytes of bulk copies, and waits for the phases that they end; and the fences
// between threads and the async proxy.
//
// The eight bytes of a barrier hold its number here, and count as in flight: whatever else touches
// them is reported. A wait orders its thread behind the arrivals of the phase, and behind the bulk
// loads that the phase counted, and behind nothing else.

#include <algorithm>

#include "engine.hpp"

namespace sim {

namespace {

constexpr uint32_t kTag = 0x4D424152;  // the upper half of a barrier's bytes

uint32_t offset_of(const Thread& thread, uint32_t address) {
    return address - kSharedStart - thread.engine->timing.shift;
}

uint8_t* place_of(Thread& thread, uint32_t address, const void* site) {
    if (address % 8 != 0) fail(thread, site, "mbarrier: address %u is not aligned to 8", address);
    return shared_bytes(thread, address, 8, "mbarrier", site);
}

void end_phase(Mbarrier& bar, Engine& engine) {
    if (bar.pending != 0 || bar.bytes != 0) return;
    bar.pending = bar.count;
    bar.parity ^= 1;
    bar.release = bar.next_release;
    for (uint32_t w = 0; w < engine.warp_count; ++w) {
        make_ready(engine, w, bar.waiting[w]);
        bar.waiting[w] = 0;
    }
}

void arrive(Thread& thread, Block& block, uint32_t address, uint32_t bytes, const void* site) {
    Engine& engine = *thread.engine;
    Mbarrier& bar = find_mbarrier(thread, block, address, site);
    if (bar.pending == 0) {
        fail(thread, site,
             "mbarrier at byte %u: more than its %u arrivals in a phase, which lacks %ld bytes",
             offset_of(thread, address), bar.count, static_cast<long>(bar.bytes));
    }
    // The arrival does not order what this thread does from here on.
    thread.now = bar.next_release = ++engine.clock;
    bar.bytes += bytes;
    --bar.pending;
    end_phase(bar, engine);
}

}  // namespace

void forget_mbarriers(Engine& engine) {
    for (uint32_t rank = 0; rank < engine.block_count; ++rank) {
        Block& block = engine.blocks[rank];
        Thread& any = engine.threads[block.first];
        for (const Mbarrier& bar : block.mbarriers) {
            set_flight(any, block.grid.shared + offset_of(any, bar.address), 8, Flight::kForgotten);
        }
        block.mbarriers.clear();
    }
}

Mbarrier& find_mbarrier(Thread& thread, Block& block, uint32_t address, const void* site) {
    uint8_t* here = place_of(thread, address, site);
    uint32_t words[2];
    memcpy(words, here - thread.grid->shared + block.grid.shared, 8);
    if (words[1] != kTag || words[0] >= block.mbarriers.size() ||
        block.mbarriers[words[0]].address != address) {
        fail(thread, site, "mbarrier at byte %u%s was not initialised", offset_of(thread, address),
             &block == thread.block ? "" : " of another block");
    }
    Mbarrier& bar = block.mbarriers[words[0]];
    if (bar.init_by != thread.linear && bar.init_at >= thread.block_sync &&
        !(bar.init_by / kLanes == thread.warp && bar.init_at < thread.warp_sync)) {
        fail(thread, site,
             "mbarrier at byte %u: no barrier between its initialisation (at @%p@) and this use",
             offset_of(thread, address), bar.site);
    }
    return bar;
}

void complete_bytes(Mbarrier& bar, Engine& engine, uint32_t bytes) {
    bar.bytes -= bytes;
    bar.next_release = ++engine.clock;
    end_phase(bar, engine);
}

// Says what each barrier that someone waits for lacks.
std::string describe_mbarriers(Engine& engine) {
    std::string all;
    for (uint32_t rank = 0; rank < engine.block_count; ++rank) {
        for (const Mbarrier& bar : engine.blocks[rank].mbarriers) {
            bool waited = std::any_of(bar.waiting, bar.waiting + engine.warp_count,
                                      [](uint32_t lanes) { return lanes != 0; });
            if (!waited) continue;
            char text[200];
            int used = snprintf(text, sizeof text, "; mbarrier at byte %u",
                                bar.address - kSharedStart - engine.timing.shift);
            if (engine.block_count > 1) {
                used += snprintf(text + used, sizeof text - used, " of rank %u", rank);
            }
            used += snprintf(text + used, sizeof text - used, " lacks %u of %u arrivals and ",
                             bar.pending, bar.count);
            if (bar.bytes >= 0) {
                snprintf(text + used, sizeof text - used, "%ld bytes of bulk loads",
                         static_cast<long>(bar.bytes));
            } else {
                snprintf(text + used, sizeof text - used,
                         "got %ld bytes of bulk loads more than were expected",
                         static_cast<long>(-bar.bytes));
            }
            all += text;
        }
    }
    return all;
}

void mbar_init(uint32_t bar, uint32_t count) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    Block& block = *thread.block;
    uint8_t* place = place_of(thread, bar, site);
    if (count == 0 || count >= 1u << 20) {
        fail(thread, site, "mbarrier: a count of %u arrivals", count);
    }
    check(thread, place, 8, Access::kWrite, site);
    set_writer(thread, place, 8, Cells::kInFlight, Cells::kMbarrier);
    uint32_t words[2] = {static_cast<uint32_t>(block.mbarriers.size()), kTag};
    memcpy(place, words, 8);
    Mbarrier fresh{};
    fresh.address = bar;
    fresh.count = fresh.pending = count;
    fresh.init_at = thread.now;
    fresh.init_by = thread.linear;
    fresh.site = site;
    block.mbarriers.push_back(fresh);
}

void mbar_arrive(uint32_t bar, uint32_t bytes) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    arrive(thread, *thread.block, bar, bytes, site);
}

void mbar_arrive_at(uint32_t bar, uint32_t rank) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    Engine& engine = *thread.engine;
    if (rank >= engine.block_count) {
        fail(thread, site, "mbarrier: rank %u in a cluster of %u blocks", rank, engine.block_count);
    }
    if (engine.blocks[rank].alive == 0) {
        fail(thread, site, "arrives at an mbarrier of rank %u, whose block has exited", rank);
    }
    arrive(thread, engine.blocks[rank], bar, 0, site);
}

void mbar_wait(uint32_t bar, uint32_t parity) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    // By number: others may initialise barriers meanwhile.
    Block& block = *thread.block;
    size_t number = &find_mbarrier(thread, block, bar, site) - block.mbarriers.data();
    while (block.mbarriers[number].parity == (parity & 1)) {
        block.mbarriers[number].waiting[thread.warp] |= 1u << thread.lane;
        wait_here(thread, "at the mbarrier of byte %ld, for the phase of parity %ld",
                  offset_of(thread, bar), parity & 1, site);
    }
    thread.block_sync = std::max(thread.block_sync, block.mbarriers[number].release);
    thread.now = ++thread.engine->clock;
}

void fence_mbar_init() {
    Thread& thread = self();
    thread.now = thread.async.mbar_fenced = ++thread.engine->clock;
}

void fence_async() {
    Thread& thread = self();
    thread.now = thread.async.fenced = ++thread.engine->clock;
}

}  // namespace sim
