/* The part of the C interface that speaks of MPI. Needs the <mpi.h> that Regatta was built with. NCCL communicators are
 * not taken yet: there is no NCCL transport. */
#ifndef REGATTA_MPI_H
#define REGATTA_MPI_H

#include <mpi.h>

#include "regatta.h"

#ifdef __cplusplus
extern "C" {
#endif

/* This process's rank of the caller's communicator. Collective over it. It is duplicated, so the caller's messages
 * cannot get in the way and it may be freed at once; parts of a job may each make their own and train at the same time.
 * MPI must have been initialised with MPI_THREAD_MULTIPLE (regatta_last_error says so if not), and is the caller's to
 * finalise, after the transport and its engines have been destroyed. `options` as for regatta_transport_mpi. */
REGATTA_API int regatta_transport_from_mpi(MPI_Comm communicator, const char* options, regatta_transport** transport);

#ifdef __cplusplus
}
#endif

#endif
