// Any bytes, read as a safetensors file and as the index of a set: they are read whole or refused with Error, and
// nothing is allocated that the file's own size does not explain. libFuzzer drives it; replay_corpus.cpp runs the kept
// corpus.

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <vector>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/error.h"

namespace {

/// A file in memory that can be opened by a path.
class MemoryFile {
 public:
  MemoryFile(const std::uint8_t* data, std::size_t size) : descriptor_(::memfd_create("case", MFD_CLOEXEC)) {
    if (descriptor_ < 0 || ::write(descriptor_, data, size) != static_cast<ssize_t>(size)) std::abort();
  }
  ~MemoryFile() { ::close(descriptor_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

void read_all(const std::string& path, std::size_t size) {
  const regatta::safetensors::File file(path);
  std::int64_t read = 0;
  for (const regatta::safetensors::Tensor& tensor : file.tensors()) {
    // What a header says was checked against the file, so this can't be more than the file has.
    if (tensor.bytes() < 0 || tensor.bytes() > static_cast<std::int64_t>(size)) std::abort();
    std::vector<std::byte> bytes(static_cast<std::size_t>(tensor.bytes()));
    file.read(tensor, bytes);
    read += tensor.bytes();
    if (file.find(tensor.name) != &tensor) std::abort();
    if (tensor.bytes() > 1) file.read_part(tensor, tensor.bytes() / 2, std::span(bytes).first(1));
    try {
      file.read_part(tensor, tensor.bytes(), std::span(bytes.data(), bytes.size() + 1));
      std::abort();  // past the end
    } catch (const regatta::Error&) {
    }
  }
  if (read > static_cast<std::int64_t>(size)) std::abort();
}

/// As the index that names files beside it; there are none, so it is refused at the latest when they are opened.
void read_as_index(const std::uint8_t* data, std::size_t size) {
  static const std::string folder = [] {
    char name[] = "/tmp/safetensors_fuzz.XXXXXX";
    if (::mkdtemp(name) == nullptr) std::abort();
    return std::string(name);
  }();
  const MemoryFile file(data, size);
  const std::string index = folder + "/model.safetensors.index.json";
  ::unlink(index.c_str());
  if (::symlink(file.path().c_str(), index.c_str()) != 0) std::abort();
  try {
    const regatta::safetensors::Model model(index);
  } catch (const regatta::Error&) {
  }
  ::unlink(index.c_str());
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  {
    const MemoryFile file(data, size);
    try {
      read_all(file.path(), size);
    } catch (const regatta::Error&) {
    }
  }
  if (size > 0 && data[0] == '{') read_as_index(data, size);
  return 0;
}
