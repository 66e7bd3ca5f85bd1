// The runtime's own records: threads, warps, barriers, blocks, and the engine that runs one cluster
// of blocks at a time; a launch without clusters has clusters of one block.
//
// An engine belongs to one OS thread while a launch runs, so launches of different OS threads share
// nothing but device memory, and need no lock.
#pragma once

#include <cstdarg>
#include <string>
#include <vector>

#include "async.hpp"
#include "sim.hpp"

namespace sim {

constexpr uint32_t kLanes = 32, kBarriers = 16;
constexpr uint32_t kMaxCluster = 4;

// The address space: fixed places, so that an address tells what it is by its high bits.
constexpr uintptr_t kRegionShift = 40;
constexpr uintptr_t kDevice = uintptr_t{0x20} << kRegionShift;
constexpr uintptr_t kDeviceShadow = uintptr_t{0x21} << kRegionShift;
constexpr uintptr_t kStacks = uintptr_t{0x22} << kRegionShift;
constexpr uintptr_t kShared = uintptr_t{0x23} << kRegionShift;
constexpr uintptr_t kSharedShadow = uintptr_t{0x24} << kRegionShift;
constexpr uintptr_t kDeviceBytes = uintptr_t{256} << 30;
constexpr uint32_t kMaxEngines = 256;
// A block's window of shared memory: its bytes begin behind a margin that is never valid.
constexpr uintptr_t kWindowBytes = 1 << 20, kMargin = 256 << 10;
constexpr uint32_t kSharedBytes = 227 << 10;
constexpr uint32_t kStaticBytes = 256 << 10;
// The shared address of a block's first dynamic byte: not 0, as on a GPU.
constexpr uint32_t kSharedStart = 1024;

// How a launch runs; results must not depend on it. The host hands it over in place of a stream.
struct Timing {
    uint32_t order;  // threads run in rising (0), falling (1) or random (2) order
    uint32_t eager;  // cp.async lands when it is issued (1) or when it is waited for (0)
    uint32_t shift;  // moves shared memory by so many bytes: what relies on more alignment than 128
                     // breaks
    uint32_t seed;   // of the random order
};

struct CopyAsync {
    uint8_t* to;
    const void* from;
    uint32_t bytes, source_bytes;
};

enum class State : uint8_t { kFresh, kStarted, kDone };

struct Thread : ThreadHead {
    struct Engine* engine;
    struct Block* block;
    void* stack_pointer;
    uint8_t* stack;         // lowest address, 0 before the thread starts
    uint32_t linear, warp;  // of the cluster
    State state;

    // The reason for its wait, for the report of a deadlock: a format and its two numbers.
    const char* waits;
    long wait_a, wait_b;
    const void* site;

    // The clock of the race check: `now` stamps accesses; what was stamped before `block_sync` by
    // anyone, or before `warp_sync` by a lane of this warp, happened before.
    uint32_t now, block_sync, warp_sync;
    // The thread, and its warp, as Cells name a reader; twice, for two cells at a time.
    uint32_t me_twice, lanes_twice;

    std::vector<CopyAsync> copies;
    std::vector<uint32_t> groups;  // number of copies at each commit
    size_t landed, groups_done;

