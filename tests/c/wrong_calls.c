/* Every wrong argument gets a status and a sentence, and the engine is as usable afterwards as before. */

#include <math.h>
#include <pthread.h>

#include "tests/c/check.h"

static const int64_t shape[] = {6, 4};

/* Fills an out-struct, and says whether it is as it was then. */
#define MARK(place) memset(&(place), 0x5a, sizeof(place))
#define MARKED(place) all_marked(&(place), sizeof(place))
static int all_marked(const void* place, size_t bytes) {
  size_t i;
  for (i = 0; i < bytes; ++i)
    if (((const unsigned char*)place)[i] != 0x5a) return 0;
  return 1;
}

static void meshes(void) {
  int n = 7;
  REFUSED(regatta_mesh_size(NULL, "dp", &n), "regatta_mesh_size: mesh is NULL");
  REFUSED(regatta_mesh_size("dp=2", "dp", NULL), "size is NULL");
  REFUSED(regatta_mesh_size("dp=two", "dp", &n), "'dp=two' is not NAME=SIZE");
  REFUSED(regatta_mesh_size("dp=0", "dp", &n), "mesh axis dp has size 0; expected at least 1");
  REFUSED(regatta_mesh_size("dp=-3", NULL, &n), "mesh axis dp has size -3");
  REFUSED(regatta_mesh_size("dp=2,dp=2", NULL, &n), "dp is named twice");
  REFUSED(regatta_mesh_size("dp=99999999999", NULL, &n), "is not NAME=SIZE");
  REFUSED(regatta_mesh_coordinate("dp=2", 2, "dp", &n), "rank is 2; mesh dp=2 has 2 ranks");
  REFUSED(regatta_mesh_coordinate("dp=2", -1, "dp", &n), "rank is -1");
  REFUSED(regatta_mesh_coordinate("dp=2", 0, NULL, &n), "axis is NULL");
  CHECK(n == 7); /* no failed call has written */
  OK(regatta_mesh_size("dp=2,tp=3", NULL, &n));
  CHECK(n == 6);
  OK(regatta_mesh_size("dp=2,tp=3", "pp", &n));
  CHECK(n == 1);
  OK(regatta_mesh_coordinate("dp=2,tp=3", 4, "tp", &n));
  CHECK(n == 1);
}

static void transports(void) {
  regatta_transport* t = NULL;
  regatta_transport* dead;
  regatta_engine* e = NULL;
  const char* text = NULL;
  int n = 0;
  REFUSED(regatta_transport_local(1, NULL, NULL), "ranks is NULL");
  REFUSED(regatta_transport_local(0, NULL, &t), "a world of 0 ranks");
  REFUSED(regatta_transport_local(-4, NULL, &t), "a world of -4 ranks");
  REFUSED(regatta_transport_local(1, "colour=red", &t), "there is no option 'colour'");
  REFUSED(regatta_transport_local(1, "deadline_seconds", &t), "'deadline_seconds' is not NAME=VALUE");
  REFUSED(regatta_transport_local(1, "deadline_seconds=soon", &t), "option deadline_seconds is 'soon'");
  REFUSED(regatta_transport_local(1, "deadline_seconds=nan", &t), "option deadline_seconds is 'nan'");
  REFUSED(regatta_transport_local(1, "shared_memory=maybe", &t), "expected one of on, off");
  REFUSED(regatta_transport_local(1, "device=gpu", &t), "device is 'gpu'; expected cpu, cuda or cuda:N");
  /* No machine or rack has it; a build without CUDA has none. */
  n = regatta_transport_local(1, "device=cuda:4711", &t);
  CHECK(n == REGATTA_DEVICE || n == REGATTA_INVALID_ARGUMENT);
  REFUSED(regatta_transport_local(1, "device_messages=maybe", &t), "expected one of auto, always, never");
  REFUSED(regatta_transport_local(1, "reduction=any", &t), "expected one of tree, sum");
  CHECK(regatta_transport_nccl(NULL, &t) == REGATTA_INVALID_ARGUMENT);
  CHECK(t == NULL);
  REFUSED(regatta_transport_mpi(NULL, NULL), "transport is NULL");
  CHECK(regatta_transport_from_mpi_fortran(12345, NULL, &t) == REGATTA_INVALID_ARGUMENT);
  CHECK(t == NULL);
  REFUSED(regatta_transport_rank(NULL, &n), "regatta_transport_rank: transport is NULL");
  REFUSED(regatta_transport_rank((regatta_transport*)&n, &n), "the transport was destroyed already, or was never made");
  OK(regatta_transport_local(1, NULL, &t));
  REFUSED(regatta_transport_rank(t, NULL), "rank is NULL");
  REFUSED(regatta_transport_world_size(t, NULL), "world_size is NULL");
  REFUSED(regatta_transport_data_path(t, NULL), "text is NULL");
  OK(regatta_transport_data_path(t, &text));
  CHECK(strcmp(text, "direct") == 0);
  REFUSED(regatta_transport_abort(t, NULL), "reason is NULL");
  REFUSED(regatta_engine_build((regatta_engine*)t), "the engine was destroyed already, or was never made");
  REFUSED(regatta_engine_create(NULL, "dp=1", &e), "transport is NULL");
  REFUSED(regatta_engine_create(t, NULL, &e), "mesh is NULL");
  REFUSED(regatta_engine_create(t, "dp=1", NULL), "engine is NULL");
  REFUSED(regatta_engine_create(t, "dp=2,tp=2", &e), "mesh dp=2,tp=2 has 4 ranks but the transport has 1");
  CHECK(e == NULL);
  dead = t;
  OK(regatta_transport_destroy(t));
  REFUSED(regatta_transport_destroy(dead), "the transport was destroyed already");
  REFUSED(regatta_engine_create(dead, "dp=1", &e), "the transport was destroyed already");
  OK(regatta_transport_destroy(NULL));
  OK(regatta_engine_destroy(NULL));
}

