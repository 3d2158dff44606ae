// SPDX-License-Identifier: Apache-2.0
//
// Replaces operator new of the whole program: memory arrives full of NaN, so that a kernel that takes a number from
// scratch memory it has not written gives NaN instead of, by chance, the right result. Included once.
#pragma once

#ifndef __SANITIZE_ADDRESS__  // whose own operator new must stay; it has an option for the same

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

namespace swin_fast_test {

inline void* nan_memory(std::size_t size, std::size_t alignment) {
  const std::size_t whole = (size + alignment - 1) / alignment * alignment;
  void* memory = std::aligned_alloc(alignment, whole == 0 ? alignment : whole);
  if (memory == nullptr) throw std::bad_alloc();
  return std::memset(memory, 0xff, size);
}

}  // namespace swin_fast_test

void* operator new(std::size_t size) { return swin_fast_test::nan_memory(size, alignof(std::max_align_t)); }
void* operator new[](std::size_t size) { return swin_fast_test::nan_memory(size, alignof(std::max_align_t)); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return swin_fast_test::nan_memory(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return swin_fast_test::nan_memory(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

#endif
