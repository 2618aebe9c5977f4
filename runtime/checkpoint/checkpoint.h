#pragma once
// A checkpoint to read: what is in it, whether it is sound, and any part of its state for any layout. One thread.
//
// Errors: Error(invalid_argument) naming the file that is missing, damaged, or of a format from the future. Bytes are
// checked against the manifest's checksums before anybody sees them, and only those that are read.

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "runtime/checkpoint/checkpoint_folder.h"
#include "runtime/checkpoint/manifest.h"
#include "runtime/checkpoint/safetensors.h"
#include "runtime/checkpoint/state_file.h"

namespace regatta::checkpoint {

class Checkpoint {
 public:
  /// A folder step-N. Reads manifest and headers; all files must be there in their full length.
  explicit Checkpoint(const std::string& folder);

  const std::string& path() const { return path_; }
  const Manifest& manifest() const { return manifest_; }
  /// Checks every byte, or of every `of`th file from the `share`th on; `told` hears of each file when it is done.
  void verify(int share = 0, int of = 1, const std::function<void(const FileSums&)>& told = {});

  struct Tensor {
    MatrixShape block;
    DType dtype = DType::f32;
    std::int64_t stored = 0;  ///< elements in all parts
  };
  const std::map<StateKey, Tensor>& state() const { return state_; }
  /// Fills `data`, part.run.size() elements in the tensor's dtype, from whichever files hold them. Throws when the
  /// state is not here, the block has another shape, or elements are missing.
  void read(const StateKey& key, MatrixShape block, const sharding::BlockPart& part, void* data);

  /// The weights, checked as they are read.
  safetensors::Model weights();

 private:
  struct Part {
    sharding::BlockPart part;
    CheckedFile* file;
    std::int64_t offset;
  };
  CheckedFile& file(const std::string& name);

  std::string path_;
  Manifest manifest_;
  std::map<std::string, std::unique_ptr<CheckedFile>> files_;
  std::map<StateKey, Tensor> state_;
  std::map<StateKey, std::vector<Part>> parts_;
};

}  // namespace regatta::checkpoint