/* An engine with a group and parameters W (6 x 4) and b (4), not yet built. */
static regatta_engine* unbuilt(regatta_transport* t) {
  const int64_t four = 4;
  regatta_engine* e = NULL;
  OK(regatta_engine_create(t, "dp=1", &e));
  OK(regatta_engine_add_group(e, "all", "adamw", NULL, 1.0, NULL));
  OK(regatta_engine_add_param(e, "W", shape, 2, REGATTA_F32, NULL, 0, NULL));
  OK(regatta_engine_add_param(e, "b", &four, 1, REGATTA_BF16, "", 0, NULL));
  return e;
}

static void setting_up(regatta_transport* t) {
  const int64_t negative[] = {6, -4}, huge[] = {INT64_MAX, INT64_MAX}, long_line[] = {2, 20000000};
  const int64_t wraps_to_zero[] = {4, INT64_C(1) << 62}, wraps_below_zero[] = {2, INT64_MAX};
  const int64_t halves[] = {3, 3}, five[] = {5}, zero_rows[] = {0, 6}, overflowing[] = {INT64_MAX, 1};
  regatta_engine* e = NULL;
  int n = 7;
  OK(regatta_engine_create(t, "", &e));
  REFUSED(regatta_engine_build(e), "there are no parameter groups");
  REFUSED(regatta_engine_add_group(NULL, "g", "reg", NULL, 1, NULL), "regatta_engine_add_group: engine is NULL");
  REFUSED(regatta_engine_add_group(e, NULL, "reg", NULL, 1, NULL), "name is NULL");
  REFUSED(regatta_engine_add_group(e, "g", NULL, NULL, 1, NULL), "rule is NULL");
  REFUSED(regatta_engine_add_group(e, "g", "sgd", NULL, 1, NULL),
          "there is no rule \"sgd\"; expected one of reg, adamw");
  REFUSED(regatta_engine_add_group(e, "g", "reg", "beta1=0.9", 1, NULL), "rule reg has no setting \"beta1\"");
  REFUSED(regatta_engine_add_group(e, "g", "reg", "momentum=2", 1, NULL), "setting momentum of rule reg is \"2\"");
  REFUSED(regatta_engine_add_group(e, "g", "reg", "momentum", 1, NULL), "'momentum' is not NAME=VALUE");
  REFUSED(regatta_engine_add_group(e, "g", "reg", NULL, NAN, NULL), "lr_scale nan");
  REFUSED(regatta_engine_add_param(e, "W", shape, 2, REGATTA_F32, NULL, 0, NULL), "in group 0; there are 0 groups");
  OK(regatta_engine_add_group(e, "g", "reg", "", 1, NULL));
  REFUSED(regatta_engine_build(e), "there are no parameters to plan for");
  REFUSED(regatta_engine_add_param(e, NULL, shape, 2, REGATTA_F32, NULL, 0, &n), "name is NULL");
  REFUSED(regatta_engine_add_param(e, "W", NULL, 2, REGATTA_F32, NULL, 0, &n), "shape is NULL");
  REFUSED(regatta_engine_add_param(e, "W", shape, 0, REGATTA_F32, NULL, 0, &n), "parameter W has 0 dims");
  REFUSED(regatta_engine_add_param(e, "W", shape, -2, REGATTA_F32, NULL, 0, &n), "parameter W has -2 dims");
  REFUSED(regatta_engine_add_param(e, "W", negative, 2, REGATTA_F32, NULL, 0, &n), "every extent must be at least 1");
  REFUSED(regatta_engine_add_param(e, "W", huge, 2, REGATTA_F32, NULL, 0, &n), "has more than 4294967295 elements");
  REFUSED(regatta_engine_add_param(e, "W", wraps_to_zero, 2, REGATTA_F32, NULL, 0, &n),
          "has more than 4294967295 elements");
  REFUSED(regatta_engine_add_param(e, "W", wraps_below_zero, 2, REGATTA_F32, NULL, 0, &n),
          "has more than 4294967295 elements");
  REFUSED(regatta_engine_add_param(e, "W", shape, 2, 9, NULL, 0, &n),
          "dtype of parameter W is 9; expected REGATTA_F32");
  REFUSED(regatta_engine_add_param(e, "W", shape, 2, -1, NULL, 0, &n), "dtype of parameter W is -1");
  REFUSED(regatta_engine_add_param(e, "W", shape, 2, REGATTA_F32, "tp:7", 0, &n), "'tp:7' is not AXIS:0");
  REFUSED(regatta_engine_add_param(e, "W", shape, 2, REGATTA_F32, "tp:0,tp:1", 0, &n), "names axis tp twice");
  REFUSED(regatta_engine_add_param(e, "W", shape, 2, REGATTA_F32, NULL, 3, &n), "in group 3; there are 1 groups");
  REFUSED(regatta_engine_add_param(e, "W", shape, 2, REGATTA_F32, NULL, -1, &n), "in group -1");
  CHECK(n == 7);
  OK(regatta_engine_add_param(e, "W", shape, 2, REGATTA_F32, NULL, 0, &n));
  CHECK(n == 0);
  REFUSED(regatta_engine_set_grad_dtype(e, 1, REGATTA_F32), "param is 1; the engine has 1 parameters");
  REFUSED(regatta_engine_set_grad_dtype(e, 0, 5), "gradient dtype of parameter W is 5");
  REFUSED(regatta_engine_set_block_rows(e, -1, halves, 2), "param is -1");
  REFUSED(regatta_engine_set_block_rows(e, 0, NULL, 2), "rows is NULL");
  REFUSED(regatta_engine_set_block_rows(e, 0, halves, 0), "parameter W is given 0 blocks");
  REFUSED(regatta_engine_set_block_rows(e, 0, five, 1), "has blocks of 5 rows in all; expected 6");
  REFUSED(regatta_engine_set_block_rows(e, 0, zero_rows, 2), "parameter W has a block of 0 rows");
  REFUSED(regatta_engine_set_block_rows(e, 0, overflowing, 2), "parameter W has a block of 9223372036854775807 rows");
  OK(regatta_engine_set_block_rows(e, 0, halves, 2));
  REFUSED(regatta_engine_set_option(e, NULL, "1"), "name is NULL");
  REFUSED(regatta_engine_set_option(e, "clip", NULL), "value is NULL");
  REFUSED(regatta_engine_set_option(e, "colour", "red"), "there is no option 'colour'; expected one of mode, cut");
  REFUSED(regatta_engine_set_option(e, "device_graph", "maybe"), "expected one of on, off");
  REFUSED(regatta_engine_use_stream(e, NULL), "the engine is not built yet");
  REFUSED(regatta_engine_set_option(e, "mode", "zero3"),
          "option mode is 'zero3'; expected one of zero1, zero2, sharded");
  REFUSED(regatta_engine_set_option(e, "cut", ""), "option cut is ''; expected one of element, row, matrix");
  REFUSED(regatta_engine_set_option(e, "bucket_bytes", "0"), "option bucket_bytes is '0'; expected a whole number");
  REFUSED(regatta_engine_set_option(e, "micro_batches", "-1"), "option micro_batches is '-1'");
  REFUSED(regatta_engine_set_option(e, "micro_batches", "3000000000"), "option micro_batches is '3000000000'");
  REFUSED(regatta_engine_set_option(e, "accumulation", "mean"), "expected one of sum, tree");
  REFUSED(regatta_engine_set_option(e, "clip", "-1"), "option clip is '-1'; expected 0 (off) or a norm above it");
  REFUSED(regatta_engine_set_option(e, "clip", "nan"), "option clip is 'nan'");
  REFUSED(regatta_engine_set_option(e, "non_finite", "ignore"), "expected one of skip, stop");
  REFUSED(regatta_engine_set_option(e, "loss_scale", "0"), "option loss_scale is '0'; expected a number above 0");
  REFUSED(regatta_engine_set_option(e, "loss_scale", "inf"), "option loss_scale is 'inf'");
  REFUSED(regatta_engine_set_option(e, "loss_scale_growth_interval", "x"), "option loss_scale_growth_interval is 'x'");
  REFUSED(regatta_engine_set_option(e, "loss_scale_smallest", "-2"), "option loss_scale_smallest is '-2'");
  REFUSED(regatta_engine_set_option(e, "momentum_dtype", "f16"), "expected one of f32, bf16");
  REFUSED(regatta_engine_set_option(e, "threads", "0"),
          "option threads is '0'; expected a whole number from 1 to 4096");
  REFUSED(regatta_engine_set_option(e, "threads", "2 "), "option threads is '2 '");
  OK(regatta_engine_add_param(e, "W", shape, 2, REGATTA_F32, NULL, 0, NULL));
  REFUSED(regatta_engine_build(e), "parameter W appears twice");
  OK(regatta_engine_destroy(e));
  REFUSED(regatta_engine_destroy(e), "the engine was destroyed already");

  OK(regatta_engine_create(t, "dp=1", &e));
  OK(regatta_engine_add_group(e, "g", "reg", NULL, 1, NULL));
  OK(regatta_engine_add_param(e, "L", long_line, 2, REGATTA_F32, NULL, 0, NULL));
  REFUSED(regatta_engine_build(e), "parameter L has a block of 2 x 20000000");
  OK(regatta_engine_destroy(e));
  OK(regatta_engine_create(t, "dp=1", &e));
  OK(regatta_engine_add_group(e, "g", "reg", NULL, 1, NULL));
  OK(regatta_engine_add_param(e, "W", shape, 2, REGATTA_F32, "tp:1", 0, NULL));
  REFUSED(regatta_engine_build(e), "parameter W is placed over axis tp, which mesh dp=1 does not have");
  OK(regatta_engine_destroy(e));
}

