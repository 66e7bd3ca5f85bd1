// Warpgroups: wgmma, whose products run beside the threads, and setmaxnreg.
//
// From the first product on, sums are held here, as a matrix of 64 rows, and the threads' own
// arrays show NaN; a thread gets its part back when it waits for the products of an array that it
// names. A product may read its operands at any time from its issue by all 128 threads to the
// wait: eager timing multiplies at the issue, lazy timing when threads wait for it and nobody else
// can run, so that a stage released too early is read with what came after it.
//
// build.rs compiles this file with fused multiply-adds, which are exact for products of two bf16.
// Sums run over k in rising order; hardware may use another one.

#include <algorithm>

#include "engine.hpp"

namespace sim {

namespace {

using Vec8 = float __attribute__((vector_size(32)));

constexpr uint32_t kNaN = 0xFFFFFFFFu;

// ---- Operands
// ----------------------------------------------------------------------------------------------

float widen(uint32_t bf16) {
    uint32_t bits = bf16 << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}

// A matrix descriptor: PTX ISA, "Matrix Descriptor Format".
struct Operand {
    uint32_t start, lead, stride;

    Operand(Thread& thread, const void* site, uint64_t words, bool outer_major, const char* name)
        : start((words & 0x3FFF) << 4),
          lead((words >> 16 & 0x3FFF) << 4),
          stride((words >> 32 & 0x3FFF) << 4) {
        auto layout = static_cast<uint32_t>(words >> 62), base = static_cast<uint32_t>(words >> 49 & 7);
        if (layout != 1) {
            fail(thread, site,
                 "wgmma, descriptor of %s: layout %u; the simulator knows the 128-byte swizzle (1)",
                 name, layout);
        }
        if (!outer_major && start % 32 != 0) {
            fail(thread, site, "wgmma, descriptor of %s: address %u is not a multiple of 32", name,
                 start);
        }
        if (start / 128 % 8 != 0 || base != 0) {
            fail(thread, site,
                 "wgmma, descriptor of %s: address %u is not in the first 128 bytes of a multiple "
                 "of 1024, where the swizzle begins",
                 name, start);
        }
    }
};

// Reads operands of one product, in the name of the threads that issued it.
class Reader {
public:
    Reader(Thread& agent, const void* site) : agent_(agent), site_(site) {}

    // A row's `bytes`, which the swizzle keeps together: 32 or 128, a multiple of that; checked.
    void look(uint32_t address, uint32_t bytes, const char* name) {
        check_async_read(agent_, shared_bytes(agent_, address, bytes, name, site_), bytes, site_);
    }

    // Eight elements of a row that was looked at.
    const uint16_t* chunk(uint32_t address) {
        address ^= address >> 3 & 0x70;
        const Engine& engine = *agent_.engine;
        const uint8_t* p = agent_.grid->shared + (address - kSharedStart - engine.timing.shift);
        return reinterpret_cast<const uint16_t*>(p);
    }

private:
    Thread& agent_;
    const void* site_;
};

// Reads `rows` outer indices x 16 of k; hands over element (outer, k).
template <typename Put>
void read(Reader& reader, const Operand& operand, int rows, bool outer_major, const char* name,
          Put put) {
    if (!outer_major) {
        for (int r = 0; r < rows; ++r) {
            uint32_t line = operand.start + r / 8 * operand.stride + r % 8 * 128;
            reader.look((line ^ (line >> 3 & 0x70)) & ~31u, 32, name);
            for (int c = 0; c < 2; ++c) {
                const uint16_t* from = reader.chunk(line + 16 * c);
                for (int e = 0; e < 8; ++e) put(r, 8 * c + e, widen(from[e]));
            }
        }
        return;
    }
    // Whole rows of 128 bytes, or parts of them.
    bool whole = operand.start % 128 == 0 && rows % 64 == 0;
    for (int k = 0; k < static_cast<int>(kProductK); ++k) {
        uint32_t line = operand.start + k / 8 * operand.stride + k % 8 * 128;
        for (int j = 0; j < rows / 8; ++j) {
            uint32_t at = line + j / 8 * operand.lead + j % 8 * 16;
            if (!whole) reader.look(at ^ (at >> 3 & 0x70), 16, name);
            if (whole && j % 8 == 0) reader.look(at, 128, name);
            const uint16_t* from = reader.chunk(at);
            for (int e = 0; e < 8; ++e) put(8 * j + e, k, widen(from[e]));
        }
    }
}

// ---- The product
// -------------------------------------------------------------------------------------------

// Adds the products of M rows and V times eight columns.
template <int M, int V>
void add_tile(float* sums, int pitch, const float* a, const float* b, bool add) {
    Vec8 sum[M][V] = {};
    if (add) {
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) memcpy(&sum[m][v], sums + m * pitch + 8 * v, sizeof(Vec8));
        }
    }
    for (uint32_t k = 0; k < kProductK; ++k) {
        Vec8 right[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) memcpy(&right[v], b + k * pitch + 8 * v, sizeof(Vec8));
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) sum[m][v] += a[m * kProductK + k] * right[v];
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) memcpy(sums + m * pitch + 8 * v, &sum[m][v], sizeof(Vec8));
    }
}

