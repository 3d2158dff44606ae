// SPDX-License-Identifier: Apache-2.0
//
// What one warp does in attention: a few tiles of 16 queries against one block of keys after the other, with a softmax
// that goes along. For every head dimension; where the rows come from and go to is the kernels' affair.
#pragma once

#include <cfloat>
#include <cstdint>

#include "primitives.h"
#include "windows.h"

namespace swin_fast::cuda {

// Rows of k and v in shared memory, in chunks of 16 bytes, and in slabs of four chunks, which a quad of lanes holds.
// The chunks of a row are turned such that a chunk of eight rows, which ldmatrix reads at once, lies in eight groups
// of banks, and that a slab of two rows, which eight lanes read at once, does as well.
template <int kHd>
struct KeyRows {
  static_assert(kHd == 16 || (kHd % 32 == 0 && kHd <= 128), "a head dimension of 16, 32, 64, 96 or 128");
  static constexpr int kBytes = 2 * kHd;
  static constexpr int kChunks = kHd / 8;
  static constexpr int kSlabs = (kHd + 31) / 32;  // of 16: half a slab, the other half counts as zeros

  SWIN_FAST_DEVICE static int at(int row, int chunk) {
    const int turn = kHd == 16 ? (row >> 2) & 1 : kHd % 64 == 32 ? (row >> 1) & 3 : ((row >> 1) & 3) | (row & 1) << 2;
    return row * kBytes + (chunk ^ turn) * 16;
  }
};

// kTiles tiles of 16 queries, and kKeyTiles tiles of 8 keys in a block. Lane 4g + t has rows g and g + 8 of each tile.
// With kStaged queries come through shared memory. Without, from global memory, 16 bytes a lane: of a slab of q and k a
// lane then holds the elements 8t to 8t + 7 of a row, where mma has 2t, 2t + 1, 2t + 8, 2t + 9 and so on; the order in
// which products are summed does not matter.
template <class T, int kHd, int kTiles, int kKeyTiles, bool kCosine, bool kStaged = false>
struct RowTiles {
  static_assert(!kStaged || kHd == 32, "one slab");
  using Rows = KeyRows<kHd>;
  // By less it is not worth to shrink what was summed: weights of up to 2^8 are as exact, and far from the largest
  // number of float16.
  static constexpr float kLag = 8.0f;

  uint32_t q[kTiles][Rows::kSlabs][2][4];
  float o[kTiles][kHd / 8][4];
  float top[kTiles][2];  // what weights are relative to, in base 2: no score so far is more than kLag larger
  float sum[kTiles][4];  // of weights as they were rounded, as products with ones; two columns alike, the even counts
  float of_row[kTiles][2];  // what scores are multiplied by
  // Two registers that nvcc does not know to be equal: else it makes copies of one, 16 moves a block of keys.
  uint32_t ones[2];
  int lane;

  SWIN_FAST_DEVICE explicit RowTiles(int lane_) : lane(lane_) {
    ones[0] = pack<T>(1.0f, 1.0f);
    ones[1] = shuffle_xor(ones[0], 1);
  }

  SWIN_FAST_DEVICE void set_query(int tile, int half, int slab, UInt4 chunk) {
    q[tile][slab][0][half] = chunk.x;
    q[tile][slab][0][half + 2] = chunk.y;
    q[tile][slab][1][half] = chunk.z;
    q[tile][slab][1][half + 2] = chunk.w;
  }

  // From shared memory, as KeyRows.
  SWIN_FAST_DEVICE void set_queries(const char* rows) {
    static_assert(kStaged, "else the keys have another order");
    SWIN_FAST_UNROLL
    for (int r = 0; r < kTiles; ++r) {
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        ldmatrix_x4(q[r][0][i], rows + r * 16 * Rows::kBytes + Rows::at(lane & 15, 2 * i + (lane >> 4)));
      }
    }
  }