static void order_of_calls(regatta_transport* t) {
  float grad[24] = {0};
  regatta_engine* e = unbuilt(t);
  const char* text = (const char*)&grad;
  void* data = &grad;
  int n = 7;
  int64_t m = 7;
  double d = 7;
  uint64_t u = 7;
  regatta_part part;
  regatta_figures figures;
  regatta_state_part state;
  regatta_wire_bytes bytes;
  MARK(part), MARK(figures), MARK(state), MARK(bytes);
  REFUSED(regatta_engine_param(e, 0, &data, &m, &n), "regatta_engine_param: the engine is not built yet");
  REFUSED(regatta_engine_param_block_count(e, 0, &n), "not built yet");
  REFUSED(regatta_engine_param_block(e, 0, 0, &part), "not built yet");
  REFUSED(regatta_engine_publish_params(e), "not built yet");
  REFUSED(regatta_engine_add_grad(e, 0, grad, 24, REGATTA_F32), "not built yet");
  REFUSED(regatta_engine_micro_batch_index(e, 0, &m), "not built yet");
  REFUSED(regatta_engine_loss_scale(e, &d), "not built yet");
  REFUSED(regatta_engine_step(e, 0.1, NULL, 0), "regatta_engine_step: the engine is not built yet; call build first");
  REFUSED(regatta_engine_group_figures(e, 0, &figures, sizeof figures), "not built yet");
  REFUSED(regatta_engine_param_figures(e, 0, &figures, sizeof figures), "not built yet");
  REFUSED(regatta_engine_state_count(e, &n), "not built yet");
  REFUSED(regatta_engine_state_part(e, 0, &state, sizeof state), "not built yet");
  REFUSED(regatta_engine_load_state(e, 0, grad, 24, REGATTA_F32), "not built yet");
  REFUSED(regatta_engine_state_bytes(e, &m), "not built yet");
  REFUSED(regatta_engine_step_count(e, &m), "not built yet");
  REFUSED(regatta_engine_set_step_count(e, 1), "not built yet");
  REFUSED(regatta_engine_planned_bytes(e, &bytes, sizeof bytes), "not built yet");
  REFUSED(regatta_engine_plan_text(e, &text), "not built yet");
  REFUSED(regatta_engine_plan_fingerprint(e, &u), "not built yet");
  /* No failed call has written. */
  CHECK(text == (const char*)&grad && data == &grad && n == 7 && m == 7 && d == 7 && u == 7);
  CHECK(MARKED(part) && MARKED(figures) && MARKED(state) && MARKED(bytes));
  OK(regatta_engine_build(e));
  REFUSED(regatta_engine_build(e), "regatta_engine_build: the engine is built already");
  REFUSED(regatta_engine_add_group(e, "h", "reg", NULL, 1, &n),
          "regatta_engine_add_group: the engine is built already");
  REFUSED(regatta_engine_add_param(e, "V", shape, 2, REGATTA_F32, NULL, 0, &n), "built already");
  CHECK(n == 7);
  REFUSED(regatta_engine_set_option(e, "clip", "1"), "built already");
  REFUSED(regatta_engine_set_grad_dtype(e, 0, REGATTA_F32), "built already");
  REFUSED(regatta_engine_set_block_rows(e, 0, shape, 1), "built already");
  REFUSED(regatta_engine_step(e, 0.1, NULL, 0), "have no values yet; write them and call publish_params first");
  OK(regatta_engine_destroy(e));
}

