// Vectors of activations.
#ifndef INVAR_KERNELS_CPU_ALIGNED_H_
#define INVAR_KERNELS_CPU_ALIGNED_H_

#include <cstddef>
#include <new>
#include <utility>
#include <vector>

namespace invar::cpu {

// Begins at a cache line, so that no load of sixteen lanes crosses one: rows
// are multiples of kLanes. New elements are left as they are, not zeroed: an
// operation writes all of what it returns.
template <typename T>
struct AlignedAllocator {
  using value_type = T;
  static constexpr std::align_val_t kAlignment{64};

  AlignedAllocator() = default;
  template <typename U>
  explicit AlignedAllocator(const AlignedAllocator<U>&) {}

  T* allocate(size_t count) {
    return static_cast<T*>(::operator new(count * sizeof(T), kAlignment));
  }
  void deallocate(T* p, size_t) { ::operator delete(p, kAlignment); }

  template <typename U>
  void construct(U* p) {
    ::new (static_cast<void*>(p)) U;
  }
  template <typename U, typename... Arguments>
  void construct(U* p, Arguments&&... arguments) {
    ::new (static_cast<void*>(p)) U(std::forward<Arguments>(arguments)...);
  }

  bool operator==(const AlignedAllocator&) const { return true; }
};

template <typename T>
using AlignedVector = std::vector<T, AlignedAllocator<T>>;

}  // namespace invar::cpu

#endif  // INVAR_KERNELS_CPU_ALIGNED_H_