void execute(Engine& engine, uint32_t group, Product& product) {
    alignas(64) static thread_local float a[kProductRows * kProductK];
    alignas(64) static thread_local float b[kProductK * kProductColumns];
    Thread& self = agent(*product.by, "wgmma", Cells::kProducts + group * kLanes, product.sync);
    self.now = product.read_at = ++engine.clock;
    Reader reader(self, product.site);
    const int n = product.n;
    if (product.from_registers) {
        // As the a of mma.m16n8k16, 16 rows a warp.
        for (uint32_t t = 0; t < kWarpgroup; ++t) {
            uint32_t row = t / 32 * 16 + t % 32 / 4, k = 2 * (t % 4);
            for (uint32_t i = 0; i < 4; ++i) {
                float* to = a + (row + i % 2 * 8) * kProductK + k + i / 2 * 8;
                to[0] = widen(product.registers[t][i] & 0xFFFF);
                to[1] = widen(product.registers[t][i] >> 16);
            }
        }
    } else {
        read(reader, Operand(self, product.site, product.a, product.outer_a, "a"), kProductRows, product.outer_a,
             "wgmma a", [](int row, int k, float x) { a[row * kProductK + k] = x; });
    }
    read(reader, Operand(self, product.site, product.b, product.outer_b, "b"), n, product.outer_b, "wgmma b",
         [n](int column, int k, float x) { b[k * n + column] = x; });
    float* sums = product.sums->values;
    for (uint32_t m = 0; m < kProductRows; m += 4) {
        int at = 0;
        for (; at + 16 <= n; at += 16) {
            add_tile<4, 2>(sums + m * n + at, n, a + m * kProductK, b + at, product.add);
        }
        if (at < n) add_tile<4, 1>(sums + m * n + at, n, a + m * kProductK, b + at, product.add);
    }
    --product.sums->in_flight;
}

void execute_until(Engine& engine, Warpgroup& group, uint32_t end) {
    auto number = static_cast<uint32_t>(&group - engine.warpgroups);
    for (; group.executed < end; ++group.executed) {
        execute(engine, number, group.products[group.executed % kMaxProducts]);
    }
}

// True if all threads have issued the products before `end`.
bool issued(const Warpgroup& group, uint32_t end) {
    return group.opened >= end &&
           (end == 0 || group.products[(end - 1) % kMaxProducts].issued == kWarpgroup);
}

// ---- Sums
// --------------------------------------------------------------------------------------------------