/* The weights, state and loss scale of both are the same to the bit. */
static void check_twins(regatta_engine* a, regatta_engine* b) {
  int p, i, n = 0, m = 0;
  int64_t numel = 0;
  double scale_a = 0, scale_b = 0;
  void *of_a = NULL, *of_b = NULL;
  uint64_t plan_a = 0, plan_b = 1;
  for (p = 0; p < 2; ++p) {
    OK(regatta_engine_param(a, p, &of_a, &numel, NULL));
    OK(regatta_engine_param(b, p, &of_b, NULL, NULL));
    CHECK(memcmp(of_a, of_b, (size_t)numel * (p == 0 ? 4 : 2)) == 0);
  }
  OK(regatta_engine_state_count(a, &n));
  OK(regatta_engine_state_count(b, &m));
  CHECK(n == m);
  for (i = 0; i < n; ++i) {
    regatta_state_part one, other;
    OK(regatta_engine_state_part(a, i, &one, sizeof one));
    OK(regatta_engine_state_part(b, i, &other, sizeof other));
    CHECK(memcmp(one.data, other.data, (size_t)one.numel * (one.dtype == REGATTA_F32 ? 4 : 2)) == 0);
  }
  OK(regatta_engine_loss_scale(a, &scale_a));
  OK(regatta_engine_loss_scale(b, &scale_b));
  CHECK(scale_a == scale_b);
  OK(regatta_engine_plan_fingerprint(a, &plan_a));
  OK(regatta_engine_plan_fingerprint(b, &plan_b));
  CHECK(plan_a == plan_b);
}

