#include "worker/model/checkpoint/json_fields.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/types.h"

namespace invar {

bool JsonFields::Has(const char* name) const {
  const auto it = object_.find(name);
  return it != object_.end() && !it->is_null();
}

void JsonFields::Fail(absl::StatusCode code, const std::string& name,
                      const std::string& what) {
  problems_->emplace_back(code,
                          absl::StrCat(file_, ": ", prefix_, name, " ", what));
}

int64_t JsonFields::Integer(const char* name, int64_t low, int64_t high,
                            std::optional<int64_t> absent) {
  if (!Has(name)) {
    if (absent.has_value()) return *absent;
    Invalid(name, "is missing");
    return low;
  }
  const Json& value = object_[name];
  if (!value.is_number_integer() ||
      (value.is_number_unsigned() &&
       value.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) ||
      value.get<int64_t>() < low || value.get<int64_t>() > high) {
    Invalid(name, absl::StrCat("is ", value.dump(), ", must be an integer in [",
                               low, ", ", high, "]"));
    return low;
  }
  return value.get<int64_t>();
}

int64_t JsonFields::LaneMultiple(const char* name, int64_t high) {
  const size_t problems = problems_->size();
  const int64_t size = Integer(name, 1, high);
  if (size % kLanes == 0) return size;
  if (problems_->size() == problems) {
    Unsupported(name, absl::StrCat("is ", size, ", only multiples of ", kLanes,
                                   " are supported"));
  }
  return kLanes;
}

double JsonFields::Number(const char* name, double low, double high,
                          std::optional<double> absent) {
  if (!Has(name)) {
    if (absent.has_value()) return *absent;
    Invalid(name, "is missing");
    return low;
  }
  const Json& value = object_[name];
  if (!value.is_number() || !(value.get<double>() >= low) ||
      !(value.get<double>() <= high)) {
    Invalid(name, absl::StrCat("is ", value.dump(), ", must be a number in [",
                               low, ", ", high, "]"));
    return low;
  }
  return value.get<double>();
}

bool JsonFields::Boolean(const char* name, bool absent) {
  if (!Has(name)) return absent;
  const Json& value = object_[name];
  if (!value.is_boolean()) {
    Invalid(name, absl::StrCat("is ", value.dump(), ", must be true or false"));
    return absent;
  }
  return value.get<bool>();
}

std::string JsonFields::String(const char* name, const std::string& absent) {
  if (!Has(name)) return absent;
  const Json& value = object_[name];
  if (!value.is_string()) {
    Invalid(name, absl::StrCat("is ", value.dump(), ", must be a string"));
    return absent;
  }
  return value.get<std::string>();
}

std::vector<std::string> JsonFields::Strings(const char* name) {
  std::vector<std::string> strings;
  if (!Has(name)) return strings;
  bool fits = object_[name].is_array();
  if (fits) {
    for (const Json& value : object_[name]) {
      fits = fits && value.is_string();
      if (fits) strings.push_back(value.get<std::string>());
    }
  }
  if (!fits) Invalid(name, "must be a list of strings");
  return strings;
}

JsonFields::Json JsonFields::Object(const char* name) {
  if (!Has(name)) return Json::object();
  if (!object_[name].is_object()) {
    Invalid(name, "must be an object");
    return Json::object();
  }
  return object_[name];
}

void JsonFields::Only(const char* name, const Json& supported) {
  if (!Has(name) || object_[name] == supported) return;
  Unsupported(name, absl::StrCat("is ", object_[name].dump(), ", only ",
                                 supported.dump(), " is supported"));
}

void JsonFields::Exactly(const char* name, const Json& supported) {
  if (!Has(name)) return Invalid(name, "is missing");
  Only(name, supported);
}

}  // namespace invar
