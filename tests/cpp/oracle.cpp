// SPDX-License-Identifier: Apache-2.0
//
// Window attention by its definition, see oracle.h.
#include "oracle.h"

#include <algorithm>
#include <cmath>

namespace swin_fast_test {

std::string Problem::name() const {
  const char* const types[] = {"float32", "float16", "bfloat16"};
  const char* const forms[] = {"none", "dense", "relative"};
  std::string text = types[static_cast<int>(dtype)];
  const auto pair = [&text](const char* key, int64_t a, int64_t b) {
    text += std::string(" ") + key + "=" + std::to_string(a) + "x" + std::to_string(b);
  };
  text += " B=" + std::to_string(B);
  pair("size", H, W);
  pair("window", wh, ww);
  pair("shift", sh, sw);
  text += " nH=" + std::to_string(nH) + " hd=" + std::to_string(hd);
  text += pad_order == PadOrder::kPadRoll ? " pad_roll" : " roll_pad";
  text += std::string(" bias=") + forms[static_cast<int>(bias_form)];
  text += cosine ? " cosine=" + std::to_string(logit_scale) : " scale=" + std::to_string(scale);
  text += " mask=" + std::to_string(mask_value) + " amplitude=" + std::to_string(amplitude);
  if (has_pad_value) text += " pad_value";
  if (degenerate_rows) text += " degenerate_rows";
  return text;
}

void Expected::resize(int64_t size) {
  value.assign(size, 0.0);
  accumulation.assign(size, 0.0);
  operand.assign(size, 0.0);
}

void Expected::add(int64_t index, double v, double a, double o) {
  value[index] += v;
  accumulation[index] += a;
  operand[index] += o;
}

void Expected::add_row(int64_t at, int64_t size, double factor, double a, double o, const double* row) {
  double* __restrict v_at = value.data() + at;
  double* __restrict a_at = accumulation.data() + at;
  double* __restrict o_at = operand.data() + at;
  for (int64_t d = 0; d < size; ++d) {
    v_at[d] += factor * row[d];
    a_at[d] += a * std::fabs(row[d]);
    o_at[d] += o * std::fabs(row[d]);
  }
}

Grid make_grid(const Problem& p) {
  const auto rolled = [](const std::vector<int64_t>& in, int64_t rows, int64_t columns, int64_t dy, int64_t dx) {
    std::vector<int64_t> out(in.size());
    for (int64_t y = 0; y < rows; ++y) {
      for (int64_t x = 0; x < columns; ++x) {
        out[y * columns + x] = in[(y + dy) % rows * columns + (x + dx) % columns];
      }
    }
    return out;
  };
  std::vector<int64_t> image(p.H * p.W);
  for (int64_t i = 0; i < p.H * p.W; ++i) image[i] = i;
  if (p.pad_order == PadOrder::kRollPad) image = rolled(image, p.H, p.W, p.sh, p.sw);
  Grid grid;
  grid.rows = p.H + (p.wh - p.H % p.wh) % p.wh;
  grid.columns = p.W + (p.ww - p.W % p.ww) % p.ww;
  grid.pixel.assign(grid.rows * grid.columns, -1);
  for (int64_t y = 0; y < p.H; ++y) {
    for (int64_t x = 0; x < p.W; ++x) grid.pixel[y * grid.columns + x] = image[y * p.W + x];
  }
  if (p.pad_order == PadOrder::kPadRoll) grid.pixel = rolled(grid.pixel, grid.rows, grid.columns, p.sh, p.sw);

  // h_slices = (slice(0, -wh), slice(-wh, -sh), slice(-sh, None)), likewise for columns; numbered by one counter.
  const auto bounds = [](int64_t n, int64_t window, int64_t shift) {
    if (shift == 0) return std::vector<int64_t>{0, n};
    return std::vector<int64_t>{0, n - window, n - shift, n};
  };
  const std::vector<int64_t> y_cuts = bounds(grid.rows, p.wh, p.sh), x_cuts = bounds(grid.columns, p.ww, p.sw);
  grid.region.assign(grid.rows * grid.columns, -1);
  int64_t number = 0;
  for (size_t i = 0; i + 1 < y_cuts.size(); ++i) {
    for (size_t j = 0; j + 1 < x_cuts.size(); ++j, ++number) {
      for (int64_t y = y_cuts[i]; y < y_cuts[i + 1]; ++y) {
        for (int64_t x = x_cuts[j]; x < x_cuts[j + 1]; ++x) grid.region[y * grid.columns + x] = number;
      }
    }
  }
  return grid;
}

namespace {

// One window of one head: gathers, computes, scatters.
class WindowOracle {
 public:
  WindowOracle(const Problem& p, const Inputs& in, Results* results)
      : p_(p), in_(in), results_(*results), n_(p.area()), hd_(p.hd) {
    for (std::vector<double>* rows : {&q_, &k_, &v_, &g_}) rows->resize(n_ * hd_);
    for (std::vector<double>* square :
         {&cosine_, &cosine_size_, &P_, &P_accumulation_, &dS_, &dS_accumulation_, &dS_operand_}) {
      square->resize(n_ * n_);
    }
    q_factor_.resize(n_);
    k_factor_.resize(n_);
  }