static void stepping(regatta_transport* t) {
  float grad[24] = {1, 2, 3};
  regatta_engine* e = unbuilt(t);
  regatta_engine* twin = unbuilt(t); /* that no wrong call is made to */
  const char* text = NULL;
  void* data = NULL;
  int n = 7, i;
  int64_t m = 7;
  double d = 0;
  uint64_t u = 0;
  regatta_part part;
  regatta_step_report report;
  regatta_figures figures;
  regatta_state_part state;
  regatta_wire_bytes bytes;
  OK(regatta_engine_build(e));
  OK(regatta_engine_build(twin));
  MARK(part), MARK(report), MARK(figures), MARK(state), MARK(bytes);
  REFUSED(regatta_engine_param(e, 2, &data, &m, &n), "param is 2; the engine has 2 parameters");
  REFUSED(regatta_engine_param(e, -1, &data, &m, &n), "param is -1");
  REFUSED(regatta_engine_param(e, 0, NULL, NULL, NULL), "data is NULL");
  REFUSED(regatta_engine_param_block_count(e, 5, &n), "param is 5");
  REFUSED(regatta_engine_param_block_count(e, 0, NULL), "count is NULL");
  REFUSED(regatta_engine_param_block(e, 0, 1, &part), "block is 1; parameter W has 1");
  REFUSED(regatta_engine_param_block(e, 0, -1, &part), "block is -1; parameter W has 1");
  REFUSED(regatta_engine_param_block(e, -1, 0, &part), "param is -1");
  REFUSED(regatta_engine_param_block_count(e, -1, &n), "param is -1");
  REFUSED(regatta_engine_param_block(e, 9, 0, &part), "param is 9");
  REFUSED(regatta_engine_param_block(e, 0, 0, NULL), "part is NULL");
  CHECK(data == NULL && m == 7 && n == 7 && MARKED(part));
  OK(regatta_engine_param(twin, 0, &data, &m, NULL));
  for (i = 0; i < 24; ++i) ((float*)data)[i] = 0.5F;
  OK(regatta_engine_publish_params(twin));
  OK(regatta_engine_param(e, 0, &data, &m, NULL));
  CHECK(m == 24);
  for (i = 0; i < 24; ++i) ((float*)data)[i] = 0.5F;
  OK(regatta_engine_publish_params(e));
  m = 7;
  REFUSED(regatta_engine_add_grad(e, 2, grad, 24, REGATTA_F32), "param is 2; the engine has 2 parameters");
  REFUSED(regatta_engine_add_grad(e, -7, grad, 24, REGATTA_F32), "param is -7");
  REFUSED(regatta_engine_add_grad(e, 0, NULL, 24, REGATTA_F32), "the gradient of parameter W is NULL; expected 24");
  REFUSED(regatta_engine_add_grad(e, 0, grad, 23, REGATTA_F32), "gradient of parameter W has 23 elements; expected 24");
  REFUSED(regatta_engine_add_grad(e, 0, grad, -1, REGATTA_F32), "has -1 elements");
  REFUSED(regatta_engine_add_grad(e, 0, grad, 24, 3), "dtype of the gradient of parameter W is 3");
  REFUSED(regatta_engine_add_grad(e, 0, grad, 24, REGATTA_BF16), "parameter W got a gradient of bf16; expected f32");
  REFUSED(regatta_engine_micro_batch_index(e, 1, &m), "k is 1; a step has 1 micro-batches");
  REFUSED(regatta_engine_micro_batch_index(e, -1, &m), "k is -1");
  REFUSED(regatta_engine_micro_batch_index(e, 0, NULL), "index is NULL");
  REFUSED(regatta_engine_loss_scale(e, NULL), "scale is NULL");
  REFUSED(regatta_engine_step(e, NAN, NULL, 0), "lr is nan; expected a finite number");
  REFUSED(regatta_engine_step(e, INFINITY, NULL, 0), "lr is inf");
  REFUSED(regatta_engine_step(e, -INFINITY, NULL, 0), "lr is -inf");
  REFUSED(regatta_engine_step(e, 0.1, &report, 8), "the struct has room for 8 bytes; expected sizeof");
  REFUSED(regatta_engine_step(e, 0.1, &report, sizeof report - 1), "the struct has room for");
  CHECK(m == 7 && MARKED(report));
  OK(regatta_engine_add_grad(e, 0, grad, 24, REGATTA_F32));
  OK(regatta_engine_add_grad(twin, 0, grad, 24, REGATTA_F32));
  REFUSED(regatta_engine_add_grad(e, 0, grad, 24, REGATTA_F32), "parameter W got more than 1 gradients in one step");
  OK(regatta_engine_step(e, 0.1, &report, sizeof report));
  CHECK(report.step == 1 && report.skipped == 0);
  OK(regatta_engine_step(twin, 0.1, NULL, 0));
  REFUSED(regatta_engine_group_figures(e, 1, &figures, sizeof figures), "group is 1; the engine has 1 groups");
  REFUSED(regatta_engine_group_figures(e, -1, &figures, sizeof figures), "group is -1");
  REFUSED(regatta_engine_group_figures(e, 0, NULL, sizeof figures), "NULL");
  REFUSED(regatta_engine_group_figures(e, 0, &figures, 1), "room for 1 bytes");
  REFUSED(regatta_engine_param_figures(e, 2, &figures, sizeof figures), "param is 2; the engine has 2 parameters");
  REFUSED(regatta_engine_param_figures(e, -1, &figures, sizeof figures), "param is -1");
  REFUSED(regatta_engine_param_figures(e, 0, &figures, sizeof figures - 1), "the struct has room for");
  REFUSED(regatta_engine_param_figures(e, 0, NULL, sizeof figures), "NULL");
  REFUSED(regatta_engine_state_count(e, NULL), "count is NULL");
  OK(regatta_engine_state_count(e, &n));
  CHECK(n == 5); /* two moments each, and the master weights of b */
  REFUSED(regatta_engine_state_part(e, n, &state, sizeof state), "index is 5; the engine has 5 parts of state");
  REFUSED(regatta_engine_state_part(e, -1, &state, sizeof state), "index is -1");
  REFUSED(regatta_engine_state_part(e, 0, NULL, sizeof state), "NULL");
  REFUSED(regatta_engine_state_part(e, 0, &state, sizeof state - 1), "the struct has room for");
  CHECK(MARKED(figures) && MARKED(state));
  OK(regatta_engine_state_part(e, 0, &state, sizeof state));
  REFUSED(regatta_engine_load_state(e, 77, grad, 24, REGATTA_F32), "index is 77");
  REFUSED(regatta_engine_load_state(e, -1, grad, 24, REGATTA_F32), "index is -1");
  REFUSED(regatta_engine_load_state(e, 0, grad, state.numel - 1, REGATTA_F32), "elements; expected");
  REFUSED(regatta_engine_load_state(e, 0, NULL, state.numel, REGATTA_F32), "is NULL; expected");
  REFUSED(regatta_engine_load_state(e, 0, grad, 1000, REGATTA_F32), "has 1000 elements; expected");
  REFUSED(regatta_engine_load_state(e, 0, grad, state.numel, REGATTA_BF16), "is given as bf16; expected f32");
  REFUSED(regatta_engine_load_state(e, 0, grad, state.numel, 44), "is 44; expected REGATTA_F32");
  REFUSED(regatta_engine_set_step_count(e, -5), "step is -5; expected 0 or more");
  REFUSED(regatta_engine_step_count(e, NULL), "step is NULL");
  REFUSED(regatta_engine_state_bytes(e, NULL), "bytes is NULL");
  REFUSED(regatta_engine_planned_bytes(e, NULL, sizeof bytes), "NULL");
  REFUSED(regatta_engine_planned_bytes(e, &bytes, 3), "room for 3 bytes");
  REFUSED(regatta_engine_planned_bytes(e, &bytes, sizeof bytes - 1), "the struct has room for");
  CHECK(MARKED(bytes));
  REFUSED(regatta_engine_plan_text(e, NULL), "text is NULL");
  REFUSED(regatta_engine_plan_fingerprint(e, NULL), "fingerprint is NULL");
  OK(regatta_engine_plan_text(e, &text));
  CHECK(strstr(text, "W") != NULL);
  OK(regatta_engine_plan_fingerprint(e, &u));
  OK(regatta_engine_loss_scale(e, &d));
  CHECK(d == 1);
  check_twins(e, twin);

  /* A gradient that is not finite is skipped by name, and nothing is touched. */
  m = 0;
  grad[5] = NAN;
  OK(regatta_engine_add_grad(e, 0, grad, 24, REGATTA_F32));
  OK(regatta_engine_step(e, 0.1, &report, sizeof report));
  CHECK(report.skipped == 1 && strcmp(report.culprit, "W") == 0 && report.step == 1);
  OK(regatta_engine_step_count(e, &m));
  CHECK(m == 1);
  check_twins(e, twin);
  grad[5] = 1; /* and the next step is made of its own gradient alone */
  for (i = 0; i < 2; ++i) {
    OK(regatta_engine_add_grad(i == 0 ? e : twin, 0, grad, 24, REGATTA_F32));
    OK(regatta_engine_step(i == 0 ? e : twin, 0.05, &report, sizeof report));
    CHECK(report.step == 2 && report.skipped_steps == 1 - i);
  }
  check_twins(e, twin);
  OK(regatta_engine_destroy(e));
  OK(regatta_engine_destroy(twin));
}

