// First weights by seed, name and place, and the parts of a decoder that tensor-parallel ranks hold.

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "cli/finetune/decoder.h"
#include "runtime/error.h"
#include "tests/finetune/small_decoder.h"
#include "tests/finetune/window_order.h"

namespace regatta::finetune {
namespace {

TEST(RandomWeights, DependOnSeedAndNameOnly) {
  DecoderConfig config = small_config();
  config.vocab = 500;
  config.hidden = 64;
  Decoder one(config, at::kFloat), two(config, at::kFloat), other(config, at::kFloat);
  init_random(one, 1);
  init_random(two, 1);
  init_random(other, 2);
  const auto get = [](const Decoder& decoder, const char* name) { return decoder.named_parameters()[name].detach(); };
  EXPECT_TRUE(get(one, "lm_head.weight").equal(get(two, "lm_head.weight")));
  EXPECT_FALSE(get(one, "lm_head.weight").equal(get(other, "lm_head.weight")));
  EXPECT_FALSE(get(one, "lm_head.weight").equal(get(one, "model.embed_tokens.weight")));
  EXPECT_NEAR(get(one, "lm_head.weight").mean().item<float>(), 0, 0.01);
  EXPECT_NEAR(get(one, "lm_head.weight").std().item<float>(), config.init_std, 0.01);
  EXPECT_EQ(get(one, "model.norm.weight").min().item<float>(), 1);
}

/// From the description: four 16-bit uniforms from one 64-bit hash of seed, name and global index.
double random_weight(std::uint64_t seed, const std::string& name, std::int64_t index, double std_dev) {
  std::uint64_t key = reference::splitmix(seed);
  for (const char character : name) key = reference::splitmix(key ^ static_cast<unsigned char>(character));
  std::uint64_t bits = reference::splitmix(key + static_cast<std::uint64_t>(index) * 0x9e3779b97f4a7c15ULL);
  double sum = 0;
  for (int part = 0; part < 4; ++part, bits /= 65536) sum += (static_cast<double>(bits % 65536) + 0.5) / 65536;
  return (sum - 2) / std::sqrt(4.0 / 12) * std_dev;
}

/// On every tensor-parallel rank, uneven vocabulary and replicated keys and values included, in both dtypes.
TEST(RandomWeights, AreThoseOfTheGlobalIndexOnEveryRank) {
  DecoderConfig config = small_config();
  config.heads = 4;
  config.intermediate = 24;
  config.qkv_bias = config.output_bias = config.mlp_bias = true;
  constexpr std::uint64_t seed = 0xfedcba9876543210;
  for (const int tp : {1, 2, 4})
    for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
      const sharding::Mesh mesh({{"dp", 2}, {"tp", tp}});
      for (int rank = 0; rank < mesh.world_size(); ++rank) {
        Decoder decoder(config, type, mesh, rank);
        init_random(decoder, seed);
        for (const auto& item : decoder.named_parameters()) {
          const at::Tensor values = item.value().detach().to(at::kFloat);
          if (values.dim() < 2) {
            EXPECT_TRUE(values.eq(item.key().ends_with("bias") ? 0 : 1).all().item<bool>()) << item.key();
            continue;
          }
          const ParamShard& shard = *find_shard(decoder.shards(), item.key());
          ASSERT_EQ(values.size(0), shard.rows.size());
          ASSERT_EQ(values.size(1), shard.cols.size());
          const float* at = values.data_ptr<float>();
          for (std::int64_t r = shard.rows.begin; r < shard.rows.end; ++r)
            for (std::int64_t c = shard.cols.begin; c < shard.cols.end; ++c) {
              const double expected = random_weight(seed, item.key(), r * shard.shape[1] + c, config.init_std);
              const double allowed = type == at::kFloat ? 1e-6 : 1.0 / 256;
              ASSERT_NEAR(*at++, expected, allowed * std::abs(expected) + 1e-12)
                  << item.key() << " [" << r << ", " << c << "] on rank " << rank << " of tp=" << tp;
            }
        }
      }
    }
}

/// All parts of all tensor-parallel ranks cover every parameter, once where it is cut.
TEST(Shards, CoverEveryParameter) {
  DecoderConfig config = small_config();
  config.heads = 8;
  config.intermediate = 24;
  config.qkv_bias = config.output_bias = config.mlp_bias = true;
  for (const std::int64_t kv_heads : {1, 2, 4, 8})
    for (const int tp : {1, 2, 4, 8}) {
      config.kv_heads = kv_heads;
      config.vocab = 57;  // 8 ranks hold 8, the last one 1
      const sharding::Mesh mesh({{"tp", tp}});
      std::map<std::string, std::int64_t> held;
      for (int rank = 0; rank < tp; ++rank)
        for (const ParamShard& shard : decoder_shards(config, mesh, rank)) {
          const std::int64_t numel = shard.rows.size() * shard.cols.size();
          std::int64_t local = 1;
          for (const std::int64_t extent : shard.local_shape) local *= extent;
          EXPECT_EQ(local, numel) << shard.name;
          EXPECT_EQ(shard.local_shape.size(), shard.shape.size());
          held[shard.name] += numel;
        }
      for (const ParamShard& whole : decoder_shards(config, sharding::Mesh(), 0)) {
        const bool norm_or_bias = whole.name.find("norm") != std::string::npos ||
                                  whole.name.find("o_proj.bias") != std::string::npos ||
                                  whole.name.find("down_proj.bias") != std::string::npos;
        const bool shared_kv =
            (whole.name.find("k_proj") != std::string::npos || whole.name.find("v_proj") != std::string::npos) &&
            kv_heads % tp != 0;
        EXPECT_EQ(held.at(whole.name), whole.numel() * (norm_or_bias || shared_kv ? tp : 1))
            << whole.name << " on tp=" << tp;
      }
      // Whole query heads, each with the key-value head that it has in the whole decoder.
      for (int rank = 0; rank < tp; ++rank) {
        const HeadShare share = share_heads(config, tp, rank);
        EXPECT_EQ(share.heads, 8 / tp);
        EXPECT_EQ(share.head_dim, 4);
        for (std::int64_t head = 0; head < share.heads; ++head) {
          const std::int64_t whole_kv = (rank * share.heads + head) / (8 / kv_heads);
          const std::int64_t own_kv = head / (share.heads / share.kv_heads);
          EXPECT_EQ(share.replicated_kv < 0 ? rank * share.kv_heads + own_kv : share.replicated_kv, whole_kv)
              << kv_heads << " key-value heads, rank " << rank << " of " << tp;
        }
      }
    }
  config.kv_heads = 8;
  config.vocab = 7;
  try {
    decoder_shards(config, sharding::Mesh({{"tp", 8}}), 7);
    ADD_FAILURE() << "a rank without vocabulary was taken";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("7 rows of model.embed_tokens.weight leave nothing for tp rank 7"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace regatta::finetune