  void run(int64_t b, int head, const std::vector<int64_t>& pixel, const std::vector<int64_t>& region) {
    gather(b, head, pixel);
    // A padded query is dropped: its row of out is not kept and its gradient is zero. It still is a row of the
    // softmax, so a key or value that is not finite makes its dS not finite, as 0 * NaN is NaN in eager attention.
    for (int64_t i = 0; i < n_; ++i) {
      probabilities(i, head, region);
      if (pixel[i] >= 0) forward_row(b, head, i, pixel[i]);
      score_gradients(i, head);
    }
    gradients();
    scatter_gradients(b, head, pixel);
  }

 private:
  static constexpr double kExpShare = 1.0 / 16;
  static constexpr double kNormFloor = 1e-12;
  // Numbers below the smallest normal float may be flushed to zero; as a measure, in units of 2^-24.
  static constexpr double kFlushed = 0x1p-126 * 0x1p24;

  // What a rounding of an operand is a share of: below the smallest normal number all are as far apart as there.
  double operand_size(double x) const {
    return x == 0 ? 0.0 : std::max(std::fabs(x), p_.dtype == ScalarType::kFloat16 ? 0x1p-14 : 0x1p-126);
  }

  static double finite_size(double x) { return std::isfinite(x) ? std::fabs(x) : 0.0; }

  int64_t qkv_index(int64_t b, int64_t pixel, int which, int head) const {
    return (((b * p_.H * p_.W + pixel) * 3 + which) * p_.nH + head) * hd_;
  }
  int64_t out_index(int64_t b, int64_t pixel, int head) const {
    return ((b * p_.H * p_.W + pixel) * p_.nH + head) * hd_;
  }
  int64_t bias_index(int head, int64_t i, int64_t j) const {
    if (p_.bias_form == BiasForm::kDense) return (head * n_ + i) * n_ + j;
    const int64_t dy = i / p_.ww - j / p_.ww, dx = i % p_.ww - j % p_.ww;
    return (int64_t{head} * (2 * p_.wh - 1) + dy + p_.wh - 1) * (2 * p_.ww - 1) + dx + p_.ww - 1;
  }

  void gather(int64_t b, int head, const std::vector<int64_t>& pixel) {
    std::vector<double>* const rows[] = {&q_, &k_, &v_};
    for (int64_t i = 0; i < n_; ++i) {
      for (int which = 0; which < 3; ++which) {
        for (int64_t d = 0; d < hd_; ++d) {
          double x = 0;
          if (pixel[i] >= 0) {
            x = in_.qkv[qkv_index(b, pixel[i], which, head) + d];
          } else if (p_.has_pad_value) {
            x = in_.pad_value[(which * p_.nH + head) * hd_ + d];
          }
          (*rows[which])[i * hd_ + d] = x;
        }
      }
      for (int64_t d = 0; d < hd_; ++d) {
        g_[i * hd_ + d] = pixel[i] >= 0 ? in_.grad_out[out_index(b, pixel[i], head) + d] : 0.0;
      }
      q_factor_[i] = p_.cosine ? 1 / std::max(norm(q_, i), kNormFloor) : 1.0;
      k_factor_[i] = p_.cosine ? 1 / std::max(norm(k_, i), kNormFloor) : 1.0;
    }
    scale_ = p_.cosine ? in_.logit_scale[head] : static_cast<double>(p_.scale);
  }

  double norm(const std::vector<double>& rows, int64_t i) const {
    double squares = 0;
    for (int64_t d = 0; d < hd_; ++d) squares += rows[i * hd_ + d] * rows[i * hd_ + d];
    return std::sqrt(squares);
  }