    // The work of the async proxy that does an access in this thread's name; null for a thread.
    const char* role;
    AsyncThread async;
};

struct Meeting;
// Works on all lanes' words once the last one has come.
using Meet = void (*)(Meeting&, Engine&);

// Lanes of a warp that wait for one another.
struct Meeting {
    uint32_t mask, arrived;
    const char* name;
    Meet run;
    uint64_t detail;
    const void* site;
    uint64_t in[kLanes], out[kLanes];
    void* place[kLanes];
};

struct Warp {
    uint32_t valid, ready, exited;
    Meeting meetings[4];
};

struct Barrier {
    uint32_t expected, arrived;
    uint32_t waiting[kMaxWarps];
};

// Who touched shared memory last, in cells of two bytes; eight of them, so that a 16-byte access
// finds all it needs in two lines of the cache.
struct alignas(64) Cells {
    static constexpr uint32_t kInFlight = 0xFFFFFFFF;  // wrote_at, while a cp.async is under way
    static constexpr uint16_t kLanesOf = 0x1000;       // read_by: several lanes of this warp
    static constexpr uint16_t kSeveral = 0x2000;       // read_by: threads of several warps
    // The async proxy, in steps of a warp: products of warpgroup g, stores that read, loads that
    // look for others, loads, and what is an mbarrier.
    static constexpr uint16_t kProducts = 40 * 32, kStore = 50 * 32, kLoader = 52 * 32;
    static constexpr uint16_t kLoad = 53 * 32, kMbarrier = 54 * 32;
    uint32_t wrote_at[8], read_at[8];
    uint32_t site[8];  // of the write, as an offset in the library
    uint16_t wrote_by[8], read_by[8];
};

// The cells of dynamic shared memory, counted from where it begins without a shift, then those of
// static arrays.
constexpr uint32_t kStaticCell = (kSharedBytes + 1024) / 2;
constexpr uint32_t kCells = kStaticCell + kStaticBytes / 2;
constexpr size_t kShadowBytes = kCells / 8 * sizeof(Cells);

// The cells of an address in any engine's shared memory.
inline Cells* cells_of(uintptr_t at) {
    return reinterpret_cast<Cells*>(kSharedShadow + (at - kShared) / 16 * sizeof(Cells));
}

// One block of the cluster that runs.
struct Block {
    Grid grid;
    uint32_t rank, first, count, alive;  // its threads are `count` from the cluster's `first`
    Barrier barriers[kBarriers];
    uint8_t* window;
    uint8_t* statics;  // the static shared arrays of this OS thread; none in a cluster of several
    size_t static_bytes;
    Cells* cells;
    std::vector<Mbarrier> mbarriers;
    uint32_t registers;  // that its threads have together
};

struct Engine {
    const Kernel* kernel;
    void** arguments;
    Timing timing;
    uint64_t random;

    Thread threads[kMaxThreads];
    uint32_t count, warp_count, alive;
    Warp warps[kMaxWarps];
    uint32_t ready_warps, current_warp;
    Block blocks[kMaxCluster];
    uint32_t block_count;
    Barrier cluster_barrier;

    Warpgroup warpgroups[kMaxWarps / 4];
    std::vector<BulkLoad> loads;  // under way
    Thread agent;                 // makes the accesses of the async proxy
    uint32_t turns;               // of asynchronous work, for an order of it

    void* main_stack_pointer;
    std::vector<uint8_t*> free_stacks;
    uint8_t* stacks;
    uint32_t stacks_used;

    uint32_t clock, block_start;
    void* tensor_scratch;

