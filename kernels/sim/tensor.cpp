// ldmatrix and mma.sync: the lanes of a warp meet, and the last one does the work of all 32.
//
// build.rs compiles this file with fused multiply-adds: products of two bf16, or of two tf32, are
// exact in fp32, so fusing changes nothing but the speed. Sums run over k in rising order; hardware
// may use another one.

#include "engine.hpp"

namespace sim {

namespace {

using Vec4 = float __attribute__((vector_size(16)));
using Vec8 = float __attribute__((vector_size(32)));
using Loose4 = float __attribute__((vector_size(16), aligned(4)));
using Loose8 = float __attribute__((vector_size(32), aligned(4)));

constexpr int kMaxM = 8, kMaxN = 32, kDepth = 16;

float from_bits(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// ---- ldmatrix
// -------------------------------------------------------------------------------------

void run_load(Meeting& meeting, Engine&) {
    // Lane 8 i + r names row r of matrix i. Lane l gets elements 2 (l % 4) and the next of row l /
    // 4 of each matrix.
    for (int i = 0; i < 4; ++i) {
        for (int lane = 0; lane < 32; ++lane) {
            auto row = reinterpret_cast<const uint16_t*>(meeting.in[8 * i + lane / 4]);
            memcpy(static_cast<uint32_t*>(meeting.place[lane]) + i, row + 2 * (lane % 4), 4);
        }
    }
}

void run_load_transposed(Meeting& meeting, Engine&) {
    for (int i = 0; i < 4; ++i) {
        const uint16_t* row[8];
        for (int r = 0; r < 8; ++r)
            row[r] = reinterpret_cast<const uint16_t*>(meeting.in[8 * i + r]);
        for (int lane = 0; lane < 32; ++lane) {
            int r = 2 * (lane % 4), c = lane / 4;
            static_cast<uint32_t*>(meeting.place[lane])[i] =
                row[r][c] | static_cast<uint32_t>(row[r + 1][c]) << 16;
        }
    }
}

// ---- mma
// ------------------------------------------------------------------------------------------

struct Operands {
    float* c;
    const uint32_t* a;
    const uint32_t* b;
};

// The warp's operands, spread so that a lane's sums need no shuffles. c of a lane and a tile is
// (row g, columns 2t and 2t + 1), (row g + 8, the same): left and right factors are laid out alike.
// g = lane / 4, t = lane % 4.
struct Spread {
    Vec8 a[8][kMaxM][kDepth];          // by g: {x, x, y, y, x, x, y, y} of rows g and g + 8
    Vec8 b[4][kMaxN / 2][kDepth];      // by t: columns 2t, 2t + 1 twice, of two neighbouring tiles
    float plain_b[kDepth][kMaxN * 8];  // b as a matrix
};

struct Bf16 {
    static constexpr int kK = 16, kPerWord = 2;
    static float value(uint32_t word, int e) {
        return from_bits(e == 0 ? word << 16 : word & 0xFFFF0000u);
    }
    static int k(int t, int half, int e) { return 8 * half + 2 * t + e; }
};

struct Tf32 {
    static constexpr int kK = 8, kPerWord = 1;
    // The hardware ignores the low 13 bits.
    static float value(uint32_t word, int) { return from_bits(word & ~0x1FFFu); }
    static int k(int t, int half, int) { return 4 * half + t; }
};

template <class Type>
void spread(const Meeting& meeting, int tiles_m, int tiles_n, Spread& to) {
    for (int lane = 0; lane < 32; ++lane) {
        const auto& from = *static_cast<const Operands*>(meeting.place[lane]);
        int g = lane / 4, t = lane % 4;
        for (int half = 0; half < 2; ++half) {
            for (int e = 0; e < Type::kPerWord; ++e) {
                int k = Type::k(t, half, e);
                for (int m = 0; m < tiles_m; ++m) {
                    float x = Type::value(from.a[4 * m + 2 * half], e);
                    float y = Type::value(from.a[4 * m + 2 * half + 1], e);
                    to.a[g][m][k] = Vec8{x, x, y, y, x, x, y, y};
                }
                for (int n = 0; n < tiles_n; ++n) {
                    to.plain_b[k][8 * n + g] = Type::value(from.b[2 * n + half], e);
                }
            }
        }
    }
    for (int t = 0; t < 4; ++t) {
        for (int k = 0; k < Type::kK; ++k) {
            for (int n = 0; n < (tiles_n + 1) / 2; ++n) {
                const float* p = to.plain_b[k] + 16 * n + 2 * t;
                to.b[t][n][k] = Vec8{p[0], p[1], p[0], p[1], p[8], p[9], p[8], p[9]};
            }
        }
    }
}

// Adds the products of one lane to M rows of tiles and N pairs of neighbouring tiles, whose sums
// lie in a row.
template <int K, int M, int N>
void add(float* c, int pitch, const Vec8 (*a)[kDepth], const Vec8 (*b)[kDepth]) {
    Vec8 sum[M][N];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n)
            sum[m][n] = *reinterpret_cast<const Loose8*>(c + m * pitch + 8 * n);
    }
    for (int k = 0; k < K; ++k) {
#pragma GCC unroll 8
        for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
            for (int n = 0; n < N; ++n) sum[m][n] += a[m][k] * b[n][k];
        }
    }
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
#pragma GCC unroll 8
        for (int n = 0; n < N; ++n) *reinterpret_cast<Loose8*>(c + m * pitch + 8 * n) = sum[m][n];
    }
}

