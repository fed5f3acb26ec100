// Named options of a call, as text: what tools and tests say of it instead of tensors.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <map>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

namespace chattn {

class Options {
 public:
  explicit Options(std::map<std::string, std::string> given) : given_(std::move(given)) {}

  static void require(bool fine, const std::string& otherwise) {
    if (!fine) throw std::invalid_argument(otherwise);
  }

  // `otherwise`: where it is not given.
  std::string word(const std::string& name, std::optional<std::string> otherwise = {}) {
    asked_.insert(name);
    const auto found = given_.find(name);
    if (found != given_.end()) return found->second;
    require(otherwise.has_value(), name + " must be given");
    return *otherwise;
  }
  std::int64_t integer(const std::string& name, std::optional<std::int64_t> otherwise = {}) {
    return parsed(name, otherwise, "an integer",
                  [](const char* text, char** end) { return std::strtoll(text, end, 10); });
  }
  double number(const std::string& name, std::optional<double> otherwise = {}) {
    return parsed(name, otherwise, "a number",
                  [](const char* text, char** end) { return std::strtod(text, end); });
  }
  bool flag(const std::string& name) { return integer(name, 0) != 0; }

  // Refuses what nobody has asked for.
  void finish(const std::string& block) const {
    for (const auto& [name, value] : given_)
      require(asked_.count(name) != 0, block + " has no option " + name);
  }

 private:
  template <class Number, class Parse>
  Number parsed(const std::string& name, const std::optional<Number>& otherwise, const char* what,
                Parse&& parse) {
    if (otherwise && given_.count(name) == 0) {
      asked_.insert(name);
      return *otherwise;
    }
    const std::string text = word(name);
    char* end = nullptr;
    const Number value = parse(text.c_str(), &end);
    require(end != text.c_str() && *end == '\0', name + " must be " + what + "; got " + text);
    return value;
  }

  std::map<std::string, std::string> given_;
  std::set<std::string> asked_;
};

}  // namespace chattn
