// The table of kernels, and the launch: shaped like the driver's, so that the host's code differs
// by names only.

#include <link.h>
#include <signal.h>

#include <algorithm>

#include "engine.hpp"

namespace sim {

namespace {

Kernel* kernels;

// Touched so that this OS thread has the library's thread-locals before they are looked for.
thread_local volatile char touched;

// Finds this OS thread's copies of all static __shared__ arrays.
void find_statics(Engine& engine) {
    touched = 1;
    Block& block = engine.blocks[0];
    block.statics = nullptr;
    block.static_bytes = 0;
    // Blocks of a cluster run side by side, and cannot share the arrays of their OS thread.
    if (engine.block_count > 1) return;
    dl_iterate_phdr(
        [](dl_phdr_info* module, size_t, void* to) {
            auto& block = *static_cast<Block*>(to);
            if (module->dlpi_addr != library_base) return 0;
            for (int i = 0; i < module->dlpi_phnum; ++i) {
                const auto& part = module->dlpi_phdr[i];
                if (part.p_type != PT_TLS || module->dlpi_tls_data == nullptr) continue;
                block.statics = static_cast<uint8_t*>(module->dlpi_tls_data);  // aligned to 64
                block.static_bytes = std::min<size_t>(part.p_memsz, kStaticBytes);
            }
            return 1;
        },
        &block);
}

// Without a stack of its own for signals, a fiber's overflow would end the process.
void give_signal_stack() {
    stack_t now;
    if (sigaltstack(nullptr, &now) != 0 || !(now.ss_flags & SS_DISABLE)) return;
    stack_t fresh{};
    fresh.ss_size = 64 << 10;
    fresh.ss_sp = malloc(fresh.ss_size);
    sigaltstack(&fresh, nullptr);
}

void prepare(Engine& engine, const Kernel* kernel, uint3 grid, uint3 block, uint32_t shared,
             void** arguments, const Timing& timing) {
    engine.kernel = kernel;
    engine.arguments = arguments;
    engine.timing = timing;
    engine.random = 88172645463325252u ^ (timing.seed + 1) * 0x9E3779B97F4A7C15u;
    engine.block_count = kernel->cluster;
    uint32_t count = block.x * block.y * block.z;
    engine.count = count * kernel->cluster;
    engine.warp_count = (engine.count + kLanes - 1) / kLanes;
    for (uint32_t w = 0; w < engine.warp_count; ++w) {
        uint32_t lanes = std::min(engine.count - w * kLanes, kLanes);
        engine.warps[w].valid = lanes == kLanes ? ~0u : (1u << lanes) - 1;
    }
    for (uint32_t rank = 0; rank < kernel->cluster; ++rank) {
        Block& one = engine.blocks[rank];
        one.grid = {{0, 0, 0}, block, grid, one.window + kMargin + timing.shift, shared};
        one.first = rank * count;
        one.count = count;
    }
    for (uint32_t i = 0; i < engine.count; ++i) {
        Thread& thread = engine.threads[i];
        uint32_t own = i % count;
        thread.engine = &engine;
        thread.block = &engine.blocks[i / count];
        thread.grid = &thread.block->grid;
        thread.index = {own % block.x, own / block.x % block.y, own / (block.x * block.y)};
        thread.linear = i;
        thread.warp = i / kLanes;
        thread.lane = i % kLanes;
        thread.me_twice = i * 0x10001u;
        thread.lanes_twice = (Cells::kLanesOf | thread.warp) * 0x10001u;
    }
    // The clock must not wrap inside a launch; an old time would then look new.
    if (engine.clock > 0xE0000000u) {
        for (Block& one : engine.blocks) memset(one.cells, 0, kShadowBytes);
        engine.clock = 0;
    }
    find_statics(engine);
}

}  // namespace

void add_kernel(Kernel* kernel) {
    kernel->next = kernels;
    kernels = kernel;
}

}  // namespace sim

extern "C" {

// How a launch runs, and the place for its report.
struct SimLaunchOptions {
    sim::Timing timing;
    char report[4096];
};

const sim::Kernel* simGetFunction(const char* name) {
    for (auto* kernel = sim::kernels; kernel != nullptr; kernel = kernel->next) {
        if (strcmp(kernel->name, name) == 0) return kernel;
    }
    return nullptr;
}

// The size in bytes of a kernel's parameter; 1 where it has no such parameter.
int simParamInfo(const sim::Kernel* kernel, uint32_t index, uint32_t* bytes) {
    if (index >= kernel->parameters) return 1;
    *bytes = kernel->sizes[index];
    return 0;
}

// The arguments of cuLaunchKernel, with options in place of the stream. Returns when the kernel has
// ended: 0, or the driver's number of an invalid launch (1), or of a fault (700), with the report
// in the options.
int simLaunchKernel(const sim::Kernel* kernel, uint32_t grid_x, uint32_t grid_y, uint32_t grid_z,
                    uint32_t block_x, uint32_t block_y, uint32_t block_z, uint32_t shared,
                    SimLaunchOptions* options, void** arguments, void** /*extra*/) {
    using namespace sim;
    auto say = [&](int code, const char* text) {
        snprintf(options->report, sizeof options->report, "%s", text);
        return code;
    };
    uint64_t threads = uint64_t{block_x} * block_y * block_z;
    if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_x > 0x7FFFFFFF || grid_y > 65535 ||
        grid_z > 65535) {
        return say(1, "invalid launch: grid");
    }
    if (threads == 0 || threads > kMaxThreads || block_z > 64)
        return say(1, "invalid launch: block");
    uint32_t cluster = kernel->cluster;
    if (cluster > kMaxCluster || cluster * threads > kMaxThreads ||
        (cluster > 1 && threads % kLanes != 0)) {
        return say(1, "invalid launch: the simulator takes clusters of 4 blocks and 1024 threads");
    }
    if (grid_x % cluster != 0) return say(1, "invalid launch: the grid is not whole clusters");
    if (shared > kSharedBytes) return say(1, "invalid launch: more than 227 KiB of shared memory");
    if (options->timing.shift > 1024) return say(1, "invalid launch: shift above 1024");
    if (const char* problem = reserve_memory()) return say(2, problem);
    install_once();
    give_signal_stack();
    Engine* engine = enter_engine();
    if (engine == nullptr) return say(2, "too many launches at a time");
    prepare(*engine, kernel, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared,
            arguments, options->timing);
    uint64_t clusters = uint64_t{grid_x} * grid_y * grid_z / cluster;
    int code = 0;
    for (uint64_t i = 0; i < clusters && code == 0; ++i) {
        uint64_t at = options->timing.order == 1 ? clusters - 1 - i : i;
        if (!run_cluster(*engine, at * cluster)) code = say(700, engine->report.c_str());
    }
    leave_engine(engine);
    return code;
}

}  // extern "C"
