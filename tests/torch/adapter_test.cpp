#include "runtime/torch/adapter.h"

#include <gtest/gtest.h>
#include <torch/nn/modules/embedding.h>
#include <torch/nn/modules/linear.h>
#include <torch/types.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "runtime/error.h"
#include "tests/support/spmd.h"

namespace regatta {
namespace {

/// Embedding, a tied head, a hidden matrix with a bias, and a parameter that no forward uses.
struct Toy : torch::nn::Module {
  Toy() {
    embed = register_module("table", torch::nn::Embedding(5, 3));
    hidden = register_module("hidden", torch::nn::Linear(3, 3));
    head = register_module("lm_head", torch::nn::Linear(torch::nn::LinearOptions(3, 5).bias(false)));
    unused = register_parameter("unused", torch::ones({2, 2}));
    frozen = register_parameter("frozen", torch::ones({2}), false);
    int n = 0;
    for (torch::Tensor& p : parameters()) {
      torch::Tensor values = p.detach();
      for (std::int64_t i = 0; i < values.numel(); ++i) values.view(-1)[i] = 0.25 * (++n % 7) - 0.5;
    }
  }
  torch::Tensor forward(const torch::Tensor& tokens) { return head->forward(hidden->forward(embed->forward(tokens))); }
  torch::nn::Embedding embed{nullptr};
  torch::nn::Linear hidden{nullptr}, head{nullptr};
  torch::Tensor unused, frozen;
};

/// One matrix under two names, used under both.
struct TiedToy : torch::nn::Module {
  TiedToy() {
    first = register_module("first", torch::nn::Linear(torch::nn::LinearOptions(3, 3).bias(false)));
    alias = register_parameter("second", first->weight);
  }
  torch::nn::Linear first{nullptr};
  torch::Tensor alias;
};

const torch::Tensor& tokens() {
  static const torch::Tensor value = torch::tensor({0, 3, 3, 1}, torch::kLong);
  return value;
}

std::vector<Group> groups(const char* rule) {
  return {{rule, make_rule(rule, std::vector<std::pair<std::string, std::string>>{{"weight_decay", "0"}}), 1}};
}

TEST(ModuleParams, KindsFollowModulesNamesAndDims) {
  const Toy toy;
  std::map<std::string, ParamKind> kinds;
  for (const ModuleParam& param : module_params(toy)) kinds[param.name] = param.kind;
  EXPECT_EQ(kinds, (std::map<std::string, ParamKind>{{"table.weight", ParamKind::embedding},
                                                     {"hidden.weight", ParamKind::matrix},
                                                     {"hidden.bias", ParamKind::vector},
                                                     {"lm_head.weight", ParamKind::head},
                                                     {"unused", ParamKind::matrix}}));
  EXPECT_EQ(usual_rule(ParamKind::matrix, "reg"), "reg");
  for (const ParamKind kind : {ParamKind::vector, ParamKind::embedding, ParamKind::head})
    EXPECT_EQ(usual_rule(kind, "reg"), "adamw");
}

TEST(ModuleParams, DescribesShapesAndTypes) {
  Toy toy;
  toy.to(torch::kBFloat16);
  const std::vector<Param> params = describe(module_params(toy));
  for (const Param& param : params) EXPECT_EQ(param.dtype, DType::bf16) << param.name;
  const auto hidden =
      std::find_if(params.begin(), params.end(), [](const Param& p) { return p.name == "hidden.weight"; });
  EXPECT_EQ(hidden->shape, (std::vector<std::int64_t>{3, 3}));
  toy.to(torch::kDouble);
  EXPECT_THROW(describe(module_params(toy)), Error);
}

TEST(ModuleParams, TiedOnesAppearOnceAndGetBothGradients) {
  testing::run_ranks(1, [](Transport& transport) {
    TiedToy toy;
    const std::vector<ModuleParam> params = module_params(toy);
    ASSERT_EQ(params.size(), 1U);
    Engine engine(describe(params), groups("adamw"), sharding::Mesh({{"dp", 1}}), transport, {});
    const EngineAttachment attachment(params, engine);
    (3 * toy.first->weight.sum() + toy.alias.sum()).backward();
    EXPECT_NEAR(engine.step(0.1).grad_norm, 4 * 3, 1e-5);  // nine elements with gradient 4
    EXPECT_EQ(toy.alias.data_ptr(), toy.first->weight.data_ptr());
  });
}

TEST(Attachment, ValuesMoveInAndOut) {
  testing::run_ranks(1, [](Transport& transport) {
    Toy toy;
    const torch::Tensor before = toy.forward(tokens()).detach().clone();
    const std::vector<ModuleParam> params = module_params(toy);
    torch::Tensor kept;  // a graph that outlives the attachment
    {
      Engine engine(describe(params), groups("adamw"), sharding::Mesh({{"dp", 1}}), transport, {});
      const EngineAttachment attachment(params, engine);
      EXPECT_TRUE(toy.forward(tokens()).equal(before));
      kept = toy.unused.sum();
      for (std::size_t i = 0; i < params.size(); ++i)
        EXPECT_EQ(params[i].tensor.data_ptr(), engine.param(static_cast<int>(i)).data);
    }
    EXPECT_TRUE(toy.forward(tokens()).equal(before));  // and the engine is gone
    toy.forward(tokens()).sum().backward();
    EXPECT_TRUE(toy.hidden->weight.grad().defined());  // nothing takes it any more
    kept.backward();
    EXPECT_TRUE(toy.unused.grad().defined());
  });
}

TEST(Attachment, StepsAsAdamwOnTheModulesGradients) {
  testing::run_ranks(1, [](Transport& transport) {
    Toy toy;
    toy.forward(tokens()).square().sum().backward();
    const torch::Tensor grad = toy.hidden->weight.grad().clone();
    const torch::Tensor weight = toy.hidden->weight.detach().clone();
    const torch::Tensor unused = toy.unused.detach().clone();
    for (torch::Tensor& p : toy.parameters()) p.mutable_grad().reset();

    const std::vector<ModuleParam> params = module_params(toy);
    Engine engine(describe(params), groups("adamw"), sharding::Mesh({{"dp", 1}}), transport, {});
    const EngineAttachment attachment(params, engine);
    toy.forward(tokens()).square().sum().backward();
    for (const ModuleParam& param : params) EXPECT_FALSE(param.tensor.grad().defined()) << param.name;
    const StepReport report = engine.step(0.1);
    EXPECT_FALSE(report.skipped);
    // The first step of AdamW without decay: lr * g / (|g| + eps).
    const torch::Tensor expected = weight - 0.1 * grad / (grad.abs() + 1e-8);
    EXPECT_LT((toy.hidden->weight - expected).abs().max().item<float>(), 1e-6);
    EXPECT_TRUE(toy.unused.equal(unused));  // no gradient is a zero gradient
  });
}

TEST(Attachment, RanksSeeTheSumOfTheirGradients) {
  std::vector<torch::Tensor> weights(2);
  testing::run_ranks(2, [&](Transport& transport) {
    Toy toy;
    const std::vector<ModuleParam> params = module_params(toy);
    Engine engine(describe(params), groups("adamw"), sharding::Mesh({{"dp", 2}}), transport, {});
    const EngineAttachment attachment(params, engine);
    // Rank 1's loss undoes rank 0's, but for the bias of the hidden layer, which both push the same way.
    const double sign = transport.rank() == 0 ? 1 : -1;
    (sign * toy.forward(tokens()).sum() + toy.hidden->bias.sum()).backward();
    const StepReport report = engine.step(0.1);
    EXPECT_NEAR(report.grad_norm, std::sqrt(3 * 4.0), 1e-6);
    weights[static_cast<std::size_t>(transport.rank())] = toy.hidden->weight.detach().clone();
  });
  EXPECT_TRUE(weights[0].equal(weights[1]));
  EXPECT_TRUE(weights[0].equal(Toy().hidden->weight));
}

// Gradients that are the same numbers on both, so that the weights must be the same bits.
TEST(Attachment, AModuleOnACudaDeviceStepsAsOnTheCpu) {
  if (!at::hasCUDA()) GTEST_SKIP() << "this LibTorch has no CUDA";
  std::shared_ptr<Device> device;
  try {
    device = open_device("cuda");
  } catch (const Error& error) {
    GTEST_SKIP() << error.what();
  }
  std::vector<std::vector<torch::Tensor>> weights;
  for (const bool on_device : {false, true}) {
    testing::run_ranks(1, [&](Transport& transport) {
      Toy toy;
      if (on_device) toy.to(torch::kCUDA);
      const std::vector<ModuleParam> params = module_params(toy);
      EngineOptions options;
      if (on_device) options.device = device;
      Engine engine(describe(params), groups("reg"), sharding::Mesh(), transport, options);
      EngineAttachment attachment(params, engine);
      attachment.use_current_stream();
      for (int step = 0; step < 3; ++step) {
        torch::Tensor loss = torch::zeros({}, toy.unused.options());
        for (const ModuleParam& param : params) {
          const torch::Tensor pattern = torch::arange(param.tensor.numel()).to(torch::kFloat).sub(3 + step).mul(0.125);
          loss = loss + (param.tensor * pattern.view(param.tensor.sizes()).to(param.tensor.device())).sum();
        }
        loss.backward();
        engine.step(0.1);
      }
      std::vector<torch::Tensor>& all = weights.emplace_back();
      for (const ModuleParam& param : params) all.push_back(param.tensor.detach().cpu().clone());
    });
  }
  ASSERT_EQ(weights.size(), 2u);
  for (std::size_t i = 0; i < weights[0].size(); ++i) EXPECT_TRUE(weights[0][i].equal(weights[1][i])) << i;
}

TEST(Attachment, AnErrorOfTheEngineComesOutOfBackward) {
  testing::run_ranks(1, [](Transport& transport) {
    Toy toy;
    const std::vector<ModuleParam> params = module_params(toy);
    Engine engine(describe(params), groups("adamw"), sharding::Mesh({{"dp", 1}}), transport, {});
    const EngineAttachment attachment(params, engine);
    toy.forward(tokens()).sum().backward();
    EXPECT_THROW(toy.forward(tokens()).sum().backward(), Error);  // a second micro-batch where one was announced
  });
}

// Against an engine that is given the gradients by hand: several micro-batches, parameters that a step does not use,
// and gradients of awkward strides.
TEST(Attachment, StepByStepAsGradientsGivenByHand) {
  for (const torch::ScalarType type : {torch::kFloat, torch::kBFloat16}) {
    testing::run_ranks(1, [&](Transport& transport) {
      Toy attached, by_hand;
      attached.to(type);
      by_hand.to(type);
      EngineOptions options;
      options.micro_batches = 2;
      const std::vector<ModuleParam> params = module_params(attached), plain = module_params(by_hand);
      Engine engine(describe(params), groups("reg"), sharding::Mesh(), transport, options);
      Engine other(describe(plain), groups("reg"), sharding::Mesh(), transport, options);
      for (std::size_t i = 0; i < plain.size(); ++i)
        other.write_param(static_cast<int>(i), plain[i].tensor.detach().contiguous().data_ptr());
      other.publish_params();
      const EngineAttachment attachment(params, engine);
      const auto loss = [](Toy& toy, int step, int k) {
        torch::Tensor all = (toy.hidden->weight.t() * (1 + step + k)).square().sum();
        if (step % 2 == 0) all = all + toy.forward(tokens()).square().sum() * (k - 2);
        if (step != 1) all = all + toy.unused.select(1, k).sum() * step;
        return all;
      };
      for (int step = 0; step < 4; ++step) {
        for (int k = 0; k < 2; ++k) {
          // A gradient may lie otherwise than its parameter; backward then adds to it where it lies.
          if (step == 3) {
            torch::Tensor& weight = attached.hidden->weight;
            weight.mutable_grad() = torch::zeros(weight.t().sizes(), weight.options().requires_grad(false)).t();
          }
          loss(attached, step, k).backward();
          for (const ModuleParam& param : params) EXPECT_FALSE(param.tensor.grad().defined()) << param.name;
          loss(by_hand, step, k).backward();
          for (std::size_t i = plain.size(); i-- > 0;) {
            torch::Tensor& grad = const_cast<torch::Tensor&>(plain[i].tensor).mutable_grad();
            if (!grad.defined()) continue;
            other.add_grad(static_cast<int>(i), grad.contiguous().data_ptr(), dtype_of(grad, plain[i].name));
            grad.reset();
          }
        }
        const StepReport mine = engine.step(0.1), expected = other.step(0.1);
        EXPECT_GT(mine.grad_norm, 0);
        EXPECT_EQ(mine.grad_norm, expected.grad_norm) << "step " << step;
        for (std::size_t i = 0; i < plain.size(); ++i) {
          torch::Tensor values = torch::empty_like(plain[i].tensor);
          other.read_param(static_cast<int>(i), values.data_ptr());
          EXPECT_TRUE(params[i].tensor.equal(values)) << plain[i].name << ", step " << step;
          const_cast<torch::Tensor&>(plain[i].tensor).set_data(values);
        }
      }
    });
  }
}

TEST(ModuleParams, KindsByNameAndShape) {
  struct Named : torch::nn::Module {
    Named() {
      for (const char* name : {"embed_tokens", "embedding_bias", "lm_head", "lm_head_bias", "norm"})
        register_parameter(name, std::string(name).find("bias") != std::string::npos || name == std::string("norm")
                                     ? torch::ones({3})
                                     : torch::ones({3, 2}));
      register_parameter("conv", torch::ones({2, 3, 4}));
      register_parameter("frozen", torch::ones({2, 2}), false);
    }
  };
  const Named module;
  std::map<std::string, ParamKind> kinds;
  std::map<std::string, std::vector<std::int64_t>> shapes;
  const std::vector<ModuleParam> params = module_params(module);
  for (const ModuleParam& param : params) kinds[param.name] = param.kind;
  for (const Param& param : describe(params)) shapes[param.name] = param.shape;
  EXPECT_EQ(kinds, (std::map<std::string, ParamKind>{{"embed_tokens", ParamKind::embedding},
                                                     {"embedding_bias", ParamKind::vector},
                                                     {"lm_head", ParamKind::head},
                                                     {"lm_head_bias", ParamKind::vector},
                                                     {"norm", ParamKind::vector},
                                                     {"conv", ParamKind::matrix}}));
  EXPECT_EQ(shapes["conv"], (std::vector<std::int64_t>{2, 3, 4}));
}

TEST(Attachment, ARefusedOneLeavesTheModuleAsItWas) {
  testing::run_ranks(1, [](Transport& transport) {
    Toy toy, other;
    const std::vector<ModuleParam> params = module_params(toy);
    std::vector<Param> described = describe(params);
    described.back().dtype = DType::bf16;  // the last one does not fit
    Engine engine(described, groups("adamw"), sharding::Mesh(), transport, {});
    std::vector<void*> before;
    for (const ModuleParam& param : params) before.push_back(param.tensor.data_ptr());
    try {
      const EngineAttachment attachment(params, engine);
      ADD_FAILURE() << "taken";
    } catch (const Error& error) {
      EXPECT_EQ(error.code(), Code::invalid_argument);
      EXPECT_NE(std::string(error.what()).find("parameter '" + params.back().name + "'"), std::string::npos)
          << error.what();
    }
    for (std::size_t i = 0; i < params.size(); ++i) EXPECT_EQ(params[i].tensor.data_ptr(), before[i]) << params[i].name;
    toy.forward(tokens()).sum().backward();
    EXPECT_TRUE(toy.hidden->weight.grad().defined());  // and nothing was hooked
  });
}

TEST(Attachment, ParamsOfAnotherModuleAreRefused) {
  testing::run_ranks(1, [](Transport& transport) {
    Toy toy;
    const std::vector<ModuleParam> params = module_params(toy);
    Engine engine(describe(params), groups("adamw"), sharding::Mesh({{"dp", 1}}), transport, {});
    const std::vector<ModuleParam> reversed(params.rbegin(), params.rend());
    EXPECT_THROW(EngineAttachment(reversed, engine), Error);
  });
}

}  // namespace
}  // namespace regatta