// Calls with each of a thread's sums and its place in the matrix, in pairs.
template <typename Each>
void each_pair(Sums& sums, uint32_t t, float* own, Each each) {
    uint32_t row = t / 32 * 16 + t % 32 / 4, column = 2 * (t % 4);
    for (int j = 0; j < sums.n / 8; ++j) {
        each(own + 4 * j, sums.values + row * sums.n + 8 * j + column);
        each(own + 4 * j + 2, sums.values + (row + 8) * sums.n + 8 * j + column);
    }
}

bool holds(const Sums& sums, uint32_t t) { return sums.held[t / 32] >> t % 32 & 1; }

bool holds_any(const Sums& sums) {
    return (sums.held[0] | sums.held[1] | sums.held[2] | sums.held[3]) != 0;
}

// The record of the array `d` of thread `t`: the one that it had, or a free one.
Sums& sums_of(Thread& thread, Warpgroup& group, uint32_t t, const float* d, int n,
              const void* site) {
    Sums* free = nullptr;
    for (Sums* sums : group.sums) {
        if (sums->place[t] == d && sums->n == n) return *sums;
        if (sums->in_flight == 0 && !holds_any(*sums)) free = sums;
    }
    if (free == nullptr && group.sums.size() == kMaxSums) {
        fail(thread, site, "wgmma: the simulator takes %u arrays of sums at a time", kMaxSums);
    }
    if (free == nullptr) {
        free = new Sums{};
        group.sums.push_back(free);
    }
    std::fill_n(free->place, kWarpgroup, nullptr);
    free->n = n;
    return *free;
}

// Takes a thread's part of the sums over, before its first product.
void take(Thread& thread, Sums& sums, uint32_t t, float* d, bool add, const void* site) {
    if (holds(sums, t)) {
        uint32_t first;
        memcpy(&first, d, 4);
        if (sums.place[t] != d || first != kNaN) {
            fail(thread, site,
                 "wgmma: its sums are other registers than before, or were written while products "
                 "are in flight");
        }
        return;
    }
    sums.held[t / 32] |= 1u << t % 32;
    sums.place[t] = d;
    if (add) each_pair(sums, t, d, [](float* own, float* there) { memcpy(there, own, 8); });
    memset(d, 0xFF, sums.n / 2 * sizeof(float));
}

void give_back(Sums& sums, uint32_t t) {
    sums.held[t / 32] &= ~(1u << t % 32);
    each_pair(sums, t, sums.place[t], [](float* own, float* there) { memcpy(own, there, 8); });
}

Warpgroup& group_of(Thread& thread, const char* what, const void* site) {
    uint32_t first = thread.linear / kWarpgroup * kWarpgroup;
    if (first + kWarpgroup > thread.block->first + thread.block->count) {
        fail(thread, site, "%s: the warpgroup has fewer than 128 threads", what);
    }
    return thread.engine->warpgroups[thread.linear / kWarpgroup];
}

void issue(Thread& thread, Warpgroup& group, const Wanted& wanted, float* d, const uint32_t* a) {
    const void* site = wanted.site;
    AsyncThread& own = thread.async;
    uint32_t t = thread.linear % kWarpgroup, number = own.products++;
    if (!own.products_fenced) {
        fail(thread, site,
             "wgmma: no wgmma_fence since the wait (or the start) before it: accesses to its "
             "registers are not ordered before it");
    }
    if (wanted.n < 8 || wanted.n > 256 || wanted.n % 8 != 0) {
        fail(thread, site, "wgmma: %d columns are not a multiple of 8 up to 256", wanted.n);
    }
    if (number - group.retired >= kMaxProducts) {
        fail(thread, site, "wgmma: the simulator takes %u products in flight", kMaxProducts);
    }
    Product& product = group.products[number % kMaxProducts];
    if (number == group.opened) {
        static_cast<Wanted&>(product) = wanted;
        product.issued = 0;
        product.sums = &sums_of(thread, group, t, d, wanted.n, site);
        product.by = &thread;
        product.sync = thread.block_sync;
        ++product.sums->in_flight;
        ++group.opened;
    }
    if (product.a != wanted.a || product.b != wanted.b || product.n != wanted.n ||
        product.add != wanted.add || product.from_registers != wanted.from_registers ||
        product.outer_a != wanted.outer_a || product.outer_b != wanted.outer_b) {
        fail(thread, site,
             "wgmma: thread %u of the warpgroup (at @%p@) gives other operands to product %u",
             product.by->linear % kWarpgroup, product.site, number);
    }
    take(thread, *product.sums, t, d, wanted.add, site);
    if (a != nullptr) memcpy(product.registers[t], a, sizeof product.registers[t]);
    own.sums[number % kMaxProducts] = d;
    own.widths[number % kMaxProducts] = wanted.n / 2;
    product.sync = std::min(product.sync, thread.block_sync);
    if (++product.issued == kWarpgroup && thread.engine->timing.eager != 0) {
        execute_until(*thread.engine, group, number + 1);
    }
}

