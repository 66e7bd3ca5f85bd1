// sim.cpp - runtime of the CPU simulator. Compiled WITHOUT -fsanitize; -DSIM_ASAN / -DSIM_TSAN add the fiber annotations.
#include "sim.hpp"
#include <csignal>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <thread>
#include <mutex>
#include <atomic>
#include <unordered_map>
#include <vector>
#include <sys/mman.h>
#include <ucontext.h>
#ifdef SIM_ASAN
extern "C" { void __sanitizer_start_switch_fiber(void**, const void*, size_t); void __sanitizer_finish_switch_fiber(void*, const void**, size_t*);
void __asan_poison_memory_region(const void*, size_t); void __asan_unpoison_memory_region(const void*, size_t); void* __asan_region_is_poisoned(void*, size_t);
void __asan_load16(const void*); void __asan_loadN(const void*, size_t); void __asan_storeN(void*, size_t); }
#endif
#ifdef SIM_TSAN
extern "C" { void* __tsan_create_fiber(unsigned); void __tsan_destroy_fiber(void*); void __tsan_switch_to_fiber(void*, unsigned); void* __tsan_get_current_fiber();
void __tsan_acquire(void*); void __tsan_release(void*); void __tsan_read_range(void*, size_t); void __tsan_write_range(void*, size_t); }
#define TS(x) x
extern "C" { void AnnotateIgnoreReadsBegin(const char*, int); void AnnotateIgnoreReadsEnd(const char*, int); void AnnotateIgnoreWritesBegin(const char*, int); void AnnotateIgnoreWritesEnd(const char*, int); }
#define QUIET(...) do { AnnotateIgnoreReadsBegin("", 0); AnnotateIgnoreWritesBegin("", 0); __VA_ARGS__; AnnotateIgnoreWritesEnd("", 0); AnnotateIgnoreReadsEnd("", 0); } while (0)   // runtime containers only
#else
#define TS(x)
#define QUIET(...) do { __VA_ARGS__; } while (0)
#endif
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

// ---- context switch: save callee-saved registers, swap rsp --------------------------------------
extern "C" void sim_switch(void** save, void* to);
extern "C" void sim_boot();
asm(R"(.text
.globl sim_switch
.type sim_switch,@function
sim_switch:
  pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
  popq %rcx
  jmp *%rcx
.globl sim_boot
sim_boot:
  andq $-16,%rsp
  call sim_fiber_main
  ud2
)");

