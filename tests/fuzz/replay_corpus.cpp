// Runs every file of the folders it is given through the fuzz target, for compilers without libFuzzer.

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

int main(int argc, char** argv) {
  int count = 0;
  for (int i = 1; i < argc; ++i) {
    for (const auto& entry : std::filesystem::directory_iterator(argv[i])) {
      std::ifstream stream(entry.path(), std::ios::binary);
      const std::vector<char> bytes{std::istreambuf_iterator<char>(stream), {}};
      LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size());
      ++count;
    }
  }
  // A header of brackets only: the case no small corpus holds.
  for (const char* opening : {"[", "{\"a\":"}) {
    std::string header = "{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,0],\"shape\":[";
    for (int depth = 0; depth < 1'000'000; ++depth) header += opening;
    std::vector<std::uint8_t> bytes(8);
    for (int b = 0; b < 8; ++b)
      bytes[static_cast<std::size_t>(b)] = static_cast<std::uint8_t>(header.size() >> (8 * b));
    bytes.insert(bytes.end(), header.begin(), header.end());
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    for (int depth = 0; depth < 1'000'000; ++depth) header += opening[0] == '[' ? "]" : "}";
    header += "]}}";
    for (int b = 0; b < 8; ++b)
      bytes[static_cast<std::size_t>(b)] = static_cast<std::uint8_t>(header.size() >> (8 * b));
    bytes.resize(8);
    bytes.insert(bytes.end(), header.begin(), header.end());
    LLVMFuzzerTestOneInput(bytes.data(), bytes.size());
    ++count;
  }
  std::printf("%d cases read or refused\n", count);
  return count > 2 ? 0 : 1;
}