void retire(Engine& engine, Warpgroup& group, uint32_t end) {
    execute_until(engine, group, end);
    group.retired = std::max(group.retired, end);
    auto first_warp = static_cast<uint32_t>(&group - engine.warpgroups) * 4;
    for (uint32_t w = 0; w < 4; ++w) {
        make_ready(engine, first_warp + w, group.waiting[w]);
        group.waiting[w] = 0;
    }
}

}  // namespace

void reset_warpgroups(Engine& engine) {
    for (Warpgroup& group : engine.warpgroups) {
        group.opened = group.executed = group.retired = group.wanted = 0;
        group.registers = group.wanted_registers = group.movers = 0;
        std::fill_n(group.waiting, 4, 0u);
        for (Sums* sums : group.sums) {
            std::fill_n(sums->held, 4, 0u);
            std::fill_n(sums->place, kWarpgroup, nullptr);
            sums->in_flight = 0;
        }
    }
    for (uint32_t i = 0; i < engine.count; ++i) {
        AsyncThread& own = engine.threads[i].async;
        own.fenced = own.mbar_fenced = 0;
        own.products = own.waited = own.commits = own.products_sync = 0;
        own.products_fenced = false;
    }
}

bool serve_products(Engine& engine) {
    for (Warpgroup& group : engine.warpgroups) {
        bool waiting = (group.waiting[0] | group.waiting[1] | group.waiting[2] |
                        group.waiting[3]) != 0;
        if (!waiting || !issued(group, group.wanted)) continue;
        retire(engine, group, group.wanted);
        return true;
    }
    return false;
}

void check_products_ended(Thread& thread) {
    const AsyncThread& own = thread.async;
    if (own.products == 0) return;
    Warpgroup& group = thread.engine->warpgroups[thread.linear / kWarpgroup];
    uint32_t t = thread.linear % kWarpgroup;
    if (own.waited < own.products) {
        fail(thread, group.products[own.waited % kMaxProducts].site,
             "wgmma: the thread exits without a wait for its product");
    }
    for (const Sums* sums : group.sums) {
        if (!holds(*sums, t)) continue;
        fail(thread, group.products[(own.products - 1) % kMaxProducts].site,
             "wgmma: the thread exits, and no wgmma_wait named one of its arrays of sums");
    }
}

void wgmma_fence() { self().async.products_fenced = true; }

void wgmma_commit() {
    AsyncThread& own = self().async;
    own.groups[own.commits++ % 16] = own.products;
}

