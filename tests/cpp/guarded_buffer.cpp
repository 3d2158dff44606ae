// SPDX-License-Identifier: Apache-2.0
//
// Memory against an unreadable page, see guarded_buffer.h.
#include "guarded_buffer.h"

namespace swin_fast_test {

GuardedBuffer::GuardedBuffer(int64_t bytes, GuardSide side)
    : bytes_(bytes), readable_(round_up(bytes, page_size())), base_(reserve_unreadable(readable_ + 2 * page_size())) {
  set_protection(base_ + page_size(), readable_, PROT_READ | PROT_WRITE);
  std::memset(base_ + page_size(), kCanary, static_cast<size_t>(readable_));
  data_ = base_ + page_size() + (side == GuardSide::kEnd ? readable_ - bytes_ : 0);
}

GuardedBuffer::~GuardedBuffer() { munmap(base_, static_cast<size_t>(readable_ + 2 * page_size())); }

void GuardedBuffer::make_read_only() { set_protection(base_ + page_size(), readable_, PROT_READ); }

bool GuardedBuffer::rest_is_untouched() const {
  const char* first = base_ + page_size();
  for (const char* p = first; p < first + readable_; ++p) {
    if ((p < data_ || p >= data_ + bytes_) && *p != kCanary) return false;
  }
  return true;
}

}  // namespace swin_fast_test
