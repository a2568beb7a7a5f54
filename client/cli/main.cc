// The `invar` command.
#include <unistd.h>

#include <iostream>
#include <string>
#include <vector>

#include "client/cli/command.h"

int main(int argc, char** argv) {
  invar::Terminal terminal{std::cin, std::cout, std::cerr,
                           isatty(STDIN_FILENO) == 1,
                           isatty(STDERR_FILENO) == 1};
  const int code = invar::RunInvar({argv + 1, argv + argc}, terminal);
  std::cout.flush();
  if (!std::cout.good()) {
    std::cerr << "invar: standard output could not be written\n";
    return invar::kExitUsage;
  }
  return code;
}