void wgmma_wait(int keep, float* d, int count) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    Engine& engine = *thread.engine;
    Warpgroup& group = group_of(thread, "wgmma_wait", site);
    AsyncThread& own = thread.async;
    uint32_t t = thread.linear % kWarpgroup, kept = static_cast<uint32_t>(keep);
    if (keep < 0 || keep > 7) fail(thread, site, "wgmma_wait: keeps %d groups, 0 to 7 can be", keep);
    uint32_t end = own.commits > kept ? own.groups[(own.commits - 1 - kept) % 16] : 0;
    while (group.retired < end) {
        if (engine.timing.eager != 0 && issued(group, end)) {
            retire(engine, group, end);
            break;
        }
        group.wanted = group.waiting[0] + group.waiting[1] + group.waiting[2] + group.waiting[3] == 0
                           ? end
                           : std::max(group.wanted, end);
        group.waiting[thread.warp % 4] |= 1u << thread.lane;
        wait_here(thread, "at a wait for products, %ld of %ld of which have ended", group.retired,
                  end, site);
    }
    if (end > own.waited) {
        own.waited = end;
        own.products_fenced = false;
        // It may write what its products have read; that says nothing of other threads' accesses.
        own.products_sync = group.products[(end - 1) % kMaxProducts].read_at + 1;
        thread.now = ++engine.clock;
    }
    for (Sums* sums : group.sums) {
        if (sums->place[t] != d || !holds(*sums, t)) continue;
        if (sums->n / 2 != count) {
            fail(thread, site, "wgmma_wait: names %d sums of %d", count, sums->n / 2);
        }
        // The thread's last product with these sums.
        uint32_t last = own.products;
        while (own.sums[(last - 1) % kMaxProducts] != d) --last;
        if (last <= end) give_back(*sums, t);
    }
}

void wgmma_ss(float* d, uint64_t a, uint64_t b, int n, bool outer_a, bool outer_b, bool add) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    issue(thread, group_of(thread, "wgmma", site), {a, b, n, false, outer_a, outer_b, add, site}, d,
          nullptr);
}

void wgmma_rs(float* d, const uint32_t* a, uint64_t b, int n, bool outer_b, bool add) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    issue(thread, group_of(thread, "wgmma", site), {0, b, n, true, false, outer_b, add, site}, d, a);
}

// ---- Registers
// ---------------------------------------------------------------------------------------------

namespace {

// The default number of registers of a thread in a block of `count` threads.
uint32_t registers_at_start(uint32_t count) {
    return std::min(65536 / count / 8 * 8, 256u);
}

}  // namespace

void set_registers(int count, bool up) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    const char* name = up ? "registers_up" : "registers_down";
    Warpgroup& group = group_of(thread, name, site);
    if (count < 24 || count > 256 || count % 8 != 0) {
        fail(thread, site, "%s: %d registers are not a multiple of 8 from 24 to 256", name, count);
    }
    auto wanted = static_cast<uint32_t>(count);
    if (group.movers == 0) {
        group.wanted_registers = wanted;
        group.site = site;
    }
    if (group.wanted_registers != wanted) {
        fail(thread, site, "%s: %u registers where others of the warpgroup said %u", name, wanted,
             group.wanted_registers);
    }
    uint32_t now = group.registers != 0 ? group.registers : registers_at_start(thread.block->count);
    if (up ? wanted < now : wanted > now) {
        fail(thread, site, "%s: from %u registers to %u", name, now, wanted);
    }
    if (++group.movers == kWarpgroup) {
        group.movers = 0;
        group.registers = wanted;
    }
}

// A block has the registers that it began with; who asks for more waits for ever.
void check_registers(Thread& thread) {
    const Block& block = *thread.block;
    uint32_t start = registers_at_start(block.count), groups = block.count / kWarpgroup, sum = 0;
    const void* site = nullptr;
    for (uint32_t i = 0; i < groups; ++i) {
        const Warpgroup& group = thread.engine->warpgroups[block.first / kWarpgroup + i];
        sum += group.registers != 0 ? group.registers : start;
        if (group.registers > start) site = group.site;
        if (group.movers != 0) {
            fail(thread, group.site, "setmaxnreg: %u of 128 threads of a warpgroup came to it",
                 group.movers);
        }
    }
    if (sum > start * groups) {
        fail(thread, site,
             "setmaxnreg: warpgroups end with %u registers a thread together, the block has %u x %u",
             sum, groups, start);
    }
}

}  // namespace sim
