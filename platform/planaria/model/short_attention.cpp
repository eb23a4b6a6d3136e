// Attention over short sequences, forward and backward: what planaria.model.short_attention calls.
//
// PyTorch computes it as small batched matrix products and a softmax, each of which goes through memory and is mostly
// overhead at these sizes. Here a head's keys, values and weights stay in the first-level cache, and QUERIES queries
// are computed side by side, so that the processor has always something to do.
//
// Legend: B rows, T queries, S keys, N heads, G key-value groups, H head width, W keys rounded up to whole vectors.
// All arrays are contiguous float32: q, out and their gradients [B, T, N, H]; kv and its gradient [B, S, G, 2, H];
// weights [B, N, T, S].

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <vector>

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

namespace {

using torch::stable::Tensor;

constexpr int64_t LANES = 16;
constexpr int64_t QUERIES = 4;

struct Sizes {
  int64_t B, T, S, N, G;
};

typedef float Floats __attribute__((vector_size(LANES * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(LANES * sizeof(float))));
template <int64_t H>
struct Wide {
  typedef float Row __attribute__((vector_size(H * sizeof(float))));
};

template <typename Vector>
inline Vector load(const float* from) {
  Vector v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <typename Vector>
inline void save(float* to, const Vector& v) {
  std::memcpy(to, &v, sizeof v);
}

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// All lanes are added, or compared, in halves.
template <typename Join>
inline float reduced(Floats v, Join join) {
  v = join(v, __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7));
  v = join(v, __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11));
  v = join(v, __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13));
  v = join(v, __builtin_shufflevector(v, v, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14));
  return v[0];
}

inline float sum_of(Floats v) {
  return reduced(v, [](Floats a, Floats b) { return a + b; });
}

// exp(x) for x <= 0, to a few units in the last place: 2^n times a polynomial of the rest.
inline Floats exp_of(Floats x) {
  x = larger(x, Floats{} - 87.0f);
  const Floats n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // to the nearest whole number
  const Floats r = x - n * 0.693145752f - n * 1.42860677e-6f;
  Floats p = r * 1.38888889e-3f + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const Ints bits = (__builtin_convertvector(n, Ints) + 127) << 23;
  return p * reinterpret_cast<const Floats&>(bits);
}

// part[h][s] = scale * rows[s][h], with zeros beyond the last key.
template <int64_t H, int64_t W>
void turn(const float* rows, int64_t step, int64_t S, float scale, float* part) {
  for (int64_t h = 0; h < H; ++h) {
    for (int64_t s = 0; s < S; ++s) part[h * W + s] = rows[s * step + h] * scale;
    for (int64_t s = S; s < W; ++s) part[h * W + s] = 0.0f;
  }
}

// product[i][s] = sum over h of left[i][h] * part[h][s]
template <int64_t H, int64_t W, int64_t Q>
inline void multiply(const float* left, int64_t next, const float* part, Floats (*product)[W / LANES]) {
  for (int64_t i = 0; i < Q; ++i)
    for (int64_t k = 0; k < W / LANES; ++k) product[i][k] = Floats{};
  for (int64_t h = 0; h < H; ++h)
    for (int64_t k = 0; k < W / LANES; ++k) {
      const Floats keys = load<Floats>(part + h * W + k * LANES);
      for (int64_t i = 0; i < Q; ++i) product[i][k] += left[i * next + h] * keys;
    }
}

template <int64_t H, int64_t W, int64_t Q>
void forward_of(const float* q, const float* key, const float* values, int64_t step, float* out, float* weights,
                const Floats* beyond, const Sizes& size) {
  typedef typename Wide<H>::Row Row;
  const int64_t next = size.N * H;
  Floats product[Q][W / LANES];
  multiply<H, W, Q>(q, next, key, product);
  alignas(64) float weight[Q][W];
  for (int64_t i = 0; i < Q; ++i) {
    Floats* score = product[i];
    Floats most = Floats{} - 1e30f, total = Floats{};
    for (int64_t k = 0; k < W / LANES; ++k) score[k] += beyond[k], most = larger(most, score[k]);
    const float highest = reduced(most, larger);
    for (int64_t k = 0; k < W / LANES; ++k) score[k] = exp_of(score[k] - highest), total += score[k];
    const float share = 1.0f / sum_of(total);
    for (int64_t k = 0; k < W / LANES; ++k) save(weight[i] + k * LANES, score[k] * share);
    std::memcpy(weights + i * size.S, weight[i], size.S * sizeof(float));
  }
  Row mixed[Q] = {};
  for (int64_t s = 0; s < size.S; ++s) {
    const Row value = load<Row>(values + s * step);
    for (int64_t i = 0; i < Q; ++i) mixed[i] += weight[i][s] * value;
  }
  for (int64_t i = 0; i < Q; ++i) save(out + i * next, mixed[i]);
}

