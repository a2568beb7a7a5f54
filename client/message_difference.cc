#include "client/message_difference.h"

#include <google/protobuf/text_format.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <map>
#include <vector>

#include "absl/strings/str_cat.h"

namespace invar {
namespace {

using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::TextFormat;

constexpr size_t kShownBytes = 80;

std::string Shorten(std::string text) {
  if (text.size() <= kShownBytes) return text;
  return absl::StrCat(text.substr(0, kShownBytes), "...");
}

// index: of a repeated field's entry, else -1.
std::string ValueText(const Message& message, const FieldDescriptor* field,
                      int index) {
  std::string text;
  TextFormat::PrintFieldValueToString(message, field, index, &text);
  return text;
}

// Text tells every two values apart but floats of another sign of zero or
// another NaN.
bool SameScalar(const Message& left, const Message& right,
                const FieldDescriptor* field, int index) {
  const auto bits = [&](const Message& message) {
    const auto* reflection = message.GetReflection();
    return std::bit_cast<uint32_t>(
        index < 0 ? reflection->GetFloat(message, field)
                  : reflection->GetRepeatedFloat(message, field, index));
  };
  return field->cpp_type() == FieldDescriptor::CPPTYPE_FLOAT
             ? bits(left) == bits(right)
             : ValueText(left, field, index) == ValueText(right, field, index);
}

class Finder {
 public:
  explicit Finder(const std::set<std::string>& ignored) : ignored_(ignored) {}

  // Whether the messages under `path` ("" or "answers[0].") are equal.
  bool Same(const std::string& path, const Message& left,
            const Message& right) {
    const auto* descriptor = left.GetDescriptor();
    std::map<int, const FieldDescriptor*> fields;  // by number
    for (int i = 0; i < descriptor->field_count(); ++i) {
      fields[descriptor->field(i)->number()] = descriptor->field(i);
    }
    return std::all_of(fields.begin(), fields.end(), [&](const auto& entry) {
      const FieldDescriptor* field = entry.second;
      if (ignored_.contains(field->full_name())) return true;
      const std::string name = absl::StrCat(path, field->name());
      if (field->is_map()) return SameMap(name, left, right, field);
      if (field->is_repeated()) return SameList(name, left, right, field);
      return SameOne(name, left, right, field);
    });
  }

  std::optional<FieldDifference> found() const { return found_; }

 private:
  bool Differ(std::string path, std::string left, std::string right) {
    found_ = {std::move(path), Shorten(std::move(left)),
              Shorten(std::move(right))};
    return false;
  }

  bool SameOne(const std::string& path, const Message& left,
               const Message& right, const FieldDescriptor* field) {
    const auto* reflection = left.GetReflection();
    if (field->has_presence()) {
      const bool in_left = reflection->HasField(left, field);
      const bool in_right = reflection->HasField(right, field);
      const bool is_message =
          field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE;
      if (in_left != in_right && !is_message) {
        return Differ(path, in_left ? ValueText(left, field, -1) : "absent",
                      in_right ? ValueText(right, field, -1) : "absent");
      }
      if (!in_left && !in_right) return true;
    }
    if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      // An absent message differs from an empty one by nothing that counts.
      return Same(absl::StrCat(path, "."), reflection->GetMessage(left, field),
                  reflection->GetMessage(right, field));
    }
    return SameScalar(left, right, field, -1) ||
           Differ(path, ValueText(left, field, -1),
                  ValueText(right, field, -1));
  }

  bool SameList(const std::string& path, const Message& left,
                const Message& right, const FieldDescriptor* field) {
    const auto* reflection = left.GetReflection();
    const int left_size = reflection->FieldSize(left, field);
    const int right_size = reflection->FieldSize(right, field);
    for (int i = 0; i < std::min(left_size, right_size); ++i) {
      const std::string entry = absl::StrCat(path, "[", i, "]");
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
        if (!Same(absl::StrCat(entry, "."),
                  reflection->GetRepeatedMessage(left, field, i),
                  reflection->GetRepeatedMessage(right, field, i))) {
          return false;
        }
      } else if (!SameScalar(left, right, field, i)) {
        return Differ(entry, ValueText(left, field, i),
                      ValueText(right, field, i));
      }
    }
    return left_size == right_size ||
           Differ(path, absl::StrCat(left_size, " entries"),
                  absl::StrCat(right_size, " entries"));
  }

  // Of maps to scalars, the only ones that the protos have.
  bool SameMap(const std::string& path, const Message& left,
               const Message& right, const FieldDescriptor* field) {
    const auto entries = [&](const Message& message) {
      const auto* reflection = message.GetReflection();
      std::map<std::string, const Message*> by_key;
      for (int i = 0; i < reflection->FieldSize(message, field); ++i) {
        const Message& entry =
            reflection->GetRepeatedMessage(message, field, i);
        by_key[ValueText(entry, field->message_type()->map_key(), -1)] = &entry;
      }
      return by_key;
    };
    const auto left_entries = entries(left);
    const auto right_entries = entries(right);
    const FieldDescriptor* value = field->message_type()->map_value();
    std::set<std::string> keys;
    for (const auto& [key, entry] : left_entries) keys.insert(key);
    for (const auto& [key, entry] : right_entries) keys.insert(key);
    for (const std::string& key : keys) {
      const std::string entry = absl::StrCat(path, "[", key, "]");
      const auto in_left = left_entries.find(key);
      const auto in_right = right_entries.find(key);
      const auto text = [&](const auto& entries, const auto& found) {
        return found == entries.end() ? "absent"
                                      : ValueText(*found->second, value, -1);
      };
      if (in_left == left_entries.end() || in_right == right_entries.end() ||
          !SameScalar(*in_left->second, *in_right->second, value, -1)) {
        return Differ(entry, text(left_entries, in_left),
                      text(right_entries, in_right));
      }
    }
    return true;
  }

  const std::set<std::string>& ignored_;
  std::optional<FieldDifference> found_;
};

}  // namespace

std::optional<FieldDifference> FirstFieldDifference(
    const Message& left, const Message& right,
    const std::set<std::string>& ignored) {
  Finder finder(ignored);
  finder.Same("", left, right);
  return finder.found();
}

}  // namespace invar
