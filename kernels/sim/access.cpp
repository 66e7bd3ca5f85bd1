// Every access of a kernel that the compiler reports, held against what is known of the memory.
//
// Kernels are compiled with -fsanitize=kernel-address, which puts a call
// __asan_loadN_noabort(address) before each access that is not to a local variable, and with
// -fsanitize=alignment,bounds for vector types and arrays of known length. The sanitizers' own
// runtimes take no part: the functions are these.
//
// Device memory has a state per byte: none, unwritten, written. Shared memory has, per two bytes,
// who wrote and who read last and when, on a clock that barriers and __syncwarp move: two accesses
// of different threads, one of them a write, with nothing between them that orders them, are a race
// whatever the order they ran in.

#include "engine.hpp"

namespace sim {

namespace {

const char* verb(Access access) { return access == Access::kRead ? "reads" : "writes"; }

// ---- Device memory
// --------------------------------------------------------------------------------

[[noreturn]] void fail_device(Thread& thread, uintptr_t at, size_t bytes, Access access,
                              const void* site) {
    size_t bad = 0;
    uint8_t wanted = access == Access::kRead ? kWritten : kUnwritten;
    while (bad + 1 < bytes && shadow_of(at)[bad] >= wanted) ++bad;
    bool outside = shadow_of(at)[bad] == kNoMemory;
    fail(thread, site, "%s %zu bytes %s: %s", verb(access), bytes,
         outside ? "out of bounds" : "that nobody wrote", describe_device(at + bad).c_str());
}

template <int N>
bool device_ok(uintptr_t at, Access access) {
    constexpr uint64_t kOnes = 0x0101010101010101u;
    uint8_t* shadow = shadow_of(at);
    if constexpr (N == 16) {
        return device_ok<8>(at, access) && device_ok<8>(at + 8, access);
    } else {
        uint64_t state = 0;
        memcpy(&state, shadow, N);
        constexpr uint64_t kEach = kOnes >> (64 - 8 * N);
        if (access == Access::kRead) return state == kEach * kWritten;
        if ((state & kEach) != kEach) return false;
        state = kEach * kWritten;
        memcpy(shadow, &state, N);
        return true;
    }
}

void check_device(Thread& thread, uintptr_t at, size_t bytes, Access access, const void* site) {
    size_t done = 0;
    bool inside = at + bytes <= kDevice + kDeviceBytes;
    while (inside && done + 16 <= bytes && device_ok<16>(at + done, access)) done += 16;
    for (; done < bytes; ++done) {
        if (at + done >= kDevice + kDeviceBytes || !device_ok<1>(at + done, access)) {
            fail_device(thread, at, bytes, access, site);
        }
    }
}

// ---- Shared memory
// --------------------------------------------------------------------------------

// True if the access of `by` at time `at` happened before what `thread` does now.
bool before(const Thread& thread, uint32_t at, uint32_t by) {
    return by == thread.linear || at < thread.block_sync ||
           (by / kLanes == thread.warp && at < thread.warp_sync);
}

// True if a product of this thread's warpgroup made the read, and ended by the thread's last wait.
bool own_product(const Thread& thread, uint32_t at, uint32_t by) {
    return by == Cells::kProducts + thread.warp / 4 * kLanes && at < thread.async.products_sync;
}

// One cell's entries.
struct Cell {
    uint32_t &wrote_at, &read_at, &site;
    uint16_t &wrote_by, &read_by;

