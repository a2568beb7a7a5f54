"""Writes kernel_digest.cc: KernelDigest() of the machine code in object files.

    kernel_digest.py OUT.cc OBJECT...

An object file holds the GPU's code as whole ELF files, which are not compressed
(toolkit.cmake). What counts is each kernel's code and its constants, in the order of their own
digests. Names and symbol tables hold hashes of paths, so they do not count.
"""

import hashlib
import pathlib
import struct
import sys

ELF = b"\x7fELF"
EM_CUDA = 190

SOURCE = """#include "kernels/cuda/kernel_digest.h"

namespace invar::cuda {{

const char* KernelDigest() {{
  return "{digest}";
}}

}}  // namespace invar::cuda
"""


def code_sections(elf: bytes):
    """Contents of the sections that a GPU executes or reads."""
    offset, = struct.unpack_from("<Q", elf, 0x28)
    size, count, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    headers = []
    for i in range(count):
        name, kind, _, _, at, length = struct.unpack_from(
            "<IIQQQQ", elf, offset + i * size)
        headers.append((name, kind, at, length))
    names = headers[names_index]
    for name, kind, at, length in headers:
        start = names[2] + name
        text = elf[start:elf.index(b"\0", start)].decode()
        if kind == 1 and text.startswith((".text.", ".nv.constant")):
            yield elf[at:at + length]


def gpu_elfs(host_object: bytes):
    """The ELF files inside a host's object file, for the machine EM_CUDA."""
    at = host_object.find(ELF, len(ELF))
    while at >= 0:
        if struct.unpack_from("<H", host_object, at + 18)[0] == EM_CUDA:
            yield host_object[at:]
        at = host_object.find(ELF, at + len(ELF))


def main() -> int:
    out, *objects = sys.argv[1:]
    digests = []
    for path in objects:
        for elf in gpu_elfs(pathlib.Path(path).read_bytes()):
            for content in code_sections(elf):
                digests.append(hashlib.sha256(content).digest())
    if not digests:
        print("kernel_digest.py: no kernel in", objects, file=sys.stderr)
        return 1
    digest = hashlib.sha256(b"".join(sorted(digests))).hexdigest()
    pathlib.Path(out).write_text(SOURCE.format(digest=digest))
    return 0


if __name__ == "__main__":
    sys.exit(main())
