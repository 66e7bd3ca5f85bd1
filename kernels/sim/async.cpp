// cp.async: copies from global to shared memory that a thread issues, commits as groups, and waits
// for.
//
// A copy may land at any time from its issue to its wait. Lazy timing lands it at the wait, and
// shows 0xFF until then; eager timing lands it at once. In both, its bytes are marked as in flight,
// and an access to them is reported.

#include "engine.hpp"

namespace sim {

namespace {

void land(const CopyAsync& copy) {
    // Nearly all copies are of this kind, for which the compiler needs no calls.
    if (copy.source_bytes == 16) {
        memcpy(copy.to, copy.from, 16);
        return;
    }
    if (copy.source_bytes != 0) memcpy(copy.to, copy.from, copy.source_bytes);
    memset(copy.to + copy.source_bytes, 0, copy.bytes - copy.source_bytes);
}

}  // namespace

// Forgets the copies of the block before: what it did not wait for never lands.
void reset_copies(Thread& thread) {
    for (size_t i = thread.landed; i < thread.copies.size(); ++i) {
        set_flight(thread, thread.copies[i].to, thread.copies[i].bytes, Flight::kForgotten);
    }
    thread.copies.clear();
    thread.groups.clear();
    thread.landed = thread.groups_done = 0;
}

void copy_async(uint32_t to, const void* from, uint32_t bytes, uint32_t source_bytes) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    if (source_bytes > bytes) {
        fail(thread, site, "cp.async of %u bytes reads %u", bytes, source_bytes);
    }
    if (to % bytes != 0) {
        fail(thread, site, "cp.async: shared address %u is not aligned to %u", to, bytes);
    }
    if (reinterpret_cast<uintptr_t>(from) % bytes != 0) {
        fail(thread, site, "cp.async: global address %p is not aligned to %u", from, bytes);
    }
    uint8_t* place = shared_bytes(thread, to, bytes, "cp.async", site);
    if (source_bytes != 0) {
        if (reinterpret_cast<uintptr_t>(from) >> kRegionShift != kDevice >> kRegionShift) {
            fail(thread, site, "cp.async: %p is not in global memory", from);
        }
        check(thread, from, source_bytes, Access::kRead, site);
    }
    // The write may come at once: it must be ordered behind all accesses before it.
    check(thread, place, bytes, Access::kWrite, site);
    set_flight(thread, place, bytes, Flight::kIssued);
    CopyAsync copy{place, from, bytes, source_bytes};
    if (thread.engine->timing.eager != 0) {
        land(copy);
    } else {
        memset(place, 0xFF, bytes);
    }
    thread.copies.push_back(copy);
}

void copy_commit() {
    Thread& thread = self();
    thread.groups.push_back(static_cast<uint32_t>(thread.copies.size()));
}

void copy_wait(int keep) {
    Thread& thread = self();
    bool lazy = thread.engine->timing.eager == 0;
    while (thread.groups.size() - thread.groups_done > static_cast<size_t>(keep)) {
        uint32_t end = thread.groups[thread.groups_done++];
        for (; thread.landed < end; ++thread.landed) {
            const CopyAsync& copy = thread.copies[thread.landed];
            if (lazy) land(copy);
            set_flight(thread, copy.to, copy.bytes, Flight::kLanded);
        }
    }
    // Long loops must not let the lists grow.
    if (thread.groups_done == thread.groups.size() && thread.landed == thread.copies.size()) {
        thread.copies.clear();
        thread.groups.clear();
        thread.landed = thread.groups_done = 0;
    } else if (thread.groups_done > 64) {
        auto gone = static_cast<uint32_t>(thread.landed);
        thread.copies.erase(thread.copies.begin(), thread.copies.begin() + gone);
        thread.groups.erase(thread.groups.begin(), thread.groups.begin() + thread.groups_done);
        for (uint32_t& end : thread.groups) end -= gone;
        thread.landed = thread.groups_done = 0;
    }
}

}  // namespace sim