template <int64_t H, int64_t W, int64_t Q>
void backward_of(const float* grad, const float* q, const float* keys, int64_t step, const float* value,
                 const float* weights, float* grad_q, float* grad_keys, float* grad_values, const Sizes& size) {
  typedef typename Wide<H>::Row Row;
  const int64_t next = size.N * H;
  const float scale = 1.0f / std::sqrt(static_cast<float>(H));
  Floats product[Q][W / LANES];
  multiply<H, W, Q>(grad, next, value, product);
  alignas(64) float slope[Q][W], weight[Q][W];
  for (int64_t i = 0; i < Q; ++i) {
    Floats total = Floats{};
    std::memset(weight[i], 0, sizeof weight[i]);
    std::memcpy(weight[i], weights + i * size.S, size.S * sizeof(float));
    for (int64_t k = 0; k < W / LANES; ++k) total += load<Floats>(weight[i] + k * LANES) * product[i][k];
    const float mean = sum_of(total);
    for (int64_t k = 0; k < W / LANES; ++k)
      save(slope[i] + k * LANES, load<Floats>(weight[i] + k * LANES) * (product[i][k] - mean) * scale);
  }
  Row own[Q] = {}, query[Q], above[Q];
  for (int64_t i = 0; i < Q; ++i) query[i] = load<Row>(q + i * next), above[i] = load<Row>(grad + i * next);
  for (int64_t s = 0; s < size.S; ++s) {
    const Row key = load<Row>(keys + s * step);
    Row grad_key = load<Row>(grad_keys + s * H), grad_value = load<Row>(grad_values + s * H);
    for (int64_t i = 0; i < Q; ++i) {
      own[i] += slope[i][s] * key;
      grad_key += slope[i][s] * query[i];
      grad_value += weight[i][s] * above[i];
    }
    save(grad_keys + s * H, grad_key);
    save(grad_values + s * H, grad_value);
  }
  for (int64_t i = 0; i < Q; ++i) save(grad_q + i * next, own[i]);
}

template <int64_t H, int64_t W>
void forward(const float* q, const float* kv, float* out, float* weights, const Sizes& size) {
  const int64_t step = size.G * 2 * H, shared = size.N / size.G;
  alignas(64) float key[H * W];
  Floats beyond[W / LANES];  // hides what is no key
  for (int64_t s = 0; s < W; ++s) beyond[s / LANES][s % LANES] = s < size.S ? 0.0f : -1e30f;
  for (int64_t b = 0; b < size.B; ++b)
    for (int64_t g = 0; g < size.G; ++g) {
      const float* keys = kv + b * size.S * step + g * 2 * H;
      turn<H, W>(keys, step, size.S, 1.0f / std::sqrt(static_cast<float>(H)), key);
      for (int64_t n = g * shared; n < (g + 1) * shared; ++n)
        for (int64_t t = 0; t < size.T;) {
          const int64_t at = ((b * size.T + t) * size.N + n) * H;
          float* kept = weights + ((b * size.N + n) * size.T + t) * size.S;
          if (t + QUERIES <= size.T) {
            forward_of<H, W, QUERIES>(q + at, key, keys + H, step, out + at, kept, beyond, size);
            t += QUERIES;
          } else {
            forward_of<H, W, 1>(q + at, key, keys + H, step, out + at, kept, beyond, size);
            t += 1;
          }
        }
    }
}

