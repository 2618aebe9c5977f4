#include <regatta.h>
#include <stdio.h>

int main(void) {
  const int64_t shape[] = {4, 2};
  regatta_transport* ranks = NULL;
  regatta_engine* engine = NULL;
  void* weights = NULL;
  float grad[8] = {1, -2, 3, -4, 5, -6, 7, -8};
  regatta_step_report report;
  int failed = regatta_transport_local(1, NULL, &ranks) || regatta_engine_create(ranks, "", &engine) ||
               regatta_engine_add_group(engine, "all", "reg", NULL, 1.0, NULL) ||
               regatta_engine_add_param(engine, "W", shape, 2, REGATTA_F32, NULL, 0, NULL) ||
               regatta_engine_build(engine) || regatta_engine_param(engine, 0, &weights, NULL, NULL) ||
               regatta_engine_publish_params(engine) || regatta_engine_add_grad(engine, 0, grad, 8, REGATTA_F32) ||
               regatta_engine_step(engine, 0.1, &report, sizeof report);
  if (failed) {
    fprintf(stderr, "%s\n", regatta_last_error());
    return 1;
  }
  printf("regatta %s: step %d made W[0] %g\n", regatta_version(), (int)report.step, ((float*)weights)[0]);
  regatta_engine_destroy(engine);
  regatta_transport_destroy(ranks);
  return 0;
}