  // Row i of P = softmax(scale * cosine + bias + mask), where `cosine` is plain q.k without logit_scale.
  void probabilities(int64_t i, int head, const std::vector<int64_t>& region) {
    std::vector<double> score(n_), size(n_);
    bool has_nan = false;
    double top = -INFINITY;
    for (int64_t j = 0; j < n_; ++j) {
      double dot = 0, dot_size = 0;
      for (int64_t d = 0; d < hd_; ++d) {
        dot += q_[i * hd_ + d] * k_[j * hd_ + d];
        dot_size += std::fabs(q_[i * hd_ + d] * k_[j * hd_ + d]);
      }
      cosine_[i * n_ + j] = dot * q_factor_[i] * k_factor_[j];
      cosine_size_[i * n_ + j] = dot_size * q_factor_[i] * k_factor_[j];
      const double bias = p_.bias_form == BiasForm::kNone ? 0.0 : in_.bias[bias_index(head, i, j)];
      const double mask = region[i] == region[j] ? 0.0 : static_cast<double>(p_.mask_value);
      score[j] = scale_ * cosine_[i * n_ + j] + bias + mask;
      size[j] = std::fabs(scale_) * finite_size(cosine_size_[i * n_ + j]) + finite_size(bias) + finite_size(mask);
      has_nan = has_nan || std::isnan(score[j]);
      top = std::max(top, score[j]);
    }
    double sum = 0;
    for (int64_t j = 0; j < n_; ++j) {
      double& p = P_[i * n_ + j];
      p = has_nan ? NAN : top == -INFINITY ? 0.0 : std::exp(score[j] - top);  // +inf - inf is NaN, as in softmax
      sum += p;
    }
    double mean_size = 0;
    for (int64_t j = 0; j < n_; ++j) {
      if (sum != 0) P_[i * n_ + j] /= sum;
      mean_size += P_[i * n_ + j] * size[j];
    }
    for (int64_t j = 0; j < n_; ++j) {
      const int64_t ij = i * n_ + j;
      P_accumulation_[ij] = P_[ij] * (1 + size[j] + mean_size) + kFlushed;
    }
  }

  void forward_row(int64_t b, int head, int64_t i, int64_t pixel) {
    for (int64_t j = 0; j < n_; ++j) {
      const double p = P_[i * n_ + j];
      results_.out.add_row(out_index(b, pixel, head), hd_, p, P_accumulation_[i * n_ + j],
                           operand_size(p) + p * kExpShare, &v_[j * hd_]);
    }
  }

  // Row i of dS = P * (dP - sum_j P dP), with dP = grad_out V^T; and what is summed over dS itself.
  void score_gradients(int64_t i, int head) {
    std::vector<double> dP(n_), dP_size(n_);
    double delta = 0, delta_size = 0, delta_accumulation = 0, row_sum = 0;
    for (int64_t j = 0; j < n_; ++j) {
      for (int64_t d = 0; d < hd_; ++d) {
        dP[j] += g_[i * hd_ + d] * v_[j * hd_ + d];
        dP_size[j] += std::fabs(g_[i * hd_ + d] * v_[j * hd_ + d]);
      }
      const double p = P_[i * n_ + j];
      row_sum += p;
      delta += p * dP[j];
      delta_size += p * dP_size[j];
      delta_accumulation += P_accumulation_[i * n_ + j] * dP_size[j];
    }
    const bool dead = row_sum == 0;  // wholly -inf: no gradient at all, even where v is not finite
    for (int64_t j = 0; j < n_; ++j) {
      const int64_t ij = i * n_ + j;
      const double p = P_[ij];
      dS_[ij] = dead ? 0.0 : p * (dP[j] - delta);
      dS_accumulation_[ij] =
          dead ? 0.0
               : P_accumulation_[ij] * std::fabs(dP[j] - delta) + p * (dP_size[j] + delta_accumulation) + kFlushed;
      const double dS_size = std::fabs(dS_[ij]), inexact_exp = dead ? 0.0 : kExpShare * (dS_size + p * delta_size);
      dS_operand_[ij] = operand_size(dS_[ij]) + inexact_exp;
      if (p_.bias_form != BiasForm::kNone) {
        results_.dbias.add(bias_index(head, i, j), dS_[ij], dS_accumulation_[ij], inexact_exp);
      }
      if (p_.cosine) {
        results_.dlogit_scale.add(head, dS_[ij] * cosine_[ij],
                                  dS_accumulation_[ij] * std::fabs(cosine_[ij]) + dS_size * cosine_size_[ij],
                                  dS_operand_[ij] * std::fabs(cosine_[ij]));
      }
    }
  }

