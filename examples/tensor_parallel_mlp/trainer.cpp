// A trainer of someone else's: a tensor-parallel MLP with its own forward, backward and collectives, in C++ with MPI.
// All it knows of Regatta is the C interface. It learns a fixed nonlinear function from samples:
//
//     mpirun -n 4 tensor_parallel_mlp 2        tp=2, so dp=2; without an argument tp=1
//
//     h = tanh(W1 x + b1)     W1 cut by rows over tp: each rank has some of the hidden units
//     y = W2 h + b2           W2 cut by columns: each rank has its units' share of y, and the shares are added up

#include <mpi.h>
#include <regatta.h>
#include <regatta_mpi.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

namespace {

constexpr int inputs = 8, hidden = 96, outputs = 4, samples = 256, steps = 300;
constexpr double peak_lr = 0.05;

void check(int status) {
  if (status == REGATTA_OK) return;
  std::fprintf(stderr, "tensor_parallel_mlp: %s\n", regatta_last_error());
  MPI_Abort(MPI_COMM_WORLD, 1);
}

/// The `n`th number of a fixed sequence in [-1, 1): the same data and weights on every rank and mesh.
float noise(std::uint64_t n) {
  n = (n + 1) * 0x9E3779B97F4A7C15U;
  n = (n ^ (n >> 30)) * 0xBF58476D1CE4E5B9U;
  n = (n ^ (n >> 27)) * 0x94D049BB133111EBU;
  return static_cast<float>(static_cast<std::int32_t>((n ^ (n >> 31)) >> 32)) / 2147483648.0F;
}
float input(int sample, int i) { return noise(sample * inputs + i); }
/// What is to be learnt.
float target(int sample, int k) {
  const float a = input(sample, k), b = input(sample, k + 1), c = input(sample, (k + 4) % inputs);
  return std::sin(2 * a + b * c) + 0.5F * b * b - c;
}

/// A parameter: its global shape, how it is cut over the mesh, and from `adopt` on this rank's part of it.
struct Tensor {
  const char* name;
  std::vector<std::int64_t> shape;
  const char* placement;
  int id = 0;
  float* values = nullptr;  // the memory is Regatta's
  std::vector<float> grad;
  regatta_part held{};  // rows and columns of the whole tensor

  int cols() const { return static_cast<int>(held.cols_end - held.cols_begin); }
};

class Optimizer {
 public:
  Optimizer(const std::string& mesh, MPI_Comm ranks, const std::vector<Tensor*>& tensors) : tensors_(tensors) {
    int matrices = 0, biases = 0;
    check(regatta_transport_from_mpi(ranks, "deadline_seconds=200", &transport_));
    check(regatta_engine_create(transport_, mesh.c_str(), &engine_));
    check(regatta_engine_add_group(engine_, "matrices", "reg", nullptr, 1.0, &matrices));
    check(regatta_engine_add_group(engine_, "biases", "adamw", "weight_decay=0", 0.1, &biases));
    for (Tensor* t : tensors_) {
      const int group = t->shape.size() > 1 ? matrices : biases;
      check(regatta_engine_add_param(engine_, t->name, t->shape.data(), static_cast<int>(t->shape.size()), REGATTA_F32,
                                     t->placement, group, &t->id));
    }
    check(regatta_engine_build(engine_));
    for (Tensor* t : tensors_) adopt(*t);
    check(regatta_engine_publish_params(engine_));
  }
  ~Optimizer() {
    regatta_engine_destroy(engine_);
    regatta_transport_destroy(transport_);
  }

  /// Hands in the gradients, which Regatta adds up over dp, and makes the step.
  regatta_step_report step(double lr) {
    for (Tensor* t : tensors_) {
      check(regatta_engine_add_grad(engine_, t->id, t->grad.data(), std::ssize(t->grad), REGATTA_F32));
      t->grad.assign(t->grad.size(), 0.0F);
    }
    regatta_step_report report;
    check(regatta_engine_step(engine_, lr, &report, sizeof report));
    return report;
  }

 private:
  /// Finds this rank's part of a tensor and gives it first values: noise for matrices, zeros for biases.
  void adopt(Tensor& t) {
    void* memory = nullptr;
    std::int64_t numel = 0;
    check(regatta_engine_param(engine_, t.id, &memory, &numel, nullptr));
    check(regatta_engine_param_block(engine_, t.id, 0, &t.held));
    t.values = static_cast<float*>(memory);
    t.grad.assign(numel, 0.0F);
    if (t.shape.size() == 1) return;
    for (std::int64_t i = 0; i < numel; ++i) {
      const std::int64_t row = t.held.rows_begin + i / t.cols(), col = t.held.cols_begin + i % t.cols();
      t.values[i] = noise(1'000'000 * (t.id + 1) + row * t.shape[1] + col) * std::sqrt(3.0F / t.shape[1]);
    }
  }

