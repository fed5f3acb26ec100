// How torch-free code reports failure: a code and a text, turned into an exception by the
// operators.
#pragma once
#include <cstdio>

namespace chattn {

struct [[nodiscard]] Status {
  bool ok = true;
  char text[232] = {};

  template <class... Args>
  static Status error(const char* format, Args... args) {
    Status s;
    s.ok = false;
    std::snprintf(s.text, sizeof s.text, format, args...);
    return s;
  }
};

// Runs `expr` (a Status) and leaves the function with it where it failed.
#define CHATTN_TRY(expr)                            \
  do {                                              \
    const ::chattn::Status chattn_status_ = (expr); \
    if (!chattn_status_.ok) return chattn_status_;  \
  } while (0)

}  // namespace chattn
