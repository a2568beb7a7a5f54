// Tables on a terminal.
#ifndef INVAR_CLIENT_CLI_TABLE_H_
#define INVAR_CLIENT_CLI_TABLE_H_

#include <string>
#include <vector>

namespace invar {

using TableRow = std::vector<std::string>;

// Columns two spaces apart, each as wide as its widest cell; a line a row.
std::string RenderTable(const std::vector<TableRow>& rows);

}  // namespace invar

#endif  // INVAR_CLIENT_CLI_TABLE_H_
