/* Under mpirun: halves of a job, one given as MPI_Comm and one by its Fortran handle, train at the same time. */

#include <math.h>
#include <mpi.h>
#include <regatta_mpi.h>

#include "tests/c/check.h"

static float train(regatta_transport* t, int half) {
  const int64_t shape[] = {16, 8};
  regatta_engine* e = NULL;
  void* data = NULL;
  char mesh[32];
  float grad[128], sum = 0;
  int world = 0, rank = 0, step, i;
  OK(regatta_transport_world_size(t, &world));
  OK(regatta_transport_rank(t, &rank));
  snprintf(mesh, sizeof mesh, "dp=%d", world);
  OK(regatta_engine_create(t, mesh, &e));
  OK(regatta_engine_add_group(e, "all", "reg", NULL, 1.0, NULL));
  OK(regatta_engine_add_param(e, "W", shape, 2, REGATTA_F32, NULL, 0, NULL));
  OK(regatta_engine_build(e));
  OK(regatta_engine_param(e, 0, &data, NULL, NULL));
  for (i = 0; i < 128; ++i) ((float*)data)[i] = cosf((float)(i + 1000 * half));
  OK(regatta_engine_publish_params(e));
  for (step = 0; step < 4; ++step) {
    for (i = 0; i < 128; ++i) grad[i] = i % world == rank ? sinf((float)(i + step + 500 * half)) : 0;
    OK(regatta_engine_add_grad(e, 0, grad, 128, REGATTA_F32));
    OK(regatta_engine_step(e, 0.02, NULL, 0));
  }
  for (i = 0; i < 128; ++i) sum += ((float*)data)[i] * (float)(i + 1);
  OK(regatta_engine_destroy(e));
  return sum;
}

int main(int argc, char** argv) {
  regatta_transport *mine = NULL, *alone = NULL, *job = NULL, *messages = NULL;
  MPI_Comm half_comm;
  const char* path = NULL;
  int level = 0, rank = 0, half, finalized = 1, r = -1, size = 0;
  float together, by_itself;
  REFUSED(regatta_transport_from_mpi(MPI_COMM_WORLD, NULL, &mine), "MPI has not been initialised");
  REFUSED(regatta_transport_from_mpi_fortran(0, NULL, &mine), "MPI is not running");
  MPI_Init_thread(&argc, &argv, MPI_THREAD_MULTIPLE, &level);
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  half = rank % 2;
  MPI_Comm_split(MPI_COMM_WORLD, half, -rank, &half_comm);
  MPI_Comm_rank(half_comm, &r);
  MPI_Comm_size(half_comm, &size);

  REFUSED(regatta_transport_from_mpi(MPI_COMM_NULL, NULL, &mine), "MPI_COMM_NULL");
  REFUSED(regatta_transport_from_mpi(half_comm, NULL, NULL), "transport is NULL");
  REFUSED(regatta_transport_from_mpi(half_comm, "colour=red", &mine), "there is no option 'colour'");
  REFUSED(regatta_transport_from_mpi_fortran(987654, NULL, &mine), "MPI_COMM_NULL");
  if (half == 0)
    OK(regatta_transport_from_mpi(half_comm, "deadline_seconds=200", &mine));
  else
    OK(regatta_transport_from_mpi_fortran(MPI_Comm_c2f(half_comm), "deadline_seconds=200", &mine));
  MPI_Comm_free(&half_comm);
  {
    int ours = -1, world = 0;
    OK(regatta_transport_rank(mine, &ours));
    OK(regatta_transport_world_size(mine, &world));
    CHECK(ours == r && world == size);
  }
  together = train(mine, half);
  OK(regatta_transport_local(1, NULL, &alone));
  by_itself = train(alone, half);
  CHECK(memcmp(&together, &by_itself, sizeof together) == 0);
  OK(regatta_transport_mpi("deadline_seconds=200", &job));
  OK(regatta_transport_from_mpi(MPI_COMM_WORLD, "deadline_seconds=200,shared_memory=off", &messages));
  OK(regatta_transport_data_path(messages, &path));
  CHECK(strcmp(path, "messages") == 0);
  CHECK(isfinite(train(job, 0)) && isfinite(train(messages, 0)));
  OK(regatta_transport_destroy(mine));
  OK(regatta_transport_destroy(alone));
  OK(regatta_transport_destroy(job));
  MPI_Finalized(&finalized);
  CHECK(finalized == 0); /* it is ours to finalise */
  MPI_Barrier(MPI_COMM_WORLD);
  MPI_Finalize();
  OK(regatta_transport_destroy(messages)); /* too late, but no harm */
  REFUSED(regatta_transport_mpi(NULL, &job), "MPI has been finalised already");
  if (rank == 0) printf("halves of %d ranks trained at the same time\n", 2 * size);
  return 0;
}