    Cell(const Block& block, uint32_t number) : Cell(block.cells[number / 8], number % 8) {}

private:
    Cell(Cells& cells, uint32_t i)
        : wrote_at(cells.wrote_at[i]),
          read_at(cells.read_at[i]),
          site(cells.site[i]),
          wrote_by(cells.wrote_by[i]),
          read_by(cells.read_by[i]) {}
};

std::string name_of(const Thread& thread, uint32_t number) {
    if (number >= kStaticCell) {
        return "byte " + std::to_string(2 * (number - kStaticCell)) +
               " of the static shared memory";
    }
    return "byte " + std::to_string(2 * number - thread.engine->timing.shift) +
           " of the dynamic shared memory";
}

[[noreturn]] void fail_race(Thread& thread, const char* how, uint32_t number, uint32_t by,
                            const void* site) {
    char who[64];
    const char* missing = "barrier";
    if (by == Cells::kLoad) {
        snprintf(who, sizeof who, "a bulk load");
        missing = "wait on its mbarrier";
    } else if (by == Cells::kStore) {
        snprintf(who, sizeof who, "a bulk store");
        missing = "wait for its read";
    } else if (by >= Cells::kProducts && by < Cells::kStore) {
        snprintf(who, sizeof who, "products of warpgroup %u", (by - Cells::kProducts) / kLanes);
    } else if (by >= Cells::kSeveral) {
        snprintf(who, sizeof who, "threads of several warps");
    } else if (by >= Cells::kLanesOf) {
        snprintf(who, sizeof who, "lanes of warp %u", by % Cells::kLanesOf);
    } else {
        snprintf(who, sizeof who, "thread %u", by - thread.block->first);
    }
    fail(thread, site, "race: %s %s on %s, last written at @%p@, with no %s between", how, who,
         name_of(thread, number).c_str(), site_of(Cell(*thread.block, number).site), missing);
}

// The rule, for one cell.
void check_cell(Thread& thread, uint32_t number, Access access, const void* site) {
    Cell cell(*thread.block, number);
    bool written = cell.wrote_at >= thread.engine->block_start;
    if (cell.wrote_at == Cells::kInFlight && cell.wrote_by == Cells::kMbarrier) {
        fail(thread, site, "%s %s, which is part of an mbarrier (initialised at @%p@)",
             verb(access), name_of(thread, number).c_str(), site_of(cell.site));
    }
    if (cell.wrote_at == Cells::kInFlight && cell.wrote_by == Cells::kLoad) {
        fail(thread, site,
             "%s shared memory that a bulk load (at @%p@) writes: its mbarrier has not been waited "
             "for",
             verb(access), site_of(cell.site));
    }
    if (cell.wrote_at == Cells::kInFlight) {
        fail(thread, site,
             "%s shared memory that a cp.async of thread %u (at @%p@) writes: its wait has not "
             "been reached",
             verb(access), cell.wrote_by, site_of(cell.site));
    }
    if (written && !before(thread, cell.wrote_at, cell.wrote_by)) {
        fail_race(thread,
                  access == Access::kRead ? "reads what was just written by"
                                          : "overwrites what was just written by",
                  number, cell.wrote_by, site);
    }
    bool read = cell.read_at >= thread.block_sync, mine = cell.read_by == thread.linear;
    uint16_t lanes = Cells::kLanesOf | thread.warp;
    bool near = cell.read_by == lanes || cell.read_by / kLanes == thread.warp;
    if (access == Access::kRead) {
        if (!written) {
            fail(thread, site, "reads %s, which nobody wrote", name_of(thread, number).c_str());
        }
        cell.read_by = !read || mine ? thread.linear : near ? lanes : Cells::kSeveral;
        cell.read_at = thread.now;
        return;
    }
    if (read && !mine && !(near && cell.read_at < thread.warp_sync) &&
        !own_product(thread, cell.read_at, cell.read_by)) {
        fail_race(thread, "overwrites what was just read by", number, cell.read_by, site);
    }
    cell.wrote_at = thread.now;
    cell.wrote_by = thread.linear;
    cell.site = site_offset(site);
}

// The common case of the rule, without branches: everything happened before the last barrier, or
// was this thread's. Returns false for all others; what it has noted by then, check_cell would note
// as well.
inline bool one_read(Thread& thread, uint32_t number) {
    Cell cell(*thread.block, number);
    const uint32_t start = thread.engine->block_start, sync = thread.block_sync;
    const uint16_t lanes = Cells::kLanesOf | thread.warp, by = cell.read_by, me = thread.linear;
    bool mine = (cell.read_at < sync) | (by == me);
    bool near = (by == lanes) | (by / kLanes == thread.warp);
    uint16_t shared = near ? lanes : Cells::kSeveral;
    bool good = cell.wrote_at - start < sync - start;
    cell.read_by = mine ? me : shared;
    cell.read_at = thread.now;
    return good;
}

inline bool one_written(Thread& thread, uint32_t number, const void* site) {
    Cell cell(*thread.block, number);
    const uint32_t sync = thread.block_sync, me = thread.linear;
    bool read = (cell.read_at >= sync) & (cell.read_by != me);
    if ((cell.wrote_at >= sync) | read) return false;
    cell.wrote_at = thread.now;
    cell.wrote_by = me;
    cell.site = site_offset(site);
    return true;
}

// The same for eight cells at once: cp.async, ldmatrix and vector loads touch 16 bytes.
using Words = uint32_t __attribute__((vector_size(32)));
using Flags = int32_t __attribute__((vector_size(32)));
using Halves = uint16_t __attribute__((vector_size(16)));
using HalfFlags = int16_t __attribute__((vector_size(16)));

template <typename Vector, typename T>
Vector load(const T* p) {
    Vector out;
    memcpy(&out, p, sizeof out);
    return out;
}

template <typename Vector, typename T>
void store(T* p, Vector v) {
    memcpy(p, &v, sizeof v);
}

Words all(uint32_t x) { return Words{} + x; }
Halves all16(uint16_t x) { return Halves{} + x; }

bool any(Flags flags) {
    uint64_t words[4];
    memcpy(words, &flags, sizeof words);
    return (words[0] | words[1] | words[2] | words[3]) != 0;
}

bool eight_read(Thread& thread, uint32_t number) {
    Cells& cells = thread.block->cells[number / 8];
    const uint32_t start = thread.engine->block_start, sync = thread.block_sync;
    Flags bad = load<Words>(cells.wrote_at) - all(start) >= all(sync - start);
    if (any(bad)) return false;
    const Halves me = all16(thread.linear), lanes = all16(Cells::kLanesOf | thread.warp);
    const Halves by = load<Halves>(cells.read_by);
    Flags old = load<Words>(cells.read_at) < all(sync);
    HalfFlags mine = __builtin_convertvector(old, HalfFlags) | (by == me);
    HalfFlags near = (by == lanes) | (by / kLanes == all16(thread.warp));
    Halves shared = near ? lanes : all16(Cells::kSeveral);
    store(cells.read_by, mine ? me : shared);
    store(cells.read_at, all(thread.now));
    return true;
}

bool eight_written(Thread& thread, uint32_t number, const void* site) {
    Cells& cells = thread.block->cells[number / 8];
    const Words sync = all(thread.block_sync);
    Flags wrote = load<Words>(cells.wrote_at) >= sync, read = load<Words>(cells.read_at) >= sync;
    HalfFlags other = load<Halves>(cells.read_by) != all16(thread.linear);
    if (any(wrote | (read & __builtin_convertvector(other, Flags)))) return false;
    store(cells.wrote_at, all(thread.now));
    store(cells.wrote_by, all16(thread.linear));
    store(cells.site, all(site_offset(site)));
    return true;
}

uint32_t dynamic_cell(const Block& block, const uint8_t* p) {
    return static_cast<uint32_t>(p - (block.window + kMargin)) / 2;
}

// True if a read of four aligned bytes adds nothing to what is known: this thread, or several, have
// read both cells since the last barrier. A reader with this thread's time passed the same check;
// what was written since would have been a race with that reader. Loops that read shared memory
// again and again end here.
inline bool known_read(const Thread& thread, uintptr_t at) {
    const Cells& cells = *cells_of(at);
    uint32_t i = at / 2 % 8, by = load<uint32_t>(cells.read_by + i);
    return load<uint64_t>(cells.read_at + i) == thread.now * 0x100000001u &&
           (by == Cells::kSeveral * 0x10001u || by == thread.lanes_twice || by == thread.me_twice);
}

void check_shared(Thread& thread, uintptr_t at, size_t bytes, Access access, const void* site);

// An aligned access of N bytes to dynamic shared memory; looks closer where the common case does
// not hold.
template <int N, Access A>
__attribute__((noinline)) void access_shared(Thread& thread, uintptr_t at, const void* site) {
    const Grid& grid = *thread.grid;
    uintptr_t offset = at - reinterpret_cast<uintptr_t>(grid.shared);
    bool good = N > 1 && offset < grid.shared_bytes && grid.shared_bytes - offset >= N;
    uint32_t number = dynamic_cell(*thread.block, reinterpret_cast<uint8_t*>(at));
    if (N == 16 && good) {
        good =
            A == Access::kRead ? eight_read(thread, number) : eight_written(thread, number, site);
    } else if (good) {
        for (uint32_t i = 0; i < N / 2; ++i) {
            good &= A == Access::kRead ? one_read(thread, number + i)
                                       : one_written(thread, number + i, site);
        }
    }
    if (!good) check_shared(thread, at, N, A, site);
}

// The first cell of an address in the block's shared memory.
uint32_t cell_of(Thread& thread, uintptr_t at, size_t bytes, Access access, const void* site) {
    const Block& block = *thread.block;
    uintptr_t fixed = at - reinterpret_cast<uintptr_t>(block.statics);
    if (fixed < block.static_bytes) return kStaticCell + fixed / 2;
    auto offset = static_cast<intptr_t>(at - reinterpret_cast<uintptr_t>(block.grid.shared));
    if (offset < 0 || offset + bytes > block.grid.shared_bytes) {
        fail(thread, site,
             "%s %zu bytes out of bounds: byte %ld of %u bytes of dynamic shared memory",
             verb(access), bytes, static_cast<long>(offset), block.grid.shared_bytes);
    }
    return dynamic_cell(block, reinterpret_cast<uint8_t*>(at));
}

void check_shared(Thread& thread, uintptr_t at, size_t bytes, Access access, const void* site) {
    uint32_t number = cell_of(thread, at, bytes, access, site);
    if (bytes == 1) {
        // Cells are two bytes: neighbours of one cell may belong to different threads.
        Cell cell(*thread.block, number);
        if (access == Access::kWrite) {
            cell.wrote_at = thread.now;
            cell.wrote_by = thread.linear;
            cell.site = site_offset(site);
        } else if (cell.wrote_at < thread.engine->block_start) {
            check_cell(thread, number, access, site);
        }
        return;
    }
    if (bytes == 16 && number % 8 == 0 &&
        (access == Access::kRead ? eight_read(thread, number)
                                 : eight_written(thread, number, site))) {
        return;
    }
    for (uint32_t i = 0; i < (bytes + 1) / 2; ++i) check_cell(thread, number + i, access, site);
}

bool is_static(const Block& block, uintptr_t at) {
    return at - reinterpret_cast<uintptr_t>(block.statics) < block.static_bytes;
}

void check_elsewhere(uintptr_t at, size_t bytes, Access access, const void* site) {
    // Kernels' constants, and what runs when the library is loaded.
    if (in_library(at) || !in_fiber()) return;
    Thread& thread = self();
    if (is_static(*thread.block, at)) return check_shared(thread, at, bytes, access, site);
    if (at >> kRegionShift == kStacks >> kRegionShift) return;
    fail(thread, site, "%s %zu bytes at %p, which is no memory of the device", verb(access), bytes,
         reinterpret_cast<void*>(at));
}

// Accesses that are wrong or outside the memories above. N bytes.
__attribute__((noinline)) void access_elsewhere(uintptr_t at, size_t bytes, Access access,
                                                const void* site) {
    bool device = at >> kRegionShift == kDevice >> kRegionShift;
    if (device || at >> kRegionShift == kShared >> kRegionShift) {
        Thread& thread = self();
        if (at % bytes == 0) fail_device(thread, at, bytes, access, site);
        fail(thread, site, "%s %zu bytes at %p, which is not aligned to %zu", verb(access), bytes,
             reinterpret_cast<void*>(at), bytes);
    }
    check_elsewhere(at, bytes, access, site);
}

// One reported access of N bytes.
template <int N, Access A>
inline __attribute__((always_inline)) void access(uintptr_t at, const void* site) {
    uintptr_t stack = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    if ((at ^ stack) < kStackBytes) return;
    bool aligned = at % N == 0;
    if (at >> kRegionShift == kDevice >> kRegionShift && aligned && device_ok<N>(at, A)) return;
    if (at >> kRegionShift == kShared >> kRegionShift && aligned) {
        Thread& thread = self();
        if (N == 4 && A == Access::kRead && known_read(thread, at)) return;
        return access_shared<N, A>(thread, at, site);
    }
    access_elsewhere(at, N, A, site);
}

// Reports what a thread wrote to eight cells, and did not fence for the async proxy.
void check_fenced(Thread& thread, uint32_t number, const void* site) {
    for (uint32_t i = 0; i < 8; ++i) {
        Cell cell(*thread.block, number + i);
        if (cell.wrote_by >= kMaxThreads) continue;
        const Thread& writer = thread.engine->threads[cell.wrote_by];
        if (cell.wrote_at < writer.async.fenced) continue;
        fail(thread, site,
             "reads %s, which thread %u wrote at @%p@ with no fence_async (fence.proxy.async) of "
             "that thread behind it",
             name_of(thread, number + i).c_str(), writer.linear - writer.block->first,
             site_of(cell.site));
    }
}

}  // namespace

void check(Thread& thread, const void* p, size_t bytes, Access access, const void* site) {
    uintptr_t at = reinterpret_cast<uintptr_t>(p), region = at >> kRegionShift;
    if (region == kDevice >> kRegionShift) return check_device(thread, at, bytes, access, site);
    if (region == kShared >> kRegionShift) return check_shared(thread, at, bytes, access, site);
    check_elsewhere(at, bytes, access, site);
}

uint8_t* shared_bytes(Thread& thread, uint32_t address, uint32_t bytes, const char* what,
                      const void* site) {
    const Grid& grid = *thread.grid;
    uint32_t offset = address - kSharedStart - thread.engine->timing.shift;
    if (offset > grid.shared_bytes || grid.shared_bytes - offset < bytes) {
        fail(thread, site,
             "%s out of bounds: %u bytes from byte %d of %u bytes of dynamic shared memory", what,
             bytes, static_cast<int>(offset), grid.shared_bytes);
    }
    return grid.shared + offset;
}

uint32_t shared_address(const void* p) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    const Grid& grid = *thread.grid;
    auto offset = reinterpret_cast<const uint8_t*>(p) - grid.shared;
    if (offset < 0 || offset > grid.shared_bytes) {
        fail(thread, site, "smem_u32: byte %ld is not in the %u bytes of dynamic shared memory",
             static_cast<long>(offset), grid.shared_bytes);
    }
    return static_cast<uint32_t>(offset) + kSharedStart + thread.engine->timing.shift;
}

