#pragma once
// Runs a body on every rank of a small world, ranks as threads over the local transport. The first error wins: its rank
// tells the others, all end, and it is thrown again on the caller's thread.

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "runtime/transport/local/local_transport.h"

namespace regatta::testing {

inline TransportOptions test_transport_options() {
  TransportOptions options;
  options.deadline = std::chrono::seconds(120);
  return options;
}

inline void run_ranks(int world_size, const std::function<void(Transport&)>& body,
                      const TransportOptions& options = test_transport_options()) {
  std::vector<std::unique_ptr<Transport>> transports = make_local_transports(world_size, options);
  std::mutex mutex;
  std::exception_ptr first;
  bool first_is_secondary = false;
  std::vector<std::thread> threads;
  for (int r = 0; r < world_size; ++r) {
    threads.emplace_back([&, r] {
      const std::unique_ptr<Transport> transport = std::move(transports[r]);
      const auto fail = [&](const std::string& reason, Code code) {
        {
          std::lock_guard lock(mutex);
          // A rank that only hears of another's failure may be quicker to report than the rank that failed.
          if (!first || (first_is_secondary && code != Code::aborted)) {
            first = std::current_exception();
            first_is_secondary = code == Code::aborted;
          }
        }
        transport->abort(reason, code, code == Code::aborted);
      };
      try {
        body(*transport);
      } catch (const Error& error) {
        fail(error.what(), error.code());
      } catch (const std::exception& error) {
        fail(error.what(), Code::transport);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (first) std::rethrow_exception(first);
}

}  // namespace regatta::testing