  std::vector<Tensor*> tensors_;
  regatta_transport* transport_ = nullptr;
  regatta_engine* engine_ = nullptr;
};

struct Mlp {
  Tensor w1{"w1", {hidden, inputs}, "tp:0"}, b1{"b1", {hidden}, "tp:0"};
  Tensor w2{"w2", {outputs, hidden}, "tp:1"}, b2{"b2", {outputs}, ""};
  MPI_Comm tp = MPI_COMM_NULL;

  /// Squared error over samples [begin, end), and its gradients; both already divided by the number of all samples,
  /// since the optimizer adds up what the dp ranks hand in.
  double forward_backward(int begin, int end) {
    const int units = w2.cols();
    std::vector<float> h((end - begin) * units), y((end - begin) * outputs, 0.0F);
    for (int s = 0; s < end - begin; ++s) {
      for (int u = 0; u < units; ++u) {
        float sum = b1.values[u];
        for (int i = 0; i < inputs; ++i) sum += w1.values[u * inputs + i] * input(begin + s, i);
        h[s * units + u] = std::tanh(sum);
        for (int k = 0; k < outputs; ++k) y[s * outputs + k] += w2.values[k * units + u] * h[s * units + u];
      }
    }
    MPI_Allreduce(MPI_IN_PLACE, y.data(), static_cast<int>(y.size()), MPI_FLOAT, MPI_SUM, tp);

    double loss = 0;
    for (int s = 0; s < end - begin; ++s) {
      float dy[outputs];
      for (int k = 0; k < outputs; ++k) {
        const float error = y[s * outputs + k] + b2.values[k] - target(begin + s, k);
        loss += error * error / samples;
        b2.grad[k] += dy[k] = 2 * error / samples;
      }
      for (int u = 0; u < units; ++u) {
        const float out = h[s * units + u];
        float dh = 0;
        for (int k = 0; k < outputs; ++k) {
          dh += dy[k] * w2.values[k * units + u];
          w2.grad[k * units + u] += dy[k] * out;
        }
        dh *= 1 - out * out;
        b1.grad[u] += dh;
        for (int i = 0; i < inputs; ++i) w1.grad[u * inputs + i] += dh * input(begin + s, i);
      }
    }
    return loss;
  }
};

/// Trains; true if it learnt the function and replicated parameters stayed equal.
bool train(int tp, int rank, int ranks) {
  const int dp = ranks / tp, dp_rank = rank / tp;  // rank = dp_rank * tp + tp_rank
  Mlp mlp;
  MPI_Comm_split(MPI_COMM_WORLD, dp_rank, rank, &mlp.tp);
  Optimizer optimizer("dp=" + std::to_string(dp) + ",tp=" + std::to_string(tp), MPI_COMM_WORLD,
                      {&mlp.w1, &mlp.b1, &mlp.w2, &mlp.b2});

  double first_loss = 0, loss = 0;
  for (int step = 0; step <= steps; ++step) {
    loss = mlp.forward_backward(samples * dp_rank / dp, samples * (dp_rank + 1) / dp);
    MPI_Allreduce(MPI_IN_PLACE, &loss, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
    loss /= tp;  // tp peers have the same samples
    if (step == 0) first_loss = loss;
    const regatta_step_report report = optimizer.step(peak_lr * (steps - step) / steps);
    if (rank == 0 && step % 50 == 0)
      std::printf("step %3d  loss %.6f  gradient norm %.4f\n", step, loss, report.grad_norm);
  }

  float least[outputs], most[outputs];  // b2 is whole on every rank
  MPI_Allreduce(mlp.b2.values, least, outputs, MPI_FLOAT, MPI_MIN, MPI_COMM_WORLD);
  MPI_Allreduce(mlp.b2.values, most, outputs, MPI_FLOAT, MPI_MAX, MPI_COMM_WORLD);
  const bool equal = std::equal(least, least + outputs, most);
  const char* biases = equal ? "equal" : "DIFFERENT";
  if (rank == 0)
    std::printf("dp=%d,tp=%d: loss %.5f -> %.5f, output biases %s on all ranks\n", dp, tp, first_loss, loss, biases);
  MPI_Comm_free(&mlp.tp);
  return equal && loss < 0.02 * first_loss;
}

}  // namespace

int main(int argc, char** argv) {
  int threads = 0, rank = 0, ranks = 1;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &threads);  // Regatta communicates beside us
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  const bool good = train(argc > 1 ? std::max(1, std::atoi(argv[1])) : 1, rank, ranks);
  MPI_Finalize();
  return good ? 0 : 1;
}
