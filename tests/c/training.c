/* A trainer in C, its ranks as threads: one matrix on one rank, and the same bits on two ranks, cut over dp or tp. */

#include <math.h>
#include <pthread.h>

#include "tests/c/check.h"

enum { rows = 48, cols = 32, steps = 6 };

typedef struct job {
  const char* mesh;
  const char* placement;
  const char* mode;
  int resume_after; /* steps after which state and values move to a new engine; 0: never */
  float result[rows * cols];
} job;

typedef struct one_rank {
  job* of;
  regatta_transport* transport;
} one_rank;

static float value(int i) { return cosf(0.11F * (float)i); }

/* Columns of the matrix that a rank holds. */
static void my_columns(regatta_engine* engine, int w, regatta_part* part) {
  int blocks = 0;
  OK(regatta_engine_param_block_count(engine, w, &blocks));
  CHECK(blocks == 1);
  OK(regatta_engine_param_block(engine, w, 0, part));
  CHECK(part->rows_begin == 0 && part->rows_end == rows);
}

static regatta_engine* make_engine(const one_rank* rank, int* w) {
  const int64_t shape[] = {rows, cols};
  regatta_engine* engine = NULL;
  int group = -1;
  OK(regatta_engine_create(rank->transport, rank->of->mesh, &engine));
  OK(regatta_engine_add_group(engine, "matrices", "reg", "momentum=0.9,rho=0.1", 1.0, &group));
  OK(regatta_engine_add_param(engine, "W", shape, 2, REGATTA_F32, rank->of->placement, group, w));
  OK(regatta_engine_set_option(engine, "mode", rank->of->mode));
  OK(regatta_engine_set_option(engine, "clip", "5"));
  OK(regatta_engine_build(engine));
  return engine;
}

/* Copies weights, state and the step count; ranks keep their own parts. */
static regatta_engine* moved(const one_rank* rank, regatta_engine* from, int w) {
  int again = -1, count = 0, i;
  int64_t numel = 0, step = 0, bytes = 0, state_numel = 0;
  void *old_values = NULL, *new_values = NULL;
  regatta_engine* to = make_engine(rank, &again);
  OK(regatta_engine_param(from, w, &old_values, &numel, NULL));
  OK(regatta_engine_param(to, again, &new_values, NULL, NULL));
  memcpy(new_values, old_values, (size_t)numel * sizeof(float));
  OK(regatta_engine_publish_params(to));
  OK(regatta_engine_state_count(from, &count));
  for (i = 0; i < count; ++i) {
    regatta_state_part part;
    OK(regatta_engine_state_part(from, i, &part, sizeof part));
    CHECK(strcmp(part.state, "momentum") == 0 && part.param == w && part.primary == 1);
    CHECK(part.numel == part.part.run_end - part.part.run_begin);
    OK(regatta_engine_load_state(to, i, part.data, part.numel, part.dtype));
    state_numel += part.numel;
  }
  OK(regatta_engine_state_bytes(from, &bytes));
  CHECK(bytes == state_numel * 4);
  OK(regatta_engine_step_count(from, &step));
  OK(regatta_engine_set_step_count(to, step));
  OK(regatta_engine_destroy(from));
  return to;
}

