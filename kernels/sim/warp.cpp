// Warp collectives: the lanes of a mask meet, the last one to come does the work for all.

#include <algorithm>

#include "engine.hpp"

namespace sim {

namespace {

// Accesses before the meeting happened before those behind it: every lane gets the same new time,
// and in the high half what any of them knew of other warps.
void run_sync(Meeting& meeting, Engine& engine) {
    ++engine.clock;
    uint64_t known = 0;
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
        if (meeting.mask >> lane & 1) known = std::max(known, meeting.in[lane]);
    }
    for (uint32_t lane = 0; lane < kLanes; ++lane) {
        if (meeting.mask >> lane & 1) meeting.out[lane] = known << 32 | engine.clock;
    }
}

void run_shuffle(Meeting& meeting, Engine& engine) {
    for (uint32_t rest = meeting.mask; rest != 0; rest &= rest - 1) {
        uint32_t lane = __builtin_ctz(rest);
        uint32_t from = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(meeting.place[lane]));
        if (from >= kLanes || !(meeting.mask >> from & 1)) {
            uint32_t warp = self().warp;
            fail(engine.threads[warp * kLanes + lane], meeting.site,
                 "shuffle: lane %u reads lane %d, which is not in mask %08x", lane,
                 static_cast<int>(from), meeting.mask);
        }
        meeting.out[lane] = meeting.in[from];
    }
}

uint32_t combine(Reduce op, uint32_t a, uint32_t b) {
    switch (op) {
        case Reduce::kAdd:
            return a + b;
        case Reduce::kMin:
            return a < b ? a : b;
        case Reduce::kMax:
            return a > b ? a : b;
        default:
            return a | b;
    }
}

void run_reduce(Meeting& meeting, Engine&) {
    auto op = static_cast<Reduce>(meeting.detail);
    uint32_t first = __builtin_ctz(meeting.mask);
    bool ballot = op == Reduce::kBallot;
    uint32_t all = static_cast<uint32_t>(meeting.in[first]) << (ballot ? first : 0);
    for (uint32_t rest = meeting.mask & (meeting.mask - 1); rest != 0; rest &= rest - 1) {
        uint32_t lane = __builtin_ctz(rest);
        all = combine(op, all, static_cast<uint32_t>(meeting.in[lane]) << (ballot ? lane : 0));
    }
    for (uint32_t rest = meeting.mask; rest != 0; rest &= rest - 1) {
        meeting.out[__builtin_ctz(rest)] = all;
    }
}

// Finds the meeting that lanes of `mask` wait at, or opens one; reports lanes that do not belong
// together.
Meeting& join(Thread& thread, const char* name, Meet run, uint64_t detail, uint32_t mask,
              const void* site) {
    Warp& warp = thread.engine->warps[thread.warp];
    if (!(mask >> thread.lane & 1)) {
        fail(thread, site, "%s: lane %u is not in its own mask %08x", name, thread.lane, mask);
    }
    if ((mask & warp.exited) != 0) {
        fail(thread, site, "%s: mask %08x names lanes %08x, which have exited", name, mask,
             mask & warp.exited);
    }
    Meeting* free = nullptr;
    for (Meeting& meeting : warp.meetings) {
        if (meeting.arrived == 0) {
            if (free == nullptr) free = &meeting;
        } else if ((meeting.mask & mask) != 0) {
            if (meeting.mask == mask && meeting.run == run && meeting.detail == detail)
                return meeting;
            fail(thread, site,
                 "divergent warp: lane %u comes to %s with mask %08x while lanes %08x wait at %s "
                 "with "
                 "mask %08x (@%p@)",
                 thread.lane, name, mask, meeting.arrived, meeting.name, meeting.mask,
                 meeting.site);
        }
    }
    if (free == nullptr)
        fail(thread, site, "%s: more than 4 collectives of a warp at a time", name);
    free->mask = mask;
    free->name = name;
    free->run = run;
    free->detail = detail;
    free->site = site;
    return *free;
}

}  // namespace

uint64_t meet(const char* name, Meet run, uint64_t detail, uint32_t mask, uint64_t word,
              void* place, const void* site) {
    Thread& thread = self();
    Engine& engine = *thread.engine;
    // A last warp that is not full has no lanes beyond its threads.
    mask &= engine.warps[thread.warp].valid;
    Meeting& meeting = join(thread, name, run, detail, mask, site);
    uint32_t bit = 1u << thread.lane;
    meeting.in[thread.lane] = word;
    meeting.place[thread.lane] = place;
    meeting.arrived |= bit;
    if (meeting.arrived == mask) {
        run(meeting, engine);
        meeting.arrived = 0;
        make_ready(engine, thread.warp, mask & ~bit);
    } else {
        wait_here(thread, "in a warp collective with mask %08lx", mask, 0, site);
    }
    // Still this lane's: a later meeting writes it only when this lane takes part.
    return meeting.out[thread.lane];
}

void sync_warp(uint32_t mask) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    uint64_t time = meet("__syncwarp", run_sync, 0, mask, thread.block_sync, nullptr, site);
    thread.now = thread.warp_sync = static_cast<uint32_t>(time);
    thread.block_sync = static_cast<uint32_t>(time >> 32);
}

uint64_t shuffle(uint32_t mask, uint64_t value, int from) {
    return meet("a shuffle", run_shuffle, 0, mask, value,
                reinterpret_cast<void*>(static_cast<uintptr_t>(static_cast<uint32_t>(from))),
                SIM_SITE);
}

uint32_t reduce(Reduce op, uint32_t mask, uint32_t value) {
    const char* name = op == Reduce::kBallot ? "a ballot" : "a warp reduction";
    return static_cast<uint32_t>(
        meet(name, run_reduce, static_cast<uint64_t>(op), mask, value, nullptr, SIM_SITE));
}

uint32_t atomic(Reduce op, void* at, uint32_t value) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    if (reinterpret_cast<uintptr_t>(at) % 4 != 0) {
        fail(thread, site, "atomic: %p is not 4-byte aligned", at);
    }
    check(thread, at, 4, Access::kRead, site);
    uint32_t old;
    memcpy(&old, at, 4);
    uint32_t now = combine(op, old, value);
    memcpy(at, &now, 4);
    return old;
}

}  // namespace sim