  // After the queries are set. `factor` is that of the scores in base 2.
  SWIN_FAST_DEVICE void begin(float factor) {
    SWIN_FAST_UNROLL
    for (int r = 0; r < kTiles; ++r) {
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        top[r][i] = -FLT_MAX;  // and not -inf: differences to it are numbers
        sum[r][2 * i] = sum[r][2 * i + 1] = 0.0f;
        of_row[r][i] = factor;
        if (kCosine) {
          float total = 0.0f;
          SWIN_FAST_UNROLL
          for (int slab = 0; slab < Rows::kSlabs; ++slab) {
            total += squares<T>(q[r][slab][0][i]) + squares<T>(q[r][slab][0][i + 2]) + squares<T>(q[r][slab][1][i]) +
                     squares<T>(q[r][slab][1][i + 2]);
          }
          of_row[r][i] *= inverse_norm(total);
        }
      }
      SWIN_FAST_UNROLL
      for (int c = 0; c < kHd / 8; ++c) o[r][c][0] = o[r][c][1] = o[r][c][2] = o[r][c][3] = 0.0f;
    }
  }

  // This lane's part of a row of k, of keys lane / 4 of each tile.
  SWIN_FAST_DEVICE UInt4 key_chunk(const char* k, int tile, int slab) const {
    if (kHd == 16 && (lane & 3) >= Rows::kChunks) return {0, 0, 0, 0};
    return load_shared<UInt4>(k + tile * 8 * Rows::kBytes + Rows::at(lane >> 2, slab * 4 + (lane & 3)));
  }

  // The right sides of both products with a slab of a tile of keys.
  SWIN_FAST_DEVICE UInt4 key_fragments(const char* k, int tile, int slab) const {
    if constexpr (kStaged) {
      uint32_t four[4];
      ldmatrix_x4(four, k + tile * 8 * Rows::kBytes + Rows::at(lane & 7, lane >> 3));
      return {four[0], four[1], four[2], four[3]};
    } else {
      return key_chunk(k, tile, slab);
    }
  }

  // The tops become those of all lanes; what has been summed relative to the tops before shrinks by the difference.
  SWIN_FAST_DEVICE void raise(float (&largest)[kTiles][2]) {
    SWIN_FAST_UNROLL
    for (int r = 0; r < kTiles; ++r) {
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        largest[r][i] = fmaxf(largest[r][i], shuffle_xor(largest[r][i], 1));
        largest[r][i] = fmaxf(largest[r][i], shuffle_xor(largest[r][i], 2));
        const float shrunk = exp2_approx(top[r][i] - largest[r][i]);
        top[r][i] = largest[r][i];
        sum[r][2 * i] *= shrunk;
        SWIN_FAST_UNROLL
        for (int c = 0; c < kHd / 8; ++c) {
          o[r][c][2 * i] *= shrunk;
          o[r][c][2 * i + 1] *= shrunk;
        }
      }
    }
  }

  // What the scores of a block of keys are multiplied by besides: the norms of its rows inverted, in shared memory.
  SWIN_FAST_DEVICE void invert_norms(const char* k, char* key_norms) const {
    SWIN_FAST_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      float total = 0.0f;
      SWIN_FAST_UNROLL
      for (int slab = 0; slab < Rows::kSlabs; ++slab) {
        const UInt4 key = key_chunk(k, j, slab);
        total += squares<T>(key.x) + squares<T>(key.y) + squares<T>(key.z) + squares<T>(key.w);
      }
      const float inverse = inverse_norm(total);
      if ((lane & 3) == 0) store_shared(key_norms + (j * 8 + (lane >> 2)) * 4, inverse);
    }
    sync_warp();
  }

  using Regions = uint32_t[kTiles][2];
  // Of rows, 16 bits each in shared memory.
  SWIN_FAST_DEVICE void load_regions(const char* of_rows, Regions& regions) const {
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2 * kTiles; ++i) {
      regions[i >> 1][i & 1] = load_shared<uint16_t>(of_rows + (i * 8 + (lane >> 2)) * 2);
    }
  }

  // One block of keys: its rows of k and v, with cosine attention their norms inverted; bias(tile of queries, tile of
  // keys) as fragments in base 2; and with a border, the regions of its keys, 16 bits each, and of the rows, and
  // mask_value in base 2. Without kOnline weights are relative to a score of 0, which costs no maxima and no
  // differences, a third of all instructions; whether that went well sums_in_range() tells in the end.
  template <bool kBorder, bool kOnline, class Bias>
  SWIN_FAST_DEVICE void attend(const char* k, const char* v, const char* key_norms, const Bias& bias,
                               const char* key_regions, const Regions& row_regions, float mask) {
    const int pair = (lane & 3) * 2;
    float s[kTiles][kKeyTiles][4];
    float largest[kTiles][2];
    SWIN_FAST_UNROLL
    for (int r = 0; r < kTiles; ++r) {
      largest[r][0] = top[r][0];
      largest[r][1] = top[r][1];
    }
    SWIN_FAST_UNROLL
    for (int j = 0; j < kKeyTiles; ++j) {
      UInt4 key[Rows::kSlabs];
      SWIN_FAST_UNROLL
      for (int slab = 0; slab < Rows::kSlabs; ++slab) key[slab] = key_fragments(k, j, slab);
      float of_key[2] = {1.0f, 1.0f};
      if (kCosine) {
        const auto two = load_shared<Float2>(key_norms + (j * 8 + pair) * 4);
        of_key[0] = two.x;
        of_key[1] = two.y;
      }
      uint32_t regions = 0;
      if (kBorder) regions = load_shared<uint32_t>(key_regions + (j * 8 + pair) * 2);
      SWIN_FAST_UNROLL
      for (int r = 0; r < kTiles; ++r) {
        float (&score)[4] = s[r][j];
        score[0] = score[1] = score[2] = score[3] = 0.0f;
        SWIN_FAST_UNROLL
        for (int slab = 0; slab < Rows::kSlabs; ++slab) {
          mma_m16n8k16<T>(score, q[r][slab][0], key[slab].x, key[slab].y);
          mma_m16n8k16<T>(score, q[r][slab][1], key[slab].z, key[slab].w);
        }
        const Float4 own = bias(r, j);
        const float added[4] = {own.x, own.y, own.z, own.w};
        SWIN_FAST_UNROLL
        for (int e = 0; e < 4; ++e) {
          if (kCosine) score[e] *= of_key[e & 1];
          score[e] = score[e] * of_row[r][e >> 1] + added[e];
          if (kBorder && (regions >> 16 * (e & 1) & 0xffff) != row_regions[r][e >> 1]) score[e] += mask;
          if (kOnline) largest[r][e >> 1] = fmaxf(largest[r][e >> 1], score[e]);
        }
      }
    }
    if (kOnline) {
      bool grown = false;
      SWIN_FAST_UNROLL
      for (int r = 0; r < kTiles; ++r) {
        grown = grown || largest[r][0] > top[r][0] + kLag || largest[r][1] > top[r][1] + kLag;
      }
      if (any_lane(grown)) raise(largest);
    }
    SWIN_FAST_UNROLL
    for (int step = 0; step < kKeyTiles / 2; ++step) {
      uint32_t weights[kTiles][4];
      SWIN_FAST_UNROLL
      for (int r = 0; r < kTiles; ++r) {
        SWIN_FAST_UNROLL
        for (int half = 0; half < 2; ++half) {
          float (&w)[4] = s[r][2 * step + half];
          SWIN_FAST_UNROLL
          for (int e = 0; e < 4; ++e) {
            w[e] = exp2_approx(kOnline ? w[e] - top[r][e >> 1] : w[e]);
          }
          weights[r][2 * half] = pack<T>(w[0], w[1]);
          weights[r][2 * half + 1] = pack<T>(w[2], w[3]);
        }
        mma_m16n8k16<T>(sum[r], weights[r], ones[0], ones[1]);
      }
      SWIN_FAST_UNROLL
      for (int c = 0; c < kHd / 8; c += 2) {
        uint32_t four[4];
        ldmatrix_x4_trans(four, v + step * 16 * Rows::kBytes + Rows::at(lane & 15, c + (lane >> 4)));
        SWIN_FAST_UNROLL
        for (int r = 0; r < kTiles; ++r) {
          mma_m16n8k16<T>(o[r][c], weights[r], four[0], four[1]);
          mma_m16n8k16<T>(o[r][c + 1], weights[r], four[2], four[3]);
        }
      }
    }
  }

  // Whether weights relative to a score of 0 were good for all rows of this lane: as exact as others in bfloat16, and
  // times a value of up to 2^63 no infinity. False for NaN.
  SWIN_FAST_DEVICE bool sums_in_range() const {
    constexpr float kMost = 0x1p64f;
    bool all = true;
    SWIN_FAST_UNROLL
    for (int r = 0; r < kTiles; ++r) {
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) all = all && sum[r][2 * i] >= 1.0f / kMost && sum[r][2 * i] <= kMost;
    }
    return all;
  }

  // Divides by the sums. 0 where every score was -inf.
  SWIN_FAST_DEVICE void finish() {
    SWIN_FAST_UNROLL
    for (int r = 0; r < kTiles; ++r) {
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        const float share = sum[r][2 * i] == 0.0f ? 0.0f : reciprocal_approx(sum[r][2 * i]);
        SWIN_FAST_UNROLL
        for (int c = 0; c < kHd / 8; ++c) {
          o[r][c][2 * i] *= share;
          o[r][c][2 * i + 1] *= share;
        }
      }
    }
  }

  // A slab of a tile's results, by way of 1,024 bytes of shared memory of this warp's own: chunk lane & 3 of rows
  // lane / 4 and lane / 4 + 8, where accumulators have a quarter of each chunk.
  static constexpr int kStagingBytes = 1024;
  SWIN_FAST_DEVICE void results(char* staging, int tile, int slab, UInt4 (&rows)[2]) const {
    using Staged = KeyRows<32>;
    sync_warp();  // the results before have been read
    SWIN_FAST_UNROLL
    for (int c = 0; c < 4 && slab * 4 + c < kHd / 8; ++c) {
      SWIN_FAST_UNROLL
      for (int i = 0; i < 2; ++i) {
        const float (&two)[4] = o[tile][slab * 4 + c];
        store_shared(staging + Staged::at((lane >> 2) + 8 * i, c) + (lane & 3) * 4,
                     pack<T>(two[2 * i], two[2 * i + 1]));
      }
    }
    sync_warp();
    SWIN_FAST_UNROLL
    for (int i = 0; i < 2; ++i) {
      rows[i] = load_shared<UInt4>(staging + Staged::at((lane >> 2) + 8 * i, (lane & 3) % (kHd / 8)));
    }
  }
};

}  // namespace swin_fast::cuda
