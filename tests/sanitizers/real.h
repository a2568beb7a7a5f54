// What stands behind a function that takes another's place in this program.
#ifndef INVAR_TESTS_SANITIZERS_REAL_H_
#define INVAR_TESTS_SANITIZERS_REAL_H_

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>

namespace invar {

// The next library's function of the same name as `ours`, a function or a
// member function that is not virtual. Aborts if there is none.
template <typename Function>
Function Real(Function ours) {
  // A member function's pointer begins with its address too (the Itanium C++
  // ABI, 2.3).
  void* address = *reinterpret_cast<void**>(&ours);
  Dl_info info;
  void* real = nullptr;
  if (dladdr(address, &info) != 0 && info.dli_saddr == address) {
    real = dlsym(RTLD_NEXT, info.dli_sname);
  }
  if (real == nullptr) {
    std::fputs("nothing stands behind ThreadSanitizer's view of it\n", stderr);
    std::abort();
  }
  *reinterpret_cast<void**>(&ours) = real;
  return ours;
}

}  // namespace invar

#endif  // INVAR_TESTS_SANITIZERS_REAL_H_
