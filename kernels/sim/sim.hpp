// sim.hpp - host shim: lets a .cu kernel file compile with g++ (-x c++ -DSIM) and run on the CPU.
// Every CUDA thread is a fiber; warp collectives, barriers, mbarriers and async copies are rendezvous points.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) alignas(n)
#define __shared__ static thread_local

// ---- vector types -------------------------------------------------------------------------------
struct uint3 { unsigned x, y, z; };
struct dim3 { unsigned x, y, z; constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {} };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
static inline float2 make_float2(float a, float b) { return {a, b}; }
static inline float4 make_float4(float a, float b, float c, float d) { return {a, b, c, d}; }
static inline uint2 make_uint2(unsigned a, unsigned b) { return {a, b}; }
static inline uint4 make_uint4(unsigned a, unsigned b, unsigned c, unsigned d) { return {a, b, c, d}; }

// ---- bf16 / half --------------------------------------------------------------------------------
struct __nv_bfloat16 { uint16_t x; };
struct alignas(4) __nv_bfloat162 { __nv_bfloat16 x, y; };
static inline float __bfloat162float(__nv_bfloat16 b) { uint32_t u = uint32_t(b.x) << 16; float f; memcpy(&f, &u, 4); return f; }
static inline __nv_bfloat16 __float2bfloat16_rn(float f) {
  uint32_t u; memcpy(&u, &f, 4);
  if ((u & 0x7fffffff) > 0x7f800000) return {0x7fff};
  return {uint16_t((u + 0x7fff + ((u >> 16) & 1)) >> 16)};
}
static inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {__float2bfloat16_rn(a), __float2bfloat16_rn(b)}; }
static inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }
struct __half { _Float16 x; };
static inline float __half2float(__half h) { return float(h.x); }
static inline __half __float2half_rn(float f) { return {_Float16(f)}; }

// ---- runtime state ------------------------------------------------------------------------------
namespace sim {
struct Thread { uint3 tid; uint32_t lin, warp, lane; };            // public head of the runtime's own record
struct BlockView { uint3 bid, bdim, gdim; uint8_t* smem; uint32_t smem_bytes; };
extern __thread Thread* cur;
extern __thread BlockView view;

using CollectFn = void (*)(void** recs, uint32_t mask, uint64_t param);
void warp_collect(uint32_t mask, CollectFn fn, uint64_t param, void* rec, bool memsync);
void bar_sync(int id, int nthreads, bool wait);                    // nthreads<0: whole block
uint32_t smem_u32(const void* p);
void cp_async(uint32_t dst, const void* src, uint32_t bytes, uint32_t src_bytes);
void cp_async_commit();
void cp_async_wait(int keep);
void mbar_init(uint32_t a, uint32_t count);
void mbar_arrive(uint32_t a, uint32_t tx);
bool mbar_test(uint32_t a, uint32_t parity);
void mbar_wait(uint32_t a, uint32_t parity);
void tma_load_2d(uint32_t dst, const void* map, int x, int y, uint32_t bar);
void wgmma(float* d, uint64_t da, uint64_t db, int n, int ta, int tb, int scale_d);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int keep);
void fence_proxy_async();
void ldmatrix_x4(uint32_t* r, uint32_t addr, bool trans);
void mma_tile(float* c, const uint32_t* a, const uint32_t* b, int mt, int nt);
void mma_tile_tf32(float* c, const uint32_t* a, const uint32_t* b, int mt, int nt);
static inline uint32_t to_tf32(float x) { uint32_t u; memcpy(&u, &x, 4); if ((u & 0x7f800000u) == 0x7f800000u) return u; return (u + 0x1000u) & ~0x1fffu; }
[[noreturn]] void trap(const char* msg);

// registry: kernel name -> trampoline with the calling convention of cuLaunchKernel (void** kernelParams)
struct Kernel { const char* name; void (*call)(void**); const uint32_t* sizes; uint32_t n; Kernel* next; };
void reg(Kernel*);
template <class T> struct Tramp;
template <class... A> struct Tramp<void (*)(A...)> {
  static constexpr uint32_t n = sizeof...(A);
  static constexpr uint32_t sizes[n + 1] = {uint32_t(sizeof(A))..., 0};
  template <void (*F)(A...), size_t... I> static void go(void** p, std::index_sequence<I...>) { F(*(std::remove_cv_t<A>*)p[I]...); }
  template <void (*F)(A...)> static void call(void** p) { go<F>(p, std::make_index_sequence<n>{}); }
};
struct Reg { Kernel k; Reg(const char* nm, void (*c)(void**), const uint32_t* s, uint32_t n) : k{nm, c, s, n, nullptr} { reg(&k); } };
}  // namespace sim
#define KERNEL_EXPORT(f) \
  static ::sim::Reg sim_reg_##f(#f, &::sim::Tramp<decltype(&f)>::call<&f>, ::sim::Tramp<decltype(&f)>::sizes, ::sim::Tramp<decltype(&f)>::n)

#define threadIdx (::sim::cur->tid)
#define blockIdx (::sim::view.bid)
#define blockDim (::sim::view.bdim)
#define gridDim (::sim::view.gdim)
static constexpr int warpSize = 32;

