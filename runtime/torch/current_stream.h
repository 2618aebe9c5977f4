#pragma once
// Torch's current CUDA stream of the calling thread and device. A build whose LibTorch has no CUDA links a stand-in.

namespace regatta {

/// A cudaStream_t.
void* current_stream();
/// Waits for what was put on it; does nothing without CUDA.
void synchronize_current_stream();

}  // namespace regatta