/* Ranks that disagree learn the difference, and a rank that gives up is heard. */
static void* disagree(void* argument) {
  regatta_transport* t = argument;
  regatta_engine* e = NULL;
  int rank = 0, status;
  OK(regatta_transport_rank(t, &rank));
  OK(regatta_engine_create(t, "dp=2", &e));
  OK(regatta_engine_add_group(e, "g", "reg", rank == 0 ? "rho=0.1" : "rho=0.2", 1, NULL));
  OK(regatta_engine_add_param(e, "W", shape, 2, REGATTA_F32, NULL, 0, NULL));
  status = regatta_engine_build(e);
  CHECK(status == REGATTA_INVALID_ARGUMENT);
  CHECK(strstr(regatta_last_error(), "ranks disagree on what to train") != NULL);
  OK(regatta_engine_destroy(e));

  OK(regatta_engine_create(t, "dp=2", &e));
  OK(regatta_engine_add_group(e, "g", "reg", NULL, 1, NULL));
  OK(regatta_engine_add_param(e, "W", shape, 2, REGATTA_F32, NULL, 0, NULL));
  OK(regatta_engine_build(e));
  OK(regatta_engine_publish_params(e));
  if (rank == 1) {
    OK(regatta_transport_abort(t, "the data has run out"));
  } else {
    status = regatta_engine_step(e, 0.1, NULL, 0);
    CHECK(status == REGATTA_ABORTED);
    CHECK(strstr(regatta_last_error(), "rank 1 stopped: the data has run out") != NULL);
    CHECK(regatta_engine_step(e, 0.1, NULL, 0) == REGATTA_ABORTED);
  }
  OK(regatta_engine_destroy(e));
  OK(regatta_transport_destroy(t));
  return NULL;
}

