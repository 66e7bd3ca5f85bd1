// Records of what runs beside the threads on sm_90a: mbarriers, bulk copies, products of warpgroups.
#pragma once

#include <vector>

#include "sim.hpp"

namespace sim {

struct Thread;
struct Block;

// A tensor map as Simulator::tensor_map of the host's driver/sim.rs writes it.
struct TensorMap {
    uint64_t address, columns, rows, pitch, element_bytes, box_columns, box_rows;
};
// A box's row, whatever its elements.
constexpr uint32_t kBoxBytes = 128;

struct Mbarrier {
    uint32_t address;         // in its block
    uint32_t count, pending;  // arrivals of a phase, and those that the phase under way still lacks
    int64_t bytes;            // of bulk copies that it still lacks
    uint32_t parity;          // of the phase under way
    // Everything before an arrival happened before the end of a wait: the time of the last phase's
    // last arrival, and of the phase under way.
    uint32_t release, next_release;
    uint32_t init_at, init_by;
    const void* site;  // of its initialisation
    uint32_t waiting[kMaxWarps];
};

// A bulk load on its way to one block.
struct BulkLoad {
    TensorMap map;
    int x, y;
    Block* block;
    uint8_t* to;
    uint32_t bar;
    Thread* by;
    const void* site;
};

struct BulkStore {
    TensorMap map;
    int x, y;
    const uint8_t* from;
    bool add;
    uint32_t sync;  // of its thread at the issue
    const void* site;
    std::vector<uint8_t> rows;  // once it has read
};

constexpr uint32_t kWarpgroup = 128, kMaxProducts = 64, kMaxSums = 8, kProductK = 16;
constexpr uint32_t kProductRows = 64, kProductColumns = 256;

// The sums of a warpgroup while they are not its threads': from the first product to each thread's
// wait.
struct Sums {
    float* place[kWarpgroup];
    uint32_t held[4];  // the threads whose part lies here, by warp
    int n;
    uint32_t in_flight;
    alignas(64) float values[kProductRows * kProductColumns];
};

// A request of the threads of a warpgroup, the same for all of them.
struct Wanted {
    uint64_t a, b;  // descriptors
    int n;
    bool from_registers, outer_a, outer_b, add;
    const void* site;
};

struct Product : Wanted {
    uint32_t registers[kWarpgroup][4];  // a, where it comes from there
    Sums* sums;
    uint32_t issued;  // threads that have come
    uint32_t sync;    // what all of them know to have happened before
    uint32_t read_at;
    Thread* by;
};

struct Warpgroup {
    Product products[kMaxProducts];     // number i at i % kMaxProducts
    uint32_t opened, executed, retired;  // numbers
    uint32_t wanted;                     // the highest that someone waits for
    uint32_t waiting[4];
    std::vector<Sums*> sums;
    uint32_t registers, wanted_registers, movers;
    const void* site;
};

// A thread's part in it.
struct AsyncThread {
    // Its writes before these times are seen by the async proxy: all, and its mbarriers.
    uint32_t fenced, mbar_fenced;

    std::vector<BulkStore> stores;
    std::vector<uint32_t> store_groups;  // number of stores at each commit
    size_t read, written;

    uint32_t products, waited;  // numbers: issued, and known to have ended
    uint32_t commits;
    uint32_t groups[16];  // products at commit i, at i % 16
    float* sums[kMaxProducts];
    int widths[kMaxProducts];
    uint32_t products_sync;  // what its warpgroup's products read before this happened before
    bool products_fenced;
};

}  // namespace sim