void set_flight(Thread& thread, const uint8_t* p, uint32_t bytes, Flight flight) {
    uint32_t number = dynamic_cell(*thread.block, p);
    uint32_t time = flight == Flight::kIssued   ? Cells::kInFlight
                    : flight == Flight::kLanded ? thread.now
                                                : 0;
    // Who wrote is known from the issue.
    for (uint32_t i = 0; i < bytes / 2; ++i) {
        Cell cell(*thread.block, number + i);
        cell.wrote_at = time;
        // Or known_read would not look.
        cell.read_at = 0;
    }
}

void set_writer(Thread& thread, const uint8_t* p, uint32_t bytes, uint32_t at, uint16_t by) {
    uint32_t number = dynamic_cell(*thread.block, p);
    if (bytes % 16 == 0 && number % 8 == 0) {
        for (uint32_t i = 0; i < bytes / 16; ++i) {
            Cells& cells = thread.block->cells[number / 8 + i];
            store(cells.wrote_at, all(at));
            store(cells.wrote_by, all16(by));
            // Or known_read would not look.
            store(cells.read_at, all(0));
        }
        return;
    }
    for (uint32_t i = 0; i < bytes / 2; ++i) {
        Cell cell(*thread.block, number + i);
        cell.wrote_at = at;
        cell.wrote_by = by;
        cell.read_at = 0;
    }
}