// ---- CUDA builtins ------------------------------------------------------------------------------
static inline void __syncthreads() { sim::bar_sync(0, -1, true); }
#define SIM_RT __attribute__((noinline, no_sanitize("thread"), no_sanitize("address")))   // lane exchange is the simulator's own memory
namespace sim {
template <class T> struct ShRec { T v; T out; int src; };
template <class T> SIM_RT void shfl_fn(void** r, uint32_t m, uint64_t) {
  for (int l = 0; l < 32; l++) if (m >> l & 1) {
    auto* p = (ShRec<T>*)r[l];
    if (!(m >> p->src & 1)) trap("shuffle source lane is not in the mask");
    p->out = ((ShRec<T>*)r[p->src])->v;
  }
}
template <class T> SIM_RT T shfl(uint32_t m, T v, int src) { ShRec<T> r{v, v, src}; warp_collect(m, shfl_fn<T>, 0, &r, false); return r.out; }
struct RedRec { uint32_t v, out; };
SIM_RT inline void ballot_fn(void** r, uint32_t m, uint64_t) {
  uint32_t b = 0;
  for (int l = 0; l < 32; l++) if (m >> l & 1) b |= (((RedRec*)r[l])->v != 0 ? 1u : 0u) << l;
  for (int l = 0; l < 32; l++) if (m >> l & 1) ((RedRec*)r[l])->out = b;
}
template <int OP> SIM_RT void red_fn(void** r, uint32_t m, uint64_t) {
  uint32_t a = 0; bool first = true;
  for (int l = 0; l < 32; l++) if (m >> l & 1) {
    uint32_t v = ((RedRec*)r[l])->v;
    a = first ? v : OP == 0 ? a + v : OP == 1 ? (v > a ? v : a) : (v < a ? v : a); first = false;
  }
  for (int l = 0; l < 32; l++) if (m >> l & 1) ((RedRec*)r[l])->out = a;
}
inline void nop_fn(void**, uint32_t, uint64_t) {}
}  // namespace sim
static inline void __syncwarp(uint32_t m = ~0u) { sim::warp_collect(m, sim::nop_fn, 1, nullptr, true); }
template <class T> static inline T __shfl_sync(uint32_t m, T v, int s, int w = 32) { int l = sim::cur->lane; return sim::shfl(m, v, (l & ~(w - 1)) | (s & (w - 1))); }
template <class T> static inline T __shfl_xor_sync(uint32_t m, T v, int x, int w = 32) { int l = sim::cur->lane, s = l ^ x; return sim::shfl(m, v, (s ^ l) >= w ? l : s); }
template <class T> static inline T __shfl_down_sync(uint32_t m, T v, int d, int w = 32) { int l = sim::cur->lane, s = l + d; return sim::shfl(m, v, (s & ~(w - 1)) != (l & ~(w - 1)) ? l : s); }
template <class T> static inline T __shfl_up_sync(uint32_t m, T v, int d, int w = 32) { int l = sim::cur->lane, s = l - d; return sim::shfl(m, v, s < (l & ~(w - 1)) ? l : s); }
SIM_RT inline uint32_t __ballot_sync(uint32_t m, int p) { sim::RedRec r{uint32_t(p), 0}; sim::warp_collect(m, sim::ballot_fn, 0, &r, false); return r.out; }
static inline int __any_sync(uint32_t m, int p) { return __ballot_sync(m, p) != 0; }
static inline int __all_sync(uint32_t m, int p) { return __ballot_sync(m, p) == m; }
SIM_RT inline uint32_t __reduce_add_sync(uint32_t m, uint32_t v) { sim::RedRec r{v, 0}; sim::warp_collect(m, sim::red_fn<0>, 0, &r, false); return r.out; }
SIM_RT inline uint32_t __reduce_max_sync(uint32_t m, uint32_t v) { sim::RedRec r{v, 0}; sim::warp_collect(m, sim::red_fn<1>, 0, &r, false); return r.out; }
static inline int atomicAdd(int* p, int v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
static inline unsigned atomicAdd(unsigned* p, unsigned v) { return __atomic_fetch_add(p, v, __ATOMIC_RELAXED); }
static inline float atomicAdd(float* p, float v) {
  uint32_t o = __atomic_load_n((uint32_t*)p, __ATOMIC_RELAXED), n; float f;
  do { memcpy(&f, &o, 4); float g = f + v; memcpy(&n, &g, 4); } while (!__atomic_compare_exchange_n((uint32_t*)p, &o, n, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return f;
}
static inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
#define __expf(x) expf(x)   // macros: glibc already declares functions of these names
#define __logf(x) logf(x)
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline float __fdividef(float a, float b) { return a / b; }
static inline unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
static inline float __uint_as_float(unsigned u) { float f; memcpy(&f, &u, 4); return f; }
static inline int __popc(unsigned v) { return __builtin_popcount(v); }
template <class T> static inline T __ldg(const T* p) { return *p; }
static inline int min(int a, int b) { return a < b ? a : b; }
static inline int max(int a, int b) { return a > b ? a : b; }
static inline unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
static inline unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
static inline unsigned atomicMax(unsigned* p, unsigned v) { unsigned o = *p; if (v > o) *p = v; return o; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fsub_rn(float a, float b) { return a - b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float a) { return sqrtf(a); }
static inline double __dmul_rn(double a, double b) { return a * b; }
static inline double __dadd_rn(double a, double b) { return a + b; }
static inline long long __double_as_longlong(double d) { long long u; memcpy(&u, &d, 8); return u; }
static inline double __longlong_as_double(long long u) { double d; memcpy(&d, &u, 8); return d; }
static inline uint16_t __bfloat16_as_ushort(__nv_bfloat16 b) { return b.x; }
static inline __nv_bfloat16 __ushort_as_bfloat16(uint16_t b) { return {b}; }
static inline uint16_t __half_as_ushort(__half h) { uint16_t u; memcpy(&u, &h, 2); return u; }
static inline __half __ushort_as_half(uint16_t u) { __half h; memcpy(&h, &u, 2); return h; }
struct alignas(64) CUtensorMap { uint64_t opaque[16]; };
