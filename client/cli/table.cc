#include "client/cli/table.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace invar {

std::string RenderTable(const std::vector<TableRow>& rows) {
  std::vector<size_t> widths(rows[0].size(), 0);
  for (const TableRow& row : rows) {
    for (size_t column = 0; column < row.size(); ++column) {
      widths[column] = std::max(widths[column], row[column].size());
    }
  }
  std::string table;
  for (const TableRow& row : rows) {
    std::string line;
    for (size_t column = 0; column < row.size(); ++column) {
      absl::StrAppendFormat(&line, "%-*s", static_cast<int>(widths[column] + 2),
                            row[column]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    absl::StrAppend(&table, line, "\n");
  }
  return table;
}

}  // namespace invar
