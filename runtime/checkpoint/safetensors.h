#pragma once
// The safetensors file format: named tensors behind a JSON header, alone or as a set of files with an index.
//
// Readers check the whole header when they open and then copy bytes straight into the caller's memory; they hold one
// file descriptor and may be used from several threads. The writer puts a file in place atomically: beside it, fsync,
// rename, fsync of the directory.
//
// Errors: a file that is missing, cut short or not what it claims is Error(invalid_argument), naming the file and the
// tensor; a file that cannot be written is Error(checkpoint).

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "sharding/dtype.h"

namespace regatta::safetensors {

using Metadata = std::map<std::string, std::string>;

struct Tensor {
  std::string name;
  std::string dtype;                ///< as in the file: "F32", "BF16", "I64", ...
  std::vector<std::int64_t> shape;  ///< empty for a scalar
  std::int64_t numel = 1;
  std::int64_t begin = 0;  ///< bytes from the start of the data
  std::int64_t end = 0;
  std::int64_t bytes() const { return end - begin; }
  /// Ours, or nullopt for a tensor that can only be read as raw bytes.
  std::optional<DType> element_type() const;
};

/// "F32" for f32 and so on.
std::string_view file_name_of(DType dtype);
/// "[2, 3]".
std::string text_of(std::span<const std::int64_t> shape);

/// Fills the destination with a file's bytes from an offset on: in place of a plain read, to check checksums for
/// example.
using ReadBytes = std::function<void(std::int64_t offset, std::span<std::byte> destination)>;

/// One open file.
class File {
 public:
  explicit File(const std::string& path, ReadBytes read = {});
  ~File();
  File(File&&) noexcept;
  File& operator=(File&&) noexcept;

  const std::string& path() const { return path_; }
  /// In the order of their bytes in the file.
  const std::vector<Tensor>& tensors() const { return tensors_; }
  const Metadata& metadata() const { return metadata_; }
  /// Of the first byte that offsets count from.
  std::int64_t data_begin() const { return data_begin_; }
  /// Null when there is none of that name.
  const Tensor* find(std::string_view name) const;
  /// Requires destination.size() == tensor.bytes().
  void read(const Tensor& tensor, std::span<std::byte> destination) const;
  /// destination.size() bytes from byte `offset` of the tensor on.
  void read_part(const Tensor& tensor, std::int64_t offset, std::span<std::byte> destination) const;

 private:
  void parse(const std::string& header, std::int64_t data_bytes);
  void read_bytes(std::int64_t offset, std::span<std::byte> destination) const;
  std::string path_;
  int descriptor_ = -1;
  ReadBytes read_;
  std::int64_t data_begin_ = 0;
  std::vector<Tensor> tensors_;
  std::map<std::string, std::size_t, std::less<>> by_name_;
  Metadata metadata_;
};

/// The tensors of a model: one file, or the files that an index names.
class Model {
 public:
  struct Entry {
    const Tensor* tensor = nullptr;
    const File* file = nullptr;
    void read(std::span<std::byte> destination) const { file->read(*tensor, destination); }
  };
  /// A .safetensors file, a .index.json, or a folder with model.safetensors or model.safetensors.index.json.
  /// `reader_of` gives the reader of each of its files.
  explicit Model(const std::string& path, std::function<ReadBytes(const std::string& file)> reader_of = {});

  const std::vector<Entry>& entries() const { return entries_; }
  std::optional<Entry> find(std::string_view name) const;
  /// Of the first file.
  const Metadata& metadata() const { return files_.front()->metadata(); }

 private:
  void open_index(const std::string& path);
  std::unique_ptr<File> open(const std::string& path) const;
  std::function<ReadBytes(const std::string& file)> reader_of_;
  std::vector<std::unique_ptr<File>> files_;
  std::vector<Entry> entries_;
  std::map<std::string, std::size_t, std::less<>> by_name_;
};

/// A tensor to write; `data` is dense, row-major and stays the caller's.
struct Source {
  std::string name;
  DType dtype = DType::f32;
  std::vector<std::int64_t> shape;
  const void* data = nullptr;
};

/// A file of these tensors up to its data, and the order of their data. Wider elements come first, so that every tensor
/// is aligned. `path` is for the sentences of errors.
struct Layout {
  std::string header;  ///< with the eight bytes of its length
  std::vector<const Source*> order;
};
Layout lay_out(const std::string& path, std::span<const Source> tensors, const Metadata& metadata);
/// Throws Error(invalid_argument) on a shape whose size is no 63-bit number.
std::int64_t bytes_of(const Source& source);

/// Replaces `path` by a file of these tensors.
void write(const std::string& path, std::span<const Source> tensors, const Metadata& metadata = {});

/// As write() when everything fits `file_bytes`; otherwise NAME-00001-of-0000N.safetensors and
/// NAME.safetensors.index.json. Files of an earlier set of the same name that are not part of this one are removed
/// last. Returns the paths written.
std::vector<std::string> write_model(const std::string& folder, const std::string& name,
                                     std::span<const Source> tensors, const Metadata& metadata,
                                     std::int64_t file_bytes);

}  // namespace regatta::safetensors