Thread& agent(Thread& thread, const char* role, uint16_t number, uint32_t sync) {
    Thread& agent = thread.engine->agent;
    agent.index = thread.index;
    agent.grid = thread.grid;
    agent.engine = thread.engine;
    agent.block = thread.block;
    agent.role = role;
    agent.linear = number;
    agent.warp = number / kLanes;
    agent.block_sync = sync;
    agent.warp_sync = 0;
    agent.now = thread.engine->clock;
    return agent;
}

void check_async_write(Thread& agent, const uint8_t* p, uint32_t bytes, const void* site) {
    uint32_t number = dynamic_cell(*agent.block, p);
    for (uint32_t i = 0; i < bytes / 16; ++i, number += 8) {
        if (eight_written(agent, number, site)) continue;
        for (uint32_t j = 0; j < 8; ++j) check_cell(agent, number + j, Access::kWrite, site);
    }
}

void check_async_read(Thread& agent, const uint8_t* p, uint32_t bytes, const void* site) {
    uint32_t number = dynamic_cell(*agent.block, p);
    const uint32_t start = agent.engine->block_start;
    const Words first = all(start), span = all(agent.block_sync - start);
    const Words sync = all(agent.block_sync), now = all(agent.now);
    const Halves me = all16(agent.linear), threads = all16(kMaxThreads);
    for (uint32_t i = 0; i < bytes / 16; ++i, number += 8) {
        Cells& cells = agent.block->cells[number / 8];
        Flags bad = load<Words>(cells.wrote_at) - first >= span;
        HalfFlags generic = load<Halves>(cells.wrote_by) < threads;
        if (any(bad | __builtin_convertvector(generic, Flags))) {
            for (uint32_t j = 0; j < 8; ++j) check_cell(agent, number + j, Access::kRead, site);
            check_fenced(agent, number, site);
            continue;
        }
        const Halves by = load<Halves>(cells.read_by);
        Flags old = load<Words>(cells.read_at) < sync;
        HalfFlags mine = __builtin_convertvector(old, HalfFlags) | (by == me);
        store(cells.read_by, mine ? me : all16(Cells::kSeveral));
        store(cells.read_at, now);
    }
}

}  // namespace sim

