// SPDX-License-Identifier: Apache-2.0
//
// Memory whose first or last byte lies against an unreadable page, so that a kernel that touches even one element too
// much dies on the spot, and which notices writes to the rest of its pages. And a sparse one, for offsets beyond 2^32
// elements with only the wanted bytes behind them.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace swin_fast_test {

inline int64_t page_size() {
  static const int64_t size = sysconf(_SC_PAGESIZE);
  return size;
}

inline int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

inline char* reserve_unreadable(int64_t bytes) {
  void* base = mmap(nullptr, static_cast<size_t>(bytes), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) {
    std::perror("mmap");
    std::abort();
  }
  return static_cast<char*>(base);
}

inline void set_protection(char* base, int64_t bytes, int protection) {
  if (bytes > 0 && mprotect(base, static_cast<size_t>(bytes), protection) != 0) {
    std::perror("mprotect");
    std::abort();
  }
}

enum class GuardSide { kEnd, kBegin };  // the side on which the data touches the unreadable page

class GuardedBuffer {
 public:
  GuardedBuffer(int64_t bytes, GuardSide side);
  ~GuardedBuffer();
  GuardedBuffer(const GuardedBuffer&) = delete;
  GuardedBuffer& operator=(const GuardedBuffer&) = delete;

  char* data() { return data_; }
  int64_t bytes() const { return bytes_; }
  // Inputs, once filled: a write to one is then fatal.
  void make_read_only();
  // Whether nothing was written to the rest of the pages, on the side without an unreadable page.
  bool rest_is_untouched() const;

 private:
  static constexpr char kCanary = 0x5a;
  int64_t bytes_, readable_;
  char* base_;
  char* data_;
};

// An address range of any size that is unreadable but for the pages opened in it.
class SparseBuffer {
 public:
  explicit SparseBuffer(int64_t bytes) : bytes_(round_up(bytes, page_size())), base_(reserve_unreadable(bytes_)) {}
  ~SparseBuffer() { munmap(base_, static_cast<size_t>(bytes_)); }
  SparseBuffer(const SparseBuffer&) = delete;
  SparseBuffer& operator=(const SparseBuffer&) = delete;

  char* data() { return base_; }
  // Makes [offset, offset + bytes), rounded out to pages, usable.
  void open(int64_t offset, int64_t bytes) {
    const int64_t first = offset / page_size() * page_size();
    set_protection(base_ + first, round_up(offset + bytes, page_size()) - first, PROT_READ | PROT_WRITE);
  }

 private:
  int64_t bytes_;
  char* base_;
};

// An address range that is written like any other but whose every `period` bytes are the same memory, so that tensors
// of many gigabytes fit a small machine as long as all their images are equal. The last period, the tail, is memory of
// its own: there it shows whether anything was written that far out.
class RepeatingBuffer {
 public:
  RepeatingBuffer(int64_t period, int64_t bytes)
      : period_(period), bytes_(round_up(bytes, period)), base_(reserve_unreadable(bytes_ + 2 * page_size())) {
    const int body = new_file(period), tail = new_file(period);
    for (int64_t offset = 0; offset < bytes_; offset += period) {
      void* at = mmap(data() + offset, static_cast<size_t>(period), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED,
                      offset + period < bytes_ ? body : tail, 0);
      if (at == MAP_FAILED) {
        std::perror("mmap");
        std::abort();
      }
    }
    close(body);
    close(tail);
  }
  ~RepeatingBuffer() { munmap(base_, static_cast<size_t>(bytes_ + 2 * page_size())); }
  RepeatingBuffer(const RepeatingBuffer&) = delete;
  RepeatingBuffer& operator=(const RepeatingBuffer&) = delete;

  char* data() { return base_ + page_size(); }
  char* tail() { return data() + bytes_ - period_; }

 private:
  static int new_file(int64_t bytes) {
    const int file = memfd_create("swin_fast_test", 0);
    if (file < 0 || ftruncate(file, bytes) != 0) {
      std::perror("memfd_create");
      std::abort();
    }
    return file;
  }

  int64_t period_, bytes_;
  char* base_;
};

}  // namespace swin_fast_test
