// Bulk tensor copies: loads that an mbarrier counts, stores and additions that groups count.
//
// All is of rank 2 and swizzled by 128 bytes. A load may write at any time from its issue to the
// end of the phase that counts it: eager timing lands it at once; lazy timing when nobody else can
// run, and shows 0xFF until then. A store may read its shared memory until bulk_wait(.., true)
// says that it has, and write until bulk_wait(.., false) or the end of the kernel does; lazy timing
// takes the last moments, eager timing the first.

#include <algorithm>

#include "engine.hpp"

namespace sim {

namespace {

uint32_t box_bytes(const TensorMap& map) {
    return kBoxBytes * static_cast<uint32_t>(map.box_rows);
}

// Where 16 bytes of a box's row lie: bits 4 to 6 of the address are exclusive-ored with bits 7 to 9.
uint32_t swizzled(uintptr_t row, uint32_t chunk) {
    return 16 * (chunk ^ static_cast<uint32_t>(row / kBoxBytes % 8));
}

TensorMap read_map(Thread& thread, const void* at, const void* site) {
    TensorMap map;
    memcpy(&map, at, sizeof map);
    bool good = (map.element_bytes == 2 || map.element_bytes == 4) && map.box_rows >= 1 &&
                map.box_rows <= 256 && map.box_columns * map.element_bytes == kBoxBytes &&
                map.address >> kRegionShift == kDevice >> kRegionShift;
    if (!good) fail(thread, site, "not a tensor map of the simulator's: %p", at);
    return map;
}

// The part of a box's row that lies inside the matrix: where it begins in the row and in memory.
struct Part {
    uint32_t from, bytes;
    uintptr_t at;
};

Part part_of(const TensorMap& map, int x, int y, uint32_t row) {
    int64_t line = int64_t{y} + row, columns = static_cast<int64_t>(map.columns);
    int64_t begin = std::max<int64_t>(x, 0);
    int64_t end = std::min<int64_t>(int64_t{x} + static_cast<int64_t>(map.box_columns), columns);
    if (line < 0 || line >= static_cast<int64_t>(map.rows) || begin >= end) return {0, 0, 0};
    auto size = static_cast<int64_t>(map.element_bytes);
    return {static_cast<uint32_t>((begin - x) * size), static_cast<uint32_t>((end - begin) * size),
            map.address + line * map.pitch + begin * size};
}

// Copies a box to where it lies, zeros where it is outside.
void copy_in(const BulkLoad& load) {
    alignas(16) uint8_t line[kBoxBytes];
    for (uint32_t row = 0; row < load.map.box_rows; ++row) {
        Part part = part_of(load.map, load.x, load.y, row);
        if (part.bytes != kBoxBytes) memset(line, 0, kBoxBytes);
        if (part.bytes != 0) {
            memcpy(line + part.from, reinterpret_cast<const void*>(part.at), part.bytes);
        }
        uint8_t* to = load.to + row * kBoxBytes;
        for (uint32_t c = 0; c < 8; ++c) {
            memcpy(to + swizzled(reinterpret_cast<uintptr_t>(to), c), line + 16 * c, 16);
        }
    }
}

void land(Engine& engine, const BulkLoad& load) {
    if (load.block->alive == 0) {
        fail(*load.by, load.site, "a bulk load comes to rank %u, whose block has exited",
             load.block->rank);
    }
    copy_in(load);
    Thread& there = agent(*load.by, "bulk load", Cells::kLoader, 0);
    there.block = load.block;
    set_writer(there, load.to, box_bytes(load.map), ++engine.clock, Cells::kLoad);
    for (Mbarrier& bar : load.block->mbarriers) {
        if (bar.address == load.bar) complete_bytes(bar, engine, box_bytes(load.map));
    }
}

// A load to one block, whose place is that of `to` in the issuing thread's own.
void issue_load(Thread& thread, Block& block, uint32_t to, const TensorMap& map, int x, int y,
                uint32_t bar, const void* site) {
    Engine& engine = *thread.engine;
    if (block.alive == 0) {
        fail(thread, site, "bulk load: to rank %u, whose block has exited", block.rank);
    }
    Thread& self = agent(thread, "bulk load", Cells::kLoader, thread.block_sync);
    const Mbarrier& counts = find_mbarrier(thread, block, bar, site);
    const AsyncThread& maker = engine.threads[counts.init_by].async;
    if (counts.init_at >= std::max(maker.mbar_fenced, maker.fenced)) {
        fail(self, site,
             "its mbarrier, initialised at @%p@, has no fence_mbar_init "
             "(fence.mbarrier_init) of that thread behind it",
             counts.site);
    }
    uint32_t bytes = box_bytes(map);
    uint8_t* place = shared_bytes(thread, to, bytes, "bulk load", site);
    place += block.grid.shared - thread.grid->shared;
    self.block = &block;
    check_async_write(self, place, bytes, site);
    BulkLoad load{map, x, y, &block, place, bar, &thread, site};
    if (engine.timing.eager != 0) return land(engine, load);
    set_writer(self, place, bytes, Cells::kInFlight, Cells::kLoad);
    memset(place, 0xFF, bytes);
    engine.loads.push_back(load);
}

// Reads what a store takes from shared memory.
void copy_out(BulkStore& store) {
    uint32_t bytes = box_bytes(store.map);
    store.rows.resize(bytes);
    for (uint32_t row = 0; row < store.map.box_rows; ++row) {
        const uint8_t* from = store.from + row * kBoxBytes;
        for (uint32_t c = 0; c < 8; ++c) {
            memcpy(store.rows.data() + row * kBoxBytes + 16 * c,
                   from + swizzled(reinterpret_cast<uintptr_t>(from), c), 16);
        }
    }
}

// Holds the reads of a store against what threads did; done when it is issued and when it ends.
void check_reads(Thread& thread, const BulkStore& store) {
    Thread& self = agent(thread, "bulk store", Cells::kStore, store.sync);
    self.now = ++thread.engine->clock;
    check_async_read(self, store.from, box_bytes(store.map), store.site);
}

float widen(uint16_t x) {
    uint32_t bits = static_cast<uint32_t>(x) << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

uint16_t narrow(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFF;
    return static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16);
}

template <typename T, typename Sum>
void add_row(uint8_t* to, const uint8_t* from, uint32_t bytes, Sum sum) {
    for (uint32_t i = 0; i < bytes; i += sizeof(T)) {
        T a, b;
        memcpy(&a, to + i, sizeof(T));
        memcpy(&b, from + i, sizeof(T));
        a = sum(a, b);
        memcpy(to + i, &a, sizeof(T));
    }
}

void write_out(Thread& thread, const BulkStore& store) {
    Thread& self = agent(thread, "bulk store", Cells::kStore, store.sync);
    for (uint32_t row = 0; row < store.map.box_rows; ++row) {
        Part part = part_of(store.map, store.x, store.y, row);
        if (part.bytes == 0) continue;
        auto to = reinterpret_cast<uint8_t*>(part.at);
        const uint8_t* from = store.rows.data() + row * kBoxBytes + part.from;
        if (store.add) check(self, to, part.bytes, Access::kRead, store.site);
        check(self, to, part.bytes, Access::kWrite, store.site);
        if (!store.add) {
            memcpy(to, from, part.bytes);
        } else if (store.map.element_bytes == 4) {
            add_row<float>(to, from, part.bytes, [](float a, float b) { return a + b; });
        } else {
            add_row<uint16_t>(to, from, part.bytes, [](uint16_t a, uint16_t b) {
                return narrow(widen(a) + widen(b));
            });
        }
    }
}

// Lets the stores before `end` have read, or have written.
void advance(Thread& thread, size_t end, bool read_only) {
    AsyncThread& own = thread.async;
    bool lazy = thread.engine->timing.eager == 0;
    for (; own.read < end; ++own.read) {
        BulkStore& store = own.stores[own.read];
        check_reads(thread, store);
        if (lazy) copy_out(store);
    }
    for (; !read_only && own.written < end; ++own.written) {
        if (lazy) write_out(thread, own.stores[own.written]);
    }
}

}  // namespace

void reset_bulk(Engine& engine) {
    for (const BulkLoad& load : engine.loads) {
        Thread& there = agent(*load.by, "bulk load", Cells::kLoader, 0);
        there.block = load.block;
        set_flight(there, load.to, box_bytes(load.map), Flight::kForgotten);
    }
    engine.loads.clear();
    for (uint32_t i = 0; i < engine.count; ++i) {
        AsyncThread& own = engine.threads[i].async;
        own.stores.clear();
        own.store_groups.clear();
        own.read = own.written = 0;
    }
}

// Lands one load: the oldest, the newest, or any, as threads are ordered.
bool deliver_load(Engine& engine) {
    if (engine.loads.empty()) return false;
    size_t last = engine.loads.size() - 1;
    uint32_t order = engine.timing.order;
    size_t at = order == 0 ? 0 : order == 1 ? last : draw(engine) % (last + 1);
    BulkLoad load = engine.loads[at];
    engine.loads.erase(engine.loads.begin() + static_cast<ptrdiff_t>(at));
    land(engine, load);
    return true;
}

void check_stores_read(Thread& thread) {
    AsyncThread& own = thread.async;
    if (own.read == own.stores.size()) return;
    fail(thread, own.stores[own.read].site,
         "bulk store: its thread exits without a wait for its read of shared memory");
}

void check_loads_landed(Thread& thread) {
    for (const BulkLoad& load : thread.engine->loads) {
        if (load.block != thread.block) continue;
        fail(*load.by, load.site, "bulk load: the block exits while it is under way");
    }
}

void finish_stores(Thread& thread) { advance(thread, thread.async.stores.size(), false); }

void tensor_load(uint32_t to, const void* map, int x, int y, uint32_t bar, uint16_t ranks) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    Engine& engine = *thread.engine;
    TensorMap copied = read_map(thread, map, site);
    if (to % kBoxBytes != 0) {
        fail(thread, site, "bulk load: shared address %u is not aligned to 128", to);
    }
    for (uint32_t row = 0; row < copied.box_rows; ++row) {
        Part part = part_of(copied, x, y, row);
        if (part.bytes == 0) continue;
        Thread& self = agent(thread, "bulk load", Cells::kLoader, thread.block_sync);
        check(self, reinterpret_cast<void*>(part.at), part.bytes, Access::kRead, site);
    }
    if (ranks >> engine.block_count != 0) {
        fail(thread, site, "bulk load: ranks %#x in a cluster of %u blocks", ranks,
             engine.block_count);
    }
    if (ranks == 0) return issue_load(thread, *thread.block, to, copied, x, y, bar, site);
    for (uint32_t rank = 0; rank < engine.block_count; ++rank) {
        if (ranks >> rank & 1) {
            issue_load(thread, engine.blocks[rank], to, copied, x, y, bar, site);
        }
    }
}

