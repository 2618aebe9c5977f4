#include "runtime/c/call.h"

#include <new>
#include <stdexcept>

#include "runtime/version.h"

namespace regatta::c_api {
namespace {

thread_local std::string last_error;

int status_of(Code code) {
  switch (code) {
    case Code::invalid_argument: return REGATTA_INVALID_ARGUMENT;
    case Code::timeout: return REGATTA_TIMEOUT;
    case Code::transport: return REGATTA_TRANSPORT;
    case Code::device: return REGATTA_DEVICE;
    case Code::checkpoint: return REGATTA_CHECKPOINT;
    case Code::non_finite: return REGATTA_NON_FINITE;
    case Code::aborted: return REGATTA_ABORTED;
  }
  return REGATTA_INTERNAL;
}

int keep(int status, const char* sentence) noexcept {
  try {
    last_error = sentence;
  } catch (...) {
    last_error.clear();
  }
  return status;
}

}  // namespace

int take_exception() noexcept {
  try {
    throw;
  } catch (const Error& error) {
    return keep(status_of(error.code()), error.what());
  } catch (const std::invalid_argument& error) {
    return keep(REGATTA_INVALID_ARGUMENT, error.what());
  } catch (const std::bad_alloc&) {
    return keep(REGATTA_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return keep(REGATTA_INTERNAL, error.what());
  } catch (...) {
    return keep(REGATTA_INTERNAL, "an unknown exception was thrown");
  }
}

}  // namespace regatta::c_api

using namespace regatta;

const char* regatta_version(void) { return build_facts().version.data(); }

const char* regatta_last_error(void) { return c_api::last_error.c_str(); }

const char* regatta_status_name(int status) {
  switch (status) {
    case REGATTA_OK: return "ok";
    case REGATTA_INVALID_ARGUMENT: return name_of(Code::invalid_argument);
    case REGATTA_TIMEOUT: return name_of(Code::timeout);
    case REGATTA_TRANSPORT: return name_of(Code::transport);
    case REGATTA_DEVICE: return name_of(Code::device);
    case REGATTA_CHECKPOINT: return name_of(Code::checkpoint);
    case REGATTA_NON_FINITE: return name_of(Code::non_finite);
    case REGATTA_ABORTED: return name_of(Code::aborted);
    case REGATTA_OUT_OF_MEMORY: return "out of memory";
    case REGATTA_INTERNAL: return "internal";
    default: return "unknown";
  }
}
