// Faults: what is said, and the source lines behind addresses of code.

#include <dlfcn.h>
#include <link.h>
#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdio>
#include <mutex>

#include "engine.hpp"

namespace sim {

namespace {

std::string library_path;

// The lines of an address of code, innermost first, without the simulator's own: "common.cuh:190,
// from grad_norm.cu:55".
std::string lines_of(uintptr_t address) {
    char text[256];
    // Behind the call, where a return address points, may be another line.
    uintptr_t offset = address - library_base - 1;
    snprintf(text, sizeof text, "%#lx", static_cast<unsigned long>(offset));
    std::string command = "addr2line -i -e '" + library_path + "' " + text + " 2>/dev/null";
    std::string all, last, fallback = std::string("code at ") + text;
    FILE* pipe = popen(command.c_str(), "r");
    if (pipe == nullptr) return fallback;
    char line[1024];
    while (fgets(line, sizeof line, pipe) != nullptr) {
        std::string where(line);
        where.resize(where.find_first_of(" \n"));
        bool ours = where.find("/sim/") != std::string::npos;
        if (ours || where.find("ptx.cuh") != std::string::npos || where[0] == '?') continue;
        where = where.substr(where.rfind('/') + 1);
        if (where == last) continue;
        all += (all.empty() ? "" : ", from ") + where;
        last = where;
    }
    pclose(pipe);
    return all.empty() ? fallback : all;
}

// Replaces each @address@ by its lines.
std::string resolve(const std::string& text) {
    std::string out;
    size_t at = 0;
    for (;;) {
        size_t from = text.find("@0x", at);
        size_t to = from == std::string::npos ? from : text.find('@', from + 1);
        if (to == std::string::npos) return out + text.substr(at);
        out += text.substr(at, from - at);
        out += lines_of(std::stoul(text.substr(from + 1, to - from - 1), nullptr, 16));
        at = to + 1;
    }
}

struct sigaction old_actions[NSIG];

const char* describe_signal(const Thread& thread, int number, uintptr_t at) {
    auto stack = reinterpret_cast<uintptr_t>(thread.stack);
    if (number == SIGFPE) return "integer division by zero";
    if (at >= stack && at < stack + 4096) return "more than 60 KiB of local variables";
    return "illegal address";
}

void escape(Engine* engine) { leave_fiber(*engine); }

// For what the checks of access.cpp do not see first: stack overflow, division by zero.
void on_signal(int number, siginfo_t* info, void* context) {
    auto& registers = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
    auto stack = static_cast<uintptr_t>(registers[REG_RSP]);
    if (stack >> kRegionShift != kStacks >> kRegionShift) {
        sigaction(number, &old_actions[number], nullptr);
        return;
    }
    // An overflow may have gone below the stack it belongs to: the faulting address tells.
    auto* thread = static_cast<Thread*>(*slot_of(stack));
    Engine& engine = *thread->engine;
    auto at = reinterpret_cast<uintptr_t>(info->si_addr);
    engine.culprit = thread;
    engine.fault_site = reinterpret_cast<void*>(registers[REG_RIP] + 1);
    snprintf(engine.fault, sizeof engine.fault, "%s %p", describe_signal(*thread, number, at),
             info->si_addr);
    engine.failed = true;
    registers[REG_RSP] =
        static_cast<greg_t>((stack | (kStackBytes - 1)) + 1 - kSlotArea - 16 * 1024 - 8);
    registers[REG_RDI] = reinterpret_cast<greg_t>(&engine);
    registers[REG_RIP] = reinterpret_cast<greg_t>(&escape);
}

}  // namespace

uintptr_t library_base, library_end;

static void find_library() {
    Dl_info info;
    if (dladdr(reinterpret_cast<void*>(&find_library), &info) == 0) return;
    library_path = info.dli_fname;
    library_base = reinterpret_cast<uintptr_t>(info.dli_fbase);
    dl_iterate_phdr(
        [](dl_phdr_info* module, size_t, void*) {
            if (module->dlpi_addr != library_base) return 0;
            for (int i = 0; i < module->dlpi_phnum; ++i) {
                const auto& part = module->dlpi_phdr[i];
                if (part.p_type != PT_LOAD) continue;
                library_end =
                    std::max<uintptr_t>(library_end, library_base + part.p_vaddr + part.p_memsz);
            }
            return 1;
        },
        nullptr);
}

void fail(const Thread& thread, const void* site, const char* format, ...) {
    Engine& engine = *thread.engine;
    va_list list;
    va_start(list, format);
    int used = thread.role == nullptr
                   ? 0
                   : snprintf(engine.fault, sizeof engine.fault, "%s: ", thread.role);
    vsnprintf(engine.fault + used, sizeof engine.fault - used, format, list);
    va_end(list);
    engine.culprit = &thread;
    engine.fault_site = site;
    engine.failed = true;
    leave_fiber(engine);
}

void write_report(Engine& engine) {
    const uint3 block = engine.culprit->grid->block, thread = engine.culprit->index;
    char head[256], at[64] = "";
    snprintf(head, sizeof head, "kernel %s, block (%u,%u,%u), thread (%u,%u,%u)",
             engine.kernel->name, block.x, block.y, block.z, thread.x, thread.y, thread.z);
    if (engine.fault_site != nullptr) snprintf(at, sizeof at, ", @%p@", engine.fault_site);
    engine.report = resolve(std::string(head) + at + ": " + engine.fault);
}

void install_once() {
    static std::once_flag once;
    std::call_once(once, [] {
        find_library();
        struct sigaction action{};
        action.sa_sigaction = on_signal;
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        for (int number : {SIGSEGV, SIGBUS, SIGFPE})
            sigaction(number, &action, &old_actions[number]);
    });
}

}  // namespace sim
