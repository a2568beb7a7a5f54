# Decides INVAR_WITH_CUDA from INVAR_CUDA, and sets nvcc up.
#
# Kernels are compiled for Hopper alone, as machine code without PTX: what the
# driver would compile at load could not be part of a fingerprint.
set(INVAR_WITH_CUDA OFF)
if(NOT INVAR_CUDA STREQUAL "OFF")
  find_program(INVAR_NVCC nvcc HINTS $ENV{CUDACXX} /usr/local/cuda/bin)
  if(INVAR_NVCC)
    set(INVAR_WITH_CUDA ON)
  elseif(INVAR_CUDA STREQUAL "ON")
    message(FATAL_ERROR "INVAR_CUDA is ON, but there is no nvcc: put CUDA 13's "
                        "bin folder in PATH, or leave INVAR_CUDA at AUTO")
  endif()
endif()

if(INVAR_WITH_CUDA)
  set(CMAKE_CUDA_COMPILER ${INVAR_NVCC})
  # Ours are below; CMake's own do not know 90a.
  set(CMAKE_CUDA_ARCHITECTURES OFF)
  if(CCACHE)
    set(CMAKE_CUDA_COMPILER_LAUNCHER ${CCACHE})
  endif()
  enable_language(CUDA)
  # CMake 3.25 does not know that this nvcc speaks C++20.
  set(CMAKE_CUDA_STANDARD 20)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA_RUNTIME_LIBRARY Static)
  find_package(CUDAToolkit REQUIRED)
  # -fmad=false: a fused multiply-add is written (fmaf), never guessed.
  # --expt-relaxed-constexpr: kernels/types.h has the shapes' arithmetic.
  # Code is not compressed, so that kernel_digest.py can read it.
  add_compile_options(
    "$<$<COMPILE_LANGUAGE:CUDA>:--no-compress>"
    "$<$<COMPILE_LANGUAGE:CUDA>:-gencode=arch=compute_90a,code=sm_90a>"
    "$<$<COMPILE_LANGUAGE:CUDA>:-fmad=false>"
    "$<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr>"
    "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-ffp-contract=off>")
endif()
