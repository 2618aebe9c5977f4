#pragma once
// What every function of the C interface is wrapped in: exceptions become a status and a sentence, and handles and
// pointers are looked at before they are used.

#include <mutex>
#include <set>
#include <shared_mutex>
#include <string>

#include "runtime/c/regatta.h"
#include "runtime/error.h"

namespace regatta::c_api {

/// Keeps the sentence for regatta_last_error of this thread and returns the status of the exception in flight.
int take_exception() noexcept;

/// Runs one function's body; nothing it throws gets past here.
template <class Body>
int guarded(Body&& body) noexcept {
  try {
    body();
    return REGATTA_OK;
  } catch (...) {
    return take_exception();
  }
}

[[noreturn]] inline void refuse(const std::string& sentence) { throw Error(Code::invalid_argument, sentence); }

/// "regatta_engine_param: data is NULL; expected ..."
inline void require(const void* pointer, const char* function, const char* name, const char* expected) {
  if (pointer == nullptr) refuse(std::string(function) + ": " + name + " is NULL; expected " + expected);
}

/// The handles of one type that are alive, so that destroyed and foreign ones are refused instead of followed.
template <class Handle>
class Handles {
 public:
  static Handle* add(Handle* handle) {
    const std::unique_lock lock(mutex());
    all().insert(handle);
    return handle;
  }
  static void remove(Handle* handle) {
    const std::unique_lock lock(mutex());
    all().erase(handle);
  }
  static Handle& get(const Handle* handle, const char* function, const char* what) {
    require(handle, function, what, "a handle that Regatta made");
    const std::shared_lock lock(mutex());
    const auto found = all().find(const_cast<Handle*>(handle));
    if (found == all().end())
      refuse(std::string(function) + ": the " + what + " was destroyed already, or was never made by Regatta");
    return **found;
  }

 private:
  // Never destroyed: handles may outlive main.
  static std::shared_mutex& mutex() {
    static auto& mutex = *new std::shared_mutex;
    return mutex;
  }
  static std::set<Handle*>& all() {
    static auto& all = *new std::set<Handle*>;
    return all;
  }
};

}  // namespace regatta::c_api