/* State of another type is refused, also where its values have as many bytes. */
static void state_of_another_type(regatta_transport* t) {
  regatta_engine* e = NULL;
  regatta_state_part state;
  const int64_t shape[2] = {4, 6};
  int n = 0;
  OK(regatta_engine_create(t, "dp=1", &e));
  OK(regatta_engine_set_option(e, "momentum_dtype", "bf16"));
  OK(regatta_engine_add_group(e, "g", "reg", NULL, 1, NULL));
  OK(regatta_engine_add_param(e, "W", shape, 2, REGATTA_F32, NULL, 0, &n));
  OK(regatta_engine_build(e));
  OK(regatta_engine_state_part(e, 0, &state, sizeof state));
  CHECK(state.dtype == REGATTA_BF16);
  REFUSED(regatta_engine_load_state(e, 0, state.data, state.numel, REGATTA_F16), "is given as f16; expected bf16");
  OK(regatta_engine_load_state(e, 0, state.data, state.numel, REGATTA_BF16));
  OK(regatta_engine_destroy(e));
}

/* A deadline may be part of a second. */
static void part_of_a_second(void) {
  regatta_transport* two[2];
  regatta_engine* e = NULL;
  const int64_t shape[2] = {4, 6};
  int n = 0, i;
  OK(regatta_transport_local(2, "deadline_seconds=0.25", two));
  OK(regatta_engine_create(two[0], "dp=2", &e));
  OK(regatta_engine_add_group(e, "g", "reg", NULL, 1, NULL));
  OK(regatta_engine_add_param(e, "W", shape, 2, REGATTA_F32, NULL, 0, &n));
  CHECK(regatta_engine_build(e) == REGATTA_TIMEOUT); /* the other rank does not come */
  CHECK(strstr(regatta_last_error(), "within the deadline of 0.25 s") != NULL);
  OK(regatta_engine_destroy(e));
  for (i = 0; i < 2; ++i) OK(regatta_transport_destroy(two[i]));
}