  // From the gradients of the normalised rows to those of the rows themselves: the part along the row goes, unless the
  // norm was clamped and so constant.
  void through_norm(const std::vector<double>& rows, const std::vector<double>& factors, Expected* gradient) const {
    if (!p_.cosine) return;
    std::vector<double> unit(hd_);
    for (int64_t i = 0; i < n_; ++i) {
      double along = 0, accumulation = 0, operand = 0;
      for (int64_t d = 0, at = i * hd_; d < hd_; ++d, ++at) {
        unit[d] = rows[at] * factors[i];
        along += unit[d] * gradient->value[at];
        accumulation += std::fabs(unit[d]) * gradient->accumulation[at];
        operand += std::fabs(unit[d]) * gradient->operand[at];
      }
      const bool clamped = norm(rows, i) < kNormFloor;
      if (!clamped) gradient->add_row(i * hd_, hd_, -along, accumulation, operand, unit.data());
      for (std::vector<double>* part : {&gradient->value, &gradient->accumulation, &gradient->operand}) {
        for (int64_t d = 0; d < hd_; ++d) (*part)[i * hd_ + d] *= factors[i];
      }
    }
  }

  void gradients() {
    for (Expected* gradient : {&dq_, &dk_, &dv_}) gradient->resize(n_ * hd_);
    for (int64_t i = 0; i < n_; ++i) {
      for (int64_t j = 0; j < n_; ++j) {
        const int64_t ij = i * n_ + j;
        const double k_factor = scale_ * k_factor_[j], q_factor = scale_ * q_factor_[i];
        dq_.add_row(i * hd_, hd_, dS_[ij] * k_factor, dS_accumulation_[ij] * std::fabs(k_factor),
                    dS_operand_[ij] * std::fabs(k_factor), &k_[j * hd_]);
        dk_.add_row(j * hd_, hd_, dS_[ij] * q_factor, dS_accumulation_[ij] * std::fabs(q_factor),
                    dS_operand_[ij] * std::fabs(q_factor), &q_[i * hd_]);
        dv_.add_row(j * hd_, hd_, P_[ij], P_accumulation_[ij], operand_size(P_[ij]) + P_[ij] * kExpShare, &g_[i * hd_]);
      }
    }
    through_norm(q_, q_factor_, &dq_);
    through_norm(k_, k_factor_, &dk_);
  }

  void scatter_gradients(int64_t b, int head, const std::vector<int64_t>& pixel) {
    const Expected* const gradients[] = {&dq_, &dk_, &dv_};
    for (int64_t i = 0; i < n_; ++i) {
      for (int which = 0; which < 3; ++which) {
        const bool padding = pixel[i] < 0;
        if (padding && (which == 0 || !p_.has_pad_value)) continue;
        const int64_t to = padding ? (int64_t{which} * p_.nH + head) * hd_ : qkv_index(b, pixel[i], which, head);
        Expected& into = padding ? results_.dpad_value : results_.dqkv;
        for (int64_t d = 0, at = i * hd_; d < hd_; ++d, ++at) {
          into.add(to + d, gradients[which]->value[at], gradients[which]->accumulation[at],
                   gradients[which]->operand[at]);
        }
      }
    }
  }

  const Problem& p_;
  const Inputs& in_;
  Results& results_;
  int64_t n_, hd_;
  double scale_ = 0;
  std::vector<double> q_, k_, v_, g_, q_factor_, k_factor_;
  std::vector<double> cosine_, cosine_size_, P_, P_accumulation_, dS_, dS_accumulation_, dS_operand_;
  Expected dq_, dk_, dv_;
};

}  // namespace

Results oracle(const Problem& p, const Inputs& in) {
  Results results;
  results.out.resize(p.out_size());
  results.dqkv.resize(p.qkv_size());
  results.dbias.resize(p.bias_size());
  results.dlogit_scale.resize(p.logit_scale_size());
  results.dpad_value.resize(p.pad_size());
  const Grid grid = make_grid(p);
  WindowOracle window(p, in, &results);
  std::vector<int64_t> pixel(p.area()), region(p.area());
  for (int64_t b = 0; b < p.B; ++b) {
    for (int64_t y = 0; y < grid.rows; y += p.wh) {
      for (int64_t x = 0; x < grid.columns; x += p.ww) {
        for (int64_t i = 0; i < p.area(); ++i) {
          const int64_t at = (y + i / p.ww) * grid.columns + x + i % p.ww;
          pixel[i] = grid.pixel[at];
          region[i] = grid.region[at];
        }
        for (int head = 0; head < p.nH; ++head) window.run(b, head, pixel, region);
      }
    }
  }
  return results;
}

}  // namespace swin_fast_test