static void* train(void* argument) {
  const one_rank* rank = argument;
  job* of = rank->of;
  int me = 0, world = 0, dp = 0, w = -1, dtype = -1, step, i;
  int64_t numel = 0;
  void* data = NULL;
  regatta_part part;
  regatta_wire_bytes planned;
  regatta_engine* engine = make_engine(rank, &w);
  OK(regatta_transport_rank(rank->transport, &me));
  OK(regatta_transport_world_size(rank->transport, &world));
  OK(regatta_mesh_size(of->mesh, "dp", &dp));
  OK(regatta_engine_param(engine, w, &data, &numel, &dtype));
  CHECK(dtype == REGATTA_F32);
  my_columns(engine, w, &part);
  {
    const int wide = (int)(part.cols_end - part.cols_begin);
    const int first = (int)part.run_begin, last = (int)part.run_end;
    float* grad = malloc((size_t)numel * sizeof *grad);
    CHECK(last - first == numel);
    /* Element i of this rank's memory is element at(i) of the matrix. */
#define at(i) ((first + (i)) / wide * cols + (int)part.cols_begin + (first + (i)) % wide)
    for (i = 0; i < numel; ++i) ((float*)data)[i] = value(at(i));
    OK(regatta_engine_publish_params(engine));
    OK(regatta_engine_planned_bytes(engine, &planned, sizeof planned));
    for (step = 0; step < steps; ++step) {
      regatta_step_report report;
      regatta_figures group, matrix;
      for (i = 0; i < numel; ++i) {
        /* Summed over dp, as gradients of different samples are; in mode sharded there is one holder. */
        const int mine = strcmp(of->mode, "sharded") == 0 || at(i) % dp == me * dp / world;
        grad[i] = mine ? sinf(0.37F * (float)(at(i) + 100 * step)) : 0.0F;
      }
      OK(regatta_engine_add_grad(engine, w, grad, numel, REGATTA_F32));
      OK(regatta_engine_step(engine, 0.02, &report, sizeof report));
      CHECK(report.step == step + 1 && report.skipped == 0 && report.culprit[0] == '\0' && report.groups == 1);
      CHECK(report.grad_norm > 5 && report.clip_factor < 1);
      CHECK(report.reduce_scatter_bytes == planned.reduce_scatter && report.all_gather_bytes == planned.all_gather);
      CHECK(report.exchange_bytes == planned.exchange && report.vote_bytes == planned.vote);
      OK(regatta_engine_group_figures(engine, 0, &group, sizeof group));
      CHECK(strcmp(group.name, "matrices") == 0 && group.numel == rows * cols && group.update_rms > 0);
      OK(regatta_engine_param_figures(engine, w, &matrix, sizeof matrix));
      CHECK(strcmp(matrix.name, "W") == 0 && matrix.numel == rows * cols && matrix.update_rms == group.update_rms);
      if (step + 1 == of->resume_after) {
        engine = moved(rank, engine, w);
        OK(regatta_engine_param(engine, w, &data, NULL, NULL));
      }
    }
    for (i = 0; i < numel; ++i) of->result[at(i)] = ((float*)data)[i];
#undef at
    free(grad);
  }
  OK(regatta_engine_destroy(engine));
  return NULL;
}

static void run(job* of) {
  pthread_t threads[4];
  regatta_transport* transports[4];
  one_rank ranks[4];
  int world = 0, r;
  OK(regatta_mesh_size(of->mesh, NULL, &world));
  OK(regatta_transport_local(world, "deadline_seconds=200", transports));
  for (r = 0; r < world; ++r) {
    ranks[r].of = of;
    ranks[r].transport = transports[r];
    CHECK(pthread_create(&threads[r], NULL, train, &ranks[r]) == 0);
  }
  for (r = 0; r < world; ++r) CHECK(pthread_join(threads[r], NULL) == 0);
  for (r = 0; r < world; ++r) OK(regatta_transport_destroy(transports[r]));
}

int main(void) {
  static job alone = {"dp=1", "", "zero1", 0, {0}};
  static job others[] = {
      {"dp=2", "", "zero1", 0, {0}},          {"dp=2", NULL, "zero2", 0, {0}},        {"tp=2", "tp:1", "zero1", 0, {0}},
      {"dp=2,tp=2", "tp:1", "zero1", 0, {0}}, {"dp=2", "dp:flat", "sharded", 0, {0}}, {"dp=1", "", "zero1", 3, {0}},
      {"dp=2,tp=2", "tp:1", "zero1", 3, {0}},
  };
  float moved_by = 0;
  size_t k;
  int i;
  run(&alone);
  for (i = 0; i < rows * cols; ++i) moved_by += fabsf(alone.result[i] - value(i));
  CHECK(moved_by > 1);
  for (k = 0; k < sizeof others / sizeof others[0]; ++k) {
    run(&others[k]);
    if (memcmp(alone.result, others[k].result, sizeof alone.result) != 0) {
      fprintf(stderr, "mesh %s, mode %s: the weights are not those of one rank\n", others[k].mesh, others[k].mode);
      return 1;
    }
  }
  printf("regatta %s from C: %d checks, weights equal on 1, 2 and 4 ranks\n", regatta_version(), checks_made);
  return 0;
}