/* Another thread's failures are its own. */
static void* has_not_failed(void* unused) {
  (void)unused;
  CHECK(strcmp(regatta_last_error(), "") == 0);
  return NULL;
}

int main(void) {
  regatta_transport* t = NULL;
  regatta_transport* two[2];
  pthread_t threads[2];
  int i;
  CHECK(strcmp(regatta_last_error(), "") == 0);
  CHECK(strcmp(regatta_status_name(-1), "unknown") == 0 && strcmp(regatta_status_name(1000), "unknown") == 0);
  meshes();
  transports();
  OK(regatta_transport_local(1, NULL, &t));
  setting_up(t);
  order_of_calls(t);
  stepping(t);
  state_of_another_type(t);
  OK(regatta_transport_destroy(t));
  part_of_a_second();
  CHECK(pthread_create(&threads[0], NULL, has_not_failed, NULL) == 0);
  CHECK(pthread_join(threads[0], NULL) == 0);
  OK(regatta_transport_local(2, "deadline_seconds=200", two));
  for (i = 0; i < 2; ++i) CHECK(pthread_create(&threads[i], NULL, disagree, two[i]) == 0);
  for (i = 0; i < 2; ++i) CHECK(pthread_join(threads[i], NULL) == 0);
  printf("%d checks of wrong calls\n", checks_made);
  return 0;
}
