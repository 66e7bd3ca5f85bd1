// Device memory: allocations in one reserved stretch of addresses, and a state for each of its
// bytes.
//
// Addresses are never used twice, so what was freed stays invalid. Between allocations lies a gap
// that no kernel may touch; since every byte has its state, an access one byte past the end is
// found as well as one far off.

#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <mutex>

#include "engine.hpp"

namespace sim {

namespace {

constexpr uintptr_t kPage = 4096, kGap = 256 << 10;

std::mutex memory_mutex;
std::map<uintptr_t, size_t> allocations;
uintptr_t next_address = kDevice + kGap;

uintptr_t pages(size_t bytes) { return (bytes + kPage - 1) / kPage * kPage; }

bool reserve(uintptr_t at, uintptr_t bytes, int protection) {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
    void* wanted = reinterpret_cast<void*>(at);
    return mmap(wanted, bytes, protection, kFlags, -1, 0) == wanted;
}

// True if all of a range of device memory belongs to an allocation.
bool allocated(uintptr_t at, size_t bytes) {
    std::lock_guard<std::mutex> lock(memory_mutex);
    auto after = allocations.upper_bound(at);
    if (after == allocations.begin()) return bytes == 0;
    auto [start, size] = *std::prev(after);
    return at - start <= size && bytes <= size - (at - start);
}

}  // namespace

// Reserves all address ranges, once; returns what went wrong, else null.
const char* reserve_memory() {
    static const char* problem = [] {
        constexpr int kUse = PROT_READ | PROT_WRITE;
        bool good = reserve(kDevice, kDeviceBytes, kUse) &&
                    reserve(kDeviceShadow, kDeviceBytes, kUse) &&
                    reserve(kStacks, kStackBytes * kMaxThreads * kMaxEngines, PROT_NONE) &&
                    reserve(kShared, kWindowBytes * kMaxCluster * kMaxEngines, PROT_NONE) &&
                    reserve(kSharedShadow,
                            kWindowBytes * kMaxCluster * kMaxEngines / 16 * sizeof(Cells), kUse);
        return good ? nullptr
                    : "cannot reserve 550 GiB of addresses (no memory): is `ulimit -v` set?";
    }();
    return problem;
}

std::string describe_device(uintptr_t address) {
    std::lock_guard<std::mutex> lock(memory_mutex);
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return "no allocation lies below this address";
    auto [start, size] = *std::prev(after);
    return "byte " + std::to_string(address - start) + " of an allocation of " +
           std::to_string(size) + " bytes";
}

}  // namespace sim

// ---- What the host calls; 0 is success, 1 an invalid range, 2 too little memory
// ---------------------

extern "C" {

int simMemAlloc(void** out, size_t bytes) {
    using namespace sim;
    if (reserve_memory() != nullptr) return 2;
    std::unique_lock<std::mutex> lock(memory_mutex);
    uintptr_t at = next_address, room = pages(bytes) + kGap;
    if (room > kDevice + kDeviceBytes - at) return 2;
    next_address += room;
    allocations[at] = bytes;
    lock.unlock();
    // NaN in bf16, fp16 and fp32, for a host that reads what nobody wrote.
    memset(reinterpret_cast<void*>(at), 0xFF, bytes);
    memset(shadow_of(at), kUnwritten, bytes);
    *out = reinterpret_cast<void*>(at);
    return 0;
}

int simMemFree(void* p) {
    using namespace sim;
    std::lock_guard<std::mutex> lock(memory_mutex);
    auto found = allocations.find(reinterpret_cast<uintptr_t>(p));
    if (found == allocations.end()) return 1;
    // Back to zeros, which the shadow takes for no memory.
    madvise(p, pages(found->second), MADV_DONTNEED);
    madvise(shadow_of(found->first), pages(found->second), MADV_DONTNEED);
    allocations.erase(found);
    return 0;
}

int simMemcpyHtoD(void* to, const void* from, size_t bytes) {
    auto at = reinterpret_cast<uintptr_t>(to);
    if (!sim::allocated(at, bytes)) return 1;
    memcpy(to, from, bytes);
    if (bytes != 0) memset(sim::shadow_of(at), sim::kWritten, bytes);
    return 0;
}

int simMemcpyDtoH(void* to, const void* from, size_t bytes) {
    if (!sim::allocated(reinterpret_cast<uintptr_t>(from), bytes)) return 1;
    memcpy(to, from, bytes);
    return 0;
}

int simMemcpyDtoD(void* to, const void* from, size_t bytes) {
    auto at = reinterpret_cast<uintptr_t>(to), source = reinterpret_cast<uintptr_t>(from);
    if (!sim::allocated(at, bytes) || !sim::allocated(source, bytes)) return 1;
    if (bytes == 0) return 0;
    memmove(to, from, bytes);
    // Bytes that were unwritten there are unwritten here.
    memmove(sim::shadow_of(at), sim::shadow_of(source), bytes);
    return 0;
}

int simMemsetD8(void* to, uint8_t value, size_t bytes) {
    auto at = reinterpret_cast<uintptr_t>(to);
    if (!sim::allocated(at, bytes)) return 1;
    if (bytes == 0) return 0;
    memset(to, value, bytes);
    memset(sim::shadow_of(at), sim::kWritten, bytes);
    return 0;
}

}  // extern "C"
