// SPDX-License-Identifier: Apache-2.0
//
// Stacks, and the switch from one to another: what lets a function be left in its middle and continued later.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <new>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

#if !defined(__x86_64__) || !defined(__linux__) || !defined(__GNUC__)
#error "the emulator of CUDA kernels is written for gcc or clang on x86-64 Linux"
#endif

namespace cusim {

// Puts the registers that a function must preserve on this stack, stores where it ends in *save, and continues at the
// end of the stack `load`. Written out because swapcontext makes a system call each time. noipa: nothing may be
// concluded from a body that looks as if it changed no register.
#ifdef __clang__
__attribute__((naked, noinline))
#else
__attribute__((naked, noipa))
#endif
inline void switch_stack(void** /*save*/, void* /*load*/) {
  asm("push %rbp\n\tpush %rbx\n\tpush %r12\n\tpush %r13\n\tpush %r14\n\tpush %r15\n\t"
      "mov %rsp, (%rdi)\n\t"
      "mov %rsi, %rsp\n\t"
      "pop %r15\n\tpop %r14\n\tpop %r13\n\tpop %r12\n\tpop %rbx\n\tpop %rbp\n\t"
      "ret");
}

// Stacks, kept from launch to launch. Below each is a page that may not be touched, to stop one that overflows.
class Stacks {
 public:
  static constexpr size_t kBytes = 256 << 10;
  // Stacks begin at different sets of the caches: when all began at the same, they drove each other out of these, and
  // every switch waited for memory.
  static constexpr size_t kApart = 17 * 64, kPlaces = 112;

  Stacks() = default;
  Stacks(const Stacks&) = delete;
  Stacks& operator=(const Stacks&) = delete;

  ~Stacks() {
    for (char* stack : stacks_) munmap(stack, kBytes);
  }

  // A stack on which switch_stack() calls `entry`, which must not return.
  void* fresh(size_t index, void (*entry)()) {
    while (stacks_.size() <= index) {
      void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED) throw std::bad_alloc();
      mprotect(memory, static_cast<size_t>(sysconf(_SC_PAGESIZE)), PROT_NONE);
      stacks_.push_back(static_cast<char*>(memory));
    }
#ifdef __SANITIZE_ADDRESS__
    __asan_unpoison_memory_region(stacks_[index], kBytes);  // functions that were left for good had marks in it
#endif
    void** top = reinterpret_cast<void**>(stacks_[index] + kBytes - index % kPlaces * kApart);
    *--top = nullptr;  // where entry would return to; with it the stack is aligned as at any call
    *--top = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--top = nullptr;  // the registers
    return top;
  }

 private:
  std::vector<char*> stacks_;
};

}  // namespace cusim