void tensor_store(const void* map, int x, int y, uint32_t from, bool add) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    TensorMap copied = read_map(thread, map, site);
    if (from % kBoxBytes != 0) {
        fail(thread, site, "bulk store: shared address %u is not aligned to 128", from);
    }
    uint8_t* place = shared_bytes(thread, from, box_bytes(copied), "bulk store", site);
    BulkStore store{copied, x, y, place, add, thread.block_sync, site, {}};
    check_reads(thread, store);
    if (thread.engine->timing.eager != 0) {
        copy_out(store);
        write_out(thread, store);
    }
    thread.async.stores.push_back(std::move(store));
}

void bulk_commit() {
    AsyncThread& own = self().async;
    own.store_groups.push_back(static_cast<uint32_t>(own.stores.size()));
}

void bulk_wait(int keep, bool read_only) {
    Thread& thread = self();
    AsyncThread& own = thread.async;
    size_t groups = own.store_groups.size(), kept = static_cast<size_t>(keep);
    if (groups <= kept) return;
    advance(thread, own.store_groups[groups - kept - 1], read_only);
    // Its own writes come behind the reads.
    thread.now = thread.block_sync = ++thread.engine->clock;
    // Long loops must not let the lists grow.
    if (own.written == own.stores.size()) {
        own.stores.clear();
        own.store_groups.clear();
        own.read = own.written = 0;
    }
}

}  // namespace sim