// The last tile where their number is odd.
template <int K>
void add_last(float* c, const Vec8 (&a)[kDepth], const Vec8 (&b)[kDepth]) {
    Vec4 sum = *reinterpret_cast<const Loose4*>(c);
    for (int k = 0; k < K; ++k) {
        sum += Vec4{a[k][0], a[k][1], a[k][2], a[k][3]} * Vec4{b[k][0], b[k][1], b[k][2], b[k][3]};
    }
    *reinterpret_cast<Loose4*>(c) = sum;
}

template <class Type>
void run_multiply(Meeting& meeting, Engine& engine) {
    int tiles_m = static_cast<int>(meeting.detail >> 8), tiles_n = meeting.detail & 255;
    if (engine.tensor_scratch == nullptr) engine.tensor_scratch = new Spread;
    auto& all = *static_cast<Spread*>(engine.tensor_scratch);
    spread<Type>(meeting, tiles_m, tiles_n, all);
    int pairs = tiles_n / 2, pitch = 4 * tiles_n;
    for (int lane = 0; lane < 32; ++lane) {
        float* c = static_cast<Operands*>(meeting.place[lane])->c;
        auto a = all.a[lane / 4];
        auto b = all.b[lane % 4];
        for (int m = 0; m < tiles_m;) {
            bool two = m + 1 < tiles_m;
            float* row = c + m * pitch;
            int n = 0;
            for (; n + 4 <= pairs; n += 4) {
                if (two) {
                    add<Type::kK, 2, 4>(row + 8 * n, pitch, a + m, b + n);
                } else {
                    add<Type::kK, 1, 4>(row + 8 * n, pitch, a + m, b + n);
                }
            }
            for (; n < pairs; ++n) {
                if (two) {
                    add<Type::kK, 2, 1>(row + 8 * n, pitch, a + m, b + n);
                } else {
                    add<Type::kK, 1, 1>(row + 8 * n, pitch, a + m, b + n);
                }
            }
            if (tiles_n % 2 != 0) {
                add_last<Type::kK>(row + 8 * pairs, a[m], b[pairs]);
                if (two) add_last<Type::kK>(row + pitch + 8 * pairs, a[m + 1], b[pairs]);
            }
            m += two ? 2 : 1;
        }
    }
}

void multiply(const char* name, Meet run, Operands operands, int tiles_m, int tiles_n,
              const void* site) {
    if (tiles_m > kMaxM || tiles_n > kMaxN) {
        fail(self(), site, "%s: %d x %d tiles, the simulator takes %d x %d", name, tiles_m, tiles_n,
             kMaxM, kMaxN);
    }
    uint64_t shape = static_cast<uint64_t>(tiles_m) << 8 | static_cast<uint64_t>(tiles_n);
    meet(name, run, shape, 0xFFFFFFFFu, 0, &operands, site);
}

}  // namespace

void load_matrices(uint32_t* out, uint32_t address, bool transposed) {
    const void* site = SIM_SITE;
    Thread& thread = self();
    if (address % 16 != 0) {
        fail(thread, site, "ldmatrix: row address %u is not aligned to 16", address);
    }
    const uint8_t* row = shared_bytes(thread, address, 16, "ldmatrix", site);
    check(thread, row, 16, Access::kRead, site);
    meet("ldmatrix", transposed ? run_load_transposed : run_load, 0, 0xFFFFFFFFu,
         reinterpret_cast<uint64_t>(row), out, site);
}

void multiply_bf16(float* c, const uint32_t* a, const uint32_t* b, int tiles_m, int tiles_n) {
    multiply("mma.sync bf16", run_multiply<Bf16>, {c, a, b}, tiles_m, tiles_n, SIM_SITE);
}

void multiply_tf32(float* c, const uint32_t* a, const uint32_t* b, int tiles_m, int tiles_n) {
    multiply("mma.sync tf32", run_multiply<Tf32>, {c, a, b}, tiles_m, tiles_n, SIM_SITE);
}

}  // namespace sim