template <int64_t H, int64_t W>
void backward(const float* grad, const float* q, const float* kv, const float* weights, float* grad_q, float* grad_kv,
              const Sizes& size) {
  const int64_t step = size.G * 2 * H, shared = size.N / size.G;
  alignas(64) float value[H * W];
  alignas(64) float grad_keys[W * H], grad_values[W * H];
  for (int64_t b = 0; b < size.B; ++b)
    for (int64_t g = 0; g < size.G; ++g) {
      const int64_t group = b * size.S * step + g * 2 * H;
      const float* keys = kv + group;
      turn<H, W>(keys + H, step, size.S, 1.0f, value);
      std::fill(grad_keys, grad_keys + size.S * H, 0.0f);
      std::fill(grad_values, grad_values + size.S * H, 0.0f);
      for (int64_t n = g * shared; n < (g + 1) * shared; ++n)
        for (int64_t t = 0; t < size.T;) {
          const int64_t at = ((b * size.T + t) * size.N + n) * H;
          const float* kept = weights + ((b * size.N + n) * size.T + t) * size.S;
          if (t + QUERIES <= size.T) {
            backward_of<H, W, QUERIES>(grad + at, q + at, keys, step, value, kept, grad_q + at, grad_keys, grad_values,
                                       size);
            t += QUERIES;
          } else {
            backward_of<H, W, 1>(grad + at, q + at, keys, step, value, kept, grad_q + at, grad_keys, grad_values, size);
            t += 1;
          }
        }
      for (int64_t s = 0; s < size.S; ++s) {
        std::memcpy(grad_kv + group + s * step, grad_keys + s * H, H * sizeof(float));
        std::memcpy(grad_kv + group + s * step + H, grad_values + s * H, H * sizeof(float));
      }
    }
}

// Sizes that are not listed were refused before the pass was compiled.
#define FOR_KEYS(width, call)                                      \
  switch ((size.S + LANES - 1) / LANES) {                          \
    case 1: call<width, 1 * LANES> ARGUMENTS; break;               \
    case 2: call<width, 2 * LANES> ARGUMENTS; break;               \
    case 3: call<width, 3 * LANES> ARGUMENTS; break;               \
    case 4: call<width, 4 * LANES> ARGUMENTS; break;               \
    default: STD_TORCH_CHECK(false, "more keys than 64");          \
  }                                                                \
  break;
#define FOR_SIZES(call)                                            \
  switch (q.size(3)) {                                             \
    case 4: FOR_KEYS(4, call)                                      \
    case 8: FOR_KEYS(8, call)                                      \
    case 16: FOR_KEYS(16, call)                                    \
    case 32: FOR_KEYS(32, call)                                    \
    case 64: FOR_KEYS(64, call)                                    \
    default: STD_TORCH_CHECK(false, "a head width that is not 4, 8, 16, 32 or 64"); \
  }

const float* read(const Tensor& tensor) { return static_cast<const float*>(tensor.const_data_ptr()); }
float* written(const Tensor& tensor) { return static_cast<float*>(tensor.mutable_data_ptr()); }
Sizes sizes_of(const Tensor& q, const Tensor& kv) {
  return Sizes{q.size(0), q.size(1), kv.size(1), q.size(2), kv.size(2)};
}

// softmax(q k' / sqrt(H)) v, and the weights for its gradient.
std::tuple<Tensor, Tensor> attend(Tensor q, Tensor kv) {
  q = torch::stable::contiguous(q), kv = torch::stable::contiguous(kv);
  const Sizes size = sizes_of(q, kv);
  Tensor out = torch::stable::empty_like(q);
  Tensor weights = torch::stable::new_empty(q, std::vector<int64_t>{size.B, size.N, size.T, size.S});
#define ARGUMENTS (read(q), read(kv), written(out), written(weights), size)
  FOR_SIZES(forward)
#undef ARGUMENTS
  return {out, weights};
}

// The gradients of q and kv.
std::tuple<Tensor, Tensor> gradient(Tensor grad, Tensor q, Tensor kv, Tensor weights) {
  grad = torch::stable::contiguous(grad), q = torch::stable::contiguous(q), kv = torch::stable::contiguous(kv);
  weights = torch::stable::contiguous(weights);
  const Sizes size = sizes_of(q, kv);
  Tensor grad_q = torch::stable::empty_like(q), grad_kv = torch::stable::empty_like(kv);
#define ARGUMENTS (read(grad), read(q), read(kv), read(weights), written(grad_q), written(grad_kv), size)
  FOR_SIZES(backward)
#undef ARGUMENTS
  return {grad_q, grad_kv};
}

}  // namespace

STABLE_TORCH_LIBRARY(planaria, library) {
  library.def("short_attention(Tensor q, Tensor kv) -> (Tensor, Tensor)");
  library.def("short_attention_gradient(Tensor grad, Tensor q, Tensor kv, Tensor weights) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(planaria, CPU, library) {
  library.impl("short_attention", TORCH_BOX(&attend));
  library.impl("short_attention_gradient", TORCH_BOX(&gradient));
}
