// Fibers: stacks, the switch between them, and the loop that a stack runs.
//
// A thread that ends leaves its stack to the next fresh thread, which starts in the same loop: a
// kernel that never waits uses one stack and no switch at all.

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "engine.hpp"

extern "C" void sim_switch(void** save, void* to);
extern "C" void sim_boot();

// Saves the registers that a call preserves, exchanges the stack pointer, restores. x87 and MXCSR
// control words never change in kernels.
asm(R"(.text
.globl sim_switch
.hidden sim_switch
.type sim_switch,@function
sim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rcx
    jmp *%rcx
.globl sim_boot
.hidden sim_boot
.type sim_boot,@function
sim_boot:
    andq $-16, %rsp
    movq %rbx, %rdi
    call sim_fiber_main
    ud2
)");

namespace sim {

namespace {

std::mutex engines_mutex;
std::vector<Engine*> free_engines;
uint32_t engines_made;

void set_thread(uint8_t* stack, Thread* thread) {
    // Volatile: fiber_main changes it under a stack that goes on.
    *const_cast<ThreadHead* volatile*>(slot_of(reinterpret_cast<uintptr_t>(stack))) = thread;
}

// Puts a stack under a fresh thread, such that the first switch to it enters fiber_main.
void boot(Engine& engine, Thread& thread) {
    if (engine.free_stacks.empty()) engine.free_stacks.push_back(new_stack(engine));
    thread.stack = engine.free_stacks.back();
    engine.free_stacks.pop_back();
    set_thread(thread.stack, &thread);
    // Staggered: frames of equal depth must not share their cache sets.
    uintptr_t stagger = (reinterpret_cast<uintptr_t>(thread.stack) / kStackBytes) % kSlots * 320;
    void** top = reinterpret_cast<void**>(thread.stack + kStackBytes - kSlotArea - stagger - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(&sim_boot);
    *--top = nullptr;  // rbp
    *--top = &engine;  // rbx, which sim_boot hands to fiber_main
    for (int i = 0; i < 4; ++i) *--top = nullptr;
    thread.stack_pointer = top;
    thread.state = State::kStarted;
}

}  // namespace

// One 64 KiB stack; its lowest page is a guard.
uint8_t* new_stack(Engine& engine) {
    // Behind the last one begin the next engine's, which another OS thread may run on: a stack that
    // was not given back must end here and not there.
    if (engine.stacks_used == kMaxThreads) {
        fprintf(stderr, "simulator: an engine lost a stack\n");
        abort();
    }
    uint8_t* stack = engine.stacks + kStackBytes * engine.stacks_used++;
    mprotect(stack + 4096, kStackBytes - 4096, PROT_READ | PROT_WRITE);
    return stack;
}

bool in_fiber() {
    uintptr_t stack;
    asm volatile("mov %%rsp, %0" : "=r"(stack));
    return stack >> kRegionShift == kStacks >> kRegionShift;
}

void switch_to(Thread& from, Thread& to) {
    if (to.state == State::kFresh) boot(*to.engine, to);
    sim_switch(&from.stack_pointer, to.stack_pointer);
}

void leave_fiber(Engine& engine) {
    void* never_used;
    sim_switch(&never_used, engine.main_stack_pointer);
    __builtin_unreachable();
}

void run_fibers(Engine& engine, Thread& first) {
    boot(engine, first);
    sim_switch(&engine.main_stack_pointer, first.stack_pointer);
}

extern "C" __attribute__((visibility("hidden"))) void sim_fiber_main(Engine* engine) {
    uintptr_t here = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    auto slot = const_cast<ThreadHead* volatile*>(slot_of(here));
    for (;;) {
        engine->kernel->call(engine->arguments);
        Thread& thread = *static_cast<Thread*>(*slot);
        finish_thread(thread);
        thread.state = State::kDone;
        engine->warps[thread.warp].exited |= 1u << thread.lane;
        --thread.block->alive;
        if (--engine->alive == 0) {
            finish_cluster(thread);
            engine->free_stacks.push_back(thread.stack);
            leave_fiber(*engine);
        }
        Thread& next = next_thread(thread);
        if (next.state == State::kFresh) {
            next.stack = thread.stack;
            next.state = State::kStarted;
            set_thread(next.stack, &next);
            continue;
        }
        engine->free_stacks.push_back(thread.stack);
        switch_to(thread, next);
    }
}

// An engine for this launch: a used one where there is one, else a new one. Null where there are
// too many.
Engine* enter_engine() {
    std::lock_guard<std::mutex> lock(engines_mutex);
    if (!free_engines.empty()) {
        Engine* engine = free_engines.back();
        free_engines.pop_back();
        return engine;
    }
    if (engines_made == kMaxEngines) return nullptr;
    auto* engine = new Engine{};
    engine->stacks = reinterpret_cast<uint8_t*>(kStacks + kStackBytes * kMaxThreads * engines_made);
    for (uint32_t rank = 0; rank < kMaxCluster; ++rank) {
        Block& block = engine->blocks[rank];
        uintptr_t at = kShared + kWindowBytes * (engines_made * kMaxCluster + rank);
        block.rank = rank;
        block.window = reinterpret_cast<uint8_t*>(at);
        block.cells = cells_of(at + kMargin);
        mprotect(block.window + kMargin, kSharedBytes + 4096, PROT_READ | PROT_WRITE);
    }
    ++engines_made;
    return engine;
}

void leave_engine(Engine* engine) {
    std::lock_guard<std::mutex> lock(engines_mutex);
    free_engines.push_back(engine);
}

}  // namespace sim