// ---- The names that the compiler calls
// ------------------------------------------------------------

extern "C" {

#define SIM_ACCESS(n)                                      \
    void __asan_load##n##_noabort(uintptr_t at) {          \
        sim::access<n, sim::Access::kRead>(at, SIM_SITE);  \
    }                                                      \
    void __asan_store##n##_noabort(uintptr_t at) {         \
        sim::access<n, sim::Access::kWrite>(at, SIM_SITE); \
    }

SIM_ACCESS(1)
SIM_ACCESS(2)
SIM_ACCESS(4)
SIM_ACCESS(8)
SIM_ACCESS(16)

void __asan_loadN_noabort(uintptr_t at, size_t bytes) {
    if (sim::in_fiber()) {
        sim::check(sim::self(), reinterpret_cast<void*>(at), bytes, sim::Access::kRead, SIM_SITE);
    }
}
void __asan_storeN_noabort(uintptr_t at, size_t bytes) {
    if (sim::in_fiber()) {
        sim::check(sim::self(), reinterpret_cast<void*>(at), bytes, sim::Access::kWrite, SIM_SITE);
    }
}

// Around the constructors of globals and before functions that do not return: nothing to do.
void __asan_before_dynamic_init(const char*) {}
void __asan_after_dynamic_init() {}
void __asan_handle_no_return() {}

struct SimTypeMismatch {
    const char* file;
    uint32_t line, column;
    const void* type;
    unsigned char log_alignment, kind;
};

void __ubsan_handle_type_mismatch_v1(SimTypeMismatch* data, uintptr_t at) {
    sim::fail(sim::self(), SIM_SITE,
              "address %p is not aligned to the %d bytes that its type asks for",
              reinterpret_cast<void*>(at), 1 << data->log_alignment);
}

void __ubsan_handle_out_of_bounds(void*, uintptr_t index) {
    sim::fail(sim::self(), SIM_SITE, "array index %ld is out of bounds", static_cast<long>(index));
}

}  // extern "C"