    bool failed;
    std::string report;
    // Why fail() was called, until the report is written outside the failing fiber.
    const Thread* culprit;
    const void* fault_site;
    char fault[2048];
};

// ---- fiber.cpp
Engine* enter_engine();
void leave_engine(Engine* engine);
uint8_t* new_stack(Engine& engine);
void run_fibers(Engine& engine, Thread& first);
void switch_to(Thread& from, Thread& to);
[[noreturn]] void leave_fiber(Engine& engine);
bool in_fiber();

// ---- block.cpp
// Checks at the end of a thread, and of a cluster.
void finish_thread(Thread& thread);
void finish_cluster(Thread& last);
bool run_cluster(Engine& engine, uint64_t first);
uint64_t draw(Engine& engine);
Thread* pick(Engine& engine);
void make_ready(Engine& engine, uint32_t warp, uint32_t lanes);
// The thread that runs once this one cannot, after what asynchronous work it takes; reports a
// deadlock where nobody can run.
Thread& next_thread(Thread& thread);
// Stops the thread until someone makes it ready; reports a deadlock where nobody can run.
void wait_here(Thread& thread, const char* what, long a, long b, const void* site);

// ---- warp.cpp
uint64_t meet(const char* name, Meet run, uint64_t detail, uint32_t mask, uint64_t word,
              void* place, const void* site);

// Makes all that wait at a barrier ready, and orders them behind all that came before.
void release(Engine& engine, uint32_t* waiting, const Thread& last);

// ---- async.cpp
void reset_copies(Thread& thread);

// ---- mbarrier.cpp
void forget_mbarriers(Engine& engine);
// The barrier at a shared address; reports where none is, or where `thread` cannot know of it.
Mbarrier& find_mbarrier(Thread& thread, Block& block, uint32_t address, const void* site);
void complete_bytes(Mbarrier& bar, Engine& engine, uint32_t bytes);
std::string describe_mbarriers(Engine& engine);

// ---- bulk.cpp
void reset_bulk(Engine& engine);
bool deliver_load(Engine& engine);
void finish_stores(Thread& thread);
void check_stores_read(Thread& thread);
void check_loads_landed(Thread& thread);

// ---- warpgroup.cpp
void reset_warpgroups(Engine& engine);
bool serve_products(Engine& engine);
void check_products_ended(Thread& thread);
void check_registers(Thread& thread);

// ---- access.cpp
enum class Access : uint8_t { kRead, kWrite };
// Holds an access to any memory against what is known of it, and notes it; reports what is wrong.
void check(Thread& thread, const void* p, size_t bytes, Access access, const void* site);
// Returns the bytes at a 32-bit shared address; reports where the block does not have that many
// there.
uint8_t* shared_bytes(Thread& thread, uint32_t address, uint32_t bytes, const char* what,
                      const void* site);
// Marks shared bytes that a cp.async will write, that it has written, or that nobody wrote.
enum class Flight : uint8_t { kIssued, kLanded, kForgotten };
void set_flight(Thread& thread, const uint8_t* p, uint32_t bytes, Flight flight);
// Says who wrote shared bytes, and when.
void set_writer(Thread& thread, const uint8_t* p, uint32_t bytes, uint32_t at, uint16_t by);
// The thread whose accesses are those of the async proxy, in the name of `thread`: `number` is of
// Cells, and what was stamped before `sync` happened before.
Thread& agent(Thread& thread, const char* role, uint16_t number, uint32_t sync);
// Holds an agent's access to whole 16 bytes of dynamic shared memory against the cells, and notes
// it. What it reads of a thread's must have a fence.proxy.async behind it.
void check_async_read(Thread& agent, const uint8_t* p, uint32_t bytes, const void* site);
void check_async_write(Thread& agent, const uint8_t* p, uint32_t bytes, const void* site);

// ---- memory.cpp
const char* reserve_memory();
std::string describe_device(uintptr_t address);
inline uint8_t* shadow_of(uintptr_t address) {
    return reinterpret_cast<uint8_t*>(address - kDevice + kDeviceShadow);
}
// States of a byte of device memory.
constexpr uint8_t kNoMemory = 0, kUnwritten = 1, kWritten = 3;

// ---- report.cpp
[[noreturn]] void fail(const Thread& thread, const void* site, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
void write_report(Engine& engine);
// Finds the library and takes over the signals of faults, the first time.
void install_once();
// Where the library lies; known from the first launch on.
extern uintptr_t library_base, library_end;
inline uint32_t site_offset(const void* site) {
    return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(site) - library_base);
}
inline const void* site_of(uint32_t offset) {
    return reinterpret_cast<const void*>(library_base + offset);
}
inline bool in_library(uintptr_t address) {
    return address >= library_base && address < library_end;
}

inline Thread& self() { return *static_cast<Thread*>(const_cast<ThreadHead*>(this_thread())); }

#define SIM_SITE __builtin_return_address(0)

}  // namespace sim