namespace sim {
__thread Thread* cur;
__thread BlockView view;

enum { SMEM_BASE = 1024, STACK_PAGE = 4096 };
#if defined(SIM_ASAN) || defined(SIM_TSAN)
static const size_t STACK = 256 << 10;
#else
static const size_t STACK = 64 << 10;
#endif
struct Stack { uint8_t* lo; void* top; };
struct CpOp { uint32_t dst; uint32_t bytes, src_bytes; const void* src; };
struct T : Thread {
  void* sp = nullptr; Stack stk{}; Stack own{}; bool done = false, blocked = false, started = false;
  const char* why = ""; uint64_t wa = 0, wb = 0;
  void* fake = nullptr; void* ts = nullptr;
  std::vector<CpOp> cp; size_t cp_head = 0; std::vector<uint32_t> cpg; size_t cpg_head = 0;
  uint32_t wg_issued = 0; bool wg_fenced = false; uint32_t wg_groups = 0; std::vector<uint32_t> wgg;  // op count at each commit
};
struct Slot { uint32_t mask = 0, arrived = 0; CollectFn fn = nullptr; uint64_t param = 0; void* recs[32]; };
struct Warp { uint32_t ready = 0, exited = 0, valid = 0; Slot slot[4]; };
struct Bar { int expected = 0, arrived = 0; uint32_t wait[32] = {}; uint32_t gen = 0; char tok[2]; };
struct WgOp { uint64_t da, db; int n, ta, tb, sd, issued; float* d[128]; };
struct WG { std::vector<WgOp> ops; uint32_t done = 0; int waiting = 0; uint32_t want = 0; uint32_t waitmask[4] = {}; char tok; };
struct MB { uint64_t phase : 1, count : 20, pending : 20; int64_t tx : 23; };
struct TMap { uint32_t magic, esize, rank, swizzle; uint8_t* base; uint64_t dim[2], stride1; uint32_t box[2]; };
static_assert(sizeof(TMap) <= 128, "");
struct Tma { uint32_t dst, bar; TMap map; int x, y; void* ts_tok; };
struct Waiter { uint32_t addr; uint32_t m[32]; };
struct Opt { int order = 0; bool eager = false; int threads = 1; uint32_t smem_shift = 0; bool poison = true; uint64_t seed = 1; };
static Opt opt;

struct Ctx {
  std::vector<T> th; std::vector<Warp> warps; uint64_t wready = 0; uint32_t curw = 0; uint32_t live = 0, nthreads = 0;
  Bar bars[16]; std::vector<WG> wgs; std::vector<Tma> tma; std::vector<Waiter> waiters;
  void* main_sp = nullptr; void* main_fake = nullptr; void* main_ts = nullptr; void* async_ts = nullptr; void* wg_ts[8] = {}; const void* main_lo = nullptr; size_t main_sz = 0;
  std::vector<Stack> pool; uint64_t rng = 88172645463325252ull;
  const Kernel* k = nullptr; void** params = nullptr; uint8_t* smem = nullptr; size_t smem_cap = 0;
  bool failed = false; std::string err; uint64_t switches = 0, collects = 0;
  char blk_tok;
};
static thread_local Ctx* cx;
static inline T* me() { return (T*)cur; }
static const char* opname(CollectFn f, uint64_t p);

static Stack new_stack() {
  static std::atomic<int> serial{0};
  uint8_t* p = (uint8_t*)mmap(nullptr, STACK + STACK_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  mprotect(p, STACK_PAGE, PROT_NONE);
  int s = serial++;
  return {p + STACK_PAGE, p + STACK_PAGE + STACK - 64 - (s % 32) * 320};   // stagger: same-depth frames must not share L1 sets
}
static void ready(uint32_t w, uint32_t lanes) { cx->warps[w].ready |= lanes; cx->wready |= 1ull << w; }
static void make_ready(uint32_t w, uint32_t lanes) {
  for (uint32_t m = lanes; m; m &= m - 1) cx->th[w * 32 + __builtin_ctz(m)].blocked = false;
  ready(w, lanes);
}
static bool run_async_idle();
static inline uint64_t rnd() { uint64_t& x = cx->rng; x ^= x << 13; x ^= x >> 7; x ^= x << 17; return x; }
static T* pick() {
  for (;;) {
    if (!cx->wready) { if (run_async_idle()) continue; return nullptr; }
    uint32_t w = cx->curw;
    if (opt.order == 2 ? (rnd() & 7) == 0 || !(cx->wready >> w & 1) : !(cx->wready >> w & 1)) {
      if (opt.order == 0) { uint64_t hi = cx->wready & ~((2ull << w) - 1); w = __builtin_ctzll(hi ? hi : cx->wready); }
      else if (opt.order == 1) { uint64_t lo = cx->wready & ((1ull << w) - 1); w = 63 - __builtin_clzll(lo ? lo : cx->wready); }
      else { int n = rnd() % __builtin_popcountll(cx->wready); uint64_t m = cx->wready; while (n--) m &= m - 1; w = __builtin_ctzll(m); }
      cx->curw = w;
    }
    Warp& W = cx->warps[w]; uint32_t l;
    if (opt.order == 0) l = __builtin_ctz(W.ready);
    else if (opt.order == 1) l = 31 - __builtin_clz(W.ready);
    else { int n = rnd() % __builtin_popcount(W.ready); uint32_t m = W.ready; while (n--) m &= m - 1; l = __builtin_ctz(m); }
    W.ready &= ~(1u << l); if (!W.ready) cx->wready &= ~(1ull << w);
    return &cx->th[w * 32 + l];
  }
}
// switch away from the current fiber (from==nullptr: dying). to==nullptr: the block runner
static void hop(T* from, T* to) {
  static thread_local void* junk;
  cx->switches++;
#ifdef SIM_ASAN
  if (to) __sanitizer_start_switch_fiber(from ? &from->fake : nullptr, to->stk.lo, STACK);
  else __sanitizer_start_switch_fiber(from ? &from->fake : nullptr, cx->main_lo, cx->main_sz);
#endif
  TS(__tsan_switch_to_fiber(to ? to->ts : cx->main_ts, 1);)
  cur = to;
  sim_switch(from ? &from->sp : &junk, to ? to->sp : cx->main_sp);
#ifdef SIM_ASAN
  __sanitizer_finish_switch_fiber(from->fake, nullptr, nullptr);
#endif
}
static void boot_stack(T* t) {
#ifdef SIM_TSAN
  if (!t->own.lo) t->own = new_stack();      // one stack per thread: a shared stack would look like a race
  t->stk = t->own;
#else
  if (cx->pool.empty()) cx->pool.push_back(new_stack());
  t->stk = cx->pool.back(); cx->pool.pop_back();
#endif
#ifdef SIM_ASAN
  __asan_unpoison_memory_region(t->stk.lo, STACK);
#endif
  void** s = (void**)t->stk.top; *--s = nullptr; *--s = (void*)&sim_boot;
  for (int i = 0; i < 6; i++) *--s = nullptr;
  t->sp = s; t->started = true;
}
static void fail(const char* fmt, ...) {
  char b[1024]; va_list ap; va_start(ap, fmt); vsnprintf(b, sizeof b, fmt, ap); va_end(ap);
  T* t = me();
  char h[256];
  snprintf(h, sizeof h, "kernel %s block (%u,%u,%u) thread (%u,%u,%u): ", cx->k->name, view.bid.x, view.bid.y, view.bid.z, t ? t->tid.x : 0, t ? t->tid.y : 0, t ? t->tid.z : 0);
  if (!cx->failed) { cx->failed = true; cx->err = std::string(h) + b; }
  hop(nullptr, nullptr);
  __builtin_unreachable();
}
[[noreturn]] void trap(const char* m) { fail("%s", m); __builtin_unreachable(); }
static void deadlock() {
  std::unordered_map<std::string, int> g; char b[200];
  for (uint32_t i = 0; i < cx->nthreads; i++) { T& t = cx->th[i];
    if (t.done) snprintf(b, sizeof b, "exited"); else snprintf(b, sizeof b, t.why, (unsigned long)t.wa, (unsigned long)t.wb);
    g[b]++; }
  std::string s = "deadlock:"; for (auto& e : g) s += " [" + std::to_string(e.second) + " threads " + e.first + "]";
  fail("%s", s.c_str());
}
static void block(const char* why, uint64_t a, uint64_t b) {
  T* t = me(); t->why = why; t->wa = a; t->wb = b; t->blocked = true;
  T* n = pick();
  if (n == t) return;
  if (!n) { deadlock(); return; }
  if (!n->started) boot_stack(n);
  hop(t, n);
}
extern "C" void sim_fiber_main() {
  for (;;) {
#ifdef SIM_ASAN
    if (me()->sp) { const void* lo; size_t sz; __sanitizer_finish_switch_fiber(nullptr, &lo, &sz); if (!cx->main_lo) { cx->main_lo = lo; cx->main_sz = sz; } }
#endif
    cx->k->call(cx->params);
    T* t = me();
    t->done = true; cx->warps[t->warp].exited |= 1u << t->lane;
    if (--cx->live == 0) { QUIET(cx->pool.push_back(t->stk)); hop(nullptr, nullptr); }
    T* n = pick();
    if (!n) deadlock();
#ifdef SIM_TSAN
    if (!n->started) boot_stack(n);
#endif
    if (!n->started) {                       // run the next thread right here: a kernel without barriers is a plain loop
      n->stk = t->stk; n->started = true; n->sp = nullptr; cur = n;
      TS(__tsan_switch_to_fiber(n->ts, 1);)
      continue;
    }
    QUIET(cx->pool.push_back(t->stk));
    hop(nullptr, n);
  }
}

// ---- collectives ----------------------------------------------------------------------------------
void warp_collect(uint32_t mask, CollectFn fn, uint64_t param, void* rec, bool memsync) {
  T* t = me(); Warp& W = cx->warps[t->warp]; uint32_t bit = 1u << t->lane;
  mask &= W.valid;
  if (!(mask & bit)) fail("%s: calling lane %u not in its own mask %08x", opname(fn, param), t->lane, mask);
  if (mask & W.exited) fail("%s: mask %08x names exited lanes %08x", opname(fn, param), mask, mask & W.exited);
  Slot* s = nullptr;
  for (auto& c : W.slot) if (c.arrived && (c.mask & mask)) { s = &c; break; }
  if (!s) for (auto& c : W.slot) if (!c.arrived) { s = &c; s->mask = mask; s->fn = fn; s->param = param; break; }
  if (!s) fail("too many concurrent warp collectives");
  if (s->mask != mask || s->fn != fn || s->param != param)
    fail("divergent warp collective: lane %u at %s mask %08x, lanes %08x wait at %s mask %08x", t->lane, opname(fn, param), mask, s->arrived, opname(s->fn, s->param), s->mask);
  s->recs[t->lane] = rec; s->arrived |= bit;
  TS(if (memsync) __tsan_release(&s->fn);)
  if (s->arrived == mask) {
    cx->collects++;
    if (rec) fn(s->recs, mask, param);
    s->arrived = 0;
    make_ready(t->warp, mask & ~bit);
  } else block("in a warp collective", 0, 0);
  TS(if (memsync) __tsan_acquire(&s->fn);)
}
void bar_sync(int id, int n, bool wait) {
  T* t = me(); Bar& b = cx->bars[id & 15];
  if (n < 0) n = cx->nthreads;
  if (n % 32 && (uint32_t)n != cx->nthreads) fail("barrier %d: thread count %d is not a multiple of 32", id, n);
  if (b.arrived == 0) b.expected = n;
  else if (b.expected != n) fail("barrier %d: count %d, others said %d", id, n, b.expected);
  uint32_t g = b.gen & 1; (void)g;
  TS(__tsan_release(&b.tok[g]);)
  if (++b.arrived == b.expected) {
    b.arrived = 0; b.gen++;
    for (uint32_t w = 0; w < cx->warps.size(); w++) if (b.wait[w]) { make_ready(w, b.wait[w]); b.wait[w] = 0; }
  } else if (wait) { b.wait[t->warp] |= 1u << t->lane; block("at barrier %lu which expects %lu", id, n); }
  TS(if (wait) __tsan_acquire(&b.tok[g]);)
}

// ---- shared memory ----------------------------------------------------------------------------------
uint32_t smem_u32(const void* p) {
  ptrdiff_t o = (const uint8_t*)p - view.smem;
  if (o < 0 || o > (ptrdiff_t)view.smem_bytes) fail("smem_u32: pointer is not inside dynamic shared memory (offset %ld of %u)", (long)o, view.smem_bytes);
  return uint32_t(o) + SMEM_BASE + opt.smem_shift;
}
static inline uint8_t* sp(uint32_t a, uint32_t n, const char* what) {
  uint32_t o = a - SMEM_BASE - opt.smem_shift;
  if (o > view.smem_bytes || view.smem_bytes - o < n) fail("%s: shared address %u (+%u bytes) is outside the block's %u bytes", what, a, n, view.smem_bytes);
  return view.smem + o;
}
static inline void chk_global(const void* p, size_t n, const char* what);

// ---- cp.async ------------------------------------------------------------------------------------------
static inline void cp_do(const CpOp& o) {
  uint8_t* d = sp(o.dst, o.bytes, "cp.async");
  if (o.src_bytes) { chk_global(o.src, o.src_bytes, "cp.async source"); memcpy(d, o.src, o.src_bytes); }
  if (o.src_bytes < o.bytes) memset(d + o.src_bytes, 0, o.bytes - o.src_bytes);
  TS(__tsan_write_range(d, o.bytes);)
}
void cp_async(uint32_t dst, const void* src, uint32_t n, uint32_t sn) {
  if (dst % n) fail("cp.async: shared address %u is not %u-byte aligned", dst, n);
  if ((uintptr_t)src % n) fail("cp.async: global address %p is not %u-byte aligned", src, n);
  if (sn > n) fail("cp.async: src-size %u > %u", sn, n);
  CpOp o{dst, n, sn, src};
  if (opt.eager) cp_do(o); else { TS(__tsan_write_range(sp(dst, n, "cp.async"), n);) }   // the write may land any time from issue to wait
  QUIET(me()->cp.push_back(o));
}
void cp_async_commit() { QUIET(me()->cpg.push_back(me()->cp.size())); }
void cp_async_wait(int keep) {
  T* t = me();
  size_t ng = t->cpg.size() - t->cpg_head;
  while (ng > (size_t)keep) {
    uint32_t end = t->cpg[t->cpg_head++]; ng--;
    if (!opt.eager) for (; t->cp_head < end; t->cp_head++) cp_do(t->cp[t->cp_head]); else t->cp_head = end;
  }
  if (t->cpg_head > 64) {                                   // compact
    QUIET(uint32_t h = t->cp_head; t->cp.erase(t->cp.begin(), t->cp.begin() + h); t->cp_head = 0;
    t->cpg.erase(t->cpg.begin(), t->cpg.begin() + t->cpg_head); t->cpg_head = 0; for (auto& g : t->cpg) g -= h);
  }
}

// ---- mbarrier --------------------------------------------------------------------------------------------
static MB* mb(uint32_t a) { if (a & 7) fail("mbarrier address %u is not 8-byte aligned", a); return (MB*)sp(a, 8, "mbarrier"); }
static void mb_check(uint32_t a, MB* m) {
  if (m->pending || m->tx) return;
  m->phase ^= 1; m->pending = m->count;
  for (auto& w : cx->waiters) if (w.addr == a) for (uint32_t i = 0; i < cx->warps.size(); i++) if (w.m[i]) { make_ready(i, w.m[i]); w.m[i] = 0; }
}
void mbar_init(uint32_t a, uint32_t n) { MB* m = mb(a); TS(__tsan_write_range(m, 8);) if (!n) fail("mbarrier init with count 0"); memset(m, 0, 8); m->count = m->pending = n; }
void mbar_arrive(uint32_t a, uint32_t tx) {
  MB* m = mb(a); TS(__tsan_read_range(m, 8);) TS(__tsan_release(m);)
  if (!m->count || m->count == 0xfffff) fail("mbarrier at %u used before init", a);
  m->tx += tx;
  if (!m->pending) fail("mbarrier at %u: more arrivals than its count %u in one phase", a, (unsigned)m->count);
  m->pending--; mb_check(a, m);
}
bool mbar_test(uint32_t a, uint32_t par) { MB* m = mb(a); TS(__tsan_read_range(m, 8);)
  if (!m->count || m->count == 0xfffff) fail("mbarrier at %u used before init", a);
  bool ok = m->phase != (par & 1); TS(if (ok) __tsan_acquire(m);) return ok; }
void mbar_wait(uint32_t a, uint32_t par) {
  T* t = me();
  while (!mbar_test(a, par)) {
    Waiter* w = nullptr; for (auto& x : cx->waiters) if (x.addr == a) w = &x;
    if (!w) { QUIET(cx->waiters.push_back({a, {}})); w = &cx->waiters.back(); }
    w->m[t->warp] |= 1u << t->lane;
    block("at mbarrier shared:%lu parity %lu", a, par);
  }
}

// ---- TMA ---------------------------------------------------------------------------------------------------
static void tma_do(const Tma& o) {
  const TMap& m = o.map; uint32_t row = m.box[0] * m.esize, bytes = row * m.box[1];
  sp(o.dst, bytes, "TMA destination");
  TS(void* self = __tsan_get_current_fiber(); __tsan_switch_to_fiber(cx->async_ts, 1); __tsan_acquire(o.ts_tok);)
  uint8_t buf[256];
  for (uint32_t r = 0; r < m.box[1]; r++) {
    int64_t y = (int64_t)o.y + r; memset(buf, 0, row);
    if (y >= 0 && y < (int64_t)m.dim[1]) {
      int64_t x0 = o.x < 0 ? 0 : o.x, x1 = std::min<int64_t>((int64_t)o.x + m.box[0], m.dim[0]);
      if (x1 > x0) { const uint8_t* s = m.base + y * m.stride1 + x0 * m.esize; chk_global(s, (x1 - x0) * m.esize, "TMA source"); memcpy(buf + (x0 - o.x) * m.esize, s, (x1 - x0) * m.esize); }
    }
    for (uint32_t c = 0; c < row; c += 16) {
      uint32_t a = o.dst + r * row + c; if (m.swizzle == 3) a ^= (a >> 3) & 0x70;
      memcpy(sp(a, 16, "TMA destination"), buf + c, 16);
    }
  }
  TS(__tsan_write_range(sp(o.dst, bytes, ""), bytes);)
  MB* b = mb(o.bar); TS(__tsan_release(b); __tsan_switch_to_fiber(self, 1);)
  b->tx -= bytes; mb_check(o.bar, b);
}
void tma_load_2d(uint32_t dst, const void* map, int x, int y, uint32_t bar) {
  const TMap& m = *(const TMap*)map;
  if (m.magic != 0x544d4150) fail("TMA: tensor map was not encoded (or was not passed as __grid_constant__ by value)");
  if (m.rank != 2) fail("TMA: instruction is 2D, map has rank %u", m.rank);
  if (dst % 128) fail("TMA: shared destination %u is not 128-byte aligned", dst);
  Tma o{dst, bar, m, x, y, cur}; TS(__tsan_release(cur);)
  if (opt.eager) tma_do(o); else QUIET(cx->tma.push_back(o));
}
void fence_proxy_async() {}

// ---- tensor cores ----------------------------------------------------------------------------------------------
typedef float v8 __attribute__((vector_size(32)));
typedef float v8u __attribute__((vector_size(32), aligned(4)));
static inline float b2f(uint16_t b) { uint32_t u = uint32_t(b) << 16; float f; memcpy(&f, &u, 4); return f; }
// One lane: R row pairs x NV vectors (a vector = 2 n8-blocks x {row g, row g+8} x 2 columns), K steps. Accumulators stay in the lane's own layout.
template <int NV, int R> static void fma_lane(float* d, size_t rstride, const v8* B, size_t bs, const v8* A, size_t as, int K, bool zero) {
  v8 acc[R][NV];
#define UN _Pragma("GCC unroll 8")
  UN for (int r = 0; r < R; r++) UN for (int j = 0; j < NV; j++) acc[r][j] = zero ? v8{} : (v8) * (const v8u*)(d + r * rstride + j * 8);
  for (int k = 0; k < K; k++)
    UN for (int r = 0; r < R; r++) { v8 a = A[r * as + k]; UN for (int j = 0; j < NV; j++) acc[r][j] += a * B[k * bs + j]; }
  UN for (int r = 0; r < R; r++) UN for (int j = 0; j < NV; j++) *(v8u*)(d + r * rstride + j * 8) = acc[r][j];
}
static void expandB(const float* Bf, int ldb, int N, int K, v8* out /* [4][K][N/16] */) {
  for (int t = 0; t < 4; t++) for (int k = 0; k < K; k++) for (int j = 0; j < N / 16; j++) {
    const float* p = Bf + k * ldb + j * 16 + 2 * t; float a = p[0], b = p[1], c = p[8], e = p[9];
    out[(t * K + k) * (N / 16) + j] = v8{a, b, a, b, c, e, c, e};
  }
}
struct LdRec { uint32_t addr; uint32_t* r; };
static void ld_fn(void** r, uint32_t, uint64_t trans) {
  for (int i = 0; i < 4; i++) {
    const uint16_t* row[8];
    for (int j = 0; j < 8; j++) row[j] = (const uint16_t*)(view.smem + (((LdRec*)r[i * 8 + j])->addr - SMEM_BASE - opt.smem_shift));
    for (int l = 0; l < 32; l++) { uint32_t v;
      if (!trans) memcpy(&v, row[l / 4] + 2 * (l % 4), 4);
      else v = row[2 * (l % 4)][l / 4] | uint32_t(row[2 * (l % 4) + 1][l / 4]) << 16;
      ((LdRec*)r[l])->r[i] = v; }
  }
}
void ldmatrix_x4(uint32_t* r, uint32_t a, bool trans) {
  if (a % 16) fail("ldmatrix: row address %u is not 16-byte aligned", a);
  uint8_t* p = sp(a, 16, "ldmatrix"); (void)p; TS(__tsan_read_range(p, 16);)
  LdRec rec{a, r}; warp_collect(~0u, ld_fn, trans, &rec, false);
}
struct MmaRec { float* c; const uint32_t *a, *b; };
static void mma_fn(void** r, uint32_t, uint64_t p) {
  int MT = p >> 8, NT = p & 255;
  static thread_local v8 Ax[8 * 8 * 16], Bx[4 * 16 * 16]; static thread_local float Bf[16 * 256];
  for (int l = 0; l < 32; l++) { MmaRec* q = (MmaRec*)r[l]; int g = l / 4, t = l % 4;
    for (int m = 0; m < MT; m++) for (int h = 0; h < 2; h++) for (int e = 0; e < 2; e++) {
      float x = b2f(q->a[m * 4 + h * 2] >> (16 * e)), y = b2f(q->a[m * 4 + h * 2 + 1] >> (16 * e));
      Ax[(g * MT + m) * 16 + h * 8 + 2 * t + e] = v8{x, x, y, y, x, x, y, y}; }
    for (int n = 0; n < NT; n++) for (int h = 0; h < 2; h++) for (int e = 0; e < 2; e++) Bf[(h * 8 + 2 * t + e) * 256 + n * 8 + g] = b2f(q->b[n * 2 + h] >> (16 * e)); }
  if (NT % 2 == 0) {
    expandB(Bf, 256, NT * 8, 16, Bx); int NV = NT / 2;
    for (int l = 0; l < 32; l++) { MmaRec* q = (MmaRec*)r[l]; int g = l / 4, t = l % 4; const v8* B = Bx + t * 16 * NV;
      for (int m = 0; m < MT;) { float* d = q->c + m * NT * 4; const v8* A = Ax + (g * MT + m) * 16;
        if (NV == 4 && MT - m >= 2) { fma_lane<4, 2>(d, NT * 4, B, NV, A, 16, 16, false); m += 2; }
        else if (NV == 4) { fma_lane<4, 1>(d, 0, B, NV, A, 16, 16, false); m++; }
        else { for (int j = 0; j < NV; j++) fma_lane<1, 1>(d + j * 8, 0, B + j, NV, A, 16, 16, false); m++; } } }
  } else for (int l = 0; l < 32; l++) { MmaRec* q = (MmaRec*)r[l]; int g = l / 4, t = l % 4;
    for (int m = 0; m < MT; m++) for (int n = 0; n < NT; n++) { float* c = q->c + (m * NT + n) * 4;
      for (int k = 0; k < 16; k++) { v8 a = Ax[(g * MT + m) * 16 + k]; float b0 = Bf[k * 256 + n * 8 + 2 * t], b1 = Bf[k * 256 + n * 8 + 2 * t + 1];
        c[0] += a[0] * b0; c[1] += a[0] * b1; c[2] += a[2] * b0; c[3] += a[2] * b1; } } }
}
void mma_tile(float* c, const uint32_t* a, const uint32_t* b, int mt, int nt) { MmaRec rec{c, a, b}; warp_collect(~0u, mma_fn, uint64_t(mt) << 8 | nt, &rec, false); }
static void mma_tf32_fn(void** r, uint32_t, uint64_t p) {
  int MT = p >> 8, NT = p & 255;
  auto f = [](uint32_t u) { u &= ~0x1fffu; float x; memcpy(&x, &u, 4); return x; };
  for (int l = 0; l < 32; l++) { MmaRec* q = (MmaRec*)r[l]; int g = l / 4, t = l % 4;
    for (int m = 0; m < MT; m++) for (int n = 0; n < NT; n++) { float* c = q->c + (m * NT + n) * 4;
      for (int k = 0; k < 8; k++) {
        MmaRec* ra = (MmaRec*)r[g * 4 + k % 4]; float a0 = f(ra->a[m * 4 + (k / 4) * 2]), a1 = f(ra->a[m * 4 + (k / 4) * 2 + 1]);
        MmaRec *r0 = (MmaRec*)r[2 * t * 4 + k % 4], *r1 = (MmaRec*)r[(2 * t + 1) * 4 + k % 4]; float b0 = f(r0->b[n * 2 + k / 4]), b1 = f(r1->b[n * 2 + k / 4]);
        c[0] += a0 * b0; c[1] += a0 * b1; c[2] += a1 * b0; c[3] += a1 * b1; } } }
}
void mma_tile_tf32(float* c, const uint32_t* a, const uint32_t* b, int mt, int nt) { MmaRec rec{c, a, b}; warp_collect(~0u, mma_tf32_fn, uint64_t(mt) << 8 | nt, &rec, false); }
static const char* opname(CollectFn f, uint64_t p) { return f == mma_tf32_fn ? "mma.sync tf32" : f == ld_fn ? "ldmatrix" : f == mma_fn ? "mma.sync" : f == nop_fn ? "__syncwarp" : f == ballot_fn ? "ballot/any/all" : "shuffle/reduce"; }

// wgmma: decode one operand into f32 [k=16][mn] (B) or [mn][16] (A)
static void wg_decode(uint64_t desc, int mn, int trans, float* out, int ld, bool kfirst, const char* what) {
  uint32_t start = (desc & 0x3fff) << 4, lbo = (desc >> 16 & 0x3fff) << 4, sbo = (desc >> 32 & 0x3fff) << 4; int type = desc >> 62, boff = desc >> 49 & 7;
  if (type != 1) fail("wgmma %s descriptor: layout type %d (the simulator models 128B swizzle only)", what, type);
  if (boff != int(start >> 7 & 7)) fail("%s descriptor: start address %u is not aligned to the 1024-byte swizzle pattern and base_offset is %d", what, start, boff);
  if (boff) fail("%s descriptor: nonzero base offset is not modelled", what);
  auto chunk = [&](uint32_t off) { uint32_t a = start + off; a ^= (a >> 3) & 0x70; uint8_t* q = sp(a, 16, what); TS(__tsan_read_range(q, 16);) return (const uint16_t*)q; };
  if (!trans) for (int r = 0; r < mn; r++) for (int c = 0; c < 2; c++) { const uint16_t* q = chunk((r / 8) * sbo + (r % 8) * 128 + c * 16);
    if (kfirst) for (int e = 0; e < 8; e++) out[(c * 8 + e) * ld + r] = b2f(q[e]); else for (int e = 0; e < 8; e++) out[r * ld + c * 8 + e] = b2f(q[e]); }
  else for (int k = 0; k < 16; k++) for (int j = 0; j < mn / 8; j++) { const uint16_t* q = chunk((j / 8) * lbo + (j % 8) * 16 + (k / 8) * sbo + (k % 8) * 128);
    if (kfirst) for (int e = 0; e < 8; e++) out[k * ld + j * 8 + e] = b2f(q[e]); else for (int e = 0; e < 8; e++) out[(j * 8 + e) * ld + k] = b2f(q[e]); }
}
static void wg_exec(WG& w, WgOp& o) {
  static thread_local float Af[64 * 16], Bf[16 * 256]; static thread_local v8 Ax[32 * 16], Bx[4 * 16 * 16];
  TS(void* self = __tsan_get_current_fiber(); __tsan_switch_to_fiber(cx->wg_ts[&w - cx->wgs.data()], 1); __tsan_acquire(&w.tok);)
  wg_decode(o.da, 64, o.ta, Af, 16, false, "wgmma A"); wg_decode(o.db, o.n, o.tb, Bf, 256, true, "wgmma B");
  TS(__tsan_release(&w.tok); __tsan_switch_to_fiber(self, 1);)
  for (int p = 0; p < 32; p++) { int r = (p / 8) * 16 + p % 8; for (int k = 0; k < 16; k++) { float x = Af[r * 16 + k], y = Af[(r + 8) * 16 + k]; Ax[p * 16 + k] = v8{x, x, y, y, x, x, y, y}; } }
  int NV = o.n / 16; expandB(Bf, 256, o.n, 16, Bx);
  for (int l = 0; l < 128; l++) { float* d = o.d[l]; const v8 *A = Ax + (l / 4) * 16, *B = Bx + (l % 4) * 16 * NV;
    int j = 0; for (; j + 8 <= NV; j += 8) fma_lane<8, 1>(d + j * 8, 0, B + j, NV, A, 16, 16, !o.sd);
    for (; j < NV; j++) fma_lane<1, 1>(d + j * 8, 0, B + j, NV, A, 16, 16, !o.sd); }
}
static void wg_run(WG& w, uint32_t upto) { while (w.done < upto) { WgOp& o = w.ops[w.done]; wg_exec(w, o); w.done++; } }
static WG& mywg() { T* t = me(); if ((t->warp / 4 + 1) * 128 > cx->nthreads) fail("wgmma: the warpgroup is incomplete"); return cx->wgs[t->warp / 4]; }
void wgmma_fence() { me()->wg_fenced = true; }
void wgmma(float* d, uint64_t da, uint64_t db, int n, int ta, int tb, int sd) {
  T* t = me(); WG& w = mywg();
  if (!t->wg_fenced) fail("wgmma without a preceding wgmma.fence");
  uint32_t i = t->wg_issued++;
  if (i == w.ops.size()) QUIET(w.ops.push_back({da, db, n, ta, tb, sd, 0, {}}));
  WgOp& o = w.ops[i];
  if (o.da != da || o.db != db || o.n != n || o.ta != ta || o.tb != tb || !o.sd != !sd) fail("wgmma #%u: descriptors/shape differ between lanes of the warpgroup", i);
  o.d[t->lin & 127] = d; TS(__tsan_release(&w.tok);)
  if (++o.issued == 128 && opt.eager) wg_run(w, i + 1);
}
void wgmma_commit() { T* t = me(); QUIET(t->wgg.push_back(t->wg_issued)); }
void wgmma_wait(int keep) {
  T* t = me(); WG& w = mywg(); int ng = t->wgg.size();
  uint32_t want = ng > keep ? t->wgg[ng - 1 - keep] : 0;
  if (keep == 0) t->wg_fenced = false;
  if (want > w.want) w.want = want;
  if (w.done < want || w.waiting) {                         // late as possible: the last of the 128 lanes runs the group
    if (w.waiting + 1 == 128) {
      wg_run(w, want); w.waiting = 0;
      for (int q = 0; q < 4; q++) { uint32_t m = w.waitmask[q]; w.waitmask[q] = 0; if (m) make_ready((t->warp & ~3) + q, m); }
    } else { w.waiting++; w.waitmask[t->warp & 3] |= 1u << t->lane; block("at wgmma.wait_group", 0, 0); }
  }
  TS(__tsan_acquire(&w.tok);)
}
static bool run_async_idle() {                              // nobody can run: deliver the oldest asynchronous work
  if (!cx->tma.empty()) { size_t i = opt.order == 2 ? rnd() % cx->tma.size() : 0; Tma o = cx->tma[i]; QUIET(cx->tma.erase(cx->tma.begin() + i)); tma_do(o); return true; }
  for (size_t g = 0; g < cx->wgs.size(); g++) { WG& w = cx->wgs[g];
    if (w.waiting && w.done < w.want && w.ops[w.want - 1].issued == 128) { wg_run(w, w.want); w.waiting = 0;
      for (int q = 0; q < 4; q++) { uint32_t m = w.waitmask[q]; w.waitmask[q] = 0; if (m) make_ready(g * 4 + q, m); } return true; } }
  return false;
}

// ---- device memory: every allocation ends at a guard page; slack is poisoned ------------------------------------------
static const size_t GUARD = 1 << 20;   // virtual only
struct Alloc { uint8_t* map; size_t mapsz; uint8_t* p; size_t n; };
static std::mutex amx; static std::vector<Alloc> allocs;
static inline void chk_global(const void* p, size_t n, const char* what) {
#ifdef SIM_ASAN
  if (__asan_region_is_poisoned((void*)p, n)) { fprintf(stderr, "sim: %s touches poisoned memory, block (%u,%u) thread %u\n", what, view.bid.x, view.bid.y, cur ? cur->tid.x : 0); __asan_loadN(p, n); }
#else
  (void)p; (void)n; (void)what;
#endif
}
static Kernel* kernels;
void reg(Kernel* k) { k->next = kernels; kernels = k; }

static void on_segv(int, siginfo_t* si, void* u) {
  if (!cx || !cur) { signal(SIGSEGV, SIG_DFL); return; }
  T* t = me(); const char* what = "illegal address"; char extra[160] = "";
  uint8_t* a = (uint8_t*)si->si_addr;
  if (a >= t->stk.lo - STACK_PAGE && a < t->stk.lo) what = "fiber stack overflow";
  for (auto& al : allocs) if (a >= al.map && a < al.map + al.mapsz) snprintf(extra, sizeof extra, " (%ld bytes from the start of a %zu-byte allocation)", (long)(a - al.p), al.n);
  char b[400]; snprintf(b, sizeof b, "kernel %s block (%u,%u,%u) thread (%u,%u,%u): %s %p%s", cx->k->name, view.bid.x, view.bid.y, view.bid.z, t->tid.x, t->tid.y, t->tid.z, what, a, extra);
  cx->failed = true; cx->err = b;
  auto* uc = (ucontext_t*)u;
  uc->uc_mcontext.gregs[REG_RSP] = ((greg_t)t->stk.top & ~63) - 8;
  uc->uc_mcontext.gregs[REG_RIP] = (greg_t)(void (*)())[]() { hop(nullptr, nullptr); };
}
static void env_init() {
  static std::once_flag f;
  std::call_once(f, [] {
    if (auto* s = getenv("SIM_ORDER")) opt.order = atoi(s);
    if (auto* s = getenv("SIM_EAGER")) opt.eager = atoi(s);
    if (auto* s = getenv("SIM_THREADS")) opt.threads = atoi(s);
    if (auto* s = getenv("SIM_SMEM_SHIFT")) opt.smem_shift = atoi(s);
    if (auto* s = getenv("SIM_SEED")) opt.seed = atoll(s);
#if !defined(SIM_ASAN) && !defined(SIM_TSAN)
    struct sigaction sa{}; sa.sa_sigaction = on_segv; sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER; sigaction(SIGSEGV, &sa, nullptr); sigaction(SIGBUS, &sa, nullptr);
#endif
  });
}
static void ctx_prepare(const Kernel* k, uint3 g, uint3 b, uint32_t smem, void** params) {
  static thread_local Ctx* mine = nullptr; if (!mine) mine = new Ctx;
  cx = mine; Ctx& c = *cx;
  static thread_local bool alt = false;
  if (!alt) { stack_t ss{}; static thread_local char altstk[64 << 10]; ss.ss_sp = altstk; ss.ss_size = 64 << 10; sigaltstack(&ss, nullptr); alt = true; }
  c.k = k; c.params = params; c.failed = false; c.err.clear(); c.nthreads = b.x * b.y * b.z; c.rng = 88172645463325252ull ^ (opt.seed * 0x9E3779B97F4A7C15ull);
  uint32_t nw = (c.nthreads + 31) / 32;
  if (c.th.size() < c.nthreads) {
    size_t o = c.th.size(); c.th.resize(c.nthreads); (void)o;
    TS(for (size_t i = o; i < c.nthreads; i++) c.th[i].ts = __tsan_create_fiber(0);)
  }
  TS(if (!c.async_ts) { c.async_ts = __tsan_create_fiber(0); for (auto& f : c.wg_ts) f = __tsan_create_fiber(0); } c.main_ts = __tsan_get_current_fiber();)
  c.warps.assign(nw, Warp{}); c.wgs.resize((nw + 3) / 4);
  for (uint32_t i = 0; i < c.nthreads; i++) { T& t = c.th[i]; t.lin = i; t.warp = i / 32; t.lane = i % 32; t.tid = {i % b.x, i / b.x % b.y, i / (b.x * b.y)}; c.warps[i / 32].valid |= 1u << (i % 32); }
  if (c.smem_cap < smem || !c.smem) {
    size_t sz = (smem + 4095 + 4096) & ~4095ull;
    c.smem = (uint8_t*)mmap(nullptr, sz + 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0); mprotect(c.smem + sz, 4096, PROT_NONE); c.smem_cap = sz;
  }
  view = {{0, 0, 0}, b, g, c.smem + opt.smem_shift, smem};
#ifdef SIM_ASAN
  __asan_poison_memory_region(c.smem, c.smem_cap); __asan_unpoison_memory_region(view.smem, smem);
#endif
}
static bool run_block(uint3 bid) {
  Ctx& c = *cx; view.bid = bid;
  if (opt.poison) memset(view.smem, 0xff, view.smem_bytes);
  c.live = c.nthreads; c.wready = 0; c.tma.clear(); c.waiters.clear();
  for (auto& b : c.bars) { b.arrived = 0; memset(b.wait, 0, sizeof b.wait); }
  for (auto& w : c.wgs) { w.ops.clear(); w.done = w.want = 0; w.waiting = 0; memset(w.waitmask, 0, sizeof w.waitmask); }
  for (uint32_t i = 0; i < c.warps.size(); i++) { Warp& w = c.warps[i]; w.exited = 0; for (auto& s : w.slot) s.arrived = 0; w.ready = 0; ready(i, w.valid); }
  for (uint32_t i = 0; i < c.nthreads; i++) { T& t = c.th[i]; t.done = t.blocked = t.started = false; t.sp = nullptr; t.cp.clear(); t.cpg.clear(); t.cp_head = t.cpg_head = 0; t.wg_issued = 0; t.wg_fenced = false; t.wgg.clear(); }
  c.curw = opt.order == 1 ? c.warps.size() - 1 : 0;
  TS(__tsan_release(&c.blk_tok);)
  T* n = pick(); boot_stack(n);
#ifdef SIM_TSAN
  for (uint32_t i = 0; i < c.nthreads; i++) { __tsan_switch_to_fiber(c.th[i].ts, 1); __tsan_acquire(&c.blk_tok); }
  for (auto f : c.wg_ts) { __tsan_switch_to_fiber(f, 1); __tsan_acquire(&c.blk_tok); } __tsan_switch_to_fiber(c.async_ts, 1); __tsan_acquire(&c.blk_tok); __tsan_switch_to_fiber(c.main_ts, 1);
#endif
#ifdef SIM_ASAN
  __sanitizer_start_switch_fiber(&c.main_fake, n->stk.lo, STACK);
#endif
  TS(__tsan_switch_to_fiber(n->ts, 1);)
  cur = n; sim_switch(&c.main_sp, n->sp);
#ifdef SIM_ASAN
  __sanitizer_finish_switch_fiber(c.main_fake, nullptr, nullptr);
#endif
#ifdef SIM_TSAN
  for (uint32_t i = 0; i < c.nthreads; i++) { __tsan_switch_to_fiber(c.th[i].ts, 1); __tsan_release(&c.blk_tok); }
  for (auto f : c.wg_ts) { __tsan_switch_to_fiber(f, 1); __tsan_release(&c.blk_tok); } __tsan_switch_to_fiber(c.async_ts, 1); __tsan_release(&c.blk_tok); __tsan_switch_to_fiber(c.main_ts, 1); __tsan_acquire(&c.blk_tok);
#endif
  cur = nullptr;
  if (c.failed) { for (uint32_t i = 0; i < c.nthreads; i++) { T& t = c.th[i]; if (t.started && !t.done && t.stk.lo) c.pool.push_back(t.stk); t.stk = {}; } return false; }
  if (!c.tma.empty()) { c.failed = true; c.err = std::string("kernel ") + c.k->name + ": block exited with TMA loads in flight"; return false; }
  return true;
}
}  // namespace sim

// ---- C API, shaped like the driver API ---------------------------------------------------------------------------------
static std::string g_err; static std::mutex g_mx;
static uint64_t g_sw, g_col;
extern "C" const sim::Kernel* simGetFunction(const char* name) { for (auto* k = sim::kernels; k; k = k->next) if (!strcmp(k->name, name)) return k; return nullptr; }
extern "C" int simParamInfo(const sim::Kernel* k, uint32_t i, uint32_t* size) { if (i >= k->n) return 1; *size = k->sizes[i]; return 0; }
extern "C" const char* simLastError() { return g_err.c_str(); }
extern "C" void simSetOption(const char* k, long v) { using sim::opt; sim::env_init(); if (!strcmp(k, "order")) opt.order = v; else if (!strcmp(k, "eager")) opt.eager = v; else if (!strcmp(k, "threads")) opt.threads = v; else if (!strcmp(k, "smem_shift")) opt.smem_shift = v; else if (!strcmp(k, "seed")) opt.seed = v; }
extern "C" void simStats(uint64_t* s, uint64_t* c) { *s = g_sw; *c = g_col; }
extern "C" int simLaunchKernel(const sim::Kernel* k, uint32_t gx, uint32_t gy, uint32_t gz, uint32_t bx, uint32_t by, uint32_t bz, uint32_t smem, void* /*stream*/, void** params, void** /*extra*/) {
  using namespace sim; env_init();
  if (!k) { g_err = "invalid handle"; return 400; }
  if (!gx || !gy || !gz || !bx || !by || !bz || bx * by * bz > 1024 || bz > 64 || gy > 65535 || gz > 65535 || smem > 227 * 1024) { g_err = "invalid launch configuration"; return 1; }
  uint64_t nb = (uint64_t)gx * gy * gz; std::atomic<uint64_t> next{0}; std::atomic<bool> bad{false};
  auto work = [&] {
    ctx_prepare(k, {gx, gy, gz}, {bx, by, bz}, smem, params); Ctx& c = *cx;
    for (uint64_t i; !bad && (i = next++) < nb;) {
      uint64_t b = opt.order == 1 ? nb - 1 - i : i;
      if (!run_block({uint32_t(b % gx), uint32_t(b / gx % gy), uint32_t(b / gx / gy)})) { bad = true; std::lock_guard<std::mutex> l(g_mx); g_err = c.err; }
    }
    std::lock_guard<std::mutex> l(g_mx); g_sw += c.switches; g_col += c.collects; c.switches = c.collects = 0;
  };
  if (opt.threads <= 1) work();
  else { std::vector<std::thread> v; for (int i = 0; i < opt.threads; i++) v.emplace_back(work); for (auto& t : v) t.join(); }
#ifndef SIM_ASAN
  { std::lock_guard<std::mutex> l(amx);
    for (auto& a : allocs) { uint8_t* end = a.map + a.mapsz - GUARD, *lo = std::max(a.map + GUARD, a.p - 64); bool hit = false;
      for (uint8_t* q = lo; q < a.p; q++) hit |= *q != 0xa5;
      for (uint8_t* q = a.p + a.n; q < end; q++) hit |= *q != 0xa5;
      if (hit && !bad) { bad = true; g_err = std::string("kernel ") + k->name + ": wrote outside a " + std::to_string(a.n) + "-byte allocation (canary)"; } } }
#endif
  return bad ? 700 : 0;
}
extern "C" int simMemAlloc(void** out, size_t n) {
  using namespace sim;
  size_t r = (n + 15) & ~size_t(15), body = (r + 4095) & ~size_t(4095);
  uint8_t* m = (uint8_t*)mmap(nullptr, body + 2 * GUARD, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (m == MAP_FAILED) return 2;
  mprotect(m, GUARD, PROT_NONE); mprotect(m + GUARD + body, GUARD, PROT_NONE);
  uint8_t* p = m + GUARD + body - r; memset(m + GUARD, 0xa5, body); memset(p, 0xff, n);
#ifdef SIM_ASAN
  __asan_poison_memory_region(m + GUARD, body); __asan_unpoison_memory_region(p, n);
#endif
  std::lock_guard<std::mutex> l(amx); allocs.push_back({m, body + 2 * GUARD, p, n}); *out = p; return 0;
}
extern "C" int simMemFree(void* p) {
  using namespace sim; std::lock_guard<std::mutex> l(amx);
  for (size_t i = 0; i < allocs.size(); i++) if (allocs[i].p == p) {
#ifdef SIM_ASAN
    __asan_unpoison_memory_region(allocs[i].map + GUARD, allocs[i].mapsz - 2 * GUARD);
#endif
    munmap(allocs[i].map, allocs[i].mapsz); allocs.erase(allocs.begin() + i); return 0; }
  return 1;
}
// same argument list as cuTensorMapEncodeTiled, with the checks the driver makes (2D only in this prototype)
extern "C" int simTensorMapEncodeTiled(CUtensorMap* out, int dtype, uint32_t rank, void* base, const uint64_t* dim, const uint64_t* stride, const uint32_t* box, const uint32_t* estr, int inter, int swz, int, int) {
  using namespace sim; uint32_t es = dtype == 9 ? 2 : dtype == 7 ? 4 : dtype == 6 ? 2 : 0;   // 9 = BFLOAT16, 7 = FLOAT32, 6 = FLOAT16
  if (!es || rank != 2 || (uintptr_t)base % 16 || (uintptr_t)out % 64 || stride[0] % 16 || !dim[0] || !dim[1] || box[0] == 0 || box[0] > 256 || box[1] == 0 || box[1] > 256 || estr[0] != 1 || estr[1] != 1 || inter || (box[0] * es) % 16) return 1;
  if (swz == 3 && box[0] * es > 128) return 1;
  if (swz != 0 && swz != 3) return 1;
  if (swz == 3 && box[0] * es != 128) return 1;
  memset(out, 0, sizeof *out); TMap m{0x544d4150, es, rank, (uint32_t)swz, (uint8_t*)base, {dim[0], dim[1]}, stride[0], {box[0], box[1]}}; memcpy(out, &m, sizeof m); return 0;
}
